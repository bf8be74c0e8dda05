"""`specdec.enabled`: under transformers' pipeline, nested, in threads."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import specdec
from specdec.demo import load, questions
from support import families, processors

EXAMPLE = Path(__file__).parent.parent / "examples" / "pipeline.py"


@pytest.fixture
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=3)


def as_found(model: PreTrainedModel) -> bool:
    implementation = model.config.get_text_config()._attn_implementation
    return "generate" not in vars(model) and implementation == "sdpa"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["main"](count=3)
    printed = capsys.readouterr().out
    assert "3 questions, the same answers" in printed


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}], ids=["alone", "batch"])
def test_pipelines_give_the_same_answers(options: dict[str, Any]) -> None:
    """Answers that differ, or a pipeline that no longer finds what it needs on the model."""
    model, processor, drafter = load()
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    chat: Callable[[Any], Any] = runpy.run_path(str(EXAMPLE))["chat"]
    chats = [chat(question) for question in questions()[:3]]

    def ask() -> Any:
        return pipe(text=chats, max_new_tokens=24, return_full_text=False, **options)

    plain = ask()
    calls: list[int] = []
    with specdec.enabled(model, drafter):
        inner = model.generate
        vars(model)["generate"] = lambda *a, **k: (calls.append(1), inner(*a, **k))[1]
        assert ask() == plain
        vars(model)["generate"] = inner
    assert calls
    assert as_found(model)


def test_contexts_may_be_left_in_any_order(model: PreTrainedModel) -> None:
    """As threads do. The first to leave would take the second's away, or the last put back one that
    is over."""
    ids = torch.randint(2, 140, (1, 9))
    first, second = ExitStack(), ExitStack()
    first.enter_context(specdec.enabled(model, "ngram"))
    second.enter_context(specdec.enabled(model, model))
    kept = model.generate
    first.close()
    out = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert out.stats.mean_acceptance_length > 3  # the second one's drafter
    second.close()
    assert as_found(model)
    plain = kept(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert plain.tolist() == out.tolist()
    assert not hasattr(plain, "stats")


def test_a_generate_of_the_callers_own_is_put_back(model: PreTrainedModel) -> None:
    def own(*args: Any, **kwargs: Any) -> str:
        return "own"

    vars(model)["generate"] = own
    with specdec.enabled(model, None):
        assert model.generate is not own
    assert model.generate is own


def test_threads_share_a_context(model: PreTrainedModel) -> None:
    """Two calls at once in one cache, or with one drafter's state."""
    prompts = [torch.randint(2, 140, (1, length)) for length in range(4, 12)]
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False}
    plain = [model.generate(ids, **options).tolist() for ids in prompts]
    with specdec.enabled(model, families.causal_lm(3)), ThreadPoolExecutor(4) as pool:
        fast = list(pool.map(lambda ids: model.generate(ids, **options).tolist(), prompts))
    assert fast == plain
    assert as_found(model)


def test_threads_with_contexts_of_their_own() -> None:
    """Forwards of two threads meet: one would find the attention switched off under it, or leave it
    switched on."""
    family = families.build("llava")
    model = family.model
    given = [family.inputs(seed, 8) for seed in range(6)]
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False}
    plain = [model.generate(**inputs, **options).tolist() for inputs in given]
    start = threading.Barrier(3)

    def work(thread: int) -> list[Any]:
        start.wait()
        answers = []
        for inputs in given[thread::3] * 3:
            with specdec.enabled(model, "ngram"):
                answers.append(model.generate(**inputs, **options).tolist())
            answers.append(specdec.generate(model, **inputs, **options, drafter="ngram").tolist())
        return answers

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(work, range(3)))
    for thread, answers in enumerate(done):
        truth = [answer for answer in plain[thread::3] * 3 for _ in range(2)]
        assert answers == truth
    assert as_found(model)


def test_unfit_drafters_are_refused_on_entering(model: PreTrainedModel) -> None:
    small = families.causal_lm(0, vocab_size=40)
    with pytest.raises(ValueError, match=r"vocabulary of 40"), specdec.enabled(model, small):
        pass
    assert as_found(model)


def test_pipelines_of_a_processor_made_here() -> None:
    """With images that the vision tower of the model sees; stop strings need the tokenizer, which
    pipelines pass."""
    model = families.build("llava").model
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processors.build())
    ask = {"images": processors.image(1), "text": "<image> w5 w6", "max_new_tokens": 12}
    plain = pipe(**ask)
    with specdec.enabled(model, "ngram"):
        assert pipe(**ask) == plain
