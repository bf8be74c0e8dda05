"""What other engines can run of an EAGLE head, and what they need to know of its verifier.

Knows no form of a checkpoint.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from specdec.drafters.checkpoint_files import read_tensors
from specdec.drafters.eagle_head import EagleHead

TAPS = 3  # states that other engines fuse


class VerifierFacts(NamedTuple):
    """What an exported head says of its verifier.

    Attributes:
        name: hub id or folder.
        architectures: of its config.
        layers: of its text tower.
        hidden_size: of its text tower.
        vocab_size: of its text tower.
        max_positions: tokens that it can read.
    """

    name: str
    architectures: tuple[str, ...]
    layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int


def read_verifier(name: str) -> VerifierFacts:
    """Read the config of a verifier, a folder or a hub id.

    Raises:
        ValueError: it cannot be read, or is not that of a language model.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        text = config.get_text_config(decoder=True)
        return VerifierFacts(
            name,
            tuple(config.architectures or ()),
            text.num_hidden_layers,
            text.hidden_size,
            text.vocab_size,
            text.max_position_embeddings,
        )
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"the config of verifier {name} cannot be read: {error}") from error


def read_embeddings(verifier: VerifierFacts) -> Tensor:
    """The embeddings of a verifier's tokens, ``(vocab, hidden)``, in the type they were saved in.

    Raises:
        ValueError: they cannot be told from its files.
    """
    found = read_tensors(verifier.name, "embed_tokens.weight")
    shape = (verifier.vocab_size, verifier.hidden_size)
    fitting = [tensor for tensor in found.values() if tensor.shape == shape]
    if len(fitting) != 1:
        raise ValueError(
            f"{verifier.name} has {len(fitting)} tensors {shape} whose names end in "
            "embed_tokens.weight; there should be one"
        )
    return fitting[0]


def refuse_unportable(head: EagleHead, verifier: VerifierFacts) -> None:
    """Refuse a head that runs only here, or that is not for this verifier.

    Raises:
        ValueError: naming what stands in the way.
    """
    config = head.config
    if config.vision != "hidden":
        reason = {
            "compressed": "they have no compressed visual tokens",
            "shared": "they do not let a drafter read the verifier's keys",
        }[config.vision]
        raise ValueError(
            f"a head with vision {config.vision!r} runs in specdec only: other engines show a "
            f"drafter visual tokens as they are, and {reason}; train one with vision 'hidden'"
        )
    if len(config.layers) != TAPS:
        raise ValueError(
            f"the head reads {len(config.layers)} layers of its verifier, other engines give {TAPS}"
        )
    if not config.own_embeddings and config.hidden_size != config.target_hidden_size:
        raise ValueError(
            f"the head is {config.hidden_size} wide and its verifier {config.target_hidden_size}; "
            "other engines share embeddings between models of one width only"
        )
    for what, ours, theirs in (
        ("hidden size", config.target_hidden_size, verifier.hidden_size),
        ("vocabulary", config.vocab_size, verifier.vocab_size),
    ):
        if ours != theirs:
            raise ValueError(
                f"the head is for a verifier of {what} {ours}, {verifier.name} has {theirs}"
            )
    if max(config.layers) > verifier.layers:
        raise ValueError(
            f"the head reads hidden state {max(config.layers)}, {verifier.name} has "
            f"{verifier.layers} layers"
        )


def cast(head: EagleHead, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The head's tensors, weights in ``dtype`` (None: as they are), tables in their own types."""
    return {
        name: tensor.to(dtype or tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in head.state_dict().items()
    }
