"""The comparison of tree attention with other ways to attend, at a size for the interpreter."""

from __future__ import annotations

import pytest
import torch
import typer
from typer.testing import CliRunner

from specdec.eval import attention
from specdec.eval.attention import Problem
from specdec.eval.gpu_suite import gpu_suite
from support.devices import DEVICES

SMALL = Problem(48, 2, 3, shared=16, heads=4, kv_heads=2, head_dim=16, dtype=torch.float32)
SHORT = {"heads": 2, "kv_heads": 1, "head_dim": 16, "dtype": torch.float32}


def once(run: attention.Run) -> float:
    run()
    return 2.0


def test_the_least_that_must_be_moved() -> None:
    """Shared keys counted once; 16 + 2·(32 + 3) keys and values of 2 heads, 6 rows of 4 heads in
    and out, 16 components of 4 bytes each."""
    assert SMALL.bytes_to_move == (2 * 86 * 2 + 2 * 6 * 4) * 16 * 4


@pytest.mark.parametrize("device", DEVICES)
def test_everybody_computes_the_same(device: str) -> None:
    """Requests mixed up on the way to or from the others would show as their error."""
    entries = {"specdec": attention.specdec, "sdpa": attention.sdpa}
    result = attention.compare(SMALL, torch.device(device), once, entries)
    assert result["failed"] == {}
    assert result["ms"] == {"specdec": 2.0, "sdpa": 2.0}
    assert max(result["error"].values()) < 1e-5
    assert result["bytes_per_second"] == SMALL.bytes_to_move / 0.002


@pytest.mark.parametrize("device", DEVICES)
def test_no_time_for_a_wrong_result(device: str) -> None:
    def wrong(material: attention.Material) -> attention.Run:
        return lambda: attention.sdpa(material)().flip(-1)

    entries = {"specdec": attention.specdec, "wrong": wrong}
    result = attention.compare(SMALL, torch.device(device), once, entries)
    assert list(result["ms"]) == ["specdec"]
    assert "differs from the reference" in result["failed"]["wrong"]
    with pytest.raises(ValueError, match="differs"):
        attention.compare(SMALL, torch.device(device), once, {"specdec": wrong})


@pytest.mark.parametrize("device", DEVICES)
def test_sharing_reads_a_prefix_once(device: str) -> None:
    result = attention.sharing(torch.device(device), once, prefix=32, **SHORT)
    assert result["ratio"] == 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_keys_beside_are_timed_three_ways(device: str) -> None:
    """Times that change places, or a ratio that is upside down."""
    seen = []

    def timer(run: attention.Run) -> float:
        seen.append(run().shape)
        return float(len(seen))

    found = attention.beside(torch.device(device), timer, keys=160, batch=3, nodes=2, **SHORT)
    assert seen == [(1, 2, 6, 16)] * 3
    assert [found[name] for name in ("apart_ms", "shared_ms", "text_ms")] == [1, 2, 3]
    assert found["ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("device", DEVICES)
def test_no_time_for_a_wrong_result_beside(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.GATE, torch.float32, -1.0)
    with pytest.raises(ValueError, match="differs"):
        attention.beside(torch.device(device), once, keys=32, batch=1, nodes=1, **SHORT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_the_suite_needs_a_gpu() -> None:
    app = typer.Typer()
    app.command()(gpu_suite)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "no CUDA device" in result.output
