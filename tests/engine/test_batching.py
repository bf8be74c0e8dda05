"""Many requests at once: who is let in, who gives way, and whom an error concerns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.cache import OutOfPages
from specdec.calls import rule_of
from specdec.drafters import NgramDrafter, TextOnlyDrafter
from specdec.engine import Decoding, Engine, Limits, Request
from specdec.engine.limits import Waiting
from specdec.engine.planner import Fixed, Outcome, within
from specdec.interfaces import DraftRequest, Prompt, Verified
from specdec.tree import DraftTree, Dynamic, chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.fake_drafters import GuessingDrafter

NEW_TOKENS = 20


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=2)


@pytest.fixture(scope="module")
def cases(model: PreTrainedModel) -> list[tuple[Tensor, list[int]]]:
    """Prompts of 3 to 60 tokens, some of which begin alike, and what the model answers."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randint(2, 140, (1, 24), generator=generator)
    pairs = []
    for index in range(12):
        own = torch.randint(2, 140, (1, 3 + 3 * index), generator=generator)
        ids = torch.cat([common, own], 1) if index % 3 == 0 else own
        answer = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
        pairs.append((ids, answer[0, ids.shape[1] :].tolist()))
    return pairs


def submit(engine: Engine, ids: Tensor, priority: int = 0, **how: Any) -> Request:
    prompt = engine.verifier.encode(Prompt(ids, (0,), {}))
    assert prompt.encoded is not None
    decoding = Decoding(max_length=ids.shape[1] + NEW_TOKENS, **how)
    (request,) = engine.submit(prompt, decoding, priority)
    return request


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


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


def test_what_goes_wrong_with_nobody_in_particular_is_told(
    model: PreTrainedModel,
    cases: list[tuple[Tensor, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error before anybody is let in, which would come again and again, nobody hearing of it."""
    engine = Engine(TransformersVerifier(model), None, limits=Limits(), isolates=True)
    with pytest.raises(ValueError, match="priority must be an int, got None"):
        submit(engine, cases[0][0], None)  # type: ignore[arg-type]  # that is the point
    submit(engine, cases[1][0])
    monkeypatch.setattr(Waiting, "first", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()


def whole(engine: Engine, ids: Tensor) -> Request:
    """A prompt that is not run in pieces."""
    decoding = Decoding(max_length=ids.shape[1] + NEW_TOKENS)
    (request,) = engine.submit(Prompt(ids, (0,), {}), decoding)
    return request


def test_a_whole_prompt_that_never_fits_leaves_others_alone(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """Nobody let in any more behind it: there is nobody who could give pages back."""
    page = TransformersVerifier(model, page_size=4)
    page.prefill(Prompt(cases[0][0], (0,), {}), 40)
    verifier = TransformersVerifier(model, page_size=4, kv_cache_bytes=12 * page.bytes_per_page)
    verifier.measure()
    engine = Engine(verifier, None, limits=Limits(), isolates=True)
    large, small = whole(engine, torch.ones(1, 200, dtype=torch.long)), whole(engine, cases[1][0])
    for _ in range(2 * NEW_TOKENS):
        engine.step()
    assert isinstance(large.error, OutOfPages)
    assert small.output == cases[1][1]
    assert not engine.has_work


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


@pytest.mark.parametrize("isolates", [True, False])
def test_acceptance_that_a_drafter_cannot_serve_ends_its_own_request(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]], isolates: bool
) -> None:
    """Everybody's requests, where one asks for distributions of a drafter without any."""
    rule = specdec.Relaxed(0.2, reliance="divergence", guards=())
    engine = Engine(
        TransformersVerifier(model), NgramDrafter(), chain(3), Limits(), isolates=isolates
    )
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    answer = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    other = submit(engine, ids)
    bad = submit(engine, ids, rule=rule_of(model, rule, {}))
    if not isolates:
        with pytest.raises(ValueError, match="this drafter gives none"):
            finish(engine)
        engine.close()
        return
    finish(engine)
    assert "this drafter gives none" in str(bad.error)
    assert other.output == answer[0, ids.shape[1] :].tolist()
    assert engine.stats.num_draft_tokens > 0


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


def test_who_asks_for_more_pages_than_there_are_is_told(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    """One request that fits no cache would be tried again for ever, or end the engine."""
    page = TransformersVerifier(model, page_size=4)
    page.prefill(Prompt(cases[0][0], (0,), {}), 40)
    verifier = TransformersVerifier(model, page_size=4, kv_cache_bytes=9 * page.bytes_per_page)
    engine = Engine(verifier, None, limits=Limits(), isolates=True)
    small = submit(engine, cases[1][0])
    engine.step()  # only then is known what a page takes
    large = submit(engine, cases[11][0])
    finish(engine)
    assert small.output == cases[1][1]
    assert (large.finish_reason, type(large.error)) == ("error", OutOfPages)
    assert verifier.pages_taken == 0


class Fragile(TransformersVerifier):
    """Raises when it meets a token, or gives NaN behind it."""

    raises = nan = -1

    def verify(self, handles: Any, trees: Sequence[DraftTree], pieces: Any = ()) -> Verified:
        if any(self.raises in tree.tokens for tree in trees):
            raise RuntimeError("the device is unhappy")
        out = super().verify(handles, trees, pieces)
        tokens = torch.tensor([token for tree in trees for token in tree.tokens])
        out.logits[tokens == self.nan] = torch.nan
        return out


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_what_goes_wrong_with_one_concerns_no_other(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]], kind: str
) -> None:
    """A forward that fails because of one, and logits that are no numbers."""
    verifier = Fragile(model, page_size=4)
    bad = cases[4][1][5]  # its sixth token; others that say it go the same way
    setattr(verifier, kind, bad)
    engine = Engine(verifier, None, limits=Limits(max_batch=16), isolates=True)
    requests = [submit(engine, ids) for ids, _ in cases]
    finish(engine)
    concerned = [bad in answer[:-1] for _, answer in cases]
    assert any(concerned)
    assert not all(concerned)
    for request, (_, answer), fails in zip(requests, cases, concerned, strict=True):
        if fails:
            assert request.finish_reason == "error"
            assert ("unhappy" if kind == "raises" else "NaN") in str(request.error)
            assert request.output == answer[: answer.index(bad) + 1]
        else:
            assert request.output == answer
    assert verifier.pages_taken == 0


def test_a_processor_that_raises_ends_its_own_request(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    def raises(ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] > cases[1][0].shape[1] + 3:
            raise KeyError("nothing there")
        return logits

    verifier = TransformersVerifier(model, page_size=4)
    engine = Engine(verifier, GuessingDrafter(), chain(2), limits=Limits(), isolates=True)
    bad, good = submit(engine, cases[1][0], processor=raises), submit(engine, cases[2][0])
    finish(engine)
    assert isinstance(bad.error, KeyError)
    assert bad.output == cases[1][1][:4]
    assert good.output == cases[2][1]
    strict = Engine(verifier, GuessingDrafter(), chain(2))
    submit(strict, cases[1][0], processor=raises)
    with pytest.raises(KeyError):
        finish(strict)
    strict.close()


def test_a_drafter_that_fails_is_done_without(
    model: PreTrainedModel,
    cases: list[tuple[Tensor, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what it did not draft does not count as drafts that were refused."""

    class Failing(GuessingDrafter):
        def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
            if len(batch[0].tokens) > batch[0].prompt_length + 5:
                raise RuntimeError("no idea")
            return super().propose(batch)

    seen: list[Outcome] = []
    monkeypatch.setattr(Fixed, "observe", lambda _, outcomes, seconds: seen.extend(outcomes))
    engine = Engine(TransformersVerifier(model), Failing(), chain(2), Limits(), isolates=True)
    requests = [submit(engine, ids) for ids, _ in cases[:4]]
    finish(engine)
    assert [request.output for request in requests] == [answer for _, answer in cases[:4]]
    assert engine.stats.num_draft_tokens > 0
    assert {outcome.asked > 0 for outcome in seen} == {True, False}
    assert all(outcome.nodes > 0 for outcome in seen if outcome.asked)


def test_requests_that_do_not_draft_run_beside_those_that_do(
    model: PreTrainedModel, cases: list[tuple[Tensor, list[int]]]
) -> None:
    engine = Engine(TransformersVerifier(model), GuessingDrafter(), chain(2), Limits())
    plain, drafted = (submit(engine, cases[i][0], drafts=i == 2) for i in (1, 2))
    finish(engine)
    assert (plain.output, drafted.output) == (cases[1][1], cases[2][1])
    assert plain.stats.num_draft_tokens == 0 < drafted.stats.num_draft_tokens


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
