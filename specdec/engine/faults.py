"""What a log may hold of an error: a message may repeat what a user wrote, and is left out."""

from __future__ import annotations

import traceback


def described(error: BaseException) -> str:
    """What kind of error it is, and where it was raised."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__} in\n{frames}"
