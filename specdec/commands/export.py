"""`specdec export`: an EAGLE drafter as other engines load it."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec.commands.errors import UserError, reason
from specdec.commands.options import Precision

if TYPE_CHECKING:
    from specdec.drafters.eagle_head import EagleHead
    from specdec.drafters.eagle_raw import Engine


class Target(StrEnum):
    """Who is to load the export."""

    VLLM = "vllm"
    SGLANG = "sglang"
    SPECULATORS = "speculators"


def export(
    drafter: Annotated[
        str, typer.Argument(metavar="DRAFTER", help="Folder or hub id of an EAGLE drafter.")
    ],
    to: Annotated[Target, typer.Option(help="Engine, or package, that is to load it.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    verifier: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID",
            help="The model it drafts for; default: the one it was trained for.",
        ),
    ] = None,
    dtype: Annotated[
        Precision, typer.Option(help="Numbers that weights are written in; auto: as they are.")
    ] = Precision.BF16,
    embeddings: Annotated[
        bool,
        typer.Option(
            help="With --to speculators: also write the verifier's embeddings, which the package "
            "needs and vLLM does not."
        ),
    ] = False,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that vLLM drafts at a time; can be changed there.")
    ] = 3,
) -> None:
    """Write an EAGLE drafter in the form that vLLM, SGLang or speculators reads.

    Only heads that see the image through the verifier's hidden states can be exported; see
    docs/export.md.
    """
    import torch

    from specdec.drafters.eagle_export import read_embeddings, read_verifier
    from specdec.drafters.eagle_raw import export_raw
    from specdec.drafters.eagle_speculators import export_speculators

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder; name one that does not exist")
    if embeddings and to is not Target.SPECULATORS:
        raise UserError(f"--embeddings goes with --to speculators; {to.value} takes the verifier's")
    head, name = _read(drafter, verifier)
    numbers = dtype.dtype if isinstance(dtype.dtype, torch.dtype) else None
    try:
        facts = read_verifier(name)
    except ValueError as error:
        hint = "" if verifier else "; give --verifier if it lies elsewhere"
        raise UserError(f"{reason(error)}{hint}") from error
    try:
        if to is Target.SPECULATORS:
            copied = read_embeddings(facts) if embeddings else None
            export_speculators(head, out, facts, tokens=tokens, dtype=numbers, embeddings=copied)
        else:
            engine: Engine = "vllm" if to is Target.VLLM else "sglang"
            export_raw(head, out, facts, engine=engine, dtype=numbers)
    except ValueError as error:
        raise UserError(f"{drafter} cannot be exported to {to.value}: {reason(error)}") from error
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {reason(error)}") from error
    size = (out / "model.safetensors").stat().st_size
    written = str(head.fc.weight.dtype if numbers is None else numbers).removeprefix("torch.")
    print(f"wrote {out}: config.json, model.safetensors ({size / 1e6:.1f} MB, {written})")
    print(f"for {name}, reading its hidden states {', '.join(map(str, head.config.layers))}")
    print(f"serve: {serving(to, out, name, tokens)}")


def serving(to: Target, out: Path, verifier: str, tokens: int) -> str:
    """The shell command that serves ``verifier`` with the drafter in ``out``."""
    if to is Target.SPECULATORS:
        return shlex.join(["vllm", "serve", str(out)])
    if to is Target.SGLANG:
        words = ["python", "-m", "sglang.launch_server", "--model-path", verifier]
        words += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(out)]
        return shlex.join(words)
    config = {"method": "eagle3", "model": str(out), "num_speculative_tokens": tokens}
    return shlex.join(["vllm", "serve", verifier, "--speculative-config", json.dumps(config)])


def _read(drafter: str, verifier: str | None) -> tuple[EagleHead, str]:
    """The head and the name of its verifier, whose layers are looked up only if need be."""
    from specdec.drafters.eagle_export import read_verifier
    from specdec.drafters.eagle_files import eagle_form, read_eagle

    try:
        form = eagle_form(drafter)
        if form is None:
            raise UserError(_other(drafter))
        layers = None
        if form != "native" and verifier is not None:
            layers = read_verifier(verifier).layers
        head, facts = read_eagle(drafter, verifier_layers=layers)
    except ValueError as error:
        raise UserError(f"{drafter} cannot be read: {reason(error)}") from error
    name = verifier or facts["verifier"]
    if not name:
        raise UserError(f"{drafter} does not say which model it drafts for; give --verifier")
    return head, str(name)


def _other(drafter: str) -> str:
    """Why something that is no EAGLE drafter cannot be exported."""
    from specdec.drafters.checkpoint_files import find

    if find(drafter, "config.json") is None:
        return f"{drafter} holds no drafter: no drafter.json, no config.json"
    return (
        f"{drafter} is a text-only drafter: an ordinary causal language model, which needs no "
        "export; vLLM takes the folder as draft_model for text models, and for vision-language "
        "models only where the drafter's positions are not M-RoPE"
    )
