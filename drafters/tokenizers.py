"""Whether two models can have the same tokenizer, as far as their files tell.

Reads ``tokenizer.json`` from folders and from the hub's cache, never from the network. Special
tokens and padding may differ; words with the same id must be the same words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from transformers.utils.hub import cached_file

from specdec.interfaces import VerifierSpec

# Tokenizers of one family agree on all ids but those of special tokens, unrelated ones on few.
_AGREEMENT = 0.9


def refuse_other_tokenizer(drafter: str | None, verifier: str | None) -> None:
    """Compare the tokenizers that lie beside two models; both are paths or hub ids.

    Raises:
        ValueError: they are not the same. Where one has no ``tokenizer.json``, nothing is known.
    """
    agreement = _agreement_of_files(drafter, verifier)
    if agreement is not None and agreement < _AGREEMENT:
        _refuse(f"drafter {drafter}", f"verifier {verifier}", agreement)


def refuse_other_vocabulary(
    drafter: str, its: Mapping[str, int], verifier: str, theirs: Mapping[str, int]
) -> None:
    """Compare vocabularies, token to id.

    Raises:
        ValueError: they are not the same.
    """
    agreement = _agreement(its, theirs)
    if agreement < _AGREEMENT:
        _refuse(drafter, verifier, agreement)


def refuse_other_size(drafter: str, vocab_size: int, verifier: VerifierSpec) -> None:
    """Compare the sizes of vocabularies, of which one may be padded or cut.

    Raises:
        ValueError: they cannot belong to the same tokenizer.
    """
    smaller, larger = sorted((vocab_size, verifier.vocab_size))
    if smaller < larger // 2:
        raise ValueError(
            f"drafter {drafter} has a vocabulary of {vocab_size}, verifier {verifier.name} one of "
            f"{verifier.vocab_size}: they cannot share a tokenizer; train a drafter for this "
            "verifier with `specdec distill`"
        )


def _refuse(drafter: str, verifier: str, agreement: float) -> None:
    raise ValueError(
        f"{drafter} and {verifier} have different tokenizers: they agree on {agreement:.0%} of "
        "their ids; train a drafter for this verifier with `specdec distill`"
    )


def _agreement(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Share of the smaller vocabulary that has the same ids in the other."""
    if len(one) > len(other):
        one, other = other, one
    return sum(other.get(token) == number for token, number in one.items()) / max(len(one), 1)


@lru_cache(maxsize=16)
def _agreement_of_files(one: str | None, other: str | None) -> float | None:
    if one == other:
        return None
    vocabularies = [_vocabulary(name) for name in (one, other)]
    if vocabularies[0] is None or vocabularies[1] is None:
        return None
    return _agreement(vocabularies[0], vocabularies[1])


def _vocabulary(name: str | None) -> dict[str, int] | None:
    if not name:
        return None
    try:
        file = cached_file(name, "tokenizer.json", local_files_only=True)
    except OSError:
        return None
    if file is None:
        return None
    vocabulary = json.loads(Path(file).read_text(encoding="utf-8"))["model"].get("vocab")
    if isinstance(vocabulary, list):  # of tokens and their scores
        return {token: number for number, (token, _) in enumerate(vocabulary)}
    return vocabulary if isinstance(vocabulary, dict) else None
