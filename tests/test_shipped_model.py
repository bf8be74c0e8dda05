"""The model that is shipped: what it reads off held-out images, and its answers against
transformers' own."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from specdec.choice import resolve_drafter
from specdec.demo import ASSETS, Demo, Question, load, questions
from specdec.drafters import load_drafter
from specdec.engine import Decoding, Engine
from specdec.interfaces import Drafter, Prompt, reads_of
from specdec.reliance import Evidence
from specdec.saved_reliance import KINDS, Kind, load_reliance
from specdec.training import grading, recipes
from specdec.tree import Dynamic, Shape, chain, random_topology, static
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.fingerprint import fingerprint
from support.fake_drafters import GuessingDrafter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ASSETS / "lvlm").exists(), reason="no demonstration model here"),
]
COUNT, NEW_TOKENS, ROOM = 100, 160, 50
TREES = {"chain": chain(4), "static": static((2, 2, 1)), "random": random_topology(8, 4)}
DYNAMIC = Dynamic(16, 8, 4)
demo = cache(load)


@cache
def asked() -> tuple[list[Question], list[dict[str, Any]], list[list[int]]]:
    """Questions, the inputs and what ``model.generate`` answers, one by one."""
    model, processor, _ = demo()
    chosen = questions()[:COUNT]
    inputs = [question.encode(processor) for question in chosen]
    how = {"do_sample": False, "max_new_tokens": NEW_TOKENS}
    # Any: generate comes from a mixin that PreTrainedModel does not declare.
    generator: Any = model
    plain = [
        generator.generate(**given, **how)[0, given["input_ids"].shape[1] :].tolist()
        for given in inputs
    ]
    return chosen, inputs, plain


def drafter(kind: str, demo: Demo) -> Any:
    if kind == "text_only":
        return demo.drafter
    if kind == "ngram":
        return "ngram"
    if kind == "random":
        return GuessingDrafter(seed=1)
    _, inputs, plain = asked()
    truth = {
        tuple(given["input_ids"][0].tolist()): answer
        for given, answer in zip(inputs, plain, strict=True)
    }
    return GuessingDrafter(truth, right=0.75, seed=2)


@pytest.mark.parametrize(
    ("tree", "kind"),
    [
        *((tree, "partly_right") for tree in TREES),
        ("static", "text_only"),
        ("chain", "ngram"),
        ("random", "random"),
    ],
)
def test_greedy_answers_are_those_of_generate(tree: str, kind: str) -> None:
    """Near ties abound in what this model says, so nothing but the same arithmetic will do: fp32,
    token by token, fifty questions in one ragged batch; all hundred with the drafter that comes
    along and a tree that branches."""
    model = demo().model
    drafts = resolve_drafter(drafter(kind, demo()), model)
    every = (tree, kind) == ("static", "text_only")
    stats = answered(model, drafts, TREES[tree], COUNT if every else ROOM)
    assert stats.num_draft_tokens > 0


@cache
def of_the_blind() -> Any:
    """Statistics of the drafter that sees nothing."""
    model = demo().model
    return answered(model, load_drafter(ASSETS / "drafter", model), DYNAMIC, ROOM)


@pytest.mark.parametrize("kind", ["eagle-hidden", "eagle-shared"])
def test_heads_see_what_the_text_does_not_say(kind: str) -> None:
    """Their answers are the same, too, and the dynamic trees that their calibration shapes are
    accepted further than those of the drafter that sees nothing.
    """
    model = demo().model
    head = load_drafter(ASSETS / kind, model)
    ours, theirs = answered(model, head, DYNAMIC, ROOM), of_the_blind()
    assert ours.mean_acceptance_length > 1.1 * theirs.mean_acceptance_length


@pytest.mark.parametrize("kind", ["eagle-hidden", "eagle-shared"])
def test_heads_are_what_their_recipes_make(kind: str) -> None:
    """A recipe that was changed after the head was trained would make another one."""
    plan = json.loads((ASSETS / kind / "drafter.json").read_text())["plan"]
    made = plan | plan["geometry"] | plan["training"]
    for name, value in recipes.read_recipe(kind).items():
        found = made[name]
        if name == "taps":
            value = [int(layer) for layer in value.split(",")]
        elif name == "loss":
            value = {each.split("=")[0]: float(each.split("=")[1]) for each in value.split(",")}
        elif name == "verifier":
            value = "lvlm"
        elif name == "minutes":  # of answering and training; those of the training are settled
            found = plan[name]
        assert found == value, name


def answered(model: PreTrainedModel, drafts: Drafter | None, tree: Shape, count: int) -> Any:
    """Statistics of the first ``count`` answers, each of which must be that of ``generate``."""
    _, inputs, plain = asked()
    taps = reads_of(drafts).layers
    verifier = TransformersVerifier(model, taps=taps)
    engine = Engine(verifier, drafts, tree)
    for start in range(0, count, ROOM):
        requests = []
        for given in inputs[start : min(start + ROOM, count)]:
            ids = given["input_ids"]
            rest = {name: value for name, value in given.items() if name != "input_ids"}
            decoding = Decoding(
                ids.shape[1] + NEW_TOKENS, eos_token_ids=verifier.spec.eos_token_ids
            )
            requests += engine.submit(Prompt(ids, (0,), rest), decoding)
        while engine.has_work:
            engine.step()
        for index, request in enumerate(requests, start):
            assert request.output == plain[index], f"question {index}"
    assert verifier.pages_taken == 0
    return engine.stats


def test_answers_state_what_the_images_show() -> None:
    """The bar that a task has to pass before it is shipped, over all of them. All two hundred are
    asked at once, of an engine that runs by itself; those that ``generate`` was asked, too, must
    say the same.
    """
    chosen, processor = questions()[:200], demo().processor
    tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]  # of every processor
    with specdec.ThreadedEngine(demo().model, demo().drafter) as engine:
        how = {"do_sample": False, "max_new_tokens": NEW_TOKENS}
        streams = [engine.submit(**question.encode(processor), **how) for question in chosen]
        said = [stream.result() for stream in streams]
    assert said[:COUNT] == asked()[2]
    right = total = exact = 0
    for question, answer in zip(chosen, said, strict=True):
        text = tokenizer.decode(answer, skip_special_tokens=True)
        score = grading.score(question.task, dict(question.fields), text)
        right, total, exact = right + score.right, total + score.total, exact + score.exact
    assert len({question.task for question in chosen}) >= 5
    assert exact >= 0.9 * len(chosen)
    assert right >= 0.97 * total


def test_answers_depend_on_the_image() -> None:
    """On white paper the model must say something else."""
    _, inputs, plain = asked()
    generator: Any = demo().model
    changed = 0
    for given, answer in zip(inputs[:20], plain, strict=False):
        blank = given | {"pixel_values": torch.zeros_like(given["pixel_values"])}
        said = generator.generate(**blank, do_sample=False, max_new_tokens=NEW_TOKENS)
        changed += said[0, given["input_ids"].shape[1] :].tolist() != answer
    assert changed >= 18


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_estimators_are_for_this_model(kind: Kind, dtype: torch.dtype) -> None:
    """A model that was trained anew beside estimators of the old one would be refused by users."""
    model = load(dtype=dtype).model
    estimator = load_reliance(ASSETS / "lvlm" / "reliance", kind, fingerprint=fingerprint(model))
    text = model.config.get_text_config()
    given = Evidence(
        torch.zeros(3, text.hidden_size, dtype=dtype),
        [torch.zeros(3, text.num_attention_heads)] * text.num_hidden_layers,
        torch.zeros(3),
    )
    values = estimator.values(given)
    assert values.shape == (3,)
    assert bool(((values >= 0) & (values <= 1)).all())
