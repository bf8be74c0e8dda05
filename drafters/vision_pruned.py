"""A small vision-language model that drafts from a part of each image.

It has its own vision tower and its own pages. Its prompt is read once, with only those visual
tokens that are worth it; all tokens keep their positions. The choice is not made again later: that
would be another prefill of the prompt and of the answer so far, more than several trees cost, for a
model that reads little of the image anyway. Where pixels cannot be had, because transformers has
run the prompt or the vision tower beforehand, it reads the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache import SequenceKV
from specdec.drafters.calibration import Calibration
from specdec.drafters.paged_network import PagedNetwork
from specdec.drafters.selection import SHARE_UNIFORM, check_ratio, select
from specdec.drafters.texts import ROOM, Texts
from specdec.drafters.tokenizers import refuse_other_size
from specdec.interfaces import DraftRequest, Prompt, Reads, VerifierSpec
from specdec.runtime import (
    NodeBatch,
    PagedModel,
    PrefillRow,
    TextTower,
    TowerInputs,
    visual_token_ids,
)
from specdec.tree import DraftTree, Siblings

_PIXELS = "pixel_values"  # begins the names of all that pixels come under
_ENCODED = "mm_encoder_outputs"  # what the verifier's own vision tower made of them
# Layers that count how far into the cache they are, whatever positions they are given.
_COUNTING = frozenset({"llama4_text"})


class VisionPrunedDrafter:
    """Drafts with a small vision-language model that keeps a part of the visual tokens.

    Args:
        model: a decoder-only vision-language model. Its prompts are the verifier's: with the same
            tokenizer, the same placeholders and as many of them per image.
        ratio: share of visual tokens that is kept: those that the verifier looks at, and some
            everywhere; all of them spread evenly if the verifier was not made with ``gaze=True``.
        share_uniform: share of the kept ones that is spread evenly.
        siblings: how children are chosen when sampling; greedy requests always take the top k.
        calibration: of its probabilities, for dynamic trees.

    Raises:
        ValueError: the model cannot be run so, or the ratio makes no sense.
    """

    name = "vision_pruned"

    def __init__(
        self,
        model: PreTrainedModel,
        ratio: float = 0.25,
        *,
        share_uniform: float = SHARE_UNIFORM,
        siblings: Siblings = "without_replacement",
        calibration: Calibration = Calibration(),  # noqa: B008  # frozen
    ) -> None:
        name, text = type(model).__name__, model.config.get_text_config(decoder=True)
        self._visual = visual_token_ids(model.config)
        if not self._visual:
            raise ValueError(f"{name} names no image token; a text_only drafter it may be")
        if text.model_type in _COUNTING:
            raise ValueError(
                f"{name} has layers that count what is in the cache, so it cannot leave tokens out"
            )
        self.model = model
        self.ratio = check_ratio(ratio)
        self.share_uniform = check_ratio(share_uniform)
        self.reads = Reads(gaze=ratio not in (0, 1))
        self.siblings: Siblings = siblings
        self.calibration = calibration
        self._paged = PagedModel(model)
        self._tower = TextTower(model)
        self._texts = Texts(self._paged)
        self._vocab_size: int = text.vocab_size
        self._limit = self._vocab_size
        self._foreign: frozenset[int] = frozenset()  # what it cannot see of what the verifier sees

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the model's forward."""
        return self._paged.seconds

    @property
    def bytes_taken(self) -> int:
        """What its keys and values take now."""
        return self._paged.kv.bytes_taken

    def check(self, verifier: VerifierSpec) -> None:
        """Raise ``ValueError`` if the verifier's prompts are not what the model reads."""
        name = type(self.model).__name__
        refuse_other_size(name, self._vocab_size, verifier)
        if not verifier.visual_token_ids & self._visual:
            raise ValueError(
                f"drafter {name} knows images by tokens {sorted(self._visual)}, verifier "
                f"{verifier.name} by {sorted(verifier.visual_token_ids)}: they read different "
                "prompts"
            )
        self._limit = min(self._vocab_size, verifier.vocab_size)
        self._foreign = verifier.visual_token_ids - self._visual

    @torch.no_grad()
    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """Read the prompts that are new; then one forward per level of the trees for the whole
        batch, the first of them taking in the tokens that were accepted since the last call.
        """
        self._begin([each for each in batch if len(each.shape) > 1 and each.id not in self._texts])
        never = torch.zeros(0, dtype=torch.long, device=self.model.device)
        return self._texts.draft(
            batch,
            self._take_in,
            lambda texts: PagedNetwork(self._paged, texts, self._limit, never),
            self.siblings,
            self.calibration,
        )

    def release(self, request_id: int) -> None:
        """Give the request's pages back."""
        self._texts.release(request_id)

    def _take_in(self, request: DraftRequest) -> NodeBatch | None:
        return self._texts.take_in(request, lambda token: token < self._vocab_size)

    def _begin(self, requests: Sequence[DraftRequest]) -> None:
        """Read their prompts; the images of each batch of prompts once."""
        read: dict[int, TowerInputs] = {}
        for request in requests:
            prompt = request.prompt
            unseen = not self._foreign.isdisjoint(request.tokens[: request.prompt_length])
            if prompt is None or prompt.ready is not None or unseen:
                self._read_words(request)
                continue
            if id(prompt) not in read:
                read[id(prompt)] = self._merge(prompt)
            self._read(request, prompt, read[id(prompt)])

    def _merge(self, prompt: Prompt) -> TowerInputs:
        try:
            return self._tower.inputs(self._paged, self._inputs(prompt))
        except ValueError as error:
            raise ValueError(
                f"drafter {type(self.model).__name__} cannot read a prompt that the verifier can; "
                f"both need as many placeholders per image: {error}"
            ) from error

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        """What the model's forward takes."""
        more = {"past_key_values": self._paged.cache, "use_cache": True}
        # Any: the attribute comes from a mixin that PreTrainedModel does not declare.
        model: Any = self.model
        given = {name: value for name, value in prompt.model_kwargs.items() if name != _ENCODED}
        for name, value in given.items():
            if isinstance(value, Tensor):
                given[name] = value.to(
                    model.device, model.dtype if value.is_floating_point() else None
                )
        inputs: dict[str, Any] = model.prepare_inputs_for_generation(
            prompt.input_ids.to(model.device), is_first_iteration=True, **given | more
        )
        for name in more:
            inputs.pop(name, None)
        return inputs

    def _read(self, request: DraftRequest, prompt: Prompt, merged: TowerInputs) -> None:
        """Prefill what is kept of a request's prompt."""
        row, tokens = request.row, request.tokens[: request.prompt_length]
        padding, whole = prompt.padding[row], len(tokens)
        visual = [place for place, token in enumerate(tokens) if token in self._visual]
        kept = set(self._kept(request, visual, prompt.model_kwargs))
        dropped = set(visual) - kept
        places = torch.tensor([place for place in range(whole) if place not in dropped])
        positions = merged.positions
        last = torch.tensor([whole - 1])
        if positions is not None:
            own = positions[..., row if positions.shape[-2] > 1 else 0, -1]
            last = own.reshape(-1).cpu()
        sequence = self._sequence(request, places)
        ids = torch.tensor([tokens], device=self.model.device)[:, places]
        part = merged.part(row, places + padding)
        try:
            with self._tower.given(part):
                inputs = {"input_ids": ids, "position_ids": part.get("position_ids")}
                self._paged.prefill(inputs, [PrefillRow(0, sequence, 0)])
        except BaseException:
            self._paged.kv.free(sequence)
            raise
        self._texts.begin(request.id, sequence, seen=whole, offset=last + 1 - whole)

    def _read_words(self, request: DraftRequest) -> None:
        """Nothing but the words is known; their positions close up."""
        tokens = request.tokens[: request.prompt_length]
        unread = self._visual | self._foreign
        words = [token for token in tokens if token not in unread and token < self._vocab_size]
        sequence = self._paged.kv.add(max(ROOM, len(request.tokens)))
        if words:
            self._paged.append([NodeBatch(sequence, words, range(len(words)))])
        self._texts.begin(request.id, sequence, seen=len(tokens))

    def _sequence(self, request: DraftRequest, places: Tensor) -> SequenceKV:
        kv = self._paged.kv
        sequence = kv.add(max(ROOM, len(request.tokens)))
        if len(places) < request.prompt_length:
            kv.leave_out(sequence, places, request.prompt_length)
        return sequence

    def _kept(
        self, request: DraftRequest, visual: Sequence[int], given: Mapping[str, Any]
    ) -> list[int]:
        """The visual tokens that are kept."""
        if not any(name.startswith(_PIXELS) and given[name] is not None for name in given):
            return []
        return select(visual, request.gaze, self.ratio, self.share_uniform)
