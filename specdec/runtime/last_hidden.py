"""What a model's output embeddings read, caught on its way there.

Knows nothing of trees or caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.runtime import hook


class LastHidden:
    """The last hidden state of a forward of ``model``, which stays as it is between two of them.

    Raises:
        ValueError: the model has no output embeddings.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        self._name = type(model).__name__
        if not isinstance(head, nn.Module):
            raise ValueError(
                f"{self._name} names no output embeddings, so its last hidden state cannot be given"
            )
        self._head = head
        self._seen: list[Tensor] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, note what the output embeddings are called with."""
        self._seen = []
        watch = self._head.register_forward_pre_hook(self._note)
        try:
            yield
        finally:
            watch.remove()

    def take(self, logits: Tensor) -> Tensor:
        """The hidden states ``(T, H)`` behind ``logits`` ``(1, T, V)`` of the forward just watched.

        Raises:
            ValueError: the logits were not made of one such state each.
        """
        seen, self._seen = self._seen, []
        if [hidden.shape[:-1] for hidden in seen] != [logits.shape[:-1]]:
            shapes = ", ".join(str(tuple(hidden.shape)) for hidden in seen) or "nothing"
            raise ValueError(
                f"{self._name} made logits {tuple(logits.shape)} while its output embeddings read "
                f"{shapes}; its last hidden state cannot be told from that"
            )
        return seen[0][0].detach()

    def _note(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if hook.CURRENT.get() is not None:  # another thread's plain forward is none of ours
            self._seen.append(args[0])
