"""A model whose weights are spread over processes, as ``tp_plan="auto"`` leaves it.

Each process then computes some of the attention heads, and has keys of these only; everything else
it computes, all others do, too. So what is said of heads has to be put together, and what a process
finds out about its own memory has to be agreed upon. Everything here is a collective: all processes
have to come by. Knows nothing of requests.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel


class Shards(NamedTuple):
    """Attributes:
    group: the processes that share each layer.
    processes: how many they are.
    heads: attention heads of a layer, all processes' together.
    device: this process's.
    """

    group: Any  # a ProcessGroup, which builds of torch without it lack
    processes: int
    heads: int
    device: torch.device

    def whole(self, layer: Tensor) -> Tensor:
        """What a layer says of all heads, ``(N, H)``, of what it says of those here."""
        if layer.shape[1] * self.processes != self.heads:
            return layer  # the plan leaves attention in one piece
        parts = [torch.empty_like(layer) for _ in range(self.processes)]
        distributed.all_gather(parts, layer.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)

    def mean(self, each: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Means over the processes, each of which has the mean of as many heads."""
        for said in each:
            if said is not None:
                distributed.all_reduce(said, group=self.group)
                said /= self.processes
        return list(each)

    def least(self, number: int) -> int:
        """The least of what the processes say."""
        said = torch.tensor([number], device=self.device)
        distributed.all_reduce(said, distributed.ReduceOp.MIN, group=self.group)
        return int(said)


def shards_of(model: PreTrainedModel) -> Shards | None:
    """How a model is spread over processes; ``None`` if it is all here.

    Raises:
        ValueError: it is spread otherwise than by tensor parallelism alone.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    from torch.distributed.tensor import DTensor  # takes a while to load

    mesh = getattr(model, "_device_mesh", None)
    if mesh is None:
        parts = (part for part in model.parameters() if isinstance(part, DTensor))
        mesh = next((part.device_mesh for part in parts), None)
    if mesh is None or mesh.size() == 1:
        return None
    names = mesh.mesh_dim_names or ()
    within = mesh["tp"] if "tp" in names and len(names) > 1 else mesh
    if within.size() != mesh.size():
        raise ValueError(
            f"{type(model).__name__} is spread over a mesh {names} of {tuple(mesh.shape)}; specdec "
            "runs models that are spread by tensor parallelism alone: start a group of processes "
            "for each replica"
        )
    heads: int = model.config.get_text_config(decoder=True).num_attention_heads
    return Shards(within.get_group(), within.size(), heads, model.device)


def of_all_heads(each: list[Tensor], shards: Shards | None) -> list[Tensor]:
    """Per layer what it says of all heads, whichever process they are in."""
    return each if shards is None else [shards.whole(layer) for layer in each]


def whole_embeddings(model: PreTrainedModel) -> nn.Module:
    """The model's input embeddings, for one process to use by itself; a copy, and a collective, if
    they are spread over several.
    """
    there: Any = model.get_input_embeddings()  # of no common type
    if shards_of(model) is None or not hasattr(there.weight, "full_tensor"):
        return there  # type: ignore[no-any-return]  # as above
    # The same class, which may scale them, without what makes all processes take part.
    whole = copy.copy(there)
    vars(whole).pop("forward", None)
    vars(whole).update(_parameters={}, _forward_hooks={}, _forward_pre_hooks={})
    whole.weight = nn.Parameter(there.weight.full_tensor(), requires_grad=False)
    whole.num_embeddings = len(whole.weight)
    return whole  # type: ignore[no-any-return]  # as above
