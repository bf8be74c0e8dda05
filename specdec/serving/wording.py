"""How tokens of an answer are told: their logprobs and where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.engine import Emission
from specdec.serving.text import Piece
from specdec.token_texts import NOT_TEXT, token_texts

# Any, below: JSON values.


class Vocabulary:
    """What tokens read like, by themselves.

    Args:
        tokenizer: knows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._texts = token_texts(tokenizer)

    def text(self, token: int) -> str:
        """Its text; of a special token its name."""
        return self.raw(token).decode("utf-8", "replace")

    def raw(self, token: int) -> bytes:
        """Its text in UTF-8, of which it may be a part."""
        text = self._texts.get(token, "")
        if text == NOT_TEXT:
            text = str(self._tokenizer.convert_ids_to_tokens(token))
        return text if isinstance(text, bytes) else text.encode()


def chat_logprobs(pieces: Sequence[Piece], vocabulary: Vocabulary, top: int) -> dict[str, Any]:
    """As chat completions have it."""
    content = []
    for piece in pieces:
        logprobs = piece.emission.logprobs
        assert logprobs is not None, "they were asked for"
        said = _chat_token(piece.emission.token, logprobs.own, vocabulary)
        best = [_chat_token(token, value, vocabulary) for token, value in logprobs.top[:top]]
        content.append(said | {"top_logprobs": best})
    return {"content": content, "refusal": None}


def plain_logprobs(
    pieces: Sequence[Piece], vocabulary: Vocabulary, top: int, offset: int
) -> dict[str, Any]:
    """As completions have it; `offset`: characters of the answer before these."""
    told: dict[str, list[Any]] = {
        name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    for piece in pieces:
        logprobs = piece.emission.logprobs
        assert logprobs is not None, "they were asked for"
        told["tokens"].append(vocabulary.text(piece.emission.token))
        told["token_logprobs"].append(_finite(logprobs.own))
        # As OpenAI has it, the token itself is among them whatever its place.
        best = {vocabulary.text(token): _finite(value) for token, value in logprobs.top[:top]}
        told["top_logprobs"].append(best | {told["tokens"][-1]: told["token_logprobs"][-1]})
        told["text_offset"].append(offset)
        offset += len(piece.text)
    return told


def origins(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Who said each token, and what that spent of the bound."""
    return {
        "tokens": [
            {
                "text": piece.text,
                "origin": _origin(piece.emission),
                "spent": piece.emission.spent,
            }
            for piece in pieces
        ]
    }


def _origin(emission: Emission) -> str:
    if emission.relaxed:
        return "relaxed"
    return "drafted" if emission.drafted else "verifier"


def _chat_token(token: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    raw = vocabulary.raw(token)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(raw),
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's own stand-in for what is as good as impossible."""
    return max(logprob, -9999.0)
