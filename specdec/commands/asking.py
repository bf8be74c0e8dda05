"""What commands that answer a prompt have in common: loading, the prompt, calling `generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from specdec.commands.errors import UserError, reason
from specdec.commands.options import Precision
from specdec.commands.stream import Pieces

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from specdec.interfaces import Drafter


class Loaded(NamedTuple):
    """A model with what goes with it."""

    model: PreTrainedModel
    processor: ProcessorMixin | PreTrainedTokenizerBase
    drafter: Drafter | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        whole: Any = self.processor
        tokenizer: PreTrainedTokenizerBase = getattr(whole, "tokenizer", whole)
        return tokenizer


class Question(NamedTuple):
    """A prompt, ready to be answered. ``room``: how many tokens the answer may have."""

    loaded: Loaded
    inputs: dict[str, Tensor]
    room: int


def ask(
    command: str,
    *,
    model: str,
    prompt: str,
    image: Sequence[Path] | None,
    drafter: str | None,
    max_new_tokens: int,
    dtype: Precision,
    max_pixels: int,
) -> Question:
    """Load what is needed and encode the prompt; images first, which are read in no time.

    Raises:
        UserError: something of it is not there, or does not go together.
    """
    from specdec.commands.images import read_image
    from specdec.commands.prompting import answer_room, encode

    images = [read_image(path, max_pixels) for path in image or ()]
    loaded = load(model, drafter, dtype, with_images=bool(images))
    inputs = encode(loaded.processor, prompt, images)
    room = answer_room(loaded.model, inputs, max_new_tokens)
    if room < max_new_tokens:
        note(command, f"the model's context leaves room for {room} tokens, not {max_new_tokens}")
    return Question(loaded, inputs, room)


def answer(question: Question, pieces: Pieces, **how: Any) -> Any:
    """What `specdec.generate` returns; `pieces` gets every token.

    Raises:
        UserError: it refuses.
    """
    import specdec
    from specdec.prompts import place

    loaded, inputs, room = question
    model = loaded.model
    how |= place(inputs, model)
    try:
        out = specdec.generate(
            model, drafter=loaded.drafter, on_emission=pieces, max_new_tokens=room, **how
        )
    except ValueError as error:
        # What cannot be done is refused before the first token; after it, an error is a bug.
        if pieces.tokens:
            raise
        raise UserError(f"{type(model).__name__} cannot answer this: {reason(error)}") from error
    pieces.end()
    return out


def note(command: str, text: str) -> None:
    """A line about the answer, apart from it."""
    print(f"specdec {command}: {text}", file=sys.stderr)


def sampling(temperature: float, top_p: float | None, seed: int | None) -> dict[str, Any]:
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


def load(name: str, drafter: str | None, dtype: Precision, *, with_images: bool) -> Loaded:
    """The model that `--model` names, and its drafter.

    Raises:
        UserError: something of it is not there, or does not go together.
    """
    from specdec.commands import checkpoint as checkpoints
    from specdec.commands.drafting import pick_drafter
    from specdec.drafters import TextOnlyDrafter

    checkpoints.quieten()
    folder, default = checkpoints.locate(name)
    checkpoint = checkpoints.open_checkpoint(folder)
    if with_images and checkpoint.kind == "text":
        raise UserError(
            f"{name} is a text model ({checkpoint.config.model_type}), it takes no --image"
        )
    processor = checkpoints.load_processor(checkpoint)
    model = checkpoints.load_model(checkpoint, dtype.dtype)
    chosen = pick_drafter(drafter or default, model)
    if name == checkpoints.DEMO and isinstance(chosen, TextOnlyDrafter):
        chosen.model.float()  # as specdec.demo.load has it
    return Loaded(model, processor, chosen)
