"""`specdec audit`: which tokens the model gave way at, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

import specdec
from specdec.policies import save_policy
from support.command_line import Cli, expect_error

PROMPT = "w11 w12 w13"


def asked(llava: Path, drafter: Path, picture: Path) -> tuple[Any, ...]:
    shown = ("--model", llava, "--drafter", drafter, "--image", picture, "--prompt", PROMPT)
    return (*shown, "--dtype", "fp32", "--max-new-tokens", 12)


def test_every_relaxed_token_is_marked(
    cli: Cli, llava: Path, drafter: Path, picture: Path, tmp_path: Path
) -> None:
    """Marks that slip by a token, or sums of something else than what is in the ledger."""
    out, policy = tmp_path / "ledger.json", tmp_path / "policy.json"
    model = AutoModelForImageTextToText.from_pretrained(llava)
    # Every word of this vocabulary has a digit in it.
    save_policy(policy, specdec.Relaxed(0.99, "divergence", gamma=0.0, guards=()), model)
    options = ("--acceptance", policy, "--json", out)
    result = cli("audit", *asked(llava, drafter, picture), *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads(out.read_text())
    answer, table = result.stdout.split("\n", 1)
    relaxed = [row for row in record["tokens"] if row["rule"] == "relaxed"]
    assert relaxed, "nothing was relaxed, so the test shows nothing"
    assert re.findall(r"\[(.*?)\]", answer) == [row["text"] for row in relaxed]
    assert re.sub(r"[\[\]]", "", answer) == record["answer"]
    assert record["stats"]["num_relaxed_tokens"] == len(relaxed)
    assert record["stats"]["bound_spent"] == pytest.approx(sum(row["spent"] for row in relaxed))
    for row in relaxed:
        assert row["own"] != row["token"]
        assert f"'{row['text']}'  '{row['own_text']}'" in re.sub(" {2,}", "  ", table)
    assert f"{len(relaxed)} drafted where it gave way" in table
    assert f"spent {record['stats']['bound_spent']:.4f} nats of regret" in table


def test_losslessly_it_is_the_answer_of_generate(
    cli: Cli, llava: Path, drafter: Path, picture: Path
) -> None:
    plain = cli("generate", *asked(llava, drafter, picture), "--no-stats")
    for options in ((), ("--epsilon", 0, "--reliance", "divergence")):
        result = cli("audit", *asked(llava, drafter, picture), *options)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith(plain.stdout)
        assert " 0 drafted where it gave way" in result.stdout
        assert "spent 0.0000" in result.stdout


def test_policy_files_serve_generate_and_audit(
    cli: Cli, llava: Path, drafter: Path, picture: Path, tmp_path: Path
) -> None:
    """A file that is read but not obeyed: here it changes the answer."""
    policy = specdec.Relaxed(0.99, "divergence", gamma=0.0, guards=())
    model = AutoModelForImageTextToText.from_pretrained(llava)
    save_policy(tmp_path / "policy.json", policy, model)
    arguments = asked(llava, drafter, picture)
    given = ("--acceptance", tmp_path / "policy.json")
    relaxed = cli("generate", *arguments, *given, "--tree", 8)
    lossless = cli("generate", *arguments, "--tree", 8)
    assert relaxed.exit_code == lossless.exit_code == 0, relaxed.stderr + lossless.stderr
    assert relaxed.stdout != lossless.stdout
    assert "gave way" in relaxed.stderr
    assert "gave way" not in lossless.stderr
    audited = cli("audit", *arguments, *given)
    assert re.sub(r"[\[\]]", "", audited.stdout).startswith(relaxed.stdout)


def test_policy_of_another_model_is_refused(
    cli: Cli, llava: Path, drafter: Path, picture: Path, tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    save_policy(tmp_path / "policy.json", specdec.Relaxed(0.5, "divergence"), model)
    record = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(record | {"model": "0" * 64}))
    given = ("--acceptance", tmp_path / "policy.json")
    for command in ("generate", "audit"):
        result = cli(command, *asked(llava, drafter, picture), *given)
        expect_error(result, "was calibrated for a model with fingerprint 000000000000")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (("--gamma", 1), "--gamma and --reliance go with --epsilon"),
        (("--reliance", "probe"), "go with --epsilon"),
        (("--epsilon", 2), r"epsilon=2.0 is not in \[0, 1\]"),
        (("--epsilon", 0.5), "there is no .*reliance.json.*train-probe"),
        (("--epsilon", 0.5, "--reliance", "sight"), "'sight' is not known"),
        (("--acceptance", "no/such"), "--acceptance no/such: no such file"),
        (("--acceptance", "{picture}", "--epsilon", 0.5), "give one"),
        (("--acceptance", "{picture}"), "is no policy file"),
        (("--json", "{picture}/x.json"), "cannot be written"),
    ],
)
def test_wrong_options(
    cli: Cli, llava: Path, drafter: Path, picture: Path, options: tuple[Any, ...], pattern: str
) -> None:
    placed = [str(option).format(picture=picture) for option in options]
    result = cli("audit", *asked(llava, drafter, picture), *placed)
    assert result.exit_code == 2, result.output
    assert re.fullmatch(rf"specdec audit: .*(?:{pattern}).*\n", result.stderr), result.stderr
