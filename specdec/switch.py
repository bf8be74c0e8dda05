"""Standing in for a model's ``generate``: for nested contexts, and for several threads.

Knows nothing of what stands in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

Generate = Callable[..., Any]

# Held while a switch is put in place or taken away, never while anything is generated.
_CHANGING = threading.Lock()


class Switch:
    """What a model's ``generate`` is while contexts are open: that of the one opened last."""

    def __init__(self, before: Generate | None, otherwise: Generate) -> None:
        self.before = before
        self.open: list[Generate] = []
        self._otherwise = otherwise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A caller may have got hold of this and outlive the contexts.
        generate = self.open[-1] if self.open else self._otherwise
        return generate(*args, **kwargs)


@contextmanager
def replaced(model: PreTrainedModel, generate: Generate) -> Iterator[None]:
    """Within this context ``model.generate`` is ``generate``. Contexts may be left in any order;
    the model is as it was when the last of them is.
    """
    # Through vars(): torch's Module.__setattr__ has no say about what is no module.
    attributes = vars(model)
    with _CHANGING:
        before = attributes.get("generate")
        if isinstance(before, Switch):
            switch = before
        else:
            found: Any = model  # its generate comes from a mixin that the class does not declare
            switch = attributes["generate"] = Switch(before, found.generate)
        switch.open.append(generate)
    try:
        yield
    finally:
        with _CHANGING:
            switch.open.remove(generate)
            if not switch.open and attributes.get("generate") is switch:
                if switch.before is None:
                    del attributes["generate"]
                else:
                    attributes["generate"] = switch.before
