"""The kernel compiled for GPUs that are not here.

``SPECDEC_EVERY_CUBIN=1`` compiles every tiling, which takes a quarter of an hour; by default it is
the one that a tree of eight nodes gets first, each size of heads in every dtype for one GPU, and
the largest, which needs most registers, for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EVERY = bool(os.environ.get("SPECDEC_EVERY_CUBIN"))
HEAD_DIMS = {80: (16, 80, 256), 90: (32, 96, 256), 100: (64, 128, 256)}

pytest.importorskip("triton", reason="triton is only for Linux")


@pytest.mark.slow
@pytest.mark.parametrize("arch", HEAD_DIMS)
def test_every_dtype_and_head_size_compiles_without_spills(arch: int, tmp_path: Path) -> None:
    """Code that only the interpreter takes, and tiles that do not fit the registers: both would
    show on a GPU only."""
    out = tmp_path / "cubins.json"
    sizes = sorted(set().union(*HEAD_DIMS.values())) if EVERY else HEAD_DIMS[arch]
    command = [sys.executable, "-m", "specdec.eval.compiled", "--arch", str(arch)]
    command += ["--head-dim", ",".join(map(str, sizes)), "--out", str(out)]
    command += [] if EVERY else ["--nodes", "8", "--first"]
    # In a process of its own: in this one triton interprets.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert out.exists(), done.stdout + done.stderr
    cubins = json.loads(out.read_text())["cubins"]
    found = {(cubin["dtype"], cubin["head_dim"]) for cubin in cubins}
    assert found == {(dtype, size) for dtype in ("fp32", "fp16", "bf16") for size in sizes}
    assert all(cubin["built"]["cubin_bytes"] > 1000 for cubin in cubins)
    assert done.returncode == 0, done.stdout
