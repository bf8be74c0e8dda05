"""The ways to decode that are compared: transformers' own, specdec's, and the yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from specdec.choice import DrafterLike
from specdec.drafters import TextOnlyDrafter
from specdec.eval.chain_loop import chain_loop
from specdec.eval.timing import Inputs, Method, Said
from specdec.generation import generate
from specdec.tree import Topology, topology

REFERENCE = "transformers generate"
YARDSTICK = "plain chain loop, 4"
# A chain of four with a second choice for the first two tokens.
SMALL_TREE = topology((-1, 0, 0, 1, 2, 3, 5))


def all_methods(
    model: PreTrainedModel, drafter: PreTrainedModel, max_new_tokens: int
) -> list[Method]:
    """The reference, specdec in several shapes, the yardstick, and what transformers has itself."""
    generator: Any = model  # generate comes from a mixin that PreTrainedModel does not declare
    text_only = TextOnlyDrafter(drafter)
    limits: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens}

    def theirs(**how: Any) -> Callable[[Inputs], Said]:
        def run(inputs: Inputs) -> Said:
            ids = generator.generate(**inputs, **limits, **how)
            return Said(ids[0, inputs["input_ids"].shape[1] :].tolist())

        return run

    def ours(drafter: DrafterLike, tree: Topology | int) -> Callable[[Inputs], Said]:
        def run(inputs: Inputs) -> Said:
            ids = generate(model, drafter=drafter, tree=tree, **inputs, **limits)
            return Said(ids[0, inputs["input_ids"].shape[1] :].tolist(), ids.stats)

        return run

    def loop(inputs: Inputs) -> Said:
        return Said(*chain_loop(model, drafter, inputs, max_new_tokens=max_new_tokens, k=4))

    assisted = {"assistant_model": drafter}
    four = {"prompt_lookup_num_tokens": 4}
    return [
        Method(REFERENCE, theirs()),
        Method("specdec text_only, chain 4", ours(text_only, 4), ours=True),
        Method("specdec text_only, chain 8", ours(text_only, 8), ours=True),
        Method("specdec text_only, tree of 7", ours(text_only, SMALL_TREE), ours=True),
        Method("specdec ngram, chain 4", ours("ngram", 4), ours=True),
        Method("specdec, no drafting", ours(None, 0), ours=True),
        Method(YARDSTICK, loop, ours=True),
        Method("transformers assisted, same drafter", theirs(**assisted)),
        Method("transformers prompt lookup, 4", theirs(**four)),
    ]
