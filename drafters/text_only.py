"""A small causal language model that drafts without seeing the image.

Visual tokens are dropped and the positions closed up, so any language model with the verifier's
tokenizer can draft for it (Gagrani et al. 2404.08856). Its vocabulary may be padded differently or
be smaller; tokens it does not know are dropped like visual ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence

import torch
from transformers import PreTrainedModel

from specdec.drafters.calibration import Calibration
from specdec.drafters.paged_network import PagedNetwork
from specdec.drafters.texts import ROOM, Texts
from specdec.drafters.tokenizers import refuse_other_size
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.runtime import NodeBatch, PagedModel
from specdec.tree import DraftTree, Siblings


class TextOnlyDrafter:
    """Drafts with a causal language model over the text alone.

    Args:
        model: a transformers causal language model.
        siblings: how children are chosen when sampling; greedy requests always take the top k.
        calibration: of its probabilities, for dynamic trees.

    Raises:
        ValueError: the model's attention cannot be replaced.
    """

    name = "text_only"

    def __init__(
        self,
        model: PreTrainedModel,
        siblings: Siblings = "without_replacement",
        calibration: Calibration = Calibration(),  # noqa: B008  # frozen
    ) -> None:
        self.model = model
        self.calibration = calibration
        self.siblings: Siblings = siblings
        self._paged = PagedModel(model)
        self._vocab_size = model.config.get_text_config(decoder=True).vocab_size
        self._limit = self._vocab_size
        self._visual: frozenset[int] = frozenset()
        self._never = torch.tensor([], dtype=torch.long)  # visual tokens, within the vocabulary
        self._texts = Texts(self._paged)

    @property
    def identity(self) -> Hashable:
        """Its model, whoever drafts with it."""
        return self.name, weakref.ref(self.model), self.siblings, self.calibration

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the model's forward."""
        return self._paged.seconds

    @property
    def bytes_taken(self) -> int:
        """What its keys and values take now."""
        return self._paged.kv.bytes_taken

    def check(self, verifier: VerifierSpec) -> None:
        """Note which tokens are visual and which ids the verifier cannot emit.

        Raises:
            ValueError: the vocabularies cannot belong to the same tokenizer.
        """
        refuse_other_size(type(self.model).__name__, self._vocab_size, verifier)
        self._visual = verifier.visual_token_ids
        self._limit = min(self._vocab_size, verifier.vocab_size)
        never = [token for token in self._visual if token < self._limit]
        self._never = torch.tensor(never, dtype=torch.long, device=self.model.device)

    @torch.no_grad()
    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """One forward per level of the trees for the whole batch, the first of them taking in the
        tokens that were accepted since the last call."""
        return self._texts.draft(
            batch,
            self._take_in,
            lambda texts: PagedNetwork(self._paged, texts, self._limit, self._never),
            self.siblings,
            self.calibration,
        )

    def release(self, request_id: int) -> None:
        """Give the request's pages back."""
        self._texts.release(request_id)

    def _take_in(self, request: DraftRequest) -> NodeBatch | None:
        if request.id not in self._texts:
            room = max(ROOM, len(request.tokens))
            self._texts.begin(request.id, self._paged.kv.add(room))
        return self._texts.take_in(request, self._knows)

    def _knows(self, token: int) -> bool:
        return token < self._vocab_size and token not in self._visual
