"""Projected speedups: the formulas, and that nothing projected goes by another name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specdec.eval import projection_check
from specdec.eval.plan import plan, trees_of
from specdec.eval.projection import (
    Acceptance,
    Tree,
    from_record,
    project,
    projections,
    rate_for,
)
from specdec.eval.step_costs import DraftTime, StepCosts, StepTime
from specdec.stats import AcceptanceStats

# A plain step takes 10, verifying 5 nodes 12, drafting 4 levels 8 milliseconds.
COSTS = StepCosts(
    "model",
    "drafter",
    64,
    (StepTime(1, 32, 1, 10.0), StepTime(1, 32, 5, 12.0)),
    (DraftTime(1, 32, 4, 8.0),),
)
FREE = StepCosts("model", None, 64, (StepTime(2, 32, 1, 10.0), StepTime(2, 32, 9, 10.0)))


def stats(steps: int, per_pos: list[int], plain: int = 0) -> AcceptanceStats:
    return AcceptanceStats(
        num_spec_steps=steps,
        num_plain_steps=plain,
        num_draft_tokens=steps * len(per_pos),
        num_accepted_draft_tokens=sum(per_pos),
        num_accepted_tokens_per_pos=per_pos,
    )


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
def test_expected_tokens_are_those_of_the_paper(rate: float) -> None:
    """Leviathan et al., eq. 1: (1 − α^(k+1)) / (1 − α); with α = 1 it is k + 1."""
    for depth in (1, 4, 7):
        closed = depth + 1 if rate == 1 else (1 - rate ** (depth + 1)) / (1 - rate)
        assert Acceptance.constant(rate).tokens(depth) == pytest.approx(closed)


def test_measured_acceptance_is_that_of_steps_that_drafted() -> None:
    """Steps that were held back, and drafted nothing, counted as refusals; τ of a record that is
    not that of its statistics; positions beyond it taken for granted."""
    measured = Acceptance.measured(stats(12, [8, 6, 3], plain=2), "chain of 3")
    assert measured.reached == (0.8, 0.6, 0.3)
    assert measured.tokens(3) == pytest.approx(2.7)
    assert measured.at(5) == pytest.approx(0.3 * 0.5**2)
    whole = stats(12, [8, 6, 3])
    assert Acceptance.measured(whole, "").tokens(3) == pytest.approx(whole.mean_acceptance_length)
    with pytest.raises(ValueError, match="nothing was drafted"):
        Acceptance.measured(stats(3, [0], plain=3), "held")


@pytest.mark.parametrize("reached", [(0.5, 0.6), (1.2,), (-0.1,)])
def test_shares_that_are_none_are_refused(reached: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="reached in a share of steps"):
        Acceptance(reached, "", 0.0)


def test_a_case_worked_out_by_hand() -> None:
    """Drafting left out of the time, or a plain step in it. Half of the drafts: τ = 1 + 0.5 + 0.25
    + 0.125 + 0.0625; 20 ms a step."""
    found = project(COSTS, Acceptance.constant(0.5), 1, 32, Tree(4, 5), wish=2.5)
    assert found.tokens == 1.9375
    assert found.speedup == pytest.approx(1.9375 * 10 / 20)
    assert found.tokens_per_second == pytest.approx(1000 * 1.9375 / 20)
    # Two tokens a step are needed to break even: 1 + α + α² + α³ + α⁴ = 2.
    assert found.break_even == pytest.approx(0.5188, abs=1e-4)
    assert found.wished is not None
    reached = project(COSTS, Acceptance.constant(found.wished), 1, 32, Tree(4, 5))
    assert reached.speedup == pytest.approx(2.5)


def test_the_paper_is_the_case_of_verifying_for_nothing() -> None:
    """Leviathan et al., theorem 3.8: (1 − α^(k+1)) / ((1 − α)(k·c + 1))."""
    rate, cost, depth = 0.7, 0.05, 8
    (found,) = projections(FREE, Acceptance.constant(rate), [Tree(depth, depth + 1)], level=cost)
    assert found.speedup == pytest.approx(
        (1 - rate ** (depth + 1)) / ((1 - rate) * (depth * cost + 1))
    )
    assert found.draft_source == "assumed"
    assert found.tokens_per_second == pytest.approx(2 * 100 * found.speedup)


def test_no_acceptance_is_enough_for_what_cannot_be() -> None:
    """A rate of 1 handed out where even that brings too little."""
    assert rate_for(5.01, 4) is None
    assert rate_for(5.0, 4) == pytest.approx(1.0)
    assert rate_for(1.0, 4) == pytest.approx(0.0)
    assert project(COSTS, Acceptance.constant(1), 1, 32, Tree(4, 5), wish=2.6).wished is None


def test_trees_have_room_for_their_depth() -> None:
    assert trees_of("4,8:32") == [Tree(4, 5), Tree(8, 33)]
    for wrong in ("x", "0", "4:3"):
        with pytest.raises(ValueError, match="depth"):
            trees_of(wrong)
    with pytest.raises(ValueError, match="at least 5 nodes"):
        project(COSTS, Acceptance.constant(1), 1, 32, Tree(4, 3))


def record(*names: str) -> dict[str, Any]:
    accepted = stats(10, [8, 6]).to_dict()
    drafted = [{"name": name, "overall": {"acceptance": accepted}} for name in names]
    return {
        "schema": "specdec.bench/1",
        "methods": [
            {"name": "transformers generate", "overall": {"acceptance": None}},
            {"name": "refused", "refused": "ValueError: no"},
            {"name": "plain", "overall": {"acceptance": stats(10, []).to_dict()}},
            *drafted,
        ],
    }


def test_acceptance_is_read_from_a_record_by_method() -> None:
    """That of another method, or of one that drafted nothing."""
    assert from_record(record("eagle")).reached == (0.8, 0.6)
    assert from_record(record("eagle", "ngram"), "ngram").source == "measured: ngram"
    with pytest.raises(ValueError, match="those that drafted in this record are 'eagle', 'ngram'"):
        from_record(record("eagle", "ngram"))
    with pytest.raises(ValueError, match=r"expected a record of specdec\.bench/1"):
        from_record({"schema": "other"})


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(plan)
    return CliRunner().invoke(app, arguments)


def test_the_command_says_what_is_projected(tmp_path: Path) -> None:
    """A projected speedup under a measured one's name, on screen or in the file; a profile that is
    not used."""
    profile, out = tmp_path / "bench.json", tmp_path / "plan.json"
    profile.write_text(json.dumps(record("eagle")))
    result = run(
        "--profile", str(profile), "--batch", "1,2", "--context", "40", "--depth", "2,2:4",
        "--rounds", "1", "--wish", "1.5", "--drafter", "demo", "--out", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Speedups are projected, not measured" in " ".join(result.output.split())
    found = json.loads(out.read_text())
    assert found["acceptance"]["reached"] == [0.8, 0.6]
    cases = [(each["batch"], each["depth"], each["nodes"]) for each in found["projections"]]
    assert cases == [(1, 2, 3), (1, 2, 5), (2, 2, 3), (2, 2, 5)]
    for each in found["projections"]:
        assert each["projected"]["mean_acceptance_length"] == pytest.approx(2.4)
        assert each["projected"]["wished_speedup"] == 1.5
        assert set(each) == {
            "batch", "context", "depth", "nodes", "measured", "drafting", "projected",
        }  # fmt: skip
        assert set(each["measured"]) == {"plain_ms", "verify_ms"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "no config could be read"),
        (["--batch", "0"], "expected numbers from 1 on"),
        (["--depth", "8:2"], "has more drafted tokens"),
        (["--dtype", "int8"], "known are bf16"),
        (["--model", "llava-1.5-7b", "--check"], "measures the demonstration model"),
        (["--profile", "nowhere.json"], "no record could be read"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_the_check_compares_like_with_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts counted as decoding, or acceptance of another chain. Made-up times: plain steps of 10
    ms; chains of 4 take 20 and yield 3 tokens, 1.5 × the speed."""

    def answer(model: Any, drafter: Any, inputs: Any, depth: int, limit: int) -> AcceptanceStats:
        drafted = stats(6, [6, 6, 0, 0]) if depth else stats(18, [])
        drafted.num_generated_tokens = 19
        drafted.times.verify = 6 * 0.020 if depth else 18 * 0.010
        drafted.times.prefill = 5.0
        return drafted

    monkeypatch.setattr(projection_check, "_answer", answer)
    monkeypatch.setattr(projection_check, "measure_costs", lambda *_, **__: COSTS)
    monkeypatch.setattr(
        projection_check, "read_spec", lambda _: type("Spec", (), {"visual_token_ids": frozenset()})
    )
    ids = type("Ids", (), {"tolist": lambda self: [1, 2, 3]})()
    asked: Any = [{"input_ids": [ids]}] * 3
    drafter: Any = type("Drafter", (), {"name": "x"})()
    (found,) = projection_check.check(None, drafter, asked, [4])  # type: ignore[arg-type]  # no model is looked at
    assert found.speedup == pytest.approx(1.5)
    assert found.projection.tokens == pytest.approx(3.0)
    assert found.projection.speedup == pytest.approx(1.5)
    assert found.error_percent == pytest.approx(0.0)
