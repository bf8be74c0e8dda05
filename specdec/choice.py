"""Which drafter a call means: by specdec's own argument, or by those of transformers."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedModel

from specdec.drafters import (
    EnsembleDrafter,
    NgramDrafter,
    SelfPrunedDrafter,
    TextOnlyDrafter,
    load_drafter,
)
from specdec.drafters.tokenizers import refuse_other_tokenizer, refuse_other_vocabulary
from specdec.engine import Adaptive
from specdec.engine.engine import DEFAULT_SHAPE
from specdec.interfaces import Drafter
from specdec.tree import Dynamic, Shape, chain, static

MAX_TREE = 256  # nodes; a step over more costs more than any of them can save

OneDrafter = Drafter | PreTrainedModel | str | PathLike[str]
DrafterLike = OneDrafter | list[OneDrafter] | tuple[OneDrafter, ...] | None
TreeLike = Shape | Adaptive | int | str
_Value = TypeVar("_Value")


class Choice(NamedTuple):
    """A drafter, and the largest tree to ask it for."""

    drafter: Drafter | None
    shape: Shape | Adaptive


def choose(
    model: PreTrainedModel, drafter: DrafterLike, tree: TreeLike, kwargs: dict[str, Any]
) -> Choice:
    """What ``drafter=`` and ``tree=`` mean, or, without them, what transformers' arguments mean;
    these are taken out of ``kwargs``.

    Raises:
        ValueError: no drafter is meant, or several, or one with another tokenizer; no tree is.
    """
    shape = resolve_tree(tree)
    tokenizers = kwargs.pop("assistant_tokenizer", None), kwargs.get("tokenizer")
    given = {
        name: kwargs.pop(name, None)
        for name in ("assistant_model", "prompt_lookup_num_tokens", "num_assistant_tokens")
    }
    assistant, lookup = given["assistant_model"], given["prompt_lookup_num_tokens"]
    named = [name for name in ("assistant_model", "prompt_lookup_num_tokens") if given[name]]
    if len(named) + (drafter is not None) > 1:
        both = " and ".join([*named, *(["drafter"] if drafter is not None else [])])
        raise ValueError(f"{both} are given; each of them says who drafts")
    length = lookup or given["num_assistant_tokens"]
    if length and shape is DEFAULT_SHAPE:
        shape = chain(length)
    if lookup:
        size = kwargs.get("max_matching_ngram_size")
        return Choice(NgramDrafter(size) if size else NgramDrafter(), shape)
    if assistant is not None:
        if not isinstance(assistant, PreTrainedModel) or assistant.config.is_encoder_decoder:
            raise ValueError(
                f"assistant_model={type(assistant).__name__}: expected a causal language model of "
                "transformers"
            )
        drafter = assistant
    if tokenizers[0] is not None and tokenizers[1] is not None:
        names = [type(tokenizer).__name__ for tokenizer in tokenizers]
        refuse_other_vocabulary(
            f"assistant_tokenizer {names[0]}",
            tokenizers[0].get_vocab(),
            f"tokenizer {names[1]}",
            tokenizers[1].get_vocab(),
        )
    return Choice(resolve_drafter(drafter, model), shape)


def resolve_tree(tree: TreeLike) -> Shape | Adaptive:
    """The largest tree that a ``tree=`` argument means: an int is a chain of that many tokens. As
    text also ``"3,2,1"``, children per level; ``"dynamic:16"``, ``"dynamic:16,8"`` or
    ``"dynamic:16,8,4"``, a :class:`Dynamic` of that budget, depth (default: the budget) and width;
    ``"auto"``.

    Raises:
        ValueError: it means none, or one that is too large.
    """
    if isinstance(tree, int):
        return chain(tree)
    if not isinstance(tree, str):
        return tree
    if tree == "auto":
        return Adaptive()
    name, colon, rest = tree.partition(":")
    try:
        numbers = [int(part) for part in (rest if colon else tree).split(",")]
    except ValueError:
        numbers = []
    if colon and name == "dynamic" and 1 <= len(numbers) <= 3 and min(numbers) > 0:
        budget, depth, width = (*numbers, *(numbers[0], 4)[len(numbers) - 1 :])
        return _small(tree, Dynamic(budget, depth, width), budget)
    if colon or not numbers or min(numbers) < (0 if len(numbers) == 1 else 1):
        raise ValueError(
            f"{tree}: expected a number of tokens to draft in a line, such as 4, the children per "
            "level, such as 3,2,1, dynamic:16,8,4 for budget, depth and width, or auto"
        )
    if len(numbers) == 1:
        return chain(_small(tree, numbers[0], numbers[0]))
    nodes = sum(math.prod(numbers[:depth]) for depth in range(1, len(numbers) + 1))
    return static(_small(tree, numbers, nodes))


def _small(tree: str, value: _Value, nodes: int) -> _Value:
    if nodes > MAX_TREE:
        raise ValueError(f"{tree} has {nodes} drafted tokens, at most {MAX_TREE} are allowed")
    return value


def resolve_drafter(drafter: DrafterLike, model: PreTrainedModel) -> Drafter | None:
    """The drafter that a ``drafter=`` argument means.

    Raises:
        ValueError: it means none, or one with another tokenizer than the model's.
    """
    if drafter is None or isinstance(drafter, Drafter):
        return drafter
    if isinstance(drafter, (list, tuple)):
        members = [resolve_drafter(each, model) for each in drafter]
        return EnsembleDrafter([_named(member) for member in members])
    if isinstance(drafter, PreTrainedModel):
        refuse_other_tokenizer(drafter.name_or_path, model.name_or_path)
        return TextOnlyDrafter(drafter)
    if drafter == "ngram":
        return NgramDrafter()
    if drafter == "self_pruned":
        return SelfPrunedDrafter()
    if isinstance(drafter, str | PathLike):
        return load_drafter(drafter, model)
    raise ValueError(
        f"drafter={type(drafter).__name__}: expected a Drafter, a transformers causal language "
        'model, the path of a saved drafter, "ngram", "self_pruned", a list of these, or None'
    )


def _named(member: Drafter | None) -> Drafter:
    if member is None:
        raise ValueError("drafter=[…, None, …]: None is no drafter; leave it out")
    return member
