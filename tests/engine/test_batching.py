"""Many requests at once: who is let in, and who gives way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.drafters import TextOnlyDrafter
from specdec.engine import Decoding, Engine, Limits, Request
from specdec.engine.limits import Waiting
from specdec.engine.planner import within
from specdec.interfaces import Prompt, Reads
from specdec.tree import Dynamic, Shape, chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.batching import finish, submit
from support.fake_drafters import GuessingDrafter


@pytest.mark.parametrize("seed", range(6))
def test_requests_come_and_go_at_random(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]], seed: int
) -> None:
    """Random arrivals, priorities, cancellations and hardly any pages: an answer that depends on
    what else is there, a page that is lost, or somebody who is forgotten.
    """
    rng = random.Random(seed)
    page = TransformersVerifier(model, page_size=4)
    page.prefill(Prompt(cases[0][0], (0,), {}), 40)  # what a page takes is known after a prompt
    verifier = TransformersVerifier(
        model, page_size=4, kv_cache_bytes=rng.choice([24, 40, 80]) * page.bytes_per_page
    )
    drafter = TextOnlyDrafter(families.causal_lm(4)) if seed % 2 else GuessingDrafter(seed=seed)
    limits = Limits(max_batch=rng.choice([2, 4, 8]), max_step_tokens=rng.choice([8, 24, 64]))
    engine = Engine(verifier, drafter, static((2, 1)), limits, isolates=True)
    order = [*cases, *cases]
    rng.shuffle(order)
    requests: list[tuple[Request, list[int]]] = []
    while order or engine.has_work:
        for _ in range(rng.choice([0, 0, 1, 3]) if order else 0):
            if order:
                ids, answer = order.pop()
                requests.append((submit(engine, ids, rng.randrange(3)), answer))
        if requests and rng.random() < 0.05:
            engine.cancel(rng.choice(requests)[0])
        engine.step()
        verifier.check_integrity()
        assert engine.num_running + engine.num_prefilling <= limits.max_batch
    for request, answer in requests:
        if request.finish_reason == "cancelled":
            assert request.output == answer[: len(request.output)]
        else:
            assert (request.finish_reason, request.output) == ("length", answer), request.error
    assert verifier.pages_taken == 0


def test_a_step_takes_no_more_tokens_than_allowed(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """A long prompt in one piece would hold up everybody else."""
    verifier, seen = TransformersVerifier(model, page_size=4), []
    forward = verifier._paged.forward

    def watched(batch: Sequence[Any], **how: Any) -> Tensor:
        seen.append(sum(len(nodes.tokens) for nodes in batch))
        return forward(batch, **how)

    verifier._paged.forward = watched  # type: ignore[method-assign]  # to count
    engine = Engine(verifier, GuessingDrafter(), chain(4), Limits(max_batch=4, max_step_tokens=16))
    requests = [submit(engine, ids) for ids, _ in cases]
    finish(engine)
    assert max(seen) == 16
    assert [request.output for request in requests] == [answer for _, answer in cases]


def test_two_questions_about_the_same_compute_it_once(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """They come at once, so that neither finds what the other is just computing."""
    verifier = TransformersVerifier(model, page_size=4)
    engine = Engine(verifier, None, limits=Limits(max_batch=8))
    first, second = (submit(engine, cases[index][0]) for index in (3, 6))
    engine.step()
    assert (engine.num_running, engine.num_prefilling) == (1, 0)
    finish(engine)
    assert (first.stats.num_cached_tokens, second.stats.num_cached_tokens) == (0, 24)
    assert [first.output, second.output] == [cases[3][1], cases[6][1]]


def test_planners_are_told_who_is_coming(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """Those whose prompts are being run or wait for it, up to as many as may run at once; but not
    those for whom there are no pages.
    """
    engine = Engine(
        TransformersVerifier(model, page_size=4),
        GuessingDrafter(),
        chain(2),
        Limits(max_batch=3, max_step_tokens=8),
    )
    planner: Any = engine._drafting.planner
    shapes, seen = planner.shapes, list[tuple[int, int]]()

    def watched(ids: Sequence[int], *, load: int, timed: bool) -> list[Shape]:
        seen.append((len(ids), load))
        return list(shapes(ids, load=load, timed=timed))

    planner.shapes = watched
    for ids, _ in cases[:5]:
        submit(engine, ids)
    finish(engine)
    assert (1, 3) in seen
    assert seen[-1] == (1, 1)
    assert max(load for _, load in seen) == 3
    engine._intake.full = True
    submit(engine, cases[0][0])
    assert engine._intake.coming == 0


def test_prompts_run_in_pieces_where_nothing_is_shared(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """Turning sharing off has prompts run whole, holding up everybody else, or has them share."""
    verifier = TransformersVerifier(model, page_size=4)
    verifier.shares = False
    engine = Engine(verifier, None, limits=Limits(max_batch=8, max_step_tokens=8))
    requests = [submit(engine, cases[index][0]) for index in (3, 6)]  # they begin alike
    engine.step()
    assert engine.num_prefilling > 0
    finish(engine)
    again = submit(engine, cases[3][0])
    finish(engine)
    assert [request.stats.num_cached_tokens for request in (*requests, again)] == [0, 0, 0]
    assert [request.output for request in requests] == [cases[3][1], cases[6][1]]
    assert again.output == cases[3][1]
    verifier.check_integrity()


def test_a_whole_prompt_does_not_lose_its_turn(model: PreTrainedModel) -> None:
    """One that finds no pages when its turn comes: urgent ones would overtake it for ever."""
    page = TransformersVerifier(model, page_size=4)
    page.measure()
    verifier = TransformersVerifier(model, page_size=4, kv_cache_bytes=24 * page.bytes_per_page)
    verifier.measure()
    engine = Engine(verifier, None, limits=Limits(max_batch=8, turn=4))
    generator, come = torch.Generator().manual_seed(1), count()

    def prompt(length: int) -> Prompt:
        return Prompt(torch.randint(2, 140, (1, length), generator=generator), (0,), {})

    def urgent() -> Request:
        (request,) = engine.submit(prompt(5), Decoding(max_length=20 + next(come) % 7), 5)
        return request

    running = [urgent() for _ in range(6)]
    for _ in range(3):
        engine.step()
    (patient,) = engine.submit(prompt(60), Decoding(max_length=65))  # takes most pages
    while not patient.finished and next(come) < 400:
        running = [request for request in running if not request.finished]
        running += [urgent() for _ in range(8 - len(running))]
        engine.step()
    assert patient.finish_reason == "length"


def rows(number: int, priority: int) -> list[Request]:
    prompt = Prompt(torch.ones(1, 2, dtype=torch.long), (0,), {})
    return [Request.from_row(number, prompt, 0, Decoding(max_length=4), priority)]


def test_nobody_waits_for_ever() -> None:
    """A request of low priority, with n others before it, is let in after at most turn · (n + 1)
    admissions, however many more urgent ones come meanwhile.
    """
    for turn in (1, 2, 4, 7):
        for before in (0, 3):
            waiting, numbers = Waiting(turn), count()
            for _ in range(before):
                waiting.add(rows(next(numbers), -1))
            patient = rows(next(numbers), -5)
            waiting.add(patient)
            let_in = []
            for _ in range(turn * (before + 1)):
                for _ in range(3):
                    waiting.add(rows(next(numbers), 9))
                first = waiting.first()
                assert first is not None
                waiting.take(first)
                let_in += first
            assert patient[0] in let_in, f"not let in, turn={turn}, {before} before it"


def test_the_urgent_come_first_and_the_oldest_stays(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """When pages run out, the least urgent gives way, and the oldest never: it could be preempted
    again and again.
    """
    page = TransformersVerifier(model, page_size=4)
    page.prefill(Prompt(cases[0][0], (0,), {}), 40)
    verifier = TransformersVerifier(model, page_size=4, kv_cache_bytes=16 * page.bytes_per_page)
    engine = Engine(verifier, None, limits=Limits(max_batch=8, turn=100))
    patient = submit(engine, cases[1][0], -1)
    engine.step()
    others = [submit(engine, cases[index][0], priority) for index, priority in ((2, 0), (4, 5))]
    finish(engine)
    assert patient.stats.num_preemptions == others[1].stats.num_preemptions == 0
    assert others[0].stats.num_preemptions > 0
    assert [r.output for r in (patient, *others)] == [cases[index][1] for index in (1, 2, 4)]
    # What was computed again is no prompt that came, nor one that was found in the cache.
    assert engine.stats.num_prompt_tokens == sum(cases[i][0].shape[1] for i in (1, 2, 4))
    assert others[0].stats.num_prompt_tokens == cases[2][0].shape[1]
    assert engine.stats.num_cached_tokens == 0


def test_requests_that_do_not_draft_run_beside_those_that_do(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    engine = Engine(TransformersVerifier(model), GuessingDrafter(), chain(2), Limits())
    plain, drafted = (submit(engine, cases[i][0], drafts=i == 2) for i in (1, 2))
    finish(engine)
    assert (plain.output, drafted.output) == (cases[1][1], cases[2][1])
    assert plain.stats.num_draft_tokens == 0 < drafted.stats.num_draft_tokens


def test_states_that_wait_to_be_read_hold_nothing_else(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """A drafter that does not take them, as one that is paused: whole steps, pieces of others'
    prompts included, and outgrown pools stayed in memory for a few tokens' states. Who never
    drafts has no use for them.
    """

    class Paused(GuessingDrafter):
        reads = Reads(layers=(0, 1))

    verifier = TransformersVerifier(model, page_size=4, taps=(0, 1))
    engine = Engine(verifier, Paused(), chain(2), Limits())
    requests = [submit(engine, ids, drafts=i != 1) for i, (ids, _) in enumerate(cases[:4])]
    for _ in range(6):
        engine.step()
    assert requests.pop(1).view.states == []
    for request in requests:
        prompt, *others = request.view.states
        assert len(prompt) == request.view.prompt_length
        assert sum(map(len, others)) == len(request.output) - 1 > 2
        for states in request.view.states:
            assert states.untyped_storage().nbytes() == states.nbytes
    engine.close()


def test_logprobs_are_the_models_own(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """Of every token behind what was said before it, drafted or not, whatever a processor did."""
    ids, answer = cases[2]
    truth = {tuple(ids[0].tolist()): answer}
    engine = Engine(TransformersVerifier(model), GuessingDrafter(truth, right=0.7), chain(3))
    submit(engine, ids, top_logprobs=2, processor=lambda ids, scores: scores / 0.5)
    emissions = []
    while engine.has_work:
        emissions += engine.step()
    assert any(emission.drafted for emission in emissions)
    with torch.no_grad():
        whole = model(torch.cat([ids, torch.tensor([answer])], 1)).logits[0].log_softmax(-1)
    for place, emission in enumerate(emissions):
        row, found = whole[ids.shape[1] - 1 + place], emission.logprobs
        assert found is not None
        assert found.own == pytest.approx(float(row[emission.token]), abs=1e-4)
        assert [token for token, _ in found.top] == row.topk(2).indices.tolist()


def test_shapes_are_cut_to_a_number_of_nodes() -> None:
    assert within(chain(8), 3) == chain(3)
    assert within(static((2, 2)), 3) == static((2,))
    assert within(static((2, 2)), 1) == chain(0)
    assert within(Dynamic(16, 8, 4), 5) == Dynamic(5, 8, 4)
    assert len(within(Dynamic(16, 8, 4), 0)) == 1
    assert within(chain(2), 9) is chain(2) or within(chain(2), 9) == chain(2)
