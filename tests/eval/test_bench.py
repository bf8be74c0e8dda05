"""A benchmark at toy size: what is compared, the gate, going on after an interruption, figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specdec.drafters.loading import save_drafter
from specdec.eval import bench_methods, bench_run
from specdec.eval.bench import bench
from specdec.eval.bench_figures import figures
from specdec.eval.bench_methods import Answer, Methods, Ran
from specdec.eval.bench_plan import PLAIN, REFERENCE, RIVALS, Plan
from specdec.eval.comparison import GateError
from specdec.eval.suite import model_inputs
from specdec.policies import Relaxed, save_policy
from specdec.stats import AcceptanceStats, StepTimes
from support import processors

PLAN = Plan(
    model="small",
    data="suite",
    count=3,
    seed=0,
    tasks=(),
    drafters=("ngram",),
    trees=("2", "dynamic:4"),
    policies=("lossless",),
    rivals=RIVALS,
    batches=(1,),
    temperatures=(0.0,),
    dtype="fp32",
    device="cpu",
    max_new_tokens=6,
    rounds=1,
    bound=0.0,
    shown=1,
)


def run(small: Any, plan: Plan, folder: Path, told: Any = lambda *_: None) -> list[Any]:
    def encode(numbers: Any) -> Any:
        asked = [small.questions[number] for number in numbers]
        return model_inputs(small.model, small.processor, asked)

    methods = Methods(small.model, plan)

    def bare(question: int) -> dict[str, list[float]]:
        return {"nodes 1": [float(question)]}

    groups, times = bench_run.measure(
        methods, plan, small.questions[:3], encode, folder, bare, told
    )
    assert times == ([{"nodes 1": [float(i)]} for i in range(3)] if 1 in plan.batches else [])
    return groups


def test_everything_is_compared_with_everything() -> None:
    """A combination left out is one that nobody sees being slow."""
    plan = replace(PLAN, drafters=("a", "b"), batches=(1, 4), temperatures=(0.0, 0.7))
    groups = plan.contenders({"a": "A", "b": "B"})
    assert [(g[0].batch, g[0].temperature) for g in groups] == [(1, 0), (1, 0.7), (4, 0), (4, 0.7)]
    for group in groups:
        names = [each.name for each in group]
        assert names[:2] == [REFERENCE, PLAIN]
        assert names[2:6] == [
            "A, chain of 2",
            "A, dynamic, 4 nodes",
            "B, chain of 2",
            "B, dynamic, 4 nodes",
        ]
        assert len(names) == 9
        assert {each.comparable for each in group} == {group[0].temperature == 0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rivals": ("others",)}, "no rivals others; there are assisted"),
        ({"policies": ("nowhere.json",)}, "nowhere.json: neither lossless nor a file"),
        ({"batches": ()}, "no batches"),
    ],
)
def test_a_plan_says_what_is_wrong_with_it(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(PLAN, **change)


def test_the_same_method_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="A, chain of 2 would be measured twice"):
        replace(PLAN, drafters=("a",), trees=("2", "1,1")).contenders({"a": "A"})


def test_an_interrupted_run_goes_on_where_it_stopped(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while a batch was written down: what was complete is kept and not run again, what was
    cut off is.
    """

    class Stop(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        run(small, PLAN, tmp_path, stop)
    file = tmp_path / "runs.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    assert len(whole) == 2
    file.write_bytes(whole[0] + whole[1][:40])
    answered = list[int]()
    original = bench_run._answered

    def counted(*args: Any) -> Any:
        answered.append(args[-1])
        return original(*args)

    monkeypatch.setattr(bench_run, "_answered", counted)
    [group] = run(small, PLAN, tmp_path)
    assert answered == [1, 2]
    assert file.read_bytes().splitlines(keepends=True)[0] == whole[0]
    assert len(file.read_bytes().splitlines()) == 3
    for name in (each.name for each in group.able):
        assert [number for number, _ in group.runs[name]] == [0, 1, 2]
    assert group.checks[PLAIN].tokens == 18


def test_a_wrong_token_stops_everything(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of a decoder that answers something else must never be handed out."""
    generate = bench_methods.generate

    def planted(*args: Any, on_emission: Any, **how: Any) -> Any:
        def note(emission: Any) -> None:
            on_emission(emission._replace(token=1 if how.get("drafter") else emission.token))

        return generate(*args, on_emission=note, **how)

    monkeypatch.setattr(bench_methods, "generate", planted)
    with pytest.raises(GateError, match=r"ngram, chain of 2.*no speeds are reported"):
        run(small, PLAN, tmp_path)
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_wrong_token_in_an_early_round_stops_everything(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of the first round count like those of the last; so must its answers."""
    original = bench_run._answered

    def planted(*args: Any) -> Any:
        for name, ran in original(*args):
            if name == PLAIN and args[-2:] == (0, 1):
                ran.answers[0].tokens[-1] = 1
            yield name, ran

    monkeypatch.setattr(bench_run, "_answered", planted)
    with pytest.raises(GateError, match=r"specdec, no drafting.*1 of 6 answers"):
        run(small, replace(PLAN, rounds=2), tmp_path)


def test_who_refuses_is_named_and_left_out(small: Any, tmp_path: Path) -> None:
    """Rivals that cannot do it, and an answer that nobody can compare, such as a sampled one."""
    plan = replace(PLAN, batches=(2, 1), temperatures=(0.0, 0.7))
    for group in run(small, plan, tmp_path)[:2]:
        assert group.refused["plain chain loop, 4"].startswith("ValueError: it answers one")
        assert "none of the drafters" in group.refused["transformers assisted, same drafter"]
        greedy = group.contenders[0].temperature == 0
        assert (PLAIN in group.checks) == greedy
        for each in group.able:
            for _, ran in group.runs[each.name]:
                assert len(ran.answers) == 2
                assert all(len(answer.times) == len(answer.tokens) == 6 for answer in ran.answers)


def test_batches_are_of_one_task_and_full() -> None:
    asked: Any = [processors_question(task, images) for task, images in ("a1", "b1", "a1", "a2")]
    assert bench_run.batches_of(asked, 2) == [[0, 2], [1, 1], [3, 3]]


def processors_question(task: str, images: str) -> Any:
    from specdec.training.prompts import Asked

    return Asked([], [None] * int(images), task)  # type: ignore[list-item]  # only counted


def test_figures_are_those_worked_out_by_hand() -> None:
    """Prompts counted into decoding, tokens counted on one side only, ratios of sums for medians of
    ratios, percentiles of steps for those of tokens.
    """
    stats = AcceptanceStats(times=StepTimes(prefill=0.1, draft=0.2, verify=0.1))
    stats.record_step(2, 2, 2)
    plain = [(i, Ran([Answer([1] * 5, [0.2, 0.4, 0.6, 0.8, 1.0])], 1.0)) for i in range(3)]
    ours = [
        (
            i,
            Ran(
                [Answer([1] * 5, [0.2, 0.2 + s, 0.2 + s, 0.2 + s, 0.2 + 2 * s])], 0.2 + 2 * s, stats
            ),
        )
        for i, s in enumerate((0.1, 0.2, 0.4))
    ]
    found = figures(ours, plain, [1.0, 0.5], "facts", seed=0, vision=0.25)
    assert found["questions"] == 3
    assert found["tokens"] == 15
    assert found["length_ratio"] == 1
    assert found["speedup_decode"]["median"] == pytest.approx(0.8 / 0.4)
    assert found["speedup_decode"]["low"] == pytest.approx(1.0)
    assert found["speedup_end_to_end"]["median"] == pytest.approx(1.0 / 0.6)
    assert found["ms_per_token"] == pytest.approx(1000 * 2.0 / 15)
    assert found["ttft_ms"]["p50"] == pytest.approx(200)
    assert found["inter_token_ms"]["p50"] == pytest.approx(50)
    assert found["acceptance"]["num_accepted_draft_tokens"] == 6
    assert found["shares"]["draft"] == pytest.approx(0.6 / 2.0)
    assert found["shares"]["vision"] == pytest.approx(0.25 * 0.3 / 2.0)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["fidelity"] == {"metric": "facts", "score": 0.75}
    bare = figures(plain, plain, [], None, seed=0)
    assert bare["acceptance"] is bare["shares"] is bare["fidelity"] is None


@pytest.fixture(scope="module")
def folder(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model and drafter, and questions with right answers."""
    folder = tmp_path_factory.mktemp("bench")
    small.model.save_pretrained(folder / "lvlm")
    small.processor.save_pretrained(folder / "lvlm")
    save_drafter(small.drafter, folder / "blind", verifier="small")
    lines = []
    for i in range(4):
        processors.image(i).save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "prompt": f"What {i}?", "answer": "x", "task": f"t{i % 2}"}
        lines.append(json.dumps(row))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder


def test_the_command_writes_what_it_measured(folder: Path, tmp_path: Path) -> None:
    """From files to record and page, options from a file included, by the command itself."""
    recipe = tmp_path / "bench.yaml"
    recipe.write_text(
        f"model: {folder / 'lvlm'}\ndata: {folder}\ncount: 4\n"
        f"drafter: [ngram, {folder / 'blind'}]\n"
        "tree: ['2', auto]\ndtype: fp32\nmax-new-tokens: 6\nshown: 1\nbatch: [1, 2]\n"
    )
    app = typer.Typer()
    app.command()(bench)
    out = tmp_path / "run"
    options = ["--recipe", str(recipe), "--out", str(out)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "report.html"]
    record = json.loads((out / "bench.json").read_text())
    assert record["schema"] == "specdec.bench/1"
    assert str(folder) not in json.dumps({**record, "command": ""})
    assert record["questions"]["tasks"] == {"t0": 2, "t1": 2}
    methods = {(each["name"], each["batch"]): each for each in record["methods"]}
    assert len(methods) == 2 * (2 + 2 * 2 + 3)
    chain = methods["text_only, chain of 2", 1]
    assert chain["gate"] == {
        "answers": 4,
        "tokens": 24,
        "ties": 0,
        "wrong": 0,
        "widest_gap_logits": 0.0,
    }
    assert chain["overall"]["tokens"] == 24
    assert chain["overall"]["fidelity"]["metric"] == "contains"
    assert set(chain["tasks"]) == {"t0", "t1"}
    assert chain["efficiency"] > 0
    assert min(chain["memory"]["drafter_kv_bytes"], chain["memory"]["kv_bytes"]) > 0
    assert sum(kind["drafted"] for kind in chain["modalities"].values()) > 0
    assert methods["ngram, adaptive", 1]["efficiency"] is None
    assert methods["transformers assisted, same drafter", 2]["refused"]
    [answer] = record["answers"]
    shown = answer["methods"]["text_only, chain of 2"]
    assert "".join(token["text"] for token in shown) == answer["reference"]
    assert {token["origin"] for token in shown} <= {"drafted", "own"}
    again = CliRunner().invoke(app, options)
    assert again.exit_code == 2
    assert "is not empty; go on with --resume" in " ".join(again.output.replace("│", " ").split())
    pair = [str(out / "bench.json")] * 2
    assert CliRunner().invoke(app, ["--compare", *pair]).exit_code == 0


def test_relaxed_and_sampled_methods_stand_beside_lossless_ones(
    small: Any, folder: Path, tmp_path: Path
) -> None:
    """A policy file that is read and not used; a relaxed or sampled answer that is compared."""
    policy = tmp_path / "loose.json"
    anything = Relaxed(1.0, "divergence", gamma=0.0, guards=(), floor=0.0)
    save_policy(policy, anything, small.model)
    app = typer.Typer()
    app.command()(bench)
    out = tmp_path / "run"
    options = [
        *("--model", folder / "lvlm", "--data", folder, "--count", "2", "--drafter"),
        *(folder / "blind", "--tree", "2", "--policy", "lossless", "--policy", policy),
        *("--temperature", "0", "--temperature", "0.7", "--dtype", "fp32", "--rival", "none"),
        *("--max-new-tokens", "6", "--out", out),
    ]
    result = CliRunner().invoke(app, list(map(str, options)))
    assert result.exit_code == 0, result.output
    record = json.loads((out / "bench.json").read_text())
    methods = {(each["name"], each["temperature"]): each for each in record["methods"]}
    assert len(methods) == 2 * 4
    for temperature in (0.0, 0.7):
        strict = methods["text_only, chain of 2", temperature]
        loose = methods["text_only, chain of 2, loose", temperature]
        assert (strict["policy"], loose["policy"]) == ("lossless", "loose")
        assert strict["lossless"] > loose["lossless"]
        assert (strict["gate"] is None) == (temperature > 0)
        assert loose["gate"] is None
        rates = [each["overall"]["acceptance"]["draft_acceptance_rate"] for each in (strict, loose)]
        assert rates[0] < rates[1]
        assert loose["overall"]["acceptance"]["num_relaxed_tokens"] > 0
    shown = record["answers"][0]["methods"]["text_only, chain of 2, loose"]
    assert any(token["origin"] == "relaxed" and token["v"] is not None for token in shown)
