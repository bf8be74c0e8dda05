"""The one exception that the command line reports without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What the user asked for cannot be done; the message says what, why and what to do instead."""


def reason(error: BaseException) -> str:
    """Somebody else's error message on one line, cut where it rambles, for use inside of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 480 else text[:477] + "..."
