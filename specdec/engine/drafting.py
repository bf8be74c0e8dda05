"""The trees of a step: how much each request is to draft, and asking the drafter for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from specdec.engine.faults import described
from specdec.engine.planner import Planner, within
from specdec.engine.request import Request
from specdec.interfaces import Drafter
from specdec.stats import AcceptanceStats
from specdec.tree import DraftTree, chain, root_only

_UNTIMED = 7  # steps in a row that may run pieces of prompts, where their times are of interest
_LOG = logging.getLogger("specdec")


class Drafting:
    """Asks a drafter for trees.

    Args:
        drafter: proposes; ``None`` drafts nothing.
        planner: says how much.
        stats: of the engine.
        isolates: a drafter that fails is not asked again by those who are there, and nothing worse.
    """

    def __init__(
        self, drafter: Drafter | None, planner: Planner, stats: AcceptanceStats, *, isolates: bool
    ) -> None:
        self.planner = planner
        self._drafter = drafter
        self._stats = stats
        self._isolates = isolates
        self._untimed = 0  # steps since one without pieces of prompts

    def timed(self, running: bool, prefilling: bool) -> bool:
        """Whether the next step is to be one whose time says what trees cost: without pieces of
        prompts, which now and then wait for one step where somebody wants to know.
        """
        wanted = running and self.planner.learns and self._untimed >= _UNTIMED
        timed = wanted or not prefilling
        self._untimed = 0 if timed else self._untimed + 1
        return timed

    def trees(
        self, running: Sequence[Request], most: int, *, load: int, timed: bool
    ) -> list[DraftTree]:
        """A tree for each request, with ``most`` nodes in all where they draft anything; ``load``
        and ``timed`` as in :meth:`Planner.shapes`.
        """
        plain = [root_only(request.view.tokens[-1]) for request in running]
        if self._drafter is None or not running:
            return plain
        largest = len(self.planner.largest)
        ids = [request.view.id for request in running]
        shapes = self.planner.shapes(ids, load=load, timed=timed)
        nodes = max(0, most // len(running) - 1)
        for request, shape in zip(running, shapes, strict=True):
            # A tree of depth d yields up to d + 1 tokens.
            left = request.decoding.max_length - request.length - 1
            drafts = request.drafts and request.decoding.together is None
            request.held = len(shape) == 1 < largest
            request.view.shape = within(shape.truncate(left if drafts else 0), nodes)
        if all(len(request.view.shape) == 1 for request in running):
            return plain
        try:
            return self._proposed(self._drafter, running)
        except Exception as error:
            if not self._isolates:
                raise
            name, why = self._drafter.name, described(error)
            _LOG.warning("drafter %s failed, decoding plainly: %s", name, why)
            for request in running:
                request.drafts = False
                request.view.states.clear()
                request.view.shape = chain(0)  # nothing that was refused, and not slow either
                self._drafter.release(request.view.id)
            return plain

    def _proposed(self, drafter: Drafter, running: Sequence[Request]) -> list[DraftTree]:
        before = drafter.model_seconds
        trees = drafter.propose([request.view for request in running])
        self._stats.times.model_forward += drafter.model_seconds - before
        for request, tree in zip(running, trees, strict=True):
            assert tree.tokens[0] == request.view.tokens[-1], "a tree must grow from the last token"
            assert len(tree) <= len(request.view.shape), "a tree is too large"
            assert tree.topology.depth <= request.view.shape.depth, "a tree is too deep"
        return trees
