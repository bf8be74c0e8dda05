"""Where specdec attaches to a model: the configs that name the attention of its text tower.

Knows nothing of caches or trees.
"""

from __future__ import annotations

import threading
from typing import NamedTuple
from weakref import WeakKeyDictionary

from transformers import PretrainedConfig, PreTrainedModel

from specdec.runtime import hook

# Found once per model: it takes as long as a forward of a small drafter.
_SEAMS: WeakKeyDictionary[PreTrainedModel, Seam] = WeakKeyDictionary()
_LOOKING = threading.Lock()  # held while a model's attention is switched to see what changes


class Seam(NamedTuple):
    """Where a model's text tower is attached to.

    Attributes:
        config: the model's, when ``text_configs`` were found.
        text_configs: see :func:`text_attention_configs`.
        switching: held while they are switched, so that two threads can use the model in turns.
    """

    config: PretrainedConfig
    text_configs: list[PretrainedConfig]
    switching: threading.Lock


def seam_of(model: PreTrainedModel) -> Seam:
    """The model's seam, found once as long as it has the same config."""
    with _LOOKING:
        known = _SEAMS.get(model)
        if known is None or known.config is not model.config:
            known = Seam(model.config, text_attention_configs(model), threading.Lock())
            _SEAMS[model] = known
        return known


def text_attention_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """The configs that name the attention of the text tower, and of nothing else.

    Found by letting transformers switch the text tower once and seeing which configs changed; the
    model is left as it was.

    Raises:
        ValueError: transformers would not switch it.
    """
    hook.register()
    text = model.config.get_text_config(decoder=True)
    key = next((k for k in model.config.sub_configs if getattr(model.config, k) is text), None)
    if key is None and text is not model.config:
        raise ValueError(f"{type(model).__name__}: its text config is not one of its sub-configs")
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    configs[id(text)] = text
    before = {index: config._attn_implementation for index, config in configs.items()}
    try:
        model.set_attn_implementation(hook.NAME if key is None else {key: hook.NAME})
        changed = [c for c in configs.values() if c._attn_implementation == hook.NAME]
    finally:
        for index, config in configs.items():
            config._attn_implementation_internal = before[index]
    if not any(config is text for config in changed):
        raise ValueError(
            f"{type(model).__name__} does not support transformers' attention interface, "
            "so specdec cannot attach to it"
        )
    return changed
