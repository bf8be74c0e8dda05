"""A model that is spread over two processes, over gloo: torchrun is started once, and every test
looks at what its ranks wrote.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

from specdec.interfaces import Prompt
from specdec.verifiers import TransformersVerifier, sharded
from specdec.verifiers.messages import Message, Packed
from specdec.verifiers.sharded import Leader
from support import families, sharded_run

Found = tuple[dict[str, Any], dict[str, Any]]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What either rank found, by case."""
    folder = tmp_path_factory.mktemp("sharded")
    families.build(sharded_run.FAMILY).model.save_pretrained(folder)
    done = subprocess.run(
        [*TORCHRUN, str(Path(sharded_run.__file__)), str(folder)],
        env=os.environ
        | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
        capture_output=True,
        text=True,
    )
    print(done.stderr)  # shown if a test fails
    assert done.returncode, "a rank was killed, and torchrun says nothing of it"
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    return first, second


def test_all_ranks_may_generate_alike(ranks: Found) -> None:
    """Drafts, pages or draws that are one rank's own: then they would part, or wait for ever."""
    first, second = (each["alike"] for each in ranks)
    assert first == second
    assert first["greedy"] == first["expected"]
    assert first["drafted"] > 0
    assert len(first["sampled"]) > 1
    assert 'tree="auto" goes by time' in first["refused"]


def test_heads_of_all_ranks_count(ranks: Found) -> None:
    """Attention of a rank's own heads taken for that of all: each rank would draft, and accept, by
    another measure. Sums over two processes differ by rounding: 1e-5 of values up to 1.
    """
    for each in ranks:
        assert each["heads"]["differ"] < 1e-5
        assert each["heads"]["embeddings"]


def test_an_engine_serves_requests_as_they_come(ranks: Found) -> None:
    """A rank whose pages, preemptions or prompts are not those of rank 0; a page that a release in
    one rank left in another.
    """
    found = ranks[0]["engine"]
    assert "error" not in ranks[1]["engine"]
    assert found["said"] == found["expected"]
    assert found["preemptions"] > 0
    assert found["refused"] == "OutOfPages"
    assert found["taken"] == 0
    assert found["after"] == found["expected"][1]


def test_a_server_samples_and_adapts(ranks: Found) -> None:
    """Draws that depend on how many processes there are; a tree that goes by time in each."""
    assert ranks[0]["threaded"]["sampled"] == ranks[0]["threaded"]["expected"]
    assert ranks[0]["auto"]["said"] == ranks[0]["alike"]["expected"]


def test_a_fault_of_one_rank_ends_all(ranks: Found) -> None:
    """Ranks that go on although they hold different texts."""
    first, second = (each["mismatch"] for each in ranks)
    for each in (first, second):
        assert "rank 0: done; rank 1: RuntimeError: a fault of rank 1's own" in each["error"]
    assert first["engine"] == "OutOfStep"


def test_nobody_waits_for_ever(ranks: Found) -> None:
    """A follower whose leader is silent, a leader whose follower is gone: both would hang."""
    assert "has not answered for 3 s" in ranks[1]["silent"]["error"]
    assert "another process" in ranks[0]["killed"]["error"]
    assert ranks[0]["killed"]["seconds"] < 120


def test_every_method_of_a_verifier_is_led_or_refused() -> None:
    """A new method that runs a forward in rank 0 alone, which would wait for ever."""
    public = {
        name
        for name, value in vars(TransformersVerifier).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    kinds = (sharded._AT_ONCE, sharded._LATER, sharded._HERE)
    assert public - frozenset[str]().union(*kinds) == {"source", "hand_over"}
    assert sum(map(len, kinds)) == len(public) - 2


class Silent:
    """A channel with nobody at the other end; ``told``: what would have been said."""

    told: ClassVar[list[Message]] = []

    def __init__(self, seconds: float) -> None:
        self.told.clear()

    def send(self, packed: Packed) -> None:
        self.told.append(packed.message)

    def outcomes(self, mine: str) -> list[str]:
        return [mine]


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Leader]:
    monkeypatch.setattr(sharded, "Channel", Silent)
    leader = Leader(families.causal_lm(0), 60.0, {})
    yield leader
    leader.close()


def test_what_is_to_be_forgotten_is_said_after_a_call_that_cannot_be(leader: Leader) -> None:
    """Values that stay in the other processes for ever: a call that could not be written took the
    list of them along.
    """
    prompt = Prompt(torch.tensor([[5, 6, 7]]), (0,), {})
    handle = leader.begin(leader.encode(prompt), (), 9, ())
    leader.release(handle)
    leader.encode(prompt)  # of the release the others hear with this
    with pytest.raises(ValueError, match="cannot be sent"):
        leader.prefill(prompt._replace(model_kwargs={"x": object()}), 9)
    number = next(call for call in Silent.told[-1].calls if "release" in call)[2]
    leader.encode(prompt)
    assert number[1][1] in Silent.told[-1].forget


def test_a_setting_that_others_would_not_hear_of_is_refused(leader: Leader) -> None:
    """It was kept by what leads, and changed nothing in any process."""
    with pytest.raises(AttributeError, match="shares cannot be set"):
        cast(Any, leader).shares = False
    assert leader.shares
