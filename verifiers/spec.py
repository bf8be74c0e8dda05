"""What a transformers model is: whether specdec can run it, what drafters have to agree with."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from specdec.interfaces import VerifierSpec
from specdec.runtime import Kinds, visual_token_ids
from specdec.runtime.paged_cache import RECURRENT

# A dummy keeps nothing: it has no attention, or reads the keys of a layer before it.
SUPPORTED_LAYERS = RECURRENT | {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "dummy",
}
# Where a state takes in several tokens at once as it does one after the other. Elsewhere, as in
# Jamba, transformers starts from nothing if it is more than one, and nothing says so.
_GOES_ON = frozenset(
    {"qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "lfm2", "olmo_hybrid", "bamba"}
    | {"granitemoehybrid", "nemotron_h"}
)


def unsupported(model: PreTrainedModel) -> list[str]:
    """Why specdec cannot run this model; empty if it can."""
    if model.config.is_encoder_decoder:
        return ["it is an encoder-decoder model"]
    text = model.config.get_text_config(decoder=True)
    problems = []
    layers = set(get_layer_types_and_kwargs(text)[0])
    if layers - SUPPORTED_LAYERS:
        names = ", ".join(sorted(layers - SUPPORTED_LAYERS))
        problems.append(f"its text tower has layers of type {names}")
    if layers & RECURRENT and text.model_type not in _GOES_ON:
        problems.append(
            f"its text tower has layers of type {', '.join(sorted(layers & RECURRENT))}, which go "
            f"on from a state over several tokens in {', '.join(sorted(_GOES_ON))} only"
        )
    return problems


def read_spec(model: PreTrainedModel) -> VerifierSpec:
    """What drafters have to agree with, read off the model's config."""
    config = model.config
    text = config.get_text_config(decoder=True)
    eos = model.generation_config.eos_token_id if model.generation_config else None
    return VerifierSpec(
        name=" ".join(filter(None, (type(model).__name__, config._name_or_path))),
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        visual_token_ids=visual_token_ids(config),
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
        chains_only=not RECURRENT.isdisjoint(get_layer_types_and_kwargs(text)[0]),
        keeps_states=bool(Kinds(text)),
    )
