"""Drafters that learn: what they learn on is what they will be asked."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specdec.drafters.eagle_head import EagleHead, Vision
from specdec.training.batches import EagleCollator
from specdec.training.examples import Example
from specdec.training.losses import divergence, target_of
from specdec.training.students import EagleStudent
from support import answers

STEPS = 3
CASES = [  # prompts: text, image in the middle, two of them, one at the end, one at the start
    answers.example("ttt", 5, 0),
    answers.example("ttiiiitt", 6, 1),
    answers.example("tiiitiitt", 4, 2),
    answers.example("ttiii", 5, 3),
    answers.example("iitt", 7, 4),
]
MROPE = [answers.example(layout, 5, 7, rows=3) for layout in ("ttiiiitt", "tiiitiit", "ttt")]
VISIONS: list[Vision] = ["hidden", "shared", "compressed"]


class _Served:
    """A head as an engine runs it: token by token, one chain, with plain lists of keys."""

    def __init__(self, head: EagleHead, example: Example) -> None:
        assert example.features is not None
        self.head, self.example, self.features = head, example, example.features
        self.keys: list[Tensor] = []  # (Hkv, D) each
        self.values: list[Tensor] = []
        self.vector = torch.zeros(head.config.hidden_size).double()
        if head.config.vision == "shared":
            assert self.features.visual_keys is not None
            assert self.features.visual_values is not None
            self.keys += list(self.features.visual_keys)
            self.values += list(self.features.visual_values)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys.append(k[0, :, 0])
        self.values.append(v[0, :, 0])
        heads = []
        for number in range(q.shape[1]):
            group = number // (q.shape[1] // k.shape[1])
            scores = torch.stack([q[0, number, 0] @ key[group] for key in self.keys])
            shares = (scores / q.shape[-1] ** 0.5).softmax(0)
            heads.append(sum(s * v[group] for s, v in zip(shares, self.values, strict=True)))
        return torch.stack([torch.as_tensor(each) for each in heads])[None, :, None]

    def _slot(self, embed: Tensor, feature: Tensor, place: int) -> Tensor:
        position = self.features.positions[:, place : place + 1]
        return self.head(embed[None, None], feature[None, None], position, self._attend)[0, 0]

    def root(self, root: int) -> Tensor:
        """The state behind the token ``root``, from the verifier's states before it."""
        tokens, visual = self.example.tokens, self.example.visual.tolist()
        assert self.head.embed_tokens is not None
        fused = self.head.fuse(self.features.taps)
        state = torch.tensor(0.0)
        for place in range(1, root + 1):
            ended = visual[place - 1] and not visual[place]
            if self.head.compress is not None and ended:
                first = place - 1
                while first > 0 and visual[first - 1]:
                    first -= 1
                read, self.vector = self.head.compress(fused[first:place])
                for each in read:
                    self._slot(each, each, place - 1)
            if visual[place] and self.head.config.vision != "hidden":
                continue
            feature = fused[place - 1] + self.vector
            state = self._slot(self.head.embed_tokens(tokens[place]), feature, place - 1)
        return state

    def chain(self, root: int, steps: int) -> list[Tensor]:
        """Logits behind ``root`` and the tokens that follow it, as the answer has them."""
        assert self.head.embed_tokens is not None
        states = [self.root(root)]
        for place in range(root + 1, root + steps):
            token = self.head.embed_tokens(self.example.tokens[place])
            states.append(self._slot(token, states[-1] + self.vector, place - 1))
        return [self.head.logits(state) for state in states]


def _student(head: EagleHead, **options: float) -> EagleStudent:
    torch.manual_seed(9)
    return EagleStudent(head, torch.randn(answers.VOCAB, answers.HIDDEN).double(), **options)


def _drafts(examples: Sequence[Example], vision: Vision) -> dict[tuple[int, int, int], bool]:
    """Whether (example, place, step) is drafted: the row's token and all behind it are text, and
    it is not the first token.
    """
    found = {}
    for number, example in enumerate(examples):
        for place in range(example.prompt_length - 1, len(example.tokens) - 1):
            for step in range(STEPS):
                root = place - step
                text = root >= 1 and not example.visual[root + 1 : place + 1].any()
                slot = text and (vision == "hidden" or not example.visual[root])
                found[number, place, step] = bool(slot)
    return found


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("examples", [CASES, MROPE], ids=["1 row", "3 rows"])
def test_training_equals_serving(vision: Vision, examples: list[Example]) -> None:
    """Every logit that is trained must be the one that an engine gets when it drafts a chain with
    the answer's tokens: a key that is seen too early, a position or a feature off by one, an image
    vector forgotten at later steps, or padding that leaks would all train for another drafter.
    1e-9: float64 sums in another order.
    """
    head = answers.head(vision, rows=len(examples[0].features.positions))  # type: ignore[union-attr]  # they have features
    with torch.no_grad():
        batch = EagleCollator(head.config, STEPS)(examples)
        rows, weights, last = (batch.pop(name) for name in ("rows", "weights", "last"))
        del batch["total"], batch["tokens"]
        states = _student(head).states(**batch)
    drafted, index = _drafts(examples, vision), 0
    for number, example in enumerate(examples):
        assert example.features is not None
        for place in range(example.prompt_length - 1, len(example.tokens) - 1):
            torch.testing.assert_close(last[index], example.features.last[place])
            for step in range(STEPS):
                expected = drafted[number, place, step]
                assert bool(weights[index, step]) == expected, (number, place, step)
                if not expected:
                    continue
                with torch.no_grad():
                    served = _Served(head, example).chain(place - step, step + 1)[step]
                    trained = head.logits(states[step].flatten(0, 1)[rows[index, step]])
                torch.testing.assert_close(trained, served, rtol=1e-9, atol=1e-9)
            index += 1
    assert index == len(rows)


@pytest.mark.parametrize("vision", VISIONS)
def test_every_part_of_the_head_learns(vision: Vision) -> None:
    """A part cut off from the loss, or a gradient into the verifier."""
    student = _student(answers.head(vision))
    batch = EagleCollator(student.head.config, STEPS)(CASES)
    del batch["total"], batch["tokens"]
    student(**batch).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert {name.split(".")[0] for name, _ in student.named_parameters()} == {"head"}
    assert not any("teacher" in name or name == "embeddings" for name in student.state_dict())


def test_loss_weighs_places_and_steps() -> None:
    """Σ decay^step · reliance · loss over what is drafted, and a total to match; a reduced
    vocabulary is the verifier's own numbers.
    """
    head = answers.head(draft_vocab_size=10)
    spoken = torch.arange(0, 40, 4)
    head.speak(spoken)
    student = _student(head)

    def weigh(example: Example) -> Tensor:
        return 1.0 + torch.arange(len(example.top_ids)) % 3

    batch = EagleCollator(head.config, STEPS, decay=0.5, weigh=weigh)(CASES)
    total = batch.pop("total")
    assert int(batch.pop("tokens")) == sum(len(example.top_ids) for example in CASES)
    with torch.no_grad():
        loss = student(**batch)
        slots = {n: x for n, x in batch.items() if n not in ("rows", "weights", "last")}
        states = student.states(**slots)
        wanted, expected, index = 0.0, 0.0, 0
        for example in CASES:
            for answer in range(len(example.top_ids)):
                for step in range(STEPS):
                    if not batch["weights"][index, step]:
                        continue
                    weight = 0.5**step * (1 + answer % 3)
                    said = head.logits(states[step].flatten(0, 1)[batch["rows"][index, step]])
                    p = batch["last"][index] @ student.teacher_head.T
                    row = divergence(said[None], target_of(p[None], spoken), student.mixture)
                    wanted, expected = wanted + weight * float(row), expected + weight
                index += 1
    assert float(loss) == pytest.approx(wanted, rel=1e-6)
    assert float(total) == pytest.approx(expected)


@pytest.mark.parametrize("vision", VISIONS)
def test_one_step_is_the_first_of_many(vision: Vision) -> None:
    """Without later steps there are no rows to go on; fewer rows are run, with the same result."""
    student = _student(answers.head(vision))
    one, many = (EagleCollator(student.head.config, steps, decay=1e-12)(CASES) for steps in (1, 3))
    for batch in (one, many):
        del batch["total"], batch["tokens"]
    with torch.no_grad():
        torch.testing.assert_close(student(**one), student(**many), rtol=1e-9, atol=1e-9)


def test_noise_is_for_learning_only_and_follows_the_generator() -> None:
    """Noise at evaluation, or from a generator that a checkpoint does not keep."""
    student = _student(answers.head(), noise=0.3)
    quiet = _student(answers.head())
    batch = EagleCollator(student.head.config, STEPS)(CASES[:2])
    del batch["total"], batch["tokens"]
    with torch.no_grad():
        assert student.eval()(**batch) == quiet(**batch)
        student.train()
        torch.manual_seed(3)
        first = student(**batch)
        torch.manual_seed(3)
        assert student(**batch) == first
        assert student(**batch) != first
        torch.manual_seed(3)
        heard = student._noisy(torch.zeros(200, 50))
    assert 0.29 < heard.max() <= 0.3
    assert -0.3 <= heard.min() < -0.29


def test_embeddings_are_the_heads_or_the_verifiers() -> None:
    own = answers.head()
    borrowed = answers.head(own_embeddings=False)
    assert own.embed_tokens is not None
    matrix = own.embed_tokens.weight.detach()
    borrowed.load_state_dict(
        {n: w for n, w in own.state_dict().items() if not n.startswith("embed")}
    )
    teacher = torch.randn(answers.VOCAB, answers.HIDDEN).double()
    batch = EagleCollator(own.config, STEPS)(CASES)
    del batch["total"], batch["tokens"]
    assert EagleStudent(own, teacher)(**batch) == EagleStudent(borrowed, teacher, matrix)(**batch)
    for head, embeddings in ((own, matrix), (borrowed, None)):
        with pytest.raises(ValueError, match="own embeddings or the verifier's"):
            EagleStudent(copy.deepcopy(head), teacher, embeddings)


@pytest.mark.parametrize("vision", ["hidden", "shared"])
def test_missing_features_are_named(vision: Vision) -> None:
    collate = EagleCollator(answers.head(vision).config, STEPS)
    example = CASES[1]
    assert example.features is not None
    if vision == "shared":
        example = example._replace(features=example.features._replace(visual_keys=None))
    else:
        example = example._replace(features=None)
    with pytest.raises(ValueError, match="collect answers with"):
        collate([example])
