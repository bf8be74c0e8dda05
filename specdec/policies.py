"""What ``acceptance=`` means: a policy, made into a rule for one model.

A policy is said once and holds for any model; a rule has the model's own estimator and guards. A
*policy file* is JSON: a :class:`Relaxed`, and the fingerprint of the model it was calibrated on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, get_args
from weakref import WeakKeyDictionary

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from specdec.acceptance import Rule
from specdec.files import read_json, write_json
from specdec.guards import GUARDS, Guards
from specdec.interfaces import VerifierSpec
from specdec.relaxation import Relaxation
from specdec.reliance import Divergence, Reliance
from specdec.saved_reliance import Kind, load_reliance
from specdec.verifiers.fingerprint import fingerprint

BESIDE = "reliance"  # folder of trained estimators, beside a model's weights
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Acceptance that lets the target give way to the drafter by ε_v = ε·(1 − v)^γ, where v is how
    much a token depends on the image; see :mod:`specdec.relaxation`.

    Args:
        epsilon: most that the target gives way at one token, in [0, 1]: total variation when
            sampling; when greedy, 1 − the least ratio to the most probable token's probability.
            0 is lossless, bit for bit.
        reliance: estimates v: a :class:`Reliance`, ``"divergence"`` (how far the drafter, which
            sees no image, is from the verifier), or the name of a trained one (``"probe"``,
            ``"attention"``, ``"combined"``) that ``specdec train-probe`` has put beside the model.
        gamma: how sharply v counts; 0 makes it not count at all.
        guards: names of what stays strict (:data:`specdec.guards.GUARDS`), or :class:`Guards`.
            Tokens that end the answer always do.
        floor: least probability of a token that may gain, as a share of the most probable token's.
            0 lets the target take any token that no logits processor has excluded: within the
            bound, as ever, but what the drafter has wrong may then be kept as often as what it
            words differently.
        budget: most that a whole answer may spend, in total variation or nats of regret; then it
            goes on losslessly. ``None`` is without end.

    Raises:
        ValueError: a number out of its range, or an unknown guard.
    """

    epsilon: float
    reliance: Reliance | str = "probe"
    gamma: float = 1.0
    guards: Guards | Collection[str] = GUARDS
    budget: float | None = None
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon} is not in [0, 1]")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma} is not a finite number >= 0")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor={self.floor} is not in [0, 1]")
        if self.budget is not None and not self.budget >= 0:
            raise ValueError(f"budget={self.budget} is not >= 0; None is without end")
        if isinstance(self.guards, str):
            raise ValueError(f"guards={self.guards!r}: expected a collection of names")
        if not isinstance(self.guards, Guards) and (unknown := set(self.guards) - set(GUARDS)):
            raise ValueError(
                f"guards={', '.join(sorted(unknown))}: not known; known: {', '.join(GUARDS)}"
            )


Acceptance = str | PathLike[str] | Relaxed | Rule


class Speaker(NamedTuple):
    """A model whose answers are to be accepted.

    Attributes:
        model: the model.
        spec: what it is.
        tokenizer: its tokenizer; ``None``: the one beside its weights, if it is needed.
        stop_tokens: what ends its answers.
    """

    model: PreTrainedModel
    spec: VerifierSpec
    tokenizer: PreTrainedTokenizerBase | None = None
    stop_tokens: Collection[int] = ()


def resolve(acceptance: Acceptance, speaker: Speaker) -> Rule | None:
    """The rule that ``acceptance`` means for a model; ``None`` is lossless.

    Raises:
        ValueError: it means none, or one that needs what is not there.
    """
    if isinstance(acceptance, str) and acceptance == "lossless":
        return None
    if isinstance(acceptance, (str, PathLike)):
        acceptance = load_policy(acceptance, speaker.model)
    if isinstance(acceptance, Relaxed):
        return _relaxation(acceptance, speaker)
    if hasattr(acceptance, "greedy") and hasattr(acceptance, "sampled"):
        return acceptance
    raise ValueError(
        f'acceptance={acceptance!r}: expected "lossless", specdec.Relaxed(...), a rule of '
        "specdec.baselines or the path of a policy file"
    )


@dataclass(slots=True)
class _Made:
    """What policies were found to mean for one model. To make it takes longer than a short answer:
    files are read, weights fingerprinted, a whole vocabulary looked through.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    reliance: dict[str, Reliance] = field(default_factory=dict)
    # With the tokenizer, so that its id stays its own.
    guards: dict[tuple[object, ...], tuple[object, Guards]] = field(default_factory=dict)


_MADE: WeakKeyDictionary[PreTrainedModel, _Made] = WeakKeyDictionary()


def _relaxation(policy: Relaxed, speaker: Speaker) -> Relaxation:
    made = _MADE.setdefault(speaker.model, _Made())
    reliance, guards = policy.reliance, policy.guards
    if isinstance(reliance, str):
        if reliance not in made.reliance:
            made.reliance[reliance] = _named(reliance, speaker.model)
        reliance = made.reliance[reliance]
    if not isinstance(guards, Guards):
        guards = _guards(frozenset(guards), speaker, made)
    width = speaker.spec.vocab_size
    if len(guards.tokens) != width:
        raise ValueError(
            f"guards= are for a vocabulary of {len(guards.tokens)}, {speaker.spec.name} has one of "
            f"{width}: make them with vocab_size={width}"
        )
    # A caller's own guards need not know what ends this call's answers.
    fixed = guards.tokens.clone()
    fixed[[token for token in speaker.stop_tokens if 0 <= token < width]] = True
    return Relaxation(
        epsilon=policy.epsilon,
        gamma=policy.gamma,
        reliance=reliance,
        guards=guards,
        fixed=fixed.to(speaker.model.device),
        budget=policy.budget,
        floor=policy.floor,
    )


def _named(name: str, model: PreTrainedModel) -> Reliance:
    if name == "divergence":
        return Divergence()
    if name not in get_args(Kind):
        known = ", ".join(("divergence", *get_args(Kind)))
        raise ValueError(f"reliance={name!r} is not known; known: {known}")
    kind: Kind = name  # type: ignore[assignment]  # one of them, as was just seen
    beside = Path(model.name_or_path or ".") / BESIDE
    return load_reliance(beside, kind, fingerprint=fingerprint(model), device=model.device)


def _guards(names: frozenset[str], speaker: Speaker, made: _Made) -> Guards:
    tokenizer = speaker.tokenizer
    if tokenizer is None and names:
        tokenizer = made.tokenizer = made.tokenizer or _tokenizer(speaker.model)
    key = (id(tokenizer), names)
    if key not in made.guards:
        made.guards[key] = tokenizer, Guards(tokenizer, speaker.spec.vocab_size, names)
    return made.guards[key][1]


def _tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model's weights."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.name_or_path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"guards are built from the tokenizer, and none lies beside {type(model).__name__} "
            f"{model.name_or_path!r}; pass tokenizer=, or guards=() to go without"
        ) from error
    return tokenizer


def save_policy(
    path: str | PathLike[str],
    policy: Relaxed,
    model: PreTrainedModel,
    calibration: Mapping[str, Any] | None = None,  # Any: JSON values
) -> None:
    """Write a policy for one model; the file appears, or is replaced, in one move.

    Args:
        calibration: how it was found, for the reader.

    Raises:
        ValueError: the policy holds an estimator or guards of its own, which have no name to write.
    """
    if not isinstance(policy.reliance, str) or isinstance(policy.guards, Guards):
        raise ValueError(
            "a policy file names its estimator and its guards; this policy has objects of its own"
        )
    settings = asdict(replace(policy, guards=list(policy.guards)))
    record = {"version": _VERSION, "model": fingerprint(model), "relaxed": settings}
    write_json(Path(path), record | ({"calibration": calibration} if calibration else {}))


def load_policy(path: str | PathLike[str], model: PreTrainedModel) -> Relaxed:
    """The policy in a file, if it is for this model.

    Raises:
        ValueError: there is none, or it was made for another model.
    """
    try:
        record = read_json(Path(path))
        version, theirs = record["version"], record["model"]
        settings = dict(record["relaxed"])
    except OSError as error:
        raise ValueError(
            f'acceptance={str(path)!r}: expected "lossless", specdec.Relaxed(...) or the path of a '
            f"policy file, and there is no such file ({error.strerror})"
        ) from error
    except KeyError as error:
        raise ValueError(f"{path} is no policy file: it has no {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no policy file: {error}") from error
    if version != _VERSION:
        raise ValueError(f"{path} is of version {version}; this specdec reads {_VERSION}")
    if theirs != (ours := fingerprint(model)):
        raise ValueError(
            f"{path} was calibrated for a model with fingerprint {str(theirs)[:12]}, and "
            f"{type(model).__name__} {model.name_or_path!r} has {ours[:12]}; calibrate one for it "
            "with `specdec calibrate`"
        )
    try:
        if not isinstance(settings.setdefault("reliance", "probe"), str):
            raise ValueError(f"reliance={settings['reliance']!r:.60} is no name")
        for name in ("epsilon", "gamma", "floor", "budget"):
            if settings.get(name) is not None:
                settings[name] = float(settings[name])
        return Relaxed(**settings | {"guards": tuple(settings.get("guards", GUARDS))})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is no policy file: {error}") from error
