"""Everything that only a GPU can say, in one file: `python -m specdec.eval.gpu_suite`.

First whether the engine over the Triton kernels gives the answers of transformers' `generate` in
fp32; if not, nothing is timed. Then the kernels against others, and whole forwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from specdec.drafters import load_drafter
from specdec.eval import suite
from specdec.eval.kernels import device_attention, forwards
from specdec.eval.record import machine, write
from specdec.generation import generate


def same_answers(device: torch.device, questions: int) -> dict[str, Any]:
    """How many tokens of greedy fp32 answers were compared with ``generate``'s.

    Raises:
        ValueError: an answer differs.
    """
    # In full precision on both sides: products in tf32 would differ by shape.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    loaded, processor = suite.load_verifier(suite.MODEL, "float32")
    model: Any = loaded  # generate and to are not declared as they are
    model.to(device)
    drafter = load_drafter(suite.DRAFTER, model)
    tokens = 0
    for question in suite.load_questions(suite.QUESTIONS, questions):
        inputs = suite.model_inputs(model, processor, [question])
        limits: dict[str, Any] = {"do_sample": False, "max_new_tokens": 160}
        plain = model.generate(**inputs, **limits)
        ours = generate(model, drafter=drafter, **inputs, **limits)
        if not torch.equal(plain, ours):
            raise ValueError(f"an answer about {question.task} is not that of generate")
        tokens += ours.shape[1] - inputs["input_ids"].shape[1]
    return {"questions": questions, "tokens": tokens, "mismatches": 0}


def gpu_suite(
    questions: Annotated[int, typer.Option(min=1, help="Answers to compare.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Forwards of each kind.")] = 200,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("gpu.json"),
) -> None:
    """Check and measure on this machine's CUDA device."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device here")
    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    gpu = {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    result: dict[str, Any] = {"machine": machine() | {"gpu": gpu}}
    try:
        result["answers"] = same_answers(device, questions)
        Console().print(f"{result['answers']['tokens']} tokens are those of generate")
        result["attention"] = device_attention(device)
        dtypes = ["float32", "bfloat16"]
        result["forwards"] = forwards(suite.MODEL, device, dtypes, [160, 800], [1, 5, 16], rounds)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    write(out, result)


if __name__ == "__main__":
    typer.run(gpu_suite)
