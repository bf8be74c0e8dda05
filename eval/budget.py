"""Measurements in parts, within a time that is given, written down after each.

A machine may be taken away at any moment, and what is not on disk by then is lost. Parts that fail
say why and do not stop the others; those that no time is left for are listed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specdec.files import write_json

Clock = Callable[[], float]  # seconds
_WORTH_STARTING = 0.25  # of the time that a part asks for


class Red(Exception):
    """A gate failed: what would be measured behind it is not worth having."""


class Session:
    """One measurement.

    Args:
        out: the file that is written after each part.
        record: what it begins with.
        seconds: for all parts together.
        clock: for tests.

    Attributes:
        record: what is written: ``parts`` by name, and ``skipped``, for want of time.
    """

    def __init__(
        self, out: Path, record: dict[str, Any], seconds: float, clock: Clock = time.monotonic
    ) -> None:
        self.record = {**record, "parts": {}, "skipped": []}
        self._out = out
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - self._clock()

    def run(self, name: str, seconds: float, part: Callable[[Deadline], Any]) -> Any:
        """Run a part and write down what it returns; ``None`` if it failed or was skipped.

        Args:
            name: of the part.
            seconds: what it may take; less if less is left, and skipped if that is too little.
            part: told by its deadline what there is no time for.

        Raises:
            Red: the part is a gate and failed; that is written down as well.
        """
        if self.left < seconds * _WORTH_STARTING:
            self.skip(name, None)
            return None
        deadline = Deadline(self, name, self._clock() + min(seconds, self.left), self._clock)
        began = self._clock()
        parts: dict[str, Any] = self.record["parts"]
        found: Any = None
        try:
            found = part(deadline)
            parts[name] = {"seconds": self._clock() - began, **found}
        except Red as red:
            parts[name] = {"seconds": self._clock() - began, "red": str(red)}
            raise
        except Exception as error:  # whatever a driver or a compiler raises
            parts[name] = {"seconds": self._clock() - began, "failed": _first_line(error)}
        finally:
            self.write()
        return found

    def skip(self, part: str, case: str | None) -> None:
        """Note that there is no time for a part, or for a case of it."""
        self.record["skipped"].append({"part": part, "case": case})
        self.write()

    def write(self) -> None:
        """Have everything so far on disk."""
        write_json(self._out, self.record)


class Deadline:
    """When a part has to be done; made by :meth:`Session.run`."""

    def __init__(self, session: Session, part: str, end: float, clock: Clock) -> None:
        self._session = session
        self._part = part
        self._end = end
        self._clock = clock

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - self._clock()

    def wanted(self, case: str) -> bool:
        """Whether there is time for one more case; noted as skipped if not."""
        if self.left > 0:
            return True
        self._session.skip(self._part, case)
        return False


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
