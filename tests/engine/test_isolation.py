"""What goes wrong with one request of many, and whom it concerns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.cache import OutOfPages
from specdec.calls import rule_of
from specdec.drafters import NgramDrafter
from specdec.engine import Engine, Limits
from specdec.engine.limits import Waiting
from specdec.engine.planner import Fixed, Outcome
from specdec.interfaces import DraftRequest, Prompt, Verified
from specdec.tree import DraftTree, chain
from specdec.verifiers import TransformersVerifier
from support.batching import NEW_TOKENS, finish, submit, whole
from support.fake_drafters import GuessingDrafter


def test_what_goes_wrong_with_nobody_in_particular_is_told(
    model: PreTrainedModel,
    cases: list[tuple[Tensor, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error before anybody is let in, which would come again and again, nobody hearing of it."""
    engine = Engine(TransformersVerifier(model), None, limits=Limits(), isolates=True)
    with pytest.raises(ValueError, match="priority=None: expected"):
        submit(engine, cases[0][0], None)  # type: ignore[arg-type]  # that is the point
    submit(engine, cases[1][0])
    monkeypatch.setattr(Waiting, "first", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()


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
    monkeypatch.setattr(Fixed, "observe", lambda _, outcomes, *times: seen.extend(outcomes))
    engine = Engine(TransformersVerifier(model), Failing(), chain(2), Limits(), isolates=True)
    requests = [submit(engine, ids) for ids, _ in cases[:4]]
    finish(engine)
    assert [request.output for request in requests] == [answer for _, answer in cases[:4]]
    assert engine.stats.num_draft_tokens > 0
    assert {outcome.asked > 0 for outcome in seen} == {True, False}
    assert all(outcome.nodes > 0 for outcome in seen if outcome.asked)
