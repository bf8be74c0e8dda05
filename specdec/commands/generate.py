"""`specdec generate`: one answer of any checkpoint on disk, decoded speculatively."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from specdec.commands.asking import answer, ask, note, sampling
from specdec.commands.options import (
    AcceptanceOption,
    DrafterOption,
    ImageOption,
    LengthOption,
    ModelOption,
    PixelsOption,
    Precision,
    PrecisionOption,
    PromptOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    TreeOption,
    check_acceptance,
    parse_tree,
)
from specdec.commands.stream import Piece, Pieces

if TYPE_CHECKING:
    from specdec.stats import AcceptanceStats


def generate(
    model: ModelOption,
    prompt: PromptOption,
    image: ImageOption = None,
    drafter: DrafterOption = None,
    tree: TreeOption = "4",
    acceptance: AcceptanceOption = "lossless",
    max_new_tokens: LengthOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    dtype: PrecisionOption = Precision.AUTO,
    max_pixels: PixelsOption = 50_000_000,
    stats: Annotated[
        bool, typer.Option(help="Print what speculation achieved to standard error.")
    ] = True,
) -> None:
    """Answer a prompt about images. The answer goes to standard output as it is decoded.

    Reads local files only, never runs code from a checkpoint, and loads safetensors only.
    """
    how = {"tree": parse_tree(tree), "acceptance": check_acceptance(acceptance)}
    how |= sampling(temperature, top_p, seed)
    question = ask(
        "generate",
        model=model,
        prompt=prompt,
        image=image,
        drafter=drafter,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        max_pixels=max_pixels,
    )
    began = time.perf_counter()
    out = answer(question, Pieces(question.loaded.tokenizer, _show), **how)
    sys.stdout.write("\n")
    if stats:
        _print_stats(out.stats, time.perf_counter() - began)


def _show(piece: Piece) -> None:
    sys.stdout.write(piece.text)
    sys.stdout.flush()


def _print_stats(stats: AcceptanceStats, seconds: float) -> None:
    tokens, times = stats.num_generated_tokens, stats.times
    step = max(times.step, 1e-9)
    note(
        "generate",
        f"{tokens} tokens in {seconds:.2f} s, {1e3 * seconds / tokens:.1f} ms/token, "
        f"prefill {times.prefill:.2f} s",
    )
    note(
        "generate",
        f"τ {stats.mean_acceptance_length:.2f} tokens per step of the verifier, "
        f"{stats.num_accepted_draft_tokens} of {stats.num_draft_tokens} drafted tokens accepted",
    )
    note(
        "generate",
        f"a step: draft {times.draft / step:.0%}, verify {times.verify / step:.0%}, "
        f"accept {times.accept / step:.0%}, commit {times.commit / step:.0%}; "
        f"outside the models {times.overhead:.0%}",
    )
    if stats.num_relaxed_tokens:
        note(
            "generate",
            f"{stats.num_relaxed_tokens} tokens where the model gave way to the drafter, "
            f"{stats.bound_spent:.2f} of the bound spent; `specdec audit` shows which",
        )
