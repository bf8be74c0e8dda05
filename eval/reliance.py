"""How well do trained estimators of visual reliance tell which tokens depend on the image?

`python -m specdec.eval.reliance`. Held-out questions are answered, greedily and sampled, and the
answers judged as in training; none of the questions was trained or tuned on. The estimators are
loaded from their files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdec.eval import suite
from specdec.eval.record import machine, write

FOLDER = suite.MODEL / "reliance"


def reliance(
    folder: Annotated[Path, typer.Option("--reliance", help="Of the estimators.")] = FOLDER,
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    drafter: Annotated[Path, typer.Option(help="Folder of the drafter.")] = suite.DRAFTER,
    asked: Annotated[Path, typer.Option("--suite", help="Of questions.")] = suite.QUESTIONS,
    questions: Annotated[int | None, typer.Option(min=2, help="How many; default all.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers read together.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 160,
    temperatures: Annotated[
        list[float] | None, typer.Option("--temperature", help="Of the answers; default 0 and 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the answers that are sampled.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the verifier.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """AUROC of trained estimators on held-out questions."""
    from specdec.drafters import TextOnlyDrafter, load_drafter
    from specdec.reliance import Divergence, Reliance
    from specdec.saved_reliance import KINDS, load_reliance, read_facts
    from specdec.training import estimators
    from specdec.training.probe import show
    from specdec.training.prompts import Asking
    from specdec.training.readings import Reader, join
    from specdec.verifiers import TransformersVerifier
    from specdec.verifiers.fingerprint import fingerprint

    try:
        found = suite.load_questions(asked, questions)
        verifier, processor = suite.load_verifier(model, dtype)
        loaded = load_drafter(drafter, verifier)
        if not isinstance(loaded, TextOnlyDrafter):
            raise ValueError(f"{drafter}: estimators are measured with text-only drafters")
        facts, mark = read_facts(folder), fingerprint(verifier)
        kinds: dict[str, Reliance] = {
            kind: load_reliance(folder, kind, fingerprint=mark)
            for kind in KINDS
            if kind in facts["kinds"]
        }
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    reads = TransformersVerifier(verifier, hidden=True, visual_mass="combined" in kinds)
    reads.shares = False
    reader = Reader(reads, processor, loaded.model, max_new_tokens, batch)
    answered = temperatures or [0.0, 1.0]
    parts = [reader.read(Asking(found, at), seed + turn) for turn, at in enumerate(answered)]
    every = join([part for part in parts if part is not None])
    figures = estimators.figures(kinds | {"divergence": Divergence()}, every)
    show(figures)
    if out is not None:
        how = {"machine": machine(), "questions": len(found), "temperatures": answered}
        write(out, {**how, "seed": seed, "dtype": dtype, **figures})


if __name__ == "__main__":
    typer.run(reliance)
