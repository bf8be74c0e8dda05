"""How long a drafter takes to propose, for requests whose verifier is timed apart.

The drafter gets what it reads of a verifier from nowhere: states are noise, pages those of a filled
text. Its own text grows by two tokens a proposal, as if one draft were accepted each time.
"""

from __future__ import annotations

import torch

from specdec.drafters import NgramDrafter, TextOnlyDrafter
from specdec.drafters.eagle import EagleDrafter
from specdec.eval.filled import Filled
from specdec.eval.random_models import text_tokens
from specdec.interfaces import Drafter, DraftRequest, VerifierSpec, reads_of
from specdec.runtime import Source
from specdec.tree import chain

NEW = 2  # tokens that every request has more each time


class Drafting:
    """Proposals for all requests of a filled text.

    Args:
        filled: the verifier's texts.
        drafter: drafts text-only, with an EAGLE-3 head, or from the text itself.
        spec: of the verifier.
        visual: how many tokens of each text, from its beginning on, are visual.

    Raises:
        ValueError: the drafter does not fit the verifier, or reads what is not there.
    """

    def __init__(self, filled: Filled, drafter: Drafter, spec: VerifierSpec, visual: int) -> None:
        if not isinstance(drafter, TextOnlyDrafter | EagleDrafter | NgramDrafter):
            raise ValueError(
                f"drafter {drafter.name} reads prompts with their pixels, and these texts have "
                "none; the time of text-only drafters, EAGLE heads and ngram can be measured"
            )
        if visual and not spec.visual_token_ids:
            raise ValueError(f"{spec.name} knows no visual tokens, and {visual} were asked for")
        drafter.check(spec)
        self._drafter = drafter
        self._model = filled.model
        self._random = torch.Generator().manual_seed(1)
        self._width = spec.hidden_size * len(reads_of(drafter).layers)
        self._requests = [
            self._request(filled, place, spec, visual) for place in range(len(filled.sequences))
        ]

    def prepare(self, depth: int) -> None:
        """Let the texts grow, and ask for chains of ``depth``."""
        for request in self._requests:
            request.tokens += text_tokens(self._model, NEW, self._random)
            request.shape = chain(depth)
            self._show(request, NEW)

    def propose(self) -> None:
        """What is to be timed, once a preparation."""
        self._drafter.propose(self._requests)

    def close(self) -> None:
        """Let the drafter forget the requests."""
        for request in self._requests:
            self._drafter.release(request.id)

    def _request(self, filled: Filled, place: int, spec: VerifierSpec, visual: int) -> DraftRequest:
        image = [min(spec.visual_token_ids)] * visual if visual else []
        words = text_tokens(self._model, filled.context - visual + 1, self._random)
        request = DraftRequest(
            # Below zero: an engine's own requests count from 0.
            id=-1 - place,
            tokens=[*image, *words],
            prompt_length=filled.context,
            shape=chain(0),
            positions=torch.arange(filled.context)[None],
        )
        if reads_of(self._drafter).pages:
            offset = torch.zeros(1, dtype=torch.long)
            request.source = Source(filled.paged, filled.sequences[place], offset, range(visual))
        self._show(request, filled.context)
        return request

    def _show(self, request: DraftRequest, count: int) -> None:
        if self._width:
            device, dtype = self._model.device, self._model.dtype
            request.states.append(torch.randn(count, self._width, device=device, dtype=dtype))
