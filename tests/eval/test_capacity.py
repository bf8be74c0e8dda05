"""Replicas for a load: a queue whose law is known, and the command at toy size."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from specdec.eval.capacity import pays_up_to, plan_of
from specdec.eval.queueing import Steps, Work, expected
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
    assert record["plan"]["plans"][0]["replicas"] >= 1
    assert "Expected, not measured" in done.output.replace("\n", " ")
