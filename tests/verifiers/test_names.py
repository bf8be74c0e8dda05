"""What rank 0 calls by name is what the other processes have under it."""

from __future__ import annotations

from collections import UserDict

import torch

from specdec.verifiers.names import Names, parts_of


def test_a_tensor_that_was_written_to_is_not_called_by_its_name() -> None:
    """The other processes went on with what it had been: a buffer that every prompt is put in."""
    names, tensor = Names(), torch.zeros(3)
    first = names.add(tensor)
    assert names.find(tensor) == first
    tensor[1] = 1
    assert names.find(tensor) is None
    second = names.add(tensor)
    assert names.find(tensor) == second
    del tensor
    assert sorted(names.forgotten()) == [first, second]
    assert names.forgotten() == ()


def test_a_tensor_that_nobody_watches_has_no_name() -> None:
    """Torch does not count what is written to a tensor of inference mode, and refuses to say."""
    names = Names()
    with torch.inference_mode():
        tensor = torch.zeros(3)
    names.add(tensor)
    assert names.find(tensor) is None


def test_parts_are_numbered_alike_in_all_processes() -> None:
    """A processor's output, which is a mapping and no dict, is a dict in the other processes: names
    of what is behind it were those of something else there.
    """
    tensors = [torch.tensor([i]) for i in range(3)]
    here = ({"kwargs": UserDict(a=tensors[0], b=[tensors[1]])}, tensors[2])
    there = ({"kwargs": {"a": tensors[0], "b": [tensors[1]]}}, tensors[2])
    for value in (here, there):
        assert [int(part) for part in parts_of(value, torch.Tensor)] == [0, 1, 2]
