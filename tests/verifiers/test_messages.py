"""What one process writes, another reads alike, and nothing but that."""

from __future__ import annotations

import json
from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from specdec.interfaces import Encoded, Piece, Prompt, Ready
from specdec.tree import DraftTree, static
from specdec.verifiers import messages
from specdec.verifiers.messages import Call, Message, packed


def sent(*values: Any, named: dict[int, Any] | None = None) -> tuple[Any, ...]:
    """Arguments of a call, as another process gets them that knows the ``named``."""
    known = named or {}
    name_of = {id(value): name for name, value in known.items()}
    ready = packed([Call("verify", values, {}, 7)], lambda value: name_of.get(id(value)))
    (written,) = Message(*json.loads(json.dumps(ready.message))).calls
    coming = iter(ready.tensors)

    def fill(there: Tensor) -> None:
        there.copy_(messages._bytes_of(next(coming)))

    call = Call(*messages._Reader(known, torch.device("cpu"), fill).read(written))
    assert next(coming, None) is None
    assert (call.method, call.kwargs, call.first) == ("verify", {}, 7)
    return call.args


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        "null",
        b"\x00\xff",
        range(3, 9, 2),
        [1, [2, (3,)], []],
        (),
        {"a": [None], 3: ("tuple", "list")},
        ["name", 0],
        ["tensor", [1], "int64", False],
        Piece(2, 5),
    ],
    ids=repr,
)
def test_values(value: Any) -> None:
    """A list taken for a tuple, for a value of another kind that is written as one, or for a name;
    a key that became a string.
    """
    (got,) = sent(value)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_tensors(dtype: torch.dtype) -> None:
    """Tensors in another order than they are read in, of another dtype or shape, or by their
    storage rather than their elements.
    """
    values = (torch.arange(6).reshape(2, 3).to(dtype).T, torch.ones((), dtype=dtype))
    empty = torch.zeros(0, 4, dtype=dtype)
    got = sent({"b": values[0], "a": [empty]}, values[1])
    expected = ({"b": values[0], "a": [empty]}, values[1])
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_prompts() -> None:
    """A field of a prompt that stays behind. What the vision tower gave is read by names, those of
    fields that are not set included; a cache is each process's own.
    """
    seen = BaseModelOutputWithPooling(pooler_output=(torch.ones(2), torch.zeros(3)))
    prompt = Prompt(
        torch.tensor([[1, 2]]),
        (0,),
        {"mm_encoder_outputs": {"image": seen}, "use_cache": True},
        Ready(DynamicCache(), torch.ones(1, 4), torch.tensor([[1]]), (0,), [0]),
        Encoded(None, torch.tensor([[0, 1]]), [b"key"], 3),
    )
    (got,) = sent(prompt)
    image = got.model_kwargs["mm_encoder_outputs"].pop("image")
    assert isinstance(image, ModelOutput)
    assert image.last_hidden_state is None
    assert image.to_tuple() == (image.pooler_output,)
    torch.testing.assert_close(image.pooler_output, seen.pooler_output)
    assert got.ready.cache is None
    expected = prompt._replace(
        model_kwargs={"mm_encoder_outputs": {}, "use_cache": True},
        ready=prompt.ready._replace(cache=None) if prompt.ready else None,
    )
    assert repr(got) == repr(expected)


def test_trees() -> None:
    """A tree of another shape. What it was drawn from is rank 0's alone."""
    tree = DraftTree(static((2, 1)), (5, 6, 7, 8, 9), q=torch.ones(5, 4))
    (got,) = sent(tree)
    assert got.topology is tree.topology
    assert got.tokens == tree.tokens
    assert got.q is None


def test_what_both_have_is_not_sent() -> None:
    """Images that are sent at every step; a name within other values that is not seen."""
    image, handle = torch.ones(9), object()
    got, again, nested = sent(image, handle, [{"x": image}], named={4: image, 0: handle})
    assert got is image
    assert again is handle
    assert nested[0]["x"] is image


class Unknown(NamedTuple):
    size: int


@pytest.mark.parametrize("value", [object(), {1, 2}, Unknown(3), print], ids=type)
def test_the_rest_is_refused(value: Any) -> None:
    """What would come as something else, such as a record as a tuple."""
    with pytest.raises(ValueError, match=f"a {type(value).__name__} among the arguments"):
        sent(UserDict(a=[value]))
