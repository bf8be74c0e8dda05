"""`specdec generate`: one answer of any checkpoint on disk, decoded speculatively."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from specdec.commands.errors import UserError, reason
from specdec.commands.options import Precision, parse_tree
from specdec.commands.stream import Piece, Pieces

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from specdec.interfaces import Drafter
    from specdec.stats import AcceptanceStats


class _Loaded(NamedTuple):
    model: PreTrainedModel
    processor: ProcessorMixin | PreTrainedTokenizerBase
    drafter: Drafter | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        whole: Any = self.processor
        tokenizer: PreTrainedTokenizerBase = getattr(whole, "tokenizer", whole)
        return tokenizer


def generate(
    model: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Folder of a transformers checkpoint; `demo` is the one shipped."
        ),
    ],
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An image to ask about; may be given several times."),
    ] = None,
    drafter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ngram|none",
            help="Who drafts: a saved drafter or language model with the same tokenizer, prompt "
            "look-up, or nobody. Default: ngram, and for the demo model its own drafter.",
        ),
    ] = None,
    tree: Annotated[
        str,
        typer.Option(
            metavar="K|A,B,…",
            help="Largest draft: a line of K tokens, or A children, B children of each of them, ….",
        ),
    ] = "4",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most probable token, more samples.")
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Sample from the most probable tokens of this mass."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed for sampling; random if not given.")
    ] = None,
    dtype: Annotated[
        Precision, typer.Option(help="Numbers to compute with; auto: as the checkpoint was saved.")
    ] = Precision.AUTO,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Largest image that is decoded, in pixels.")
    ] = 50_000_000,
    stats: Annotated[
        bool, typer.Option(help="Print what speculation achieved to standard error.")
    ] = True,
) -> None:
    """Answer a prompt about images. The answer goes to standard output as it is decoded.

    Reads local files only, never runs code from a checkpoint, and loads safetensors only.
    """
    from specdec.commands.images import read_image
    from specdec.commands.prompting import answer_room, encode

    shape = parse_tree(tree)
    sampling = _sampling(temperature, top_p, seed)
    images = [read_image(path, max_pixels) for path in image or ()]
    loaded = _load(model, drafter, dtype, with_images=bool(images))
    inputs = encode(loaded.processor, prompt, images)
    room = answer_room(loaded.model, inputs, max_new_tokens)
    if room < max_new_tokens:
        _note(f"the model's context leaves room for {room} tokens, not {max_new_tokens}")
    began = time.perf_counter()
    made = _answer(loaded, inputs, tree=shape, max_new_tokens=room, **sampling)
    if stats:
        _print_stats(made, time.perf_counter() - began)


def _sampling(temperature: float, top_p: float | None, seed: int | None) -> dict[str, Any]:
    """Arguments of `generate` that say how to choose tokens."""
    import torch

    if temperature == 0:
        if top_p is not None:
            raise UserError("--top-p has no effect on greedy decoding; pass --temperature as well")
        return {"do_sample": False}
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    chosen = {"do_sample": True, "temperature": temperature, "generator": generator}
    return chosen if top_p is None else chosen | {"top_p": top_p}


def _load(name: str, drafter: str | None, dtype: Precision, *, with_images: bool) -> _Loaded:
    from specdec.commands import checkpoint as checkpoints
    from specdec.commands.drafting import pick_drafter
    from specdec.drafters import TextOnlyDrafter
    from specdec.verifiers.spec import read_spec

    checkpoints.quieten()
    folder, default = checkpoints.locate(name)
    checkpoint = checkpoints.open_checkpoint(folder)
    if with_images and checkpoint.kind == "text":
        raise UserError(
            f"{name} is a text model ({checkpoint.config.model_type}), it takes no --image"
        )
    processor = checkpoints.load_processor(checkpoint)
    model = checkpoints.load_model(checkpoint, dtype.dtype)
    chosen = pick_drafter(drafter or default, read_spec(model), model.device)
    if name == checkpoints.DEMO and isinstance(chosen, TextOnlyDrafter):
        chosen.model.float()  # as specdec.demo.load has it
    return _Loaded(model, processor, chosen)


def _answer(loaded: _Loaded, inputs: dict[str, Tensor], **how: Any) -> AcceptanceStats:
    """Write the answer to standard output while it is made; what speculation achieved."""
    import specdec

    def show(piece: Piece) -> None:
        sys.stdout.write(piece.text)
        sys.stdout.flush()

    model = loaded.model
    how |= {name: _place(value, model) for name, value in inputs.items()}
    pieces = Pieces(loaded.tokenizer, show)
    try:
        out = specdec.generate(model, drafter=loaded.drafter, on_emission=pieces, **how)
    except ValueError as error:
        # What cannot be done is refused before the first token; after it, an error is a bug.
        if pieces.tokens:
            raise
        raise UserError(f"{type(model).__name__} cannot answer this: {reason(error)}") from error
    pieces.end()
    sys.stdout.write("\n")
    stats: AcceptanceStats = out.stats
    return stats


def _place(value: Any, model: PreTrainedModel) -> Any:
    """A model input on the model's device; pixels come in float32 and take its type, too."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def _note(text: str) -> None:
    print(f"specdec generate: {text}", file=sys.stderr)


def _print_stats(stats: AcceptanceStats, seconds: float) -> None:
    tokens, times = stats.num_generated_tokens, stats.times
    step = max(times.step, 1e-9)
    _note(
        f"{tokens} tokens in {seconds:.2f} s, {1e3 * seconds / tokens:.1f} ms/token, "
        f"prefill {times.prefill:.2f} s"
    )
    _note(
        f"τ {stats.mean_acceptance_length:.2f} tokens per step of the verifier, "
        f"{stats.num_accepted_draft_tokens} of {stats.num_draft_tokens} drafted tokens accepted"
    )
    _note(
        f"a step: draft {times.draft / step:.0%}, verify {times.verify / step:.0%}, "
        f"accept {times.accept / step:.0%}, commit {times.commit / step:.0%}; "
        f"outside the models {times.overhead:.0%}"
    )
