"""The kinds of drafters that can be distilled: what each learns from, and what comes of it.

A kind makes the student, says what data it reads, and turns it into a drafter that the engine can
run and that can be saved. Knows no trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_files import save_eagle
from specdec.drafters.eagle_head import EagleConfig, EagleHead, Vision
from specdec.drafters.loading import save_drafter, save_vision_pruned
from specdec.drafters.text_only import TextOnlyDrafter
from specdec.drafters.vision_pruned import VisionPrunedDrafter
from specdec.interfaces import Drafter
from specdec.training import feature_shards, small
from specdec.training.answers import Teacher
from specdec.training.batches import Batch, EagleCollator, TextCollator, VisionCollator, equally
from specdec.training.examples import Example, Examples
from specdec.training.feature_shards import FeatureShards
from specdec.training.features import FeatureReader, Reading
from specdec.training.losses import Mixture
from specdec.training.shards import AnswerShards
from specdec.training.students import ACCEPTANCE, EVENLY, EagleStudent, TextStudent, VisionStudent
from specdec.training.weighing import by_reliance
from specdec.verifiers.spec import read_spec

KindName = Literal["text_only", "eagle", "vision_pruned"]
MOST_DRAFTED = 32_000  # tokens that a head of its own choice can propose


@dataclass(frozen=True)
class Geometry:
    """How large a drafter is, and what it reads; ``None`` leaves it to its kind.

    Attributes:
        layers: of a language model; an EAGLE head has one.
        hidden: width; of an EAGLE head that of its verifier, whose embeddings it reads, or else it
            gets its own.
        intermediate: width of the MLP.
        heads: query heads.
        kv_heads: key and value heads.
        vision: how an EAGLE head sees the image.
        taps: layers of the verifier whose inputs it reads; default those of EAGLE-3.
        shared_layer: whose keys of the image it reads, if it shares them.
        queries: learned queries an image, if it compresses.
        draft_vocabulary: tokens that it can propose, the most frequent ones of the answers.
        keep: share of the visual tokens that a small LVLM reads when it drafts.
    """

    layers: int | None = None
    hidden: int | None = None
    intermediate: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    vision: Vision = "hidden"
    taps: tuple[int, ...] = ()
    shared_layer: int | None = None
    queries: int = 4
    draft_vocabulary: int | None = None
    keep: float = 0.25

    @property
    def size(self) -> small.Size:
        """Of a drafter that is a model of its own."""
        default = small.Size()
        return small.Size(
            self.layers or default.layers,
            self.hidden or default.hidden,
            self.intermediate or default.intermediate,
            self.heads or default.heads,
            self.kv_heads or default.kv_heads,
        )


class Kind(Protocol):
    """A drafter that is being made."""

    @property
    def student(self) -> nn.Module:
        """What learns."""

    @property
    def collate(self) -> Callable[[Sequence[Example]], Batch]:
        """Makes batches for it."""

    def prepare(self, shards: AnswerShards, say: Callable[[str], None]) -> list[Example] | Examples:
        """The data that it learns from; what is missing of it is computed and kept.

        Raises:
            ValueError: there is no room for it, or the answers are others than those it is for.
        """

    def drafter(self) -> Drafter:
        """What it is by now, for the engine."""

    def save(self, folder: Path, verifier: str, facts: Mapping[str, Any]) -> None:
        """Write it so that ``load_drafter`` finds it."""


class TextOnly:
    """A small language model that sees no image."""

    def __init__(
        self, teacher: Teacher, geometry: Geometry, seed: int, mixture: Mixture | None
    ) -> None:
        self._visual = read_spec(teacher.model).visual_token_ids
        self._model = small.build(teacher.model, geometry.size, seed)
        self.student: nn.Module = TextStudent(self._model, mixture or EVENLY)
        self.collate: Callable[[Sequence[Example]], Batch] = TextCollator()

    def prepare(self, shards: AnswerShards, say: Callable[[str], None]) -> list[Example]:
        """The answers alone; they are few enough to be kept in memory."""
        return list(Examples(shards, self._visual))

    def drafter(self) -> Drafter:
        return TextOnlyDrafter(self._model.eval())

    def save(self, folder: Path, verifier: str, facts: Mapping[str, Any]) -> None:
        save_drafter(self._model, folder, verifier=verifier, **facts)


class VisionPruned:
    """A small LVLM. It learns from whole images and drafts from a part of each.

    Raises:
        ValueError: no small one of the verifier's family can be made.
    """

    def __init__(
        self, teacher: Teacher, geometry: Geometry, seed: int, mixture: Mixture | None
    ) -> None:
        self._teacher, self._keep = teacher, geometry.keep
        self._model = small.build_small_lvlm(teacher.model, geometry.size, seed)
        self.student: nn.Module = VisionStudent(self._model, mixture or EVENLY)
        self._shards: AnswerShards | None = None
        self.collate: Callable[[Sequence[Example]], Batch] = VisionCollator(self._inputs)

    def prepare(self, shards: AnswerShards, say: Callable[[str], None]) -> Examples:
        """The answers; their images are read again whenever they are asked for."""
        self._shards = shards
        return Examples(shards, read_spec(self._teacher.model).visual_token_ids)

    def drafter(self) -> Drafter:
        return VisionPrunedDrafter(self._model.eval(), self._keep)

    def save(self, folder: Path, verifier: str, facts: Mapping[str, Any]) -> None:
        save_vision_pruned(self._model, folder, verifier=verifier, ratio=self._keep, **facts)

    def _inputs(self, example: Example) -> Mapping[str, torch.Tensor]:
        assert self._shards is not None
        return self._teacher.inputs([self._shards.answer(*example.place).asked])


class Eagle:
    """An EAGLE-3 head.

    Args:
        steps: of training-time test.
        noise: on the verifier's states while it learns.
        visual_weight: of tokens that depend on the image, where others have 1.

    Raises:
        ValueError: the verifier has not what is to be read of it, or no probe says which tokens
            depend on the image.
    """

    def __init__(
        self,
        teacher: Teacher,
        geometry: Geometry,
        seed: int,
        mixture: Mixture | None,
        *,
        steps: int = 4,
        noise: float = 0.0,
        visual_weight: float = 1.0,
    ) -> None:
        self._teacher = teacher
        config = head_config(teacher, geometry)
        self._reading = Reading(config.layers, config.shared_layer, config.page_size)
        self._reading.check(teacher.model)
        self._embeddings: nn.Module | None = None
        model: Any = teacher.model  # the base class does not declare embeddings' types
        out = model.get_output_embeddings().weight.detach().float()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = EagleHead(config)
        embeddings = None
        if not config.own_embeddings:
            self._embeddings = model.get_input_embeddings()
            with torch.no_grad():  # called, since some scale them
                every = torch.arange(config.vocab_size, device=model.device)
                embeddings = model.get_input_embeddings()(every).float()
        self._out = out
        text = model.config.get_text_config(decoder=True)
        self.student: nn.Module = EagleStudent(
            self.head,
            out,
            embeddings,
            mixture=mixture or ACCEPTANCE,
            noise=noise,
            softcap=getattr(text, "final_logit_softcapping", None),
        )
        weigh = equally if visual_weight == 1 else by_reliance(teacher.model, visual_weight)
        collator = EagleCollator(config, steps, weigh=weigh)
        self.collate: Callable[[Sequence[Example]], Batch] = collator

    def prepare(self, shards: AnswerShards, say: Callable[[str], None]) -> Examples:
        """The answers with the verifier's states, which are kept beside them."""
        reader = FeatureReader(self._teacher.model, self._teacher.processor, self._reading)
        # Runs that share answers may read other states of them.
        features = FeatureShards(shards, self._reading, folder=shards.folder / self._reading.name)
        wanted = feature_shards.estimate(reader, features)
        if wanted:
            say(f"the verifier's states take {wanted / 2**20:,.0f} MiB")
        feature_shards.check_room(shards.folder, wanted)
        for done, total in feature_shards.collect(reader, features):
            say(f"states of {done} of {total} shards of answers")
        examples = Examples(shards, read_spec(self._teacher.model).visual_token_ids, features)
        self._speak(shards)
        return examples

    def drafter(self) -> Drafter:
        head = self.head.eval().to(self._teacher.model.device)
        return EagleDrafter(head, self._embeddings)

    def save(self, folder: Path, verifier: str, facts: Mapping[str, Any]) -> None:
        save_eagle(self.head, folder, verifier=verifier, **facts)

    def _speak(self, shards: AnswerShards) -> None:
        """Let the head propose the most frequent tokens of the answers, and start from the
        verifier's own output matrix where that has its width.
        """
        config = self.head.config
        if config.draft_vocab_size < config.vocab_size:
            counts = torch.zeros(config.vocab_size, dtype=torch.long)
            for number in range(len(shards)):
                numbers = shards.numbers(*shards.place(number))
                told = numbers.tokens[numbers.prompt_length :]
                counts += torch.bincount(told, minlength=config.vocab_size)
            # Stable, so that ties are broken alike in every run.
            order = counts.sort(descending=True, stable=True).indices
            self.head.speak(order[: config.draft_vocab_size].sort().values)
        if self._out.shape[1] == config.hidden_size:
            with torch.no_grad():
                self.head.lm_head.weight.copy_(self._out[self.head.spoken])


def head_config(teacher: Teacher, geometry: Geometry) -> EagleConfig:
    """The head that fits a verifier, as far as ``geometry`` leaves it open.

    Raises:
        ValueError: the verifier's positions or layers cannot be shared, or heads do not divide.
    """
    spec = read_spec(teacher.model)
    text = teacher.model.config.get_text_config(decoder=True)
    shares = geometry.vision == "shared"
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = text.num_key_value_heads if shares else geometry.kv_heads
    kv_heads = kv_heads or text.num_key_value_heads
    heads = geometry.heads or text.num_attention_heads
    if heads % kv_heads:
        raise ValueError(
            f"{heads} query heads cannot share {kv_heads} key heads of {spec.name}; choose a "
            "multiple with --heads"
        )
    layer = geometry.shared_layer
    if shares and layer is None:
        layer = spec.num_layers // 2
    rope = text.rope_parameters or {}
    if "rope_theta" not in rope:
        kinds = getattr(text, "layer_types", None) or ()
        name = kinds[layer] if layer is not None and layer < len(kinds) else "full_attention"
        rope = rope.get(name) or {}
    if "rope_theta" not in rope:
        raise ValueError(f"{spec.name} has no rotary positions that an EAGLE head could share")
    width = geometry.hidden or spec.hidden_size
    drafted = geometry.draft_vocabulary or min(spec.vocab_size, MOST_DRAFTED)
    last = spec.num_layers
    return EagleConfig(
        hidden_size=width,
        intermediate_size=geometry.intermediate or 2 * width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim,
        vocab_size=spec.vocab_size,
        draft_vocab_size=min(drafted, spec.vocab_size),
        target_hidden_size=spec.hidden_size,
        layers=geometry.taps or tuple(sorted({min(2, last - 1), last // 2, max(last - 3, 0)})),
        rope_parameters=dict(rope),
        rms_norm_eps=getattr(text, "rms_norm_eps", 1e-6),
        own_embeddings=width != spec.hidden_size,
        vision=geometry.vision,
        queries=geometry.queries,
        shared_layer=layer if shares else None,
    )


def make(
    name: KindName,
    teacher: Teacher,
    geometry: Geometry,
    seed: int,
    mixture: Mixture | None,
    *,
    steps: int,
    noise: float,
    visual_weight: float,
) -> Kind:
    """The kind of this name, freshly initialised.

    Raises:
        ValueError: see the kinds.
    """
    if name != "eagle":
        if visual_weight != 1:
            raise ValueError(
                f"kind {name} learns without the verifier's states, which tell what depends on the "
                "image; only eagle weighs tokens by it"
            )
        own = TextOnly if name == "text_only" else VisionPruned
        return own(teacher, geometry, seed, mixture)
    return Eagle(
        teacher, geometry, seed, mixture, steps=steps, noise=noise, visual_weight=visual_weight
    )
