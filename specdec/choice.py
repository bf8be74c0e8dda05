"""Which drafter a call means: by specdec's own argument, or by those of transformers."""

from __future__ import annotations

from os import PathLike
from typing import Any, NamedTuple

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
from specdec.tree import Shape, chain

OneDrafter = Drafter | PreTrainedModel | str | PathLike[str]
DrafterLike = OneDrafter | list[OneDrafter] | tuple[OneDrafter, ...] | None
TreeLike = Shape | Adaptive | int | str


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
    """The largest tree that a ``tree=`` argument means.

    Raises:
        ValueError: it means none.
    """
    if isinstance(tree, str):
        if tree != "auto":
            raise ValueError(
                f'tree={tree!r}: expected "auto", a number of tokens, a tree or an Adaptive'
            )
        return Adaptive()
    return chain(tree) if isinstance(tree, int) else tree


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
