"""The one exception that the command line reports without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What the user asked for cannot be done; the message says what, why and what to do instead."""


def reason(error: BaseException) -> str:
    """The first sentence or line of somebody else's error message, for use inside of ours."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."
