"""Any decoder-only transformers model as a verifier.

Answers what the engine asks of a model: which tokens are visual, which positions follow a prompt,
what lies behind every node of a tree. Knows nothing of drafting or acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from specdec.cache import SequenceKV
from specdec.interfaces import Prefilled, Prompt, VerifierSpec
from specdec.runtime import NodeBatch, PagedModel
from specdec.tree import DraftTree

SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_VISUAL_ID_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(slots=True, eq=False)
class _Handle:
    """``offset``: int64 ``(R,)``, what is added to a logical index to get its position."""

    sequence: SequenceKV
    offset: Tensor


class TransformersVerifier:
    """Verifier over a transformers model. Its ``spec`` is what drafters are checked against.

    Args:
        model: the model; it is left as it was between two calls.
        page_size: tokens a page of the key-value cache.
        max_pages: most pages; ``None`` grows as needed.

    Raises:
        ValueError: the model is of a kind that specdec cannot run; the message says which part.
    """

    def __init__(
        self, model: PreTrainedModel, *, page_size: int = 16, max_pages: int | None = None
    ) -> None:
        problems = unsupported(model)
        if problems:
            raise ValueError(f"{type(model).__name__} cannot be a verifier: {'; '.join(problems)}")
        self.spec = read_spec(model)
        self.model = model
        self._paged = PagedModel(model, page_size=page_size, max_pages=max_pages)
        self._prefill_seconds = 0.0

    @property
    def model_seconds(self) -> float:
        """Seconds inside the model's forward over trees."""
        return self._paged.seconds - self._prefill_seconds

    def prefill(self, prompt: Prompt, room: int) -> Prefilled:
        """Run the prompts and record where each row's positions ended."""
        kv = self._paged.kv
        kwargs = dict(prompt.model_kwargs) | {
            "past_key_values": self._paged.cache,
            "use_cache": True,
        }
        # Any: the attribute comes from a mixin that PreTrainedModel does not declare.
        model: Any = self.model
        inputs = model.prepare_inputs_for_generation(
            prompt.input_ids, is_first_iteration=True, **kwargs
        )
        for name in ("past_key_values", "use_cache"):
            inputs.pop(name, None)
        began = self._paged.seconds
        sequences = [kv.add(room) for _ in prompt.padding]
        try:
            logits = self._paged.prefill(inputs, sequences, prompt.padding)
        except BaseException:
            for sequence in sequences:
                kv.free(sequence)
            raise
        self._prefill_seconds += self._paged.seconds - began
        last = _last_positions(inputs.get("position_ids"), prompt.input_ids, prompt.padding)
        handles = [
            _Handle(sequence, last[:, row] + 1 - sequence.committed)
            for row, sequence in enumerate(sequences)
        ]
        return Prefilled(handles, logits)

    def verify(self, handles: Sequence[_Handle], trees: Sequence[DraftTree]) -> Tensor:
        """Logits ``(N, V)`` behind every node, packed in order, in one forward."""
        return self._paged.forward(
            [
                NodeBatch(
                    handle.sequence,
                    tree.tokens,
                    tree.topology.depths,
                    None if tree.topology.is_chain else tree.topology.ancestors,
                    handle.offset,
                )
                for handle, tree in zip(handles, trees, strict=True)
            ]
        )

    def commit(self, handle: _Handle, nodes: Sequence[int]) -> None:
        """Keep the path's keys, drop the other nodes'."""
        self._paged.kv.commit(handle.sequence, nodes)

    def release(self, handle: _Handle) -> None:
        """Give the request's pages back."""
        self._paged.kv.free(handle.sequence)

    def check_integrity(self) -> None:
        """Assert that the page accounting is sound."""
        self._paged.kv.check_integrity()

    @property
    def pages_taken(self) -> int:
        """Pages that hold keys of some request."""
        return self._paged.kv.allocator.num_taken


def unsupported(model: PreTrainedModel) -> list[str]:
    """Why specdec cannot run this model; empty if it can."""
    if model.config.is_encoder_decoder:
        return ["it is an encoder-decoder model"]
    text = model.config.get_text_config(decoder=True)
    problems = []
    layers = sorted(set(get_layer_types_and_kwargs(text)[0]) - SUPPORTED_LAYERS)
    if layers:
        problems.append(f"its text tower has layers of type {', '.join(layers)}")
    if getattr(text, "kv_lora_rank", None):
        problems.append("its text tower uses multi-head latent attention")
    if getattr(text, "cross_attention_layers", None):
        problems.append("its text tower attends to the image through cross-attention layers")
    return problems


def read_spec(model: PreTrainedModel) -> VerifierSpec:
    """What drafters have to agree with, read off the model's config."""
    config = model.config
    text = config.get_text_config(decoder=True)
    eos = model.generation_config.eos_token_id if model.generation_config else None
    visual = (getattr(config, name, None) for name in _VISUAL_ID_NAMES)
    return VerifierSpec(
        name=" ".join(filter(None, (type(model).__name__, config._name_or_path))),
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        visual_token_ids=frozenset(token for token in visual if token is not None),
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
    )


def _last_positions(positions: Tensor | None, ids: Tensor, padding: Sequence[int]) -> Tensor:
    """Position of each row's last token, int64 ``(R, B)`` on the CPU."""
    if positions is None:
        return torch.tensor([[ids.shape[1] - 1 - pad for pad in padding]])
    last = positions[..., -1].cpu()
    return (last[None] if last.ndim == 1 else last).expand(-1, len(padding))
