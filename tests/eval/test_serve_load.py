"""The proof under load, at toy size: eight clients and a real server; and what would fail it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from specdec.eval import load_summary as summary
from specdec.eval.load_client import Client
from specdec.eval.load_orders import Order, Outcome, orders
from specdec.eval.load_prompts import Reference, prompts, reference
from specdec.eval.serve_load import serve_load

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def right(small: Any) -> Reference:
    asked = small.questions[1]
    return reference(small.model, small.processor, asked, longest=8, bound=1e-6)


def _outcome(text: str, finish: str | None, **changes: Any) -> Outcome:
    whole = {"end": "whole", "status": 200, "texts": [text], "finish": [finish]}
    return Outcome(Order(0, 8), **(whole | changes))


def test_a_server_keeps_its_promises(tmp_path: Path) -> None:
    """A wrong answer, a page left behind, a traceback, or an answer cut off by the end."""
    out = tmp_path / "serving.json"
    app = typer.Typer()
    app.command()(serve_load)
    sizes = ["--clients", "8", "--seconds", "2", "--distinct", "3", "--longest", "8"]
    full = ["--max-batch", "4", "--max-waiting", "2"]
    result = CliRunner().invoke(app, [*sizes, *full, "--cancel", "0.4", "--out", str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["answers"]["compared_whole"] > 0
    assert record["traffic"]["tokens_per_second"] > 0
    assert record["speculation"]["num_spec_steps"] > 0
    assert record["drain"]["asked"] % 4 == 0, "as many as run at once"


def test_a_wrong_answer_is_one(right: Reference) -> None:
    """Whole answers that are too short, beginnings that are none, and other reasons to end;
    clients that hung up before anything came, counted as compared.
    """
    text, finish = right.text(8), right.finish(8)
    assert right.judge(text, 8, whole=True).kind == "same"
    assert right.judge(text[:3], 8, whole=False).kind == "same"
    assert right.judge(text[:3], 8, whole=True).kind == "wrong"
    assert right.judge(f"{text}!", 8, whole=False).kind == "wrong"
    answers = [
        _outcome(text, finish),
        _outcome(text, "stop" if finish == "length" else "length"),
        _outcome(text, None),
        _outcome(text[:3], None, end="hung up"),
        _outcome("§", None, end="hung up"),
    ]
    judged = summary.judge(answers, [right])
    assert (judged.whole, judged.begun, judged.tied, len(judged.wrong)) == (2, 3, 0, 3)
    nothing = summary.judge([_outcome("", None, end="hung up")], [right])
    assert (nothing.begun, nothing.wrong) == (0, [])
    assert len(summary.judge([_outcome("", None)], [right]).wrong) == 1


def test_a_tie_of_the_verifiers_own_is_none(small: Any) -> None:
    """Counted apart with its gap, and only if what follows is what the verifier says behind it."""
    loose = reference(small.model, small.processor, small.questions[1], longest=8, bound=10.0)
    tight = reference(small.model, small.processor, small.questions[1], longest=8, bound=1e-6)
    logits = loose._logits(loose.tokens[:2])
    second = int(logits.topk(2).indices[1])
    other = [*loose.tokens[:2], second]
    other += loose._greedy(other, 5)
    text = loose._said(other)
    verdict = loose.judge(text, 8, whole=True)
    gap = float(logits.max() - logits[second])
    assert verdict.kind == "tied"
    assert verdict.gap >= gap * 0.999
    assert tight.judge(text, 8, whole=True).kind == "wrong"


def test_clients_ask_the_same_again() -> None:
    """Orders that depend on the clock, or clients that all ask the same."""

    def first(seed: int) -> list[Order]:
        return [order for order, _ in zip(orders(seed, 9, 0.25, 128), range(400), strict=False)]

    assert first(3) == first(3) != first(4)
    gone = [each for each in first(3) if each.pieces is not None or each.seconds is not None]
    assert 0.15 < len(gone) / 400 < 0.35
    kinds = [each.kind for each in prompts(12)]
    assert {"image", "same image", "text", "long text", "conversation"} <= set(kinds)


def test_time_in_which_one_is_refused_counts() -> None:
    """Latencies of the last attempt alone: a server that refuses for a second looks quick; and a
    refusal that is told as the end of an attempt that had no response.
    """
    asked = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) % 2:
            return httpx.Response(429, headers={"Retry-After": "0.3"})
        if len(asked) > 2:
            await asyncio.sleep(9)
        events = [
            {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))

    async def main() -> list[Outcome]:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            client = Client(http, "demo", [[]])
            return [await client.ask(order) for order in (Order(0, 8), Order(0, 8, seconds=0.1))]

    whole, gone = asyncio.run(main())
    assert (whole.end, whole.status, whole.refusals) == ("whole", 200, 1)
    assert whole.first is not None
    assert whole.seconds >= whole.first >= whole.refused >= 0.3
    found = summary.latencies([whole])
    for name in ("first_token_ms", "end_to_end_ms"):
        since_let_in = found["let_in"][name]["p50"]
        assert found[name]["p50"] - since_let_in == pytest.approx(1000 * whole.refused, abs=0.01)
    assert (gone.end, gone.status, gone.refusals) == ("hung up", 0, 1)


def test_gates_fail_one_by_one() -> None:
    """A gate that does not look at what it names."""
    good: dict[str, Any] = {
        "seconds": 1200.0,
        "answers": {"wrong": 0, "compared_whole": 9},
        "traffic": {"ends": {"whole": 9}, "status": {"200": 9, "429": 2}},
        "server": {"pages_after": 0.0, "pages_most": 0.5, "tracebacks": 0},
        "drain": {"asked": 8, "running": 5, "whole": 8, "wrong": 0, "exit_code": 0},
        "memory": {"growth": 0.0},
    }
    assert all(summary.gates(good).values())
    for section, change, gate in [
        ("answers", {"wrong": 1}, "answers"),
        ("answers", {"compared_whole": 0}, "answers"),
        ("traffic", {"ends": {"failed": 1}}, "no_failures"),
        ("traffic", {"status": {"503": 1}}, "no_5xx"),
        ("server", {"pages_after": 0.1}, "pages_given_back"),
        ("server", {"pages_most": 0.0}, "pages_given_back"),
        ("server", {"tracebacks": 2}, "no_tracebacks"),
        ("drain", {"whole": 7}, "drained"),
        ("drain", {"running": 0}, "drained"),
        ("drain", {"wrong": 1}, "drained"),
        ("drain", {"exit_code": -9}, "exit_code"),
        ("memory", {"growth": 0.1}, "memory"),
    ]:
        found = summary.gates(good | {section: good[section] | change})
        assert [name for name, kept in found.items() if not kept] == [gate]


def test_memory_that_grows_is_seen() -> None:
    """A slope that the start of a run hides, or one of the start alone."""
    steps = [summary.Sample(float(t), 2**30 + 2**20 * max(0, t - 20)) for t in range(90)]
    grows = summary.memory(steps)
    assert grows is not None
    assert grows["slope_kib_per_minute"] == pytest.approx(60 * 1024)
    warm = [summary.Sample(float(t), 2**30 + 2**20 * min(t, 20)) for t in range(90)]
    flat = summary.memory(warm)
    assert flat is not None
    assert abs(flat["growth"]) < 1e-6
    assert summary.memory(steps[:1]) is None
