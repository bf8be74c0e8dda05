"""Engines that run by themselves: many threads, an event loop, and whatever may end them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.engine import Limits
from specdec.policies import save_policy
from specdec.serving import EngineClosed, QueueFull, RequestFailed, Stream
from support import families

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.build("llava").model


@pytest.fixture(scope="module")
def asked(model: PreTrainedModel) -> list[tuple[dict[str, Any], list[int]]]:
    """Questions with and without images, each twice, and what ``generate`` answers."""
    _, inputs, layouts, _ = families.build("llava")
    pairs = []
    for seed in range(6):
        given = inputs(seed, 5 + seed, layouts[seed % len(layouts)])
        answer = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        pairs.append((given, answer[0, given["input_ids"].shape[1] :].tolist()))
    return [*pairs, *pairs]


@pytest.fixture(scope="module")
def engine(model: PreTrainedModel) -> Iterator[specdec.ThreadedEngine]:
    drafter = families.causal_lm(3)
    with specdec.ThreadedEngine(model, drafter, tree="2,1", limits=Limits(max_batch=4)) as engine:
        yield engine


def ask(engine: specdec.ThreadedEngine, given: dict[str, Any], **how: Any) -> Stream:
    return engine.submit(**given, **{"max_new_tokens": NEW_TOKENS, "do_sample": False} | how)


def test_many_threads_get_what_generate_answers(
    engine: specdec.ThreadedEngine, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """Tokens of another thread's request, or a token lost between two threads."""

    def one(pair: tuple[dict[str, Any], list[int]]) -> bool:
        stream = ask(engine, pair[0])
        streamed = [emission.token for emission in stream]
        return streamed == stream.tokens == pair[1] and stream.ended

    before = engine.stats.finished
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, asked * 2))
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.pages_taken) == (0, 0, 0)
    assert stats.finished - before == 2 * len(asked)
    assert stats.acceptance.num_cached_tokens > 0
    engine.verifier.check_integrity()


@pytest.mark.parametrize("shares", [True, False])
def test_images_are_looked_at_once(
    model: PreTrainedModel, asked: list[tuple[dict[str, Any], list[int]]], shares: bool
) -> None:
    """And by another thread than the engine's, which goes on meanwhile; for each prompt where
    nothing is to be shared.
    """
    seen: list[str] = []
    tower: Any = model.model
    watch = tower.vision_tower.register_forward_pre_hook(
        lambda *_: seen.append(threading.current_thread().name)
    )
    given = next(given for given, _ in asked if "pixel_values" in given)
    other = {**given, "input_ids": torch.cat([given["input_ids"][:, :1], given["input_ids"]], 1)}
    other["attention_mask"] = torch.ones_like(other["input_ids"])
    try:
        expected = model.generate(**other, max_new_tokens=8, do_sample=False)
        seen.clear()
        with specdec.ThreadedEngine(model) as engine:
            engine.verifier.shares = shares
            ask(engine, given).result()
            said = ask(engine, other, max_new_tokens=8).result()
    finally:
        watch.remove()
    assert seen == ["specdec-encoder"] * (1 if shares else 2)
    assert said == expected[0, other["input_ids"].shape[1] :].tolist()


def test_an_event_loop_gets_the_same(
    model: PreTrainedModel, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    async def one(engine: specdec.AsyncEngine, given: dict[str, Any]) -> list[int]:
        how: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        async with await engine.submit(**given, **how) as stream:
            return [emission.token async for emission in stream]

    async def everything() -> None:
        async with specdec.AsyncEngine(model, families.causal_lm(3), tree=3) as engine:
            answers = await asyncio.gather(*(one(engine, given) for given, _ in asked))
            assert answers == [answer for _, answer in asked]
            # Leaving the block early cancels.
            async with await engine.submit(
                **asked[0][0], max_new_tokens=400, eos_token_id=None
            ) as stream:
                async for _ in stream:
                    break
            with pytest.raises(ValueError, match="num_beams=3"):
                await engine.submit(**asked[0][0], num_beams=3)
            assert await engine.drain(60)
            assert stream.finish_reason == "cancelled"
            assert engine.stats.pages_taken == 0

    asyncio.run(everything())


def test_a_request_is_cancelled_wherever_it_is(
    engine: specdec.ThreadedEngine, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """Running, waiting behind others, and after its end; its pages go back, others go on."""
    long = {"max_new_tokens": 400, "eos_token_id": None}
    running = [ask(engine, asked[0][0], **long) for _ in range(4)]
    waiting = ask(engine, asked[1][0])
    next(iter(running[0]))
    waiting.cancel()
    assert waiting.result() == []
    assert waiting.finish_reason == "cancelled"
    for stream in running:
        stream.cancel()
        assert len(stream.result()) < 400
    running[0].cancel()
    assert ask(engine, asked[2][0]).result() == asked[2][1]
    assert (engine.stats.running, engine.stats.pages_taken) == (0, 0)


def test_time_runs_out(
    engine: specdec.ThreadedEngine, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    stream = ask(engine, asked[0][0], max_new_tokens=4000, eos_token_id=None, timeout=0.2)
    assert len(stream.result()) < 4000
    assert stream.finish_reason == "timeout"


def test_one_request_fails_alone(
    engine: specdec.ThreadedEngine, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """The error is its reader's, with its cause; others do not notice."""

    def raises(ids: Tensor, scores: Tensor) -> Tensor:
        raise KeyError("nothing there")

    good = ask(engine, asked[0][0])
    bad = ask(engine, asked[1][0], logits_processor=[raises])
    with pytest.raises(RequestFailed, match="nothing there") as caught:
        bad.result()
    assert isinstance(caught.value.__cause__, KeyError)
    assert bad.finish_reason == "error"
    assert good.result() == asked[0][1]


def test_what_cannot_be_done_is_refused_at_once(
    engine: specdec.ThreadedEngine, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    given = asked[0][0]
    two = {name: torch.cat([value, value]) for name, value in given.items()}
    with pytest.raises(ValueError, match="2 prompts in one call"):
        ask(engine, two)
    with pytest.raises(ValueError, match="num_beams=2"):
        ask(engine, given, num_beams=2)
    with pytest.raises(ValueError, match="inputs_embeds"):
        ask(engine, {"inputs_embeds": torch.zeros(1, 3, families.TEXT["hidden_size"])})


@pytest.mark.parametrize(
    "option",
    [
        *({"priority": each} for each in (None, "x", 0.5)),
        *({"timeout": each} for each in (-1, 0, "x", float("nan"))),
        *({"top_logprobs": each} for each in (-1, "x", 1.5, 1 << 20)),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(
    engine: specdec.ThreadedEngine,
    asked: list[tuple[dict[str, Any], list[int]]],
    option: dict[str, Any],
) -> None:
    """Time below zero gave an answer of no tokens, others failed where nobody knew why."""
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected"):
        ask(engine, asked[0][0], **option)


def test_memory_that_holds_no_request_is_refused(model: PreTrainedModel) -> None:
    """The engine started, and every request failed."""
    with pytest.raises(ValueError, match=r"kv_cache_bytes=10: .* bytes a page"):
        specdec.ThreadedEngine(model, kv_cache_bytes=10)


_LEFT_RUNNING = """
import specdec
from support import families

model, inputs, layouts, _ = families.build("llava")
engine = specdec.ThreadedEngine(model)
given = inputs(0, 5, layouts[0])
stream = engine.submit(**given, max_new_tokens=1900, do_sample=True, eos_token_id=None)
print(next(iter(stream)).token >= 0)
"""


def test_a_script_may_end_while_an_answer_runs() -> None:
    """The process was aborted: its thread was inside of torch when Python was gone."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", _LEFT_RUNNING],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=env,
    )
    assert (ran.returncode, ran.stdout) == (0, "True\n"), ran.stderr


def test_a_prompt_of_padding_is_refused(engine: specdec.ThreadedEngine) -> None:
    """Nothing is left of it, and nothing can be said behind nothing."""
    ids = torch.tensor([[families.PAD, families.PAD]])
    with pytest.raises(ValueError, match="all padding"):
        ask(engine, {"input_ids": ids})
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert ask(engine, given, max_new_tokens=3).result()


def test_too_many_are_turned_away(
    model: PreTrainedModel, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """With how long to wait; and those who were taken are served."""
    limits = Limits(max_batch=1, max_waiting=2)
    with specdec.ThreadedEngine(model, limits=limits) as engine:
        taken = [ask(engine, asked[0][0]) for _ in range(3)]
        with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
            ask(engine, asked[0][0])
        assert caught.value.retry_after >= 1
        assert [stream.result() for stream in taken] == [asked[0][1]] * 3
        assert engine.drain(60)
        with pytest.raises(EngineClosed):
            ask(engine, asked[0][0])


def test_closing_ends_what_runs(
    model: PreTrainedModel, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """Readers that wait must not wait for ever; and a step that raises is not the end."""
    engine = specdec.ThreadedEngine(model)
    step, times = engine._engine.step, [0]

    def failing() -> Any:
        times[0] += 1
        if times[0] == 3:
            raise RuntimeError("a bug")
        return step()

    engine._engine.step = failing  # type: ignore[method-assign]  # as a bug would
    with pytest.raises(RequestFailed, match="a bug"):
        ask(engine, asked[0][0]).result()
    assert ask(engine, asked[0][0]).result() == asked[0][1]
    stream = ask(engine, asked[0][0], max_new_tokens=4000, eos_token_id=None)
    threading.Timer(0.2, engine.close).start()
    with pytest.raises(RequestFailed, match="closed"):
        stream.result()
    engine.close()
    assert engine.verifier.pages_taken == 0


def test_an_engine_whose_thread_ends_says_so(
    model: PreTrainedModel, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """Readers would wait for ever, and new requests be taken that nobody looks at."""
    engine = specdec.ThreadedEngine(model)
    tell = engine._tell

    def failing(*, force: bool = False) -> None:
        engine._tell = tell  # type: ignore[method-assign]  # once
        raise MemoryError("no room for statistics")

    engine._tell = failing  # type: ignore[method-assign]  # as a bug would
    with pytest.raises(RequestFailed, match="closed"):
        ask(engine, asked[0][0]).result()
    with pytest.raises(EngineClosed, match="by an error"):
        ask(engine, asked[0][0])
    assert isinstance(engine.stats.error, MemoryError)
    engine.close()


def test_sampled_answers_repeat_by_their_seed(
    engine: specdec.ThreadedEngine, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """Whatever else is there: one source of randomness for all would follow their order."""

    def sample(seed: int) -> Stream:
        generator = torch.Generator().manual_seed(seed)
        return ask(engine, asked[0][0], do_sample=True, generator=generator)

    alone = [sample(seed).result() for seed in (1, 2)]
    together = [sample(seed) for seed in (2, 1, 3, 1)]
    assert [stream.result() for stream in together][:2] == alone[::-1]
    assert together[1].tokens == together[3].tokens
    assert alone[0] != alone[1]


def test_draining_leaves_the_figures_to_the_engine(
    model: PreTrainedModel, asked: list[tuple[dict[str, Any], list[int]]]
) -> None:
    """Another thread that reads them while a step changes them fails, now and then."""
    engine, threads = specdec.ThreadedEngine(model), list[str]()
    tell = engine._tell

    def watched(*, force: bool = False) -> None:
        threads.append(threading.current_thread().name)
        tell(force=force)

    engine._tell = watched  # type: ignore[method-assign]  # to see who calls it
    stream = ask(engine, asked[0][0], max_new_tokens=40, eos_token_id=None)
    assert not engine.drain(0.0)
    assert engine.stats.draining
    assert len(stream.result()) == 40
    engine.close()
    assert engine.stats.draining
    assert set(threads) == {"specdec-engine"}


def test_a_policy_file_is_read_once(
    model: PreTrainedModel, asked: list[tuple[dict[str, Any], list[int]]], tmp_path: Path
) -> None:
    """A file that is replaced or gone would change running answers, or end them with its path,
    while clients are told of what it was. It took longer than a short answer to read, too.
    """
    file = tmp_path / "policy.json"
    policy = specdec.Relaxed(epsilon=0.2, reliance="divergence", guards=())
    save_policy(file, policy, model)
    with specdec.ThreadedEngine(model, families.causal_lm(3), acceptance=file) as engine:
        file.unlink()
        assert engine.acceptance == policy
        stream = ask(engine, asked[0][0])
        assert len(stream.result()) == NEW_TOKENS


def test_statistics_are_there_without_work(engine: specdec.ThreadedEngine) -> None:
    deadline = time.monotonic() + 10
    while engine.stats.running and time.monotonic() < deadline:
        time.sleep(0.01)
    stats = engine.stats
    assert stats.pages_limit
    assert not stats.draining
    assert stats.error is None
