"""The tests that need a GPU, run beside a measurement: do the kernels compute what they should?"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROCESSES = 8  # compiling kernels keeps CPU cores busy, and most tests compile some
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|deselected|errors?)\b")


def run_tests(
    root: Path,
    seconds: float,
    selection: Sequence[str] = ("-m", "gpu"),
    processes: int | None = None,
) -> dict[str, Any]:  # Any: JSON values
    """Run the selected tests of a checkout, as ``make test-gpu`` does.

    Args:
        root: the checkout.
        seconds: after which they are stopped.
        selection: what pytest is told.
        processes: at most so many at once; ``None`` is by the number of CPU cores.

    Returns:
        ``ran`` and why not; else pytest's exit code, counts by outcome, the names of those that
        failed, and whether time ran out, in which case there are no counts.
    """
    if not (root / "tests").is_dir():
        return {"ran": False, "why": "there are no tests beside this package; run from a checkout"}
    if importlib.util.find_spec("pytest") is None:
        return {"ran": False, "why": "pytest is not installed here"}
    if processes is None:
        processes = min(_PROCESSES, os.cpu_count() or 1)
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *selection]
    if importlib.util.find_spec("xdist") is not None and processes > 1:
        command += ["-n", str(processes)]
    output, timed_out, code = _run(command, root, seconds)
    counts = {name.rstrip("s"): int(count) for count, name in _COUNT.findall(_last_line(output))}
    return {
        "ran": True,
        "timed_out": timed_out,
        "exit_code": code,
        **{name: counts.get(name, 0) for name in ("passed", "failed", "error", "skipped")},
        "failures": re.findall(r"^(?:FAILED|ERROR) (.+)$", output, re.MULTILINE),
        "tail": output[-2000:],
    }


def _run(command: Sequence[str], root: Path, seconds: float) -> tuple[str, bool, int | None]:
    """What it printed, whether it had to be stopped, and its exit code if not."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        # A session of its own, so that stopping it stops its workers.
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        printed.seek(0)
        return printed.read(), code is None, code


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else ""
