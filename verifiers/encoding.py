"""Prompts before they are run: their images looked at, their positions and pages known.

Everything that may happen beside the model's own thread. Knows nothing of pages' contents.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.interfaces import Encoded, Prompt, VerifierSpec
from specdec.runtime import PagedModel, TextTower, device_of
from specdec.verifiers.page_keys import RowKeys, prompt_keys

# What a text tower may be called with for its tokens to be run in pieces: what is said of each by
# its embedding and position alone.
_PLAIN = frozenset(
    {"input_ids", "inputs_embeds", "position_ids", "attention_mask", "past_key_values"}
    | {"use_cache", "cache_position", "return_dict", "output_attentions", "output_hidden_states"}
)
_SEEN_BYTES = 256 << 20  # of image features that are kept


class PromptEncoder:
    """Encodes prompts of one row.

    Features of images are kept, by their pixels, the longest unused given up first: a question
    about an image that was seen before costs no vision tower, wherever in the prompt it stands.

    Args:
        model: the model; it is left as it was between two calls.
        spec: what is known of it.
        paged: the same over pages.
        counts_padding: whether a row's padding changes what the model makes of it.
    """

    def __init__(
        self, model: PreTrainedModel, spec: VerifierSpec, paged: PagedModel, counts_padding: bool
    ) -> None:
        self._model = model
        self._spec = spec
        self._paged = paged
        self._counts_padding = counts_padding
        self._tower: TextTower | None = None
        self._one_prompt = threading.Lock()
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0
        self._in_pieces = True  # until a prompt shows otherwise

    @torch.no_grad()
    def encode(self, prompt: Prompt, *, shares: bool) -> Encoded | None:
        """What is known of it; ``None`` if it has to be run in one piece.

        Args:
            prompt: of one row.
            shares: it is compared with those before: by its images, and later by its pages.
        """
        if prompt.ready is not None or len(prompt.input_ids) != 1 or not self._in_pieces:
            return None
        size, padding = self._paged.kv.page_size, prompt.padding[0]
        visual = self._spec.visual_token_ids
        (keys,) = prompt_keys(prompt, visual, size, by_padding=self._counts_padding)
        if not keys.say_all:
            return None
        tokens = prompt.input_ids[0, padding:]
        with self._one_prompt:
            inputs = prepared_inputs(self._model, prompt, self._paged)
            embeds = None
            if keys.images:
                embeds = self._remembered(tokens, keys.images) if shares else None
                if embeds is None:
                    embeds = self._looked(inputs, padding, tokens, keys)
                    if embeds is None:
                        self._in_pieces = False
                        return None
        positions = positions_of(inputs.get("position_ids"), 0, padding, prompt.input_ids)
        return Encoded(embeds, positions, keys.pages if shares else [], keys.lead)

    def _looked(
        self, inputs: Mapping[str, Any], padding: int, tokens: Tensor, keys: RowKeys
    ) -> Tensor | None:
        """Embeddings ``(T, H)`` as the model makes them; ``None`` if they do not say everything."""
        self._tower = self._tower or TextTower(self._model)
        values = self._tower.called_with(self._model, inputs).values
        beyond = [
            name for name, value in values.items() if value is not None and name not in _PLAIN
        ]
        mask = values.get("attention_mask")
        if any(not _is_idle(values[name]) for name in beyond):
            return None
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            return None  # not every token sees just those before it
        found: Tensor = values["inputs_embeds"][0, padding:]
        plain = self._plain(tokens)
        words = torch.ones(len(tokens), dtype=torch.bool)
        for span, _ in keys.images:
            words[span.start : span.stop] = False
        if torch.equal(found[words], plain[words]):
            for span, digest in keys.images:
                self._keep(digest, found[span.start : span.stop].clone())
        return found

    def _remembered(self, tokens: Tensor, images: Sequence[tuple[range, bytes]]) -> Tensor | None:
        """Embeddings ``(T, H)`` with features that are known; ``None`` if one is not."""
        if any(digest not in self._seen for _, digest in images):
            return None
        embeds = self._plain(tokens).clone()
        for span, digest in images:
            self._seen.move_to_end(digest)
            embeds[span.start : span.stop] = self._seen[digest]
        return embeds

    def _plain(self, tokens: Tensor) -> Tensor:
        embedding = self._model.get_input_embeddings()
        embeds: Tensor = embedding(tokens.to(device_of(embedding)))
        return embeds

    def _keep(self, digest: bytes, features: Tensor) -> None:
        if digest in self._seen:
            return
        self._seen[digest] = features
        self._bytes += features.nbytes
        while self._bytes > _SEEN_BYTES:
            self._bytes -= self._seen.popitem(last=False)[1].nbytes


def prepared_inputs(model: PreTrainedModel, prompt: Prompt, paged: PagedModel) -> dict[str, Any]:
    """What the model's forward takes for these rows, without a cache."""
    kwargs = dict(prompt.model_kwargs) | {"past_key_values": paged.cache, "use_cache": True}
    # Any: the method comes from a mixin that PreTrainedModel does not declare.
    preparing: Any = model
    inputs: dict[str, Any] = preparing.prepare_inputs_for_generation(
        prompt.input_ids, is_first_iteration=True, **kwargs
    )
    for name in ("past_key_values", "use_cache"):
        inputs.pop(name, None)
    return inputs


def positions_of(given: Tensor | None, row: int, padding: int, ids: Tensor) -> Tensor:
    """Positions of a row's tokens, int64 ``(R, T)`` on the CPU."""
    if given is None:
        return torch.arange(ids.shape[1] - padding)[None]
    rows = given[None] if given.ndim == 2 else given
    return rows[:, row if rows.shape[1] > 1 else 0, padding:].cpu()


def _is_idle(value: Any) -> bool:
    """Whether an argument of a text tower says nothing of single tokens."""
    return value is None or isinstance(value, (bool, int, str)) or value == {}
