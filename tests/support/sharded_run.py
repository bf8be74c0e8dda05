"""What each process of a torchrun does for ``tests/verifiers/test_sharded.py``.

Every rank writes what it saw into a JSON file of its own, anew after each case: in the last one a
process is killed.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoModelForImageTextToText, PreTrainedModel

import specdec
from specdec.cache import OutOfPages
from specdec.drafters import TextOnlyDrafter
from specdec.engine import Decoding, Engine, Request
from specdec.interfaces import Prompt
from specdec.runtime import whole_embeddings
from specdec.serving import RequestFailed, ThreadedEngine, follow, spread
from specdec.tree import DraftTree, chain, static
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.messages import OutOfStep
from specdec.verifiers.sharded import Leader, lead
from support import families

FAMILY = "qwen2_5_vl"
NEW = 16
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
SAMPLED: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.5}
TREE = static((2, 1))
PAGES = 36  # fewer than the questions take


class Run:
    """One rank's part.

    Attributes:
        whole: the model in one piece.
        part: this rank's part of it.
    """

    def __init__(self, folder: Path) -> None:
        self.family = families.build(FAMILY)
        self.whole = self.family.model
        self.part: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, **spread()
        )
        self.part.generation_config = self.whole.generation_config
        self.rank = distributed.get_rank()
        self.asked = [self.family.inputs(seed, 5 + 3 * seed) for seed in range(4)]
        self.drafter = TextOnlyDrafter(families.causal_lm(4))
        self._found: dict[str, Any] = {}
        self._file = folder / f"rank{self.rank}.json"

    def note(self, case: str, **found: Any) -> None:
        self._found[case] = found
        self._file.write_text(json.dumps(self._found))

    def alike(self) -> None:
        """All ranks call ``generate``."""
        inputs = self.asked[0]
        start = inputs["input_ids"].shape[1]
        how: dict[str, Any] = {"drafter": "self_pruned", "tree": TREE}
        greedy = specdec.generate(self.part, **inputs, **GREEDY, **how)
        torch.manual_seed(self.rank)  # all have to draw alike all the same
        sampled = specdec.generate(self.part, **inputs, **SAMPLED, **how)
        refused = ""
        try:
            specdec.generate(self.part, **inputs, **GREEDY, drafter=self.drafter, tree="auto")
        except ValueError as error:
            refused = str(error)
        self.note(
            "alike",
            greedy=greedy[0, start:].tolist(),
            drafted=greedy.stats.num_accepted_draft_tokens,
            expected=self._answer(inputs),
            sampled=sampled[0, start:].tolist(),
            refused=refused,
        )

    @torch.no_grad()
    def heads(self) -> None:
        """What is said of attention heads, and embeddings for one rank alone."""
        said = []
        tree = DraftTree(chain(2), (5, 6, 7))
        for model in (self.part, self.whole):
            verifier = TransformersVerifier(model, visual_mass=True, gaze=True)
            begun = verifier.prefill(self._prompt(self.asked[0]), NEW)
            mass = verifier.verify(begun.handles, [tree]).visual_mass
            said.append([*mass, begun.gaze[0]])
        ids = torch.arange(8)
        self.note(
            "heads",
            differ=max(float((a - b).abs().max()) for a, b in zip(*said, strict=True)),
            embeddings=torch.equal(
                whole_embeddings(self.part)(ids), self.whole.get_input_embeddings()(ids)
            ),
        )

    def led(self, case: str, leads: Callable[[], dict[str, Any]], timeout: float = 120) -> None:
        """Rank 0 leads, the other follows; how each of them ended."""
        began = time.monotonic()
        found: dict[str, Any] = {}
        try:
            if self.rank:
                follow(self.part, timeout=timeout)
            else:
                found = leads()
        except OutOfStep as error:
            found["error"] = str(error)
        self.note(case, **found, seconds=time.monotonic() - began)

    def engine(self) -> dict[str, Any]:
        """Requests that come at different steps, to an engine whose pages do not suffice."""
        text = self.part.config.get_text_config()
        head = text.hidden_size // text.num_attention_heads
        # Keys and values, fp32, of this rank's heads.
        token = 2 * 4 * head * text.num_hidden_layers * text.num_key_value_heads // 2
        verifier = lead(self.part, page_size=4, kv_cache_bytes=PAGES * 4 * token)
        engine = Engine(verifier, self.drafter, TREE)
        requests: list[Request] = []
        for number, inputs in enumerate(self.asked):
            requests += engine.submit(*self._task(inputs))
            for _ in range(2 * number):
                engine.step()
        _finish(engine)
        # What no engine has the pages for is refused by all ranks alike, and they go on.
        refused = ""
        engine.submit(*self._task(self.family.inputs(9, 200)))
        try:
            _finish(engine)
        except OutOfPages as error:
            refused = type(error).__name__
        engine.close()
        taken = verifier.pages_taken
        again = Engine(verifier, self.drafter, TREE)
        (after,) = again.submit(*self._task(self.asked[1]))
        _finish(again)
        verifier.close()  # type: ignore[attr-defined]  # what leads can be closed
        return {
            "said": [request.output for request in requests],
            "expected": [self._answer(inputs) for inputs in self.asked],
            "preemptions": engine.stats.num_preemptions,
            "refused": refused,
            "taken": taken,
            "after": after.output,
        }

    def threaded(self) -> dict[str, Any]:
        """What a server has."""

        def said(model: PreTrainedModel, tree: Any, how: dict[str, Any]) -> list[list[int]]:
            with ThreadedEngine(model, self.drafter, tree=tree) as engine:
                streams = [
                    engine.submit(**inputs, **how, generator=torch.Generator().manual_seed(seed))
                    for seed, inputs in enumerate(self.asked)
                ]
                return [[emission.token for emission in stream] for stream in streams]

        whole = said(self.whole, TREE, SAMPLED)
        return {"sampled": said(self.part, TREE, SAMPLED), "expected": whole}

    def answer_one(self) -> dict[str, Any]:
        """One request, at whatever tree pays, whatever becomes of it."""
        with ThreadedEngine(self.part, self.drafter, tree="auto") as engine:
            stream = engine.submit(**self.asked[0], **GREEDY)
            try:
                return {"said": [emission.token for emission in stream]}
            except RequestFailed as error:
                gone = engine.stats.error
                return {"error": str(error.__cause__), "engine": type(gone).__name__}

    def silent(self) -> dict[str, Any]:
        """Rank 0 does not say anything any more."""
        Leader._beat = lambda *_: None  # type: ignore[method-assign]
        lead(self.part, timeout=3)
        return {}

    def _prompt(self, inputs: families.Inputs) -> Prompt:
        return families.prepare(self.whole, inputs, NEW)

    def _task(self, inputs: families.Inputs) -> tuple[Prompt, Decoding]:
        length = inputs["input_ids"].shape[1]
        return self._prompt(inputs), Decoding(max_length=length + NEW)

    def _answer(self, inputs: families.Inputs) -> list[int]:
        """Greedily, by transformers and the whole model."""
        start = inputs["input_ids"].shape[1]
        said: list[int] = self.whole.generate(**inputs, **GREEDY)[0, start:].tolist()
        return said


def _finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


@contextmanager
def third(method: str, does: Callable[[], None]) -> Iterator[None]:
    """In this process, something happens at the end of the third call of a verifier's method."""
    before, count = getattr(TransformersVerifier, method), itertools.count(1)

    def call(self: TransformersVerifier, *args: Any, **kwargs: Any) -> Any:
        result = before(self, *args, **kwargs)
        if next(count) == 3:
            does()
        return result

    setattr(TransformersVerifier, method, call)
    try:
        yield
    finally:
        setattr(TransformersVerifier, method, before)


def fail() -> None:
    raise RuntimeError("a fault of rank 1's own")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    run = Run(folder)
    run.alike()
    run.heads()
    run.led("engine", run.engine)
    run.led("threaded", run.threaded)
    run.led("auto", run.answer_one)
    with third("verify", fail if run.rank else lambda: None):
        run.led("mismatch", run.answer_one)
    run.led("silent", run.silent, timeout=3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends those whose peer was killed
    with third("verify", die if run.rank else lambda: None):
        run.led("killed", run.answer_one)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
