"""The commands of the command line, one module each, and what they share."""

from specdec.commands.errors import UserError

__all__ = ["UserError"]
