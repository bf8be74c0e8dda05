"""Find how far a model may give way without losing quality: `specdec calibrate`.

A grid of policies, an estimator's with several ε and γ, answers development questions, and so does
lossless acceptance. Of the policies that lose little enough (:mod:`specdec.eval.calibration`), the
one with the largest acceptance length is written. With a probability of at least ``--confidence``
over the choice of the questions, none that passes loses more than ``--max-loss`` on questions like
these.

Importing this imports no model code, so that a command line can register :func:`calibrate` for
free.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specdec.eval.calibration import Tried
    from specdec.eval.devset import DevQuestion, Metric
    from specdec.eval.policy_runs import Decoder
    from specdec.interfaces import Drafter

DEMO = "demo"


def calibrate(
    model: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of the model; `demo` is the one shipped.")
    ],
    out: Annotated[Path, typer.Option(help="Policy file to write.")] = Path("policy.json"),
    drafter: Annotated[
        str | None,
        typer.Option(metavar="DIR|ngram", help="Who drafts; default: the demo model's own."),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help='Folder of images and *.jsonl lines {"image": file, "prompt": text, "answer": '
            'text}, "answer" only if one is expected. Default: questions made for the demo model.',
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="fields|answer|similarity",
            help="Quality: facts stated rightly (demo model only), the expected answer contained, "
            "or likeness to the lossless answer. Default: the first that the questions allow.",
        ),
    ] = None,
    max_loss: Annotated[
        str, typer.Option(help="Largest mean loss of quality, as in 0.5% or 0.005.")
    ] = "0.5%",
    confidence: Annotated[
        float, typer.Option(help="With which the loss is no larger, between 0 and 1.")
    ] = 0.95,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Most questions; default all, of the demo model 1000.")
    ] = None,
    reliance: Annotated[
        str, typer.Option(help="Estimator of visual reliance: probe, attention, combined, …")
    ] = "probe",
    gammas: Annotated[str, typer.Option(help="How sharply reliance counts, the values to try.")] = (
        "1,4"
    ),
    epsilons: Annotated[
        str | None,
        typer.Option(help="How far the model may give way, the values to try; default: a ladder."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers; 0 is greedy.")] = 0.0,
    samples: Annotated[
        int, typer.Option(min=1, help="Answers to each question where they are sampled.")
    ] = 1,
    tree: Annotated[int, typer.Option(min=1, help="Draft a chain of so many tokens.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 160,
    dtype: Annotated[
        str, typer.Option(help="Of the model: float32, bfloat16 or float16.")
    ] = "float32",
    seed: Annotated[int, typer.Option(help="Of what is sampled.")] = 0,
) -> None:
    """Find the most permissive acceptance that loses no more than a given share of quality.

    Writes a policy file for `--acceptance` of `specdec generate` and for acceptance= in Python; if
    no policy passes, none, and the exit code is 1.
    """
    from specdec.eval import devset
    from specdec.eval.calibration import Grid, judge, measure
    from specdec.policies import save_policy

    try:
        allowed = _share(max_loss)
        if not 0 < confidence < 1:
            raise ValueError(f"--confidence {confidence} is not between 0 and 1")
        ladder = LADDERS[temperature > 0] if epsilons is None else _numbers("epsilons", epsilons)
        grid = Grid(reliance, _numbers("gammas", gammas), tuple(sorted(ladder)))
        policies = grid.policies()
        asked = _questions(model, dev, questions)
        kind = devset.natural(asked) if metric is None else _metric(metric)
        devset.check(kind, asked, sampled=temperature > 0)
        decoder, processor = _decoder(model, drafter, dtype, temperature, tree, max_new_tokens)
        decoder.rule(policies[-1])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    def told(count: int) -> None:
        if count % 50 == 0 or count == len(asked):
            typer.echo(f"{count} of {len(asked)} questions")

    rounds = samples if temperature > 0 else 1
    losses, stats, lossless = measure(
        decoder, processor, asked, policies, kind, samples=rounds, seed=seed, told=told
    )
    taus = [each.mean_acceptance_length for each in stats]
    tried = judge(policies, losses, taus, max_loss=allowed, confidence=confidence)
    base = lossless.mean_acceptance_length
    _show(tried, base, kind, allowed)
    best = max((each for each in tried if each.passed), key=lambda each: each.tau, default=None)
    if best is None:
        _lament(tried, len(asked), allowed, 1 - (1 - confidence) / len(grid.gammas))
        raise typer.Exit(1)
    assert best.bound is not None, "what passed was tested"
    found = {
        "metric": kind.value,
        "max_loss": allowed,
        "confidence": confidence,
        "questions": len(asked),
        "loss": best.loss,
        "bound": best.bound,
        "tau": best.tau,
        "lossless_tau": base,
        "temperature": temperature,
        "tree": tree,
        "samples": rounds,
        "gammas": list(grid.gammas),
        "epsilons": list(grid.epsilons),
    }
    save_policy(out, best.policy, decoder.model, found)
    typer.echo(
        f"{out}: epsilon {best.policy.epsilon:g}, gamma {best.policy.gamma:g}; τ {best.tau:.2f} "
        f"instead of {base:.2f}, loss at most {best.bound:.2%} with {confidence:.0%} confidence"
    )


# By whether answers are sampled: ε is total variation there, and 1 - a ratio else.
LADDERS = {
    False: (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0),
    True: (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
}


def _share(text: str) -> float:
    """`0.5%` or `0.005`."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"--max-loss {text}: expected a share such as 0.5% or 0.005")
    return value


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--{option} {text}: expected numbers such as 1,4") from None


def _metric(name: str) -> Metric:
    from specdec.eval.devset import Metric

    if name not in list(Metric):
        raise ValueError(f"--metric {name}: known are {', '.join(Metric)}")
    return Metric(name)


def _questions(model: str, dev: Path | None, count: int | None) -> list[DevQuestion]:
    from specdec.eval import devset

    if dev is not None:
        return devset.from_folder(dev, count)
    if model != DEMO:
        raise ValueError(f"--model {model} needs questions: --dev DIR")
    return devset.generated(count or 1000)


def _decoder(
    model: str, drafter: str | None, dtype: str, temperature: float, tree: int, longest: int
) -> tuple[Decoder, Any]:
    """The model with its drafter, and its processor.

    Raises:
        ValueError: something of it is not there, or does not fit.
    """
    import torch
    from transformers.utils import logging

    from specdec import demo
    from specdec.choice import resolve_drafter
    from specdec.eval import suite
    from specdec.eval.policy_runs import Decoder
    from specdec.tree import chain

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype {dtype}: expected float32, bfloat16 or float16")
    number_type = getattr(torch, dtype)
    logging.disable_progress_bar()
    chosen: Drafter | None
    if model == DEMO:
        loaded, processor, chosen = demo.load(dtype=number_type)
    else:
        loaded, processor = suite.load_verifier(model, number_type)
        chosen = None
    if drafter is not None:
        chosen = resolve_drafter(drafter, loaded)
    if chosen is None:
        raise ValueError(f"--model {model} needs a drafter: --drafter DIR or ngram")
    tokenizer: Any = processor
    decoder = Decoder(
        loaded,
        tokenizer.tokenizer,
        chosen,
        chain(tree),
        max_new_tokens=longest,
        temperature=temperature,
    )
    return decoder, processor


def _show(tried: Sequence[Tried], lossless: float, metric: Metric, allowed: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"loss of quality ({metric}), at most {allowed:.2%}; τ {lossless:.2f} lossless"
    )
    for column in ("γ", "ε", "τ", "loss", "at most", "passes"):
        table.add_column(column, justify="right")
    for each in tried:
        bound = "not tested" if each.bound is None else f"{each.bound:.2%}"
        table.add_row(
            *(f"{each.policy.gamma:g}", f"{each.policy.epsilon:g}", f"{each.tau:.2f}"),
            *(f"{each.loss:.2%}", bound, "yes" if each.passed else "no"),
        )
    Console().print(table)


def _lament(tried: Sequence[Tried], asked: int, allowed: float, confidence: float) -> None:
    """Say why nothing passed."""
    from specdec.eval.bounds import least_questions

    least = least_questions(allowed, confidence)
    line = f"no policy passes, and no file is written: {asked} questions"
    if asked < least:
        line += f" are too few, it takes {least} even if none of them loses anything"
    else:
        line += " show losses; try smaller epsilons, another estimator or a larger --max-loss"
    typer.echo(line, err=True)
