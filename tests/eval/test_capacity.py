"""Replicas for a load: a queue whose law is known, and the command at toy size."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from specdec.drafters import TextOnlyDrafter
from specdec.eval import open_loop, serving_costs, suite
from specdec.eval.capacity import _say, pays_up_to, plan_of, prompt_pairs
from specdec.eval.capacity_check import Checked, Load, Most, check, one_an_image
from specdec.eval.known_configs import known_config
from specdec.eval.open_loop import Clock, Measured, Saturated
from specdec.eval.queueing import Steps, Work, expected
from specdec.eval.random_models import random_model, toy
from specdec.eval.serving_costs import ServingCosts

COSTS = ServingCosts(
    context=100,
    depth=4,
    plain=Steps(((1, 0.010), (8, 0.012))),
    drafted=Steps(((1, 0.014), (8, 0.042))),
    per_step=3.0,
    prompt=0.05,
    prompt_again=0.01,
    prompt_tokens=80,
    kv_bytes_per_token=1000,
)


def test_steps_are_in_lines_between_and_beyond_those_measured() -> None:
    """The slope of another segment."""
    steps = Steps(((1, 1.0), (2, 1.5), (4, 3.5)))
    assert [steps.seconds(n) for n in (1, 1.5, 2, 3, 4, 6)] == [1, 1.25, 1.5, 2.5, 3.5, 5.5]
    with pytest.raises(ValueError, match="rising"):
        Steps(((2, 1.0), (1, 1.0)))


def test_one_at_a_time_is_a_queue_with_one_server() -> None:
    """The law of an M/M/1 queue, which needs no sharing: n = ρ / (1 − ρ)."""
    work = Work(0.0, 11, 1.0, Steps(((1, 0.1),)), most=1)
    found = expected(work, 0.8)  # each takes ten steps, a second
    assert found.utilisation == pytest.approx(0.8)
    assert found.running + found.waiting == pytest.approx(4.0, rel=1e-6)
    assert found.busy == pytest.approx(0.8)
    assert found.between_tokens == pytest.approx(0.1)
    with pytest.raises(ValueError, match="more replicas"):
        expected(work, 1.0)


def test_expectations_are_those_of_a_simulated_replica() -> None:
    """A law that is not that of its rates. 40,000 requests leave 2 % of noise in the mean number,
    measured with ten seeds; 8 % is beyond chance.
    """
    work = Work(0.02, 33, 2.0, Steps(((1, 0.01), (4, 0.016), (8, 0.03))), most=6)
    assert work.rate(60) == work.rate(6)  # who waits takes no part in a step
    rate = 0.7 * work.rate(6)
    draw, now, inside, area = random.Random(5), 0.0, 0, 0.0
    for _ in range(80_000):
        leaving = work.rate(inside) if inside else 0.0
        gap = draw.expovariate(rate + leaving)
        area, now = area + inside * gap, now + gap
        inside += 1 if draw.random() * (rate + leaving) < rate else -1
    found = expected(work, rate)
    assert found.running + found.waiting == pytest.approx(area / now, rel=0.08)


def test_a_plan_says_when_drafting_stops_paying() -> None:
    """Replicas that are too full, keys that do not fit, drafting where it is slower."""
    assert [COSTS.speedup(n) for n in (1, 8)] == pytest.approx([30 / 14, 36 / 42])
    pays = pays_up_to(COSTS, 32)
    assert COSTS.speedup(pays) > 1 > COSTS.speedup(pays + 1)
    how = {"rate": 40.0, "answer": 20.0, "shared": 0.0, "most": 8}
    plan = plan_of(COSTS, **how, kv_bytes=0)  # type: ignore[arg-type]  # numbers, all of them
    assert plan["max_batch"] == 8
    assert plan["kv_bytes_per_request"] == 100_000
    for each in plan["plans"]:
        assert each["expected_per_replica"]["utilisation"] <= 0.8
        fewer = 40.0 / max(each["replicas"] - 1, 1)
        assert fewer > 0.8 * each["capacity_per_replica"]
    # Keys for three at once.
    tight = plan_of(COSTS, **how, kv_bytes=350_000)  # type: ignore[arg-type]  # as above
    assert tight["max_batch"] == 3
    assert tight["plans"][0]["replicas"] >= plan["plans"][0]["replicas"]
    # Images that are known take less work.
    again = plan_of(COSTS, **how | {"shared": 1.0}, kv_bytes=0)  # type: ignore[arg-type]  # as above
    assert again["plans"][0]["replicas"] < plan["plans"][0]["replicas"]


def test_a_plan_without_a_drafter_is_of_none() -> None:
    """Drafts that cost nothing in a plan of replicas that nobody drafts for."""
    how = {"rate": 40.0, "answer": 20.0, "shared": 0.0, "most": 8}
    plan = plan_of(COSTS, **how, kv_bytes=0, drafter=False)  # type: ignore[arg-type]  # as above
    assert [each["drafts"] for each in plan["plans"]] == [False]
    assert plan["drafting_pays_up_to_batch"] is None


def test_keys_that_do_not_fit_are_refused() -> None:
    """A replica that runs one request at a time in a memory that has no room for it."""
    how = {"rate": 40.0, "answer": 20.0, "shared": 0.0, "most": 8}
    assert plan_of(COSTS, **how, kv_bytes=100_000)["max_batch"] == 1  # type: ignore[arg-type]  # as above
    for less in (99_999, 0.1):
        with pytest.raises(ValueError, match=r"one request take 0\.0954 MiB"):
            plan_of(COSTS, **how, kv_bytes=less)  # type: ignore[arg-type]  # as above


def test_what_a_full_engine_yields_is_that_of_its_full_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beginnings, in which prompts alone are run, and the last answers, beside which there is
    nobody, counted in. Two at a time, a token a second each, from second 10 on.
    """
    first = [range(11, 15), range(15, 19), range(19, 23)]
    second = [range(13, 17), range(17, 21), range(21, 25)]
    nothing: Any = None  # neither a request nor an engine is looked at
    clocks = [Clock(nothing, nothing, ended=True, came=[*came]) for came in [*first, *second]]
    monkeypatch.setattr(open_loop, "_answered", lambda *_: (clocks, 3.0))
    found = open_loop.saturate(nothing, [{}] * 6, most=2, max_new_tokens=4)
    assert found == (6, 4, 2.0, 3.0)
    with pytest.raises(ValueError, match="do not saturate"):
        open_loop.saturate(nothing, [{}] * 4, most=2, max_new_tokens=4)


def test_no_image_is_asked_about_twice() -> None:
    """A load whose prompts are cheaper than those that were measured: the engine knows an image
    that it has been asked about.
    """
    seen = [each.images[0].tobytes() for each in one_an_image()]
    assert len(seen) == len(set(seen)) > 100


def test_more_requests_than_images_are_refused(small: Any) -> None:
    """A check that begins again with images that are known, or that cannot fill the engine."""
    model, _ = suite.load_verifier(suite.MODEL)
    how: dict[str, Any] = {"batches": [1], "depth": 2, "shares": [0.5], "answer": 2}
    for requests, most in ((999, 2), (2, 60)):
        with pytest.raises(ValueError, match=f"{requests} requests, {most} at once"):
            check(model, TextOnlyDrafter(small.drafter), **how, requests=requests, most=most)


def test_prompts_that_are_timed_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up with the prompt that is timed next, which is then found in a page."""
    model = random_model(toy(known_config("llava-1.5-7b")), torch.float32, "cpu")
    asked, submit = list[float](), serving_costs.submit

    def noting(engine: Any, model: Any, inputs: Any, tokens: int) -> Any:
        asked.append(float(inputs["pixel_values"].sum()))
        return submit(engine, model, inputs, tokens)

    monkeypatch.setattr(serving_costs, "submit", noting)
    first, again = serving_costs._prompts(model, None, prompt_pairs(model, 4, 3))
    assert min(first, again) > 0
    assert [asked.count(each) for each in asked] == [2] * 6


def test_a_load_is_told_by_how_full_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """ "85 % of capacity", which was aimed at, over a load that turned out to be another; and a
    comparison that cannot fail, of a rate with itself.
    """
    work = COSTS.work(answer=20.0, shared=0.0, most=8)
    hoped = expected(work, 0.5 * work.rate(8))
    measured = Measured(hoped.rate, 9, 20.0, 80.0, 2.0, 0.1, 0.01, 0.5, 99.0, 3.0)
    loads = [Load(0.85, work.rate(8), each, measured) for each in (hoped, None)]
    most = Most(work.rate(8) * 20.0, Saturated(9, 20.0, 0.8 * work.rate(8) * 20.0, 3.0))
    checked = Checked(COSTS, loads, most)
    _say(checked, Console())
    told = " ".join(capsys.readouterr().out.split())
    assert "50 % of capacity" in told
    assert "more than capacity" in told
    assert "85 %" not in told
    assert most.error_percent == pytest.approx(25)
    assert "tokens_per_second" not in checked.to_dict()["loads"][0]["error_percent"]


def test_the_command_plans_and_checks(tmp_path: Path) -> None:
    """A load whose figures do not reach the record."""
    import typer

    from specdec.eval.capacity import capacity

    app, out = typer.Typer(), tmp_path / "capacity.json"
    app.command()(capacity)
    asked = "--drafter demo --dtype fp32 --words 8 --answer 6 --batch 1,2 --depth 2 --rounds 1"
    more = "--max-batch 4 --check --loads 50 --requests 3"
    done = CliRunner().invoke(app, [*asked.split(), *more.split(), "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    assert record["schema"] == "specdec.capacity/1"
    (load,) = record["check"]["loads"]
    assert load["measured"]["requests"] == 3
    assert load["measured"]["tokens"] <= 6
    full = record["check"]["saturated"]
    assert full["measured"]["requests"] == 16
    both = [full[name]["tokens_per_second"] for name in ("expected", "measured")]
    assert full["error_percent"]["tokens_per_second"] == pytest.approx(
        100 * (both[0] / both[1] - 1)
    )
    assert record["plan"]["plans"][0]["replicas"] >= 1
    assert "Expected, not measured" in done.output.replace("\n", " ")
    assert CliRunner().invoke(app, [*more.split(), "--requests", "1"]).exit_code == 2
