from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import specdec
from specdec.baselines import FLy, Random
from specdec.demo import ASSETS, Demo, load
from specdec.eval import fidelity_run, graded, suite
from specdec.eval.fidelity import fidelity
from specdec.eval.fidelity_bench import Bench, Plan, Turn
from specdec.eval.oracle import Oracle, OracleVerifier
from specdec.eval.points import LOSSLESS, RANDOM, points
from specdec.eval.policy_runs import Decoder
from specdec.interfaces import Prompt
from specdec.policies import Relaxed
from specdec.reliance import Constant, Divergence, Evidence
from specdec.tree import DraftTree, chain, topology

pytestmark = pytest.mark.skipif(
    not (ASSETS / "lvlm").exists(), reason="no demonstration model here yet"
)

PLAN = Plan(
    assets=str(ASSETS),
    reliance=None,
    shipped=3,
    generated=0,
    tree=8,
    temperatures=(0.0, 0.7),
    samples=1,
    timed=1,
    families=("uniform", "FLy"),
    max_new_tokens=160,
    dtype="float32",
    seed=0,
)


@pytest.fixture(scope="module")
def demo() -> Demo:
    return load()


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(PLAN)


def decoder(demo: Demo, temperature: float = 0.0) -> Decoder:
    tokenizer: Any = demo.processor
    return Decoder(
        demo.model,
        tokenizer.tokenizer,
        demo.drafter,
        chain(8),
        temperature=temperature,
        kv_cache_bytes=1 << 28,
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_of_a_batch_answer_as_if_alone(demo: Demo, temperature: float) -> None:
    """Policies that leak into one another's answers, or another use of the seed than
    `specdec.generate` makes: every comparison would be of something nobody gets.
    """
    policies = [
        "lossless",
        Random(0.5),
        Relaxed(0.9, Constant(0.0), guards=()),
        Relaxed(0.8, Divergence(), gamma=2.0, guards=()),
        # The same but for one number: what is made once for all must not bring it along.
        Relaxed(0.8, Divergence(), gamma=2.0, guards=(), floor=0.9),
    ]
    decodes = decoder(demo, temperature)
    rules = [decodes.rule(policy) for policy in policies]
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    differ = 0
    for question in suite.load_questions(count=2):
        inputs = suite.model_inputs(demo.model, demo.processor, [question])
        together = decodes.answers(inputs, rules, seed=11)
        for policy, answer in zip(policies, together, strict=True):
            alone = specdec.generate(
                demo.model,
                drafter=demo.drafter,
                tree=8,
                acceptance=policy,
                generator=torch.Generator().manual_seed(11),
                max_new_tokens=160,
                **inputs,
                **how,
            )
            assert answer.tokens == alone[0, inputs["input_ids"].shape[1] :].tolist()
            assert answer.ended
            assert answer.stats.num_relaxed_tokens == alone.stats.num_relaxed_tokens
            assert answer.stats.num_spec_steps == alone.stats.num_spec_steps
            differ += answer.tokens != together[0].tokens
    assert differ, "these policies relax nothing, so the test shows nothing"


def test_rules_that_do_not_go_with_sampling_are_refused(demo: Demo) -> None:
    with pytest.raises(ValueError, match="sampling"):
        decoder(demo, 0.7).rule(FLy())


def test_oracle_knows_what_the_image_decides(demo: Demo) -> None:
    """On a branching tree, along a text that no verifier would have said: whether plain forwards
    with another image change their argmax. A shadow that lags behind by a commit would differ.
    """
    first, second = suite.load_questions(count=40)[::39]
    model: Any = demo.model
    inputs = dict(suite.model_inputs(model, demo.processor, [first]))
    other = suite.model_inputs(model, demo.processor, [second])["pixel_values"]
    verifier = OracleVerifier(model, kv_cache_bytes=1 << 28)
    verifier.others = [{"pixel_values": other}]
    said = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
    said = said[inputs["input_ids"].shape[1] :].tolist()
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        (handle,) = verifier.prefill(Prompt(ids, (0,), inputs), room=64).handles
        labels, grades = list[float](), list[float]()
        # The text is kept three tokens at a time; the first child of each root is a wrong one.
        for start in range(0, 21, 3):
            tree = DraftTree(
                topology((-1, 0, 0, 2)), (said[start], 9, said[start + 1], said[start + 2])
            )
            verified = verifier.verify([handle], [tree])
            assert verified.hidden is not None
            evidence = Evidence(hidden=verified.hidden)
            labels += Oracle().values(evidence)[[0, 2, 3]].tolist()
            grades += Oracle(graded=True).values(evidence)[[0, 2, 3]].tolist()
            verifier.commit(handle, (0, 2, 3))
        text = torch.cat([ids, torch.tensor([said[:21]])], 1)
        right, wrong = (
            model(input_ids=text, pixel_values=pixels).logits[0, ids.shape[1] :]
            for pixels in (inputs["pixel_values"], other)
        )
    verifier.release(handle)
    assert labels == (right.argmax(-1) != wrong.argmax(-1)).float().tolist()
    apart = (right.softmax(-1) - wrong.softmax(-1)).abs().sum(-1) / 2
    assert grades == pytest.approx(apart.tolist(), abs=1e-4)
    assert 0 < sum(labels) < len(labels)
    verifier.check_integrity()
    assert verifier.pages_taken == 0


def test_points_are_unique_and_ordered() -> None:
    """Two points of one name would overwrite one another; out of order, curves would fold."""
    for sampled in (False, True):
        made = points({"probe": Constant(0.5), "combined": Constant(0.2)}, sampled=sampled)
        assert len({point.name for point in made}) == len(made)
        families: dict[str, list[float]] = {}
        for point in made:
            families.setdefault(point.family, []).append(point.strength)
        assert all(row == sorted(row) for row in families.values())
        assert any(point.family.startswith("FLy") for point in made) is not sampled
        assert made[0].name == LOSSLESS
        some = points({"probe": Constant(0.5)}, sampled=sampled, families=("uniform",))
        families = {LOSSLESS: [], RANDOM: [], "uniform": [], "uniform, floor 0": []}
        assert {point.family for point in some} == set(families)


def test_answers_are_graded_against_the_lossless_one(bench: Bench) -> None:
    line = bench.answer(Turn(1, 0.0, 0))
    lossless = line["policies"][LOSSLESS]
    assert lossless["same"] == lossless["similarity"] == lossless["ended"] == 1
    assert lossless["right"] == lossless["total"] == len(bench.questions[1].fields)
    assert lossless["relaxed"] == lossless["spent"] == 0
    wild = line["policies"]["random 0.75"]
    assert wild["relaxed"] > 0
    assert wild["same"] == 0
    assert 0 < wild["similarity"] < 1
    loose = line["policies"]["uniform ε=0.97"]
    assert loose["relaxed"] > 0
    assert loose["spent"] > 0
    assert line == bench.answer(Turn(1, 0.0, 0))


def test_sampled_lines_repeat_and_samples_differ(bench: Bench) -> None:
    first, again, other = (bench.answer(Turn(0, 0.7, sample)) for sample in (0, 0, 1))
    assert first == again
    assert first["policies"] != other["policies"]


def test_what_is_cut_off_states_nothing() -> None:
    """A policy that never comes to an end may name every fact on the way."""
    cut = Bench(replace(PLAN, max_new_tokens=40, temperatures=(0.0,), families=("uniform",)))
    for place in range(3):
        for outcome in cut.answer(Turn(place, 0.0, 0))["policies"].values():
            if not outcome["ended"]:
                assert outcome["right"] == outcome["exact"] == 0
                break
        else:
            continue
        break
    else:
        pytest.fail("every answer ended within 40 tokens")


def test_run_goes_on_where_it_was_cut_off(bench: Bench, tmp_path: Path) -> None:
    """A line that was cut off counts as nothing and is made again; finished ones are not."""
    asked: list[Any] = []

    class Counting:
        plan, questions = PLAN, bench.questions

        def answer(self, turn: Turn) -> dict[str, Any]:
            asked.append(turn)
            name = self.questions[turn.place].name
            return {"question": name, "temperature": turn.temperature, "sample": turn.sample}

    counting: Any = Counting()
    fidelity_run.begin(tmp_path, PLAN)
    fidelity_run.work(counting, tmp_path, "answers", 0, 2, lambda *_: None)
    assert len(asked) == 3
    file = tmp_path / "answers-0.jsonl"
    file.write_text(file.read_text()[:-20])
    fidelity_run.begin(tmp_path, PLAN)
    fidelity_run.work(counting, tmp_path, "answers", 0, 1, lambda *_: None)
    assert len(asked) == 3 + 4
    done = [fidelity_run.key(line) for line in fidelity_run.lines(tmp_path, "answers")]
    assert len(done) == len(set(done)) == 6
    with pytest.raises(ValueError, match="another tree, seed"):
        fidelity_run.begin(tmp_path, replace(PLAN, tree=4, seed=1))


def test_command_writes_record_page_and_picture(tmp_path: Path) -> None:
    """The whole command; the record names no folder of this machine, and says what was missed."""
    app = typer.Typer()
    app.command()(fidelity)
    out = tmp_path / "docs"
    options = ["--questions", 3, "--generated", 0, "--timed", 1, "--family", "uniform"]
    options += ["--workers", 1, "--named", "uniform", "--run", tmp_path / "run", "--out", out]
    result = CliRunner().invoke(app, [*map(str, options)])
    assert result.exit_code == 0, result.output
    record = json.loads((out / "results" / "fidelity.json").read_text())
    greedy = record["results"]["0.0"]
    families = {LOSSLESS, RANDOM, "uniform", "uniform, floor 0"}
    assert {row["family"] for row in greedy["policies"]} == families
    assert greedy["answers"] == 3
    assert all(row["speedup"]["value"] > 0 for row in greedy["policies"])
    assert str(tmp_path) not in json.dumps(record)
    assert str(ASSETS) not in json.dumps(record)
    page = (out / "fidelity.md").read_text()
    assert "equal quality, uniform, named beforehand" in page
    assert "| uniform ε=0.97 |" in page
    assert (out / "fidelity.png").stat().st_size > 10_000
    again = CliRunner().invoke(app, [*map(str, options), "--tree", "4"])
    assert again.exit_code == 2
    assert "another tree" in again.output


def test_generated_questions_are_of_the_shipped_kinds() -> None:
    made = graded.generated(7, graded.MEASURING)
    assert len({question.name for question in made}) == 7
    shipped = {question.asked.task for question in graded.shipped()}
    assert {question.asked.task for question in made} == shipped
    assert all(question.fields for question in made)
