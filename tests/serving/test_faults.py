"""What goes wrong in the middle of serving: numbers that are none, hardly any memory, readers that
do not read, a forward that fails once. Whoever it does not concern gets their answer."""

from __future__ import annotations

import copy
import logging
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.engine import Limits
from specdec.serving import EngineClosed, RequestFailed, Stream
from support import families
from support.servers import until

NEW_TOKENS = 16
Asked = list[tuple[dict[str, Any], list[int]]]


@pytest.fixture(scope="module")
def poisoned() -> int:
    """A token that no question below holds and no answer says."""
    return 90


@pytest.fixture(scope="module")
def model(poisoned: int) -> PreTrainedModel:
    """One token's embedding is no number, and so is every state that has seen it."""
    model = copy.deepcopy(families.build("qwen3").model)
    head = model.get_output_embeddings()
    if head is not None:  # tied or not, the output stays as it is
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = torch.nan
    return model


@pytest.fixture(scope="module")
def asked(model: PreTrainedModel, poisoned: int) -> Asked:
    _, inputs, _, _ = families.build("qwen3")
    pairs = []
    for seed in range(8):
        given = inputs(seed, 5 + 3 * seed, "none")
        given["input_ids"][given["input_ids"] == poisoned] = 1 + poisoned
        answer = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        pairs.append((given, answer[0, given["input_ids"].shape[1] :].tolist()))
    assert not any(poisoned in answer for _, answer in pairs)
    return pairs


def ask(engine: specdec.ThreadedEngine, given: dict[str, Any], **how: Any) -> Stream:
    return engine.submit(**given, **{"max_new_tokens": NEW_TOKENS, "do_sample": False} | how)


def with_token(given: dict[str, Any], token: int) -> dict[str, Any]:
    ids: Tensor = given["input_ids"].clone()
    ids[0, 2] = token
    return given | {"input_ids": ids}


def test_states_that_are_no_numbers_stay_where_they_are(
    model: PreTrainedModel, asked: Asked, poisoned: int
) -> None:
    """Zero times NaN is NaN: a key of another request, behind a mask, in padding or in a page that
    was given back, would spoil every answer that is computed beside it or after it."""
    limits = Limits(max_batch=6)
    with specdec.ThreadedEngine(model, "ngram", tree="2,1", limits=limits) as engine:
        for _ in range(2):
            streams = []
            for number, (given, _) in enumerate(asked):
                streams.append(ask(engine, given))
                if number % 2:
                    bad = with_token(given, poisoned)
                    with pytest.raises(RequestFailed):
                        ask(engine, bad, do_sample=number % 4 == 1).result()
            assert [stream.result() for stream in streams] == [answer for _, answer in asked]
        assert engine.stats.failed == 8


def test_scores_of_one_that_are_no_numbers(model: PreTrainedModel, asked: Asked) -> None:
    """A processor's mistake at a text of its own; greedy, transformers takes the first token."""

    def spoil(input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, torch.nan)

    with specdec.ThreadedEngine(model, limits=Limits(max_batch=6)) as engine:
        good = [ask(engine, given) for given, _ in asked[:4]]
        bad = ask(engine, asked[5][0], logits_processor=[spoil], do_sample=True)
        with pytest.raises(RequestFailed, match="a distribution to draw from holds nan"):
            bad.result()
        assert [stream.result() for stream in good] == [answer for _, answer in asked[:4]]


def test_a_forward_that_fails_once(model: PreTrainedModel, asked: Asked) -> None:
    """Who comes after it is served, and who was there hears of it instead of waiting for ever."""
    failing = True

    def fail(*_: object) -> None:
        nonlocal failing
        if failing:
            failing = False
            raise RuntimeError("the device is unhappy")

    with specdec.ThreadedEngine(model) as engine:
        hook = model.register_forward_pre_hook(fail)
        try:
            first = ask(engine, asked[0][0])
            with pytest.raises(RequestFailed) as caught:
                first.result()
        finally:
            hook.remove()
        assert "unhappy" in str(caught.value.__cause__)
        assert ask(engine, asked[0][0]).result() == asked[0][1]
        assert engine.stats.pages_taken == 0


def test_hardly_any_memory(model: PreTrainedModel, asked: Asked) -> None:
    """All of them at once do not fit: some wait and begin again, none is lost or ends early."""
    with specdec.ThreadedEngine(model) as engine:
        ask(engine, asked[-1][0]).result()
        page = engine.verifier.bytes_per_page
    with specdec.ThreadedEngine(model, kv_cache_bytes=4 * page) as engine:
        streams = [ask(engine, given) for given, _ in asked * 2]
        assert [stream.result() for stream in streams] == [answer for _, answer in asked * 2]
        assert engine.stats.pages_limit == 4
        long = {"input_ids": torch.ones(1, 200, dtype=torch.long)}
        with pytest.raises(RequestFailed, match="page"):
            ask(engine, long).result()


def test_a_reader_that_does_not_read(model: PreTrainedModel, asked: Asked) -> None:
    """It keeps its tokens waiting, and nobody else."""
    with specdec.ThreadedEngine(model, limits=Limits(max_batch=2)) as engine:
        slow = ask(engine, asked[0][0])
        iterator = iter(slow)
        first = next(iterator).token
        for given, answer in asked:
            assert ask(engine, given).result() == answer
        assert [first, *(emission.token for emission in iterator)] == asked[0][1]


def test_who_comes_while_the_thread_ends_hears_of_it(model: PreTrainedModel, asked: Asked) -> None:
    """One who was let in, and was not there yet when the thread looked whom to tell, would wait for
    ever."""
    engine = specdec.ThreadedEngine(model)
    ending, coming = threading.Event(), threading.Event()

    class Slow(dict[int, Any]):
        def __setitem__(self, key: int, value: Any) -> None:
            coming.set()
            until(lambda: engine._closing)
            time.sleep(0.3)  # in which the thread looks whom to tell
            super().__setitem__(key, value)

    def breaks() -> None:
        ending.set()
        coming.wait(10)
        raise MemoryError

    engine._open = Slow()
    engine._ask(breaks)
    ending.wait(10)
    stream = ask(engine, asked[0][0])
    deadline = time.monotonic() + 10
    while not stream.ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stream.ended
    with pytest.raises(RequestFailed, match="closed"):
        stream.result()
    engine.close()


def test_a_thread_that_ends_with_nobody_there_is_seen(model: PreTrainedModel) -> None:
    """Statistics that only answers renew would go on saying that all is well."""
    engine = specdec.ThreadedEngine(model)

    def breaks() -> None:
        raise MemoryError

    engine._ask(breaks)
    engine._threads[0].join(10)
    assert isinstance(engine.stats.error, MemoryError)
    with pytest.raises(EngineClosed):
        engine.check_open()
    engine.close()


def test_errors_in_the_log_say_nothing_of_what_users_wrote(
    model: PreTrainedModel, asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    """A drafter that fails at a text, and a bug of the thread's, name what they stumbled over."""

    said = "Ravioli"

    def breaks(*_: object) -> None:
        raise ValueError(f"{said} is not in the table")

    drafter = families.causal_lm(3)
    with caplog.at_level(logging.DEBUG), specdec.ThreadedEngine(model, drafter, tree=2) as engine:
        hook = drafter.register_forward_pre_hook(breaks)
        assert ask(engine, asked[0][0]).result() == asked[0][1]
        hook.remove()
        engine._ask(breaks)
        engine._threads[0].join(10)
    told = [record for record in caplog.records if record.name == "specdec"]
    assert [record.levelname for record in told] == ["WARNING", "ERROR"]
    for record in told:
        text = logging.Formatter().format(record)
        assert "ValueError in\n" in text
        assert "breaks" in text
        assert said not in text
