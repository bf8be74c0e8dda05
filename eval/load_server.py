"""A server in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx
from prometheus_client.parser import text_string_to_metric_families

_ADDRESS = re.compile(r"(http://\S+)/v1")
_REQUEST = re.compile(r"[A-Z]+ /\S* \d{3} ")
_KEPT = 50  # lines of its log


class ServerProcess:
    """``specdec serve`` with these options, on a free port; killed when the context is left.

    Attributes:
        log: what it wrote last, lines about single requests left out.
        tracebacks: lines of it that stand in a traceback.
    """

    def __init__(self, options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "specdec.cli", "serve", "--port", "0", *options]
        self.log: list[str] = []
        self.tracebacks = 0
        self._address: str | None = None
        self._told = threading.Event()
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def address(self, seconds: float = 180.0) -> str:
        """Where it listens, once it does.

        Raises:
            RuntimeError: it does not.
        """
        self._told.wait(seconds)
        if self._address is None:
            raise RuntimeError("the server did not start:\n" + "\n".join(self.log))
        return self._address

    def resident_bytes(self) -> int | None:
        """What it holds in memory; ``None`` where the system does not say."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return None if found is None else int(found[1]) << 10

    def metrics(self) -> dict[str, float]:
        """What it tells Prometheus, summed over labels; without buckets."""
        text = httpx.get(f"{self.address()}/metrics", timeout=60.0).text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("specdec:")
                if not name.endswith(("_bucket", "_created")):
                    found[name] = found.get(name, 0.0) + sample.value
        return found

    def settled(self, seconds: float = 60.0) -> dict[str, float]:
        """The same, as soon as nothing runs or waits any more, or after these seconds."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.metrics()
            busy = found["num_requests_running"] + found["num_requests_waiting"]
            if not busy or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def terminate(self) -> None:
        """Tell it to stop, and do not wait."""
        self._process.send_signal(signal.SIGTERM)

    def exit_code(self, seconds: float = 60.0) -> int | None:
        """That it ended with; ``None``: it has not."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if self._address is None and (found := _ADDRESS.search(line)):
                self._address = found[1]
                self._told.set()
                continue
            if _REQUEST.match(line):
                continue
            self.tracebacks += line.lstrip().startswith(("Traceback", 'File "'))
            self.log = [*self.log, line.rstrip()][-_KEPT:]
        self._told.set()
