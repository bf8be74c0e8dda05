"""What a second question about the same image costs: `python -m specdec.eval.sharing`.

Pairs of held-out questions about the same images are asked one after the other of one verifier,
and the second one of a fresh verifier too. The gate comes first: in fp32 its answer must be that of
transformers' `generate` both times, or no time is printed. Then sixteen questions are asked about
one image at once, and the pages counted that hold it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from specdec.drafters import load_drafter
from specdec.eval import suite
from specdec.eval.record import machine, write
from specdec.eval.timing import Inputs
from specdec.generation import generate
from specdec.interfaces import Prompt
from specdec.verifiers import TransformersVerifier


def pairs(asked: list[suite.Asked], inputs: list[Inputs]) -> list[tuple[Inputs, Inputs]]:
    """The first two questions about each image that there are two about.

    Raises:
        ValueError: there is no such image.
    """
    about: dict[tuple[bytes, ...], list[Inputs]] = defaultdict(list)
    for question, given in zip(asked, inputs, strict=True):
        about[tuple(image.tobytes() for image in question.images)].append(given)
    found = [(group[0], group[1]) for group in about.values() if len(group) > 1]
    if not found:
        raise ValueError("no two questions are about the same image")
    return found


def compare(
    model: PreTrainedModel, drafter: Any, asked: list[tuple[Inputs, Inputs]], max_new_tokens: int
) -> dict[str, Any]:  # Any: JSON values
    """Prefill times and cached tokens of the second questions.

    Raises:
        ValueError: an answer is not that of ``generate``.
    """
    limits: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens}
    generator: Any = model  # generate comes from a mixin that PreTrainedModel does not declare

    def answer(verifier: TransformersVerifier, given: Inputs) -> Any:
        return generate(model, drafter=drafter, verifier=verifier, **given, **limits)

    alone, second = [], []
    for one, other in asked:
        expected: Tensor = generator.generate(**other, **limits)
        alone.append(answer(TransformersVerifier(model), other))
        shared = TransformersVerifier(model)
        answer(shared, one)
        second.append(answer(shared, other))
        for out in (alone[-1], second[-1]):
            if not torch.equal(out, expected):
                raise ValueError("an answer is not that of transformers' generate")
    return {
        "pairs": len(asked),
        "prompt_tokens": statistics.mean(out.stats.num_prompt_tokens for out in second),
        "cached_tokens": statistics.mean(out.stats.num_cached_tokens for out in second),
        "prefill_ms_alone": 1000 * statistics.median(out.stats.times.prefill for out in alone),
        "prefill_ms_second": 1000 * statistics.median(out.stats.times.prefill for out in second),
    }


def image_pages(model: PreTrainedModel, inputs: Sequence[Inputs]) -> int:
    """How many pages hold visual tokens while all of these prompts are in the cache."""
    verifier = TransformersVerifier(model)
    held: set[int] = set()
    with torch.no_grad():
        for given in inputs:
            ids = given["input_ids"]
            prompt = Prompt(ids, (0,), {k: v for k, v in given.items() if k != "input_ids"})
            (handle,) = verifier.prefill(prompt, ids.shape[1] + 64).handles
            held.update(verifier.visual_pages(handle))
    return len(held)


def about_one_image(
    model: PreTrainedModel, processor: Any, asked: Sequence[suite.Asked], count: int
) -> list[Inputs]:
    """The first image that has a question of its own, with as many different questions.

    Raises:
        ValueError: there are not as many.
    """
    texts = {repr(each.messages): each for each in asked if len(each.images) == 1}
    chosen = list(texts.values())[:count]
    if len(chosen) < count:
        raise ValueError(f"there are {len(chosen)} different questions, {count} are needed")
    same = [each._replace(images=chosen[0].images) for each in chosen]
    return [suite.model_inputs(model, processor, [each]) for each in same]


def sharing(
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    drafter: Annotated[Path, typer.Option(help="Folder of the drafter.")] = suite.DRAFTER,
    folder: Annotated[Path, typer.Option("--suite", help="Of questions.")] = suite.QUESTIONS,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 160,
    requests: Annotated[int, typer.Option(min=1, help="That share an image at once.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure what a second question about the same image costs."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        asked = suite.load_questions(folder)
        verifier, processor = suite.load_verifier(model, "float32")
        inputs = [suite.model_inputs(verifier, processor, [each]) for each in asked]
        drafts = load_drafter(drafter, verifier)
        result = compare(verifier, drafts, pairs(asked, inputs), max_new_tokens)
        prompts = about_one_image(verifier, processor, asked, requests)
        result["requests"] = requests
        result["image_pages_of_one"] = image_pages(verifier, prompts[:1])
        result["image_pages_of_all"] = image_pages(verifier, prompts)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    Console().print(
        f"{result['pairs']} second questions: {result['cached_tokens']:.0f} of "
        f"{result['prompt_tokens']:.0f} prompt tokens cached; prefill "
        f"{result['prefill_ms_second']:.1f} ms, alone {result['prefill_ms_alone']:.1f} ms"
    )
    Console().print(
        f"{requests} requests about one image hold {result['image_pages_of_all']} pages of it, "
        f"one holds {result['image_pages_of_one']}"
    )
    if out is not None:
        write(out, {"machine": machine(), **result})


if __name__ == "__main__":
    typer.run(sharing)
