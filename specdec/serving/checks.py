"""What an engine that runs by itself refuses at once: it would fail later, or wait for ever."""

from __future__ import annotations

from numbers import Integral, Real

from specdec.verifiers import TransformersVerifier


def check_options(timeout: object, top_logprobs: object, size: int) -> None:
    """Refuse options of a request that mean nothing.

    Args:
        timeout, top_logprobs: as for :meth:`ThreadedEngine.submit`.
        size: tokens that the model has.

    Raises:
        ValueError: one of them is of another type, or out of range.
    """
    # Not a number is above nothing.
    if timeout is not None and not (isinstance(timeout, Real) and float(timeout) > 0):
        raise ValueError(f"timeout={timeout!r}: expected seconds above 0, or None for no end")
    if top_logprobs is None:
        return
    if not isinstance(top_logprobs, Integral) or not 0 <= int(top_logprobs) <= size:
        raise ValueError(
            f"top_logprobs={top_logprobs!r}: expected 0 to {size}, the tokens that the model has, "
            "or None for no logprobs"
        )


def check_memory(verifier: TransformersVerifier, kv_cache_bytes: int | None) -> None:
    """Refuse memory that holds no request at all.

    Args:
        verifier: has measured what a page takes.
        kv_cache_bytes: what it was given.

    Raises:
        ValueError: it is less than a page takes.
    """
    page = verifier.bytes_per_page
    if kv_cache_bytes is not None and kv_cache_bytes < page:
        raise ValueError(
            f"kv_cache_bytes={kv_cache_bytes}: this model's keys take {page} bytes a page, and no "
            "request takes less than one"
        )
