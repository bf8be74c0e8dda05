"""What a drafter is worth on prompts that were kept apart, by running the engine with it: greedy,
one prompt at a time. Knows no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.drafters.calibration import Calibration
from specdec.generation import generate
from specdec.interfaces import Drafter, DraftRequest, Reads, VerifierSpec, reads_of
from specdec.stats import AcceptanceStats
from specdec.training import counterfactual, logistic
from specdec.training.answers import Teacher
from specdec.training.prompts import Asked
from specdec.tree import DraftTree, Dynamic, Shape
from specdec.verifiers import TransformersVerifier

CHAINS = (4, 8)  # draft lengths that are measured
TREE = Dynamic(16, 8, 4)  # what is watched: siblings, too, are accepted or not
LEAST = -20.0  # logarithm of a probability below which tokens are alike
PENALTY = 1e-4


def acceptance(
    teacher: Teacher, asked: Sequence[Asked], drafter: Drafter, chains: Sequence[int] = CHAINS
) -> list[dict[str, Any]]:  # JSON values
    """Acceptance with chains of these lengths: the counts over all prompts, and by task the mean
    acceptance length.
    """
    inputs = [teacher.inputs([each]) for each in asked]
    rows = []
    for depth in chains:
        stats: dict[str, AcceptanceStats] = {}
        for each, given in zip(asked, inputs, strict=True):
            out = _answer(teacher, given, drafter, depth)
            stats.setdefault(each.task, AcceptanceStats()).merge(out.stats)
        every = AcceptanceStats()
        for part in stats.values():
            every.merge(part)
        counts = every.to_dict()
        del counts["times"]  # of a run that was not set up to be timed
        by_task = {task: round(part.mean_acceptance_length, 3) for task, part in stats.items()}
        row = {"chain": depth, "questions": len(asked), **counts}
        rows.append(row | ({"mean_acceptance_length_by_task": by_task} if any(by_task) else {}))
    return rows


class Watched(NamedTuple):
    """Drafts of which it is known what became of them, over several answers.

    Attributes:
        log_q: ``(N,)``: logarithms of the drafter's probabilities, behind texts that it had right.
        accepted: bool ``(N,)``: whether the token is the answer's.
        first: bool ``(N,)``: whether it was the drafter's first choice.
        visual: bool ``(N,)``: whether the token of the answer there depends on the image: the
            verifier would say another one if the images were blank.
    """

    log_q: Tensor
    accepted: Tensor
    first: Tensor
    visual: Tensor


def watch(teacher: Teacher, asked: Sequence[Asked], drafter: Drafter) -> Watched:
    """Answer these prompts with trees of the drafter, and see which of its tokens come true."""
    watcher, answered = _Watcher(drafter), list[counterfactual.Answered]()
    for each in asked:
        given = teacher.inputs([each])
        ids = _answer(teacher, given, watcher, TREE)[0].cpu()
        prompt = given["input_ids"].shape[1]
        watcher.close(ids.tolist(), prompt)
        answered.append(counterfactual.Answered(each, ids[:prompt], ids[prompt:]))
    visual = _depends_on_images(teacher, answered)
    places = [(answer, place) for answer, place, *_ in watcher.seen]
    return Watched(
        torch.tensor([log_q for *_, log_q, _, _ in watcher.seen]),
        torch.tensor([accepted for *_, accepted, _ in watcher.seen], dtype=torch.bool),
        torch.tensor([first for *_, first in watcher.seen], dtype=torch.bool),
        torch.tensor([bool(visual[answer][place]) for answer, place in places], dtype=torch.bool),
    )


def calibrate(watched: Watched) -> Calibration:
    """The calibration that fits best; the identity if it cannot be told from this."""
    log_q = watched.log_q.clamp_min(LEAST)
    logit = log_q - torch.log1p(-log_q.exp().clamp_max(1 - 1e-6))
    try:
        line = logistic.fit(logit[:, None], watched.accepted, PENALTY)
    except ValueError:
        return Calibration()
    slope, shift = float(line.weight[0]), float(line.bias)
    return Calibration(slope, shift) if slope > 0 else Calibration()


def by_modality(watched: Watched) -> dict[str, dict[str, float]]:
    """How many first choices were right, of tokens that depend on an image and of the others."""
    found = {}
    for name, chosen in (("visual", watched.visual), ("language", ~watched.visual)):
        right = watched.accepted[watched.first & chosen]
        if len(right):
            found[name] = {
                "num_draft_tokens": len(right),
                "draft_acceptance_rate": round(float(right.float().mean()), 4),
            }
    return found


def _answer(
    teacher: Teacher, inputs: Mapping[str, Any], drafter: Drafter, tree: Shape | int
) -> Any:  # as of generate
    return generate(
        teacher.model,
        drafter=drafter,
        tree=tree,
        **inputs,
        do_sample=False,
        max_new_tokens=teacher.max_new_tokens,
    )


class _Watcher:
    """A drafter whose trees are noted until the text has grown beyond them."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter, self._open = drafter, list[tuple[int, DraftTree]]()
        self._answers = 0
        self.reads: Reads = reads_of(drafter)
        # Answer, place in it, log q, whether it came true, whether it was the first choice.
        self.seen: list[tuple[int, int, float, bool, bool]] = []

    @property
    def name(self) -> str:
        return self._drafter.name

    @property
    def model_seconds(self) -> float:
        return self._drafter.model_seconds

    def check(self, verifier: VerifierSpec) -> None:
        self._drafter.check(verifier)

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        trees = self._drafter.propose([replace(request, wants_q=True) for request in batch])
        for request, tree in zip(batch, trees, strict=True):
            self._open.append((len(request.tokens), tree))
        return trees

    def release(self, request_id: int) -> None:
        self._drafter.release(request_id)

    def close(self, text: Sequence[int], prompt_length: int) -> None:
        """Compare the trees of an answer with the text that it became."""
        for length, tree in self._open:
            said = text[length:]
            for depth, node in enumerate([0, *tree.follow(said)][: len(said)]):
                children = tree.topology.children[node]
                if tree.q is None or not children:
                    continue
                tokens = [tree.tokens[child] for child in children]
                log_q = tree.q[node, tokens].log().tolist()
                for rank, (token, each) in enumerate(zip(tokens, log_q, strict=True)):
                    place = length - prompt_length + depth
                    self.seen.append((self._answers, place, each, token == said[depth], rank == 0))
        self._open.clear()
        self._answers += 1


def _depends_on_images(
    teacher: Teacher, answered: Sequence[counterfactual.Answered]
) -> list[Tensor]:
    """Of each token of each answer: bool ``(A,)``."""
    verifier = TransformersVerifier(teacher.model)
    found: list[list[Tensor]] = [[] for _ in answered]
    questions = [each.question for each in answered]
    for shown in (questions, counterfactual.blanked(questions)):
        for i, behind in counterfactual.read(verifier, teacher.processor, answered, shown):
            found[i].append(behind.logits.argmax(-1).cpu())
    return [right != blank for right, blank in found]
