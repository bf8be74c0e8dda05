"""What accepting costs, as a share of a verify step: `python -m specdec.eval.acceptance_cost`.

A text model with random weights and a real model's geometry and vocabulary verifies trees of 64
nodes, whose tokens and distributions come from a drafter that costs nothing. The times are those
that every answer's statistics report: ``accept`` (estimating reliance, logits processors, the rule)
and ``verify`` (the forward over the tree, masks included). The smaller the model, the larger the
share. The gate comes first: lossless greedy answers must be those of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from specdec import baselines
from specdec.eval.record import machine, write
from specdec.generation import generate
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.policies import Acceptance, Relaxed
from specdec.reliance import Divergence, Probe
from specdec.sampling import sample_children
from specdec.tree import DraftTree, Topology, static

SHAPE = static((3, 4, 4))  # 64 nodes, the root included


class FreeDrafter:
    """Proposes the same tree again and again, drawn once from random distributions."""

    name = "free"
    model_seconds = 0.0

    def __init__(self, vocab_size: int, shape: Topology = SHAPE, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        logits = 3 * torch.randn(len(shape), vocab_size, generator=generator)
        self.q = logits.softmax(-1)
        self.tokens = [0] * len(shape)
        for node, children in enumerate(shape.children):
            drawn = sample_children(
                self.q[node], len(children), "without_replacement", generator
            ).tolist()
            for child, token in zip(children, drawn, strict=True):
                self.tokens[child] = token

    def check(self, verifier: VerifierSpec) -> None:
        """Fits any."""

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """Greedy requests get it as a point-mass proposal."""
        return [
            DraftTree(
                self.shape,
                (request.tokens[-1], *self.tokens[1:]),
                self.q,
                "without_replacement" if request.temperature > 0 else "deterministic",
            ).truncate(request.shape.depth)
            for request in batch
        ]

    def release(self, request_id: int) -> None:
        """Keeps nothing."""


def build(hidden: int, layers: int, vocab_size: int) -> PreTrainedModel:
    """A model of that size with random weights, in bfloat16."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=11 * hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64),
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    model: Any  # transformers wraps `to` without its signature
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    # What is no parameter was on meta, too.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.generation_config.eos_token_id = None
    made: PreTrainedModel = model.eval()
    return made


def policies(hidden: int) -> dict[str, tuple[Acceptance, bool]]:
    """Name to a policy, and whether it samples. ε = 1 accepts all the way down."""
    probe = Probe(torch.randn(hidden), torch.tensor(0.0))
    named: dict[str, Acceptance] = {
        "lossless": "lossless",
        "uniform 1.0": baselines.uniform(1.0),
        "relaxed 0.3, probe": Relaxed(0.3, probe, guards=()),
        "relaxed 0.3, divergence": Relaxed(0.3, Divergence(), guards=()),
        "typical": baselines.Typical(),
        "top_k": baselines.TopK(),
    }
    return {
        f"{name}, {'sampled' if sample else 'greedy'}": (policy, sample)
        for name, policy in named.items()
        for sample in (False, True)
    }


def measure(model: PreTrainedModel, steps: int) -> dict[str, dict[str, float]]:
    """Per policy: milliseconds a step for accepting and verifying, their ratio and τ.

    Raises:
        ValueError: a greedy answer is not that of plain decoding.
    """
    vocabulary = model.config.vocab_size
    prompt = torch.randint(vocabulary, (1, 64), generator=torch.Generator().manual_seed(1))
    drafter = FreeDrafter(vocabulary)
    result = {}

    def answer(policy: Acceptance, sample: bool, drafts: FreeDrafter | None) -> Any:
        how: dict[str, Any] = {"do_sample": sample, "max_new_tokens": steps + 1}
        if sample:
            how |= {"temperature": 0.7, "top_k": 0, "generator": torch.Generator().manual_seed(0)}
        return generate(
            model, input_ids=prompt, drafter=drafts, tree=SHAPE, acceptance=policy, **how
        )

    plain: Tensor = answer("lossless", False, None)
    for name, (policy, sample) in policies(model.config.hidden_size).items():
        out = answer(policy, sample, drafter)
        if name == "lossless, greedy" and not _ties(model, plain, out):
            raise ValueError("the lossless greedy answer is not that of plain decoding")
        times, count = out.stats.times, out.stats.num_spec_steps
        result[name] = {
            "accept_ms": 1000 * times.accept / count,
            "verify_ms": 1000 * times.verify / count,
            "share": times.accept / times.verify,
            "mean_acceptance_length": out.stats.mean_acceptance_length,
        }
    return result


@torch.no_grad()
def _ties(model: PreTrainedModel, plain: Tensor, other: Tensor) -> bool:
    """Whether two answers part, if they do, where two logits are equal but for rounding."""
    apart = (plain != other).nonzero()
    if not len(apart):
        return True
    place = int(apart[0, 1])
    logits = model(input_ids=plain[:, :place]).logits[0, -1].float()
    pair = logits[torch.stack([plain[0, place], other[0, place]])]
    return float(logits.max() - pair.min()) < 0.02 * float(logits.abs().max())


def acceptance_cost(
    hidden: Annotated[int, typer.Option(min=128, help="Width of the model.")] = 896,
    layers: Annotated[int, typer.Option(min=1, help="Its layers.")] = 24,
    vocab_size: Annotated[int, typer.Option(min=1024, help="Its vocabulary.")] = 151_936,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to decode with each policy.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure what accepting costs beside verifying."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        rows = measure(build(hidden, layers, vocab_size), steps)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    title = f"64 nodes, vocabulary {vocab_size}, hidden size {hidden}, {layers} layers, bf16"
    table = Table(title=title)
    for column in ("policy", "accept, ms", "verify, ms", "share", "τ"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['accept_ms']:.1f}",
            f"{row['verify_ms']:.0f}",
            f"{row['share']:.2%}",
            f"{row['mean_acceptance_length']:.2f}",
        )
    Console().print(table)
    if out is not None:
        model = {"hidden_size": hidden, "layers": layers, "vocab_size": vocab_size}
        record = {"machine": machine(), "model": model, "nodes": len(SHAPE), "policies": rows}
        write(out, record)


if __name__ == "__main__":
    typer.run(acceptance_cost)
