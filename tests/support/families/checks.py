"""What is counted for every family: answers and node logits against transformers' own decoding."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.engine import Decoding, Engine
from specdec.interfaces import Drafter
from specdec.tree import DraftTree, Topology, chain, random_topology, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.fake_drafters import GuessingDrafter
from support.families import Inputs

TREES = {"chain": chain(4), "static": static((2, 2, 1)), "random": random_topology(10, 4)}
build = cache(families.build)


def shapes(name: str) -> dict[str, Topology]:
    """The trees that the family verifies."""
    if name not in families.CHAINS_ONLY:
        return TREES
    return {"chain": TREES["chain"], "short": chain(1), "long": chain(9)}


@cache
def answers(
    name: str, prompts: int, new_tokens: int, ends: bool = True
) -> list[tuple[Inputs, Tensor]]:
    """Inputs of many prompts, with images in all places that the family knows and without any,
    and what ``model.generate`` answers; with ``ends`` up to the token that ends an answer.
    """
    model, inputs, layouts, _ = build(name)
    pairs = []
    for seed in range(prompts):
        given = inputs(seed, 4 + seed % 7, layouts[seed % len(layouts)])
        how = {} if ends else {"eos_token_id": None}
        plain = model.generate(**given, **how, max_new_tokens=new_tokens, do_sample=False)
        pairs.append((given, plain))
    return pairs


def partly_right(pairs: list[tuple[Inputs, Tensor]]) -> GuessingDrafter:
    """Knows three quarters of these answers."""
    truth = {}
    for given, plain in pairs:
        prompt = given["input_ids"][0].tolist()
        truth[tuple(prompt)] = plain[0, len(prompt) :].tolist()
    return GuessingDrafter(truth, right=0.75, seed=2)


def run(
    model: PreTrainedModel,
    verifier: TransformersVerifier,
    pairs: list[tuple[Inputs, Tensor]],
    drafter: Drafter | None,
    shape: Topology,
    new_tokens: int,
    ends: bool = True,
) -> tuple[list[list[int]], Engine]:
    """The answers to all prompts in one ragged batch, and the engine that gave them."""
    engine = Engine(verifier, drafter, shape)
    requests = []
    for given, _ in pairs:
        prompt = families.prepare(model, given, new_tokens)
        limit = prompt.input_ids.shape[1] + new_tokens
        eos = frozenset([families.EOS] if ends else ())
        decoding = Decoding(max_length=limit, eos_token_ids=eos)
        requests += engine.submit(prompt, decoding)
    while engine.has_work:
        engine.step()
    return [request.output for request in requests], engine


class Count(NamedTuple):
    """``tokens`` compared; ``mismatches``: prompts whose answers differ."""

    tokens: int
    mismatches: int


def greedy(name: str, prompts: int, new_tokens: int) -> dict[str, Count]:
    """By tree and drafter, in fp32, whatever would end an answer."""
    model, pairs = build(name).model, answers(name, prompts, new_tokens, ends=False)
    expected = [plain[0, given["input_ids"].shape[1] :].tolist() for given, plain in pairs]
    counts = {}
    for tree, shape in shapes(name).items():
        for kind in ("random", "partly right"):
            drafter = partly_right(pairs) if kind == "partly right" else GuessingDrafter(seed=1)
            verifier = TransformersVerifier(model)
            said, _ = run(model, verifier, pairs, drafter, shape, new_tokens, ends=False)
            wrong = sum(one != other for one, other in zip(said, expected, strict=True))
            counts[f"{tree}, {kind}"] = Count(sum(map(len, expected)), wrong)
    return counts


def path_logits(model: PreTrainedModel, given: Inputs, tokens: list[int]) -> Tensor:
    """Logits behind ``tokens``, fed to transformers' own decoding one by one."""

    length = given["input_ids"].shape[1]

    def force(row: int, ids: Tensor) -> list[int]:
        written = len(ids) - length
        return [tokens[written]] if written < len(tokens) else [2]

    out = model.generate(
        **given,
        max_new_tokens=len(tokens) + 1,
        do_sample=False,
        prefix_allowed_tokens_fn=force,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.logits[-1][0]


@torch.no_grad()
def node_error(name: str, seed: int, layout: str) -> float:
    """The largest difference of a node's logits, relative to the largest logit, over a tree of
    eight.
    """
    model, inputs, *_ = build(name)
    given = inputs(seed, 9, layout)
    verifier = TransformersVerifier(model)
    handles = verifier.prefill(families.prepare(model, given, 24), room=40).handles
    topology = chain(7) if name in families.CHAINS_ONLY else random_topology(8, seed)
    tokens = torch.randint(2, 140, (8,), generator=torch.Generator().manual_seed(seed)).tolist()
    logits = verifier.verify(handles, [DraftTree(topology, tuple(tokens))]).logits
    worst = 0.0
    for node in range(8):
        path = [tokens[ancestor] for ancestor in topology.path(node)]
        expected = path_logits(model, given, path)
        worst = max(worst, float((logits[node] - expected).abs().max() / expected.abs().max()))
    verifier.release(handles[0])
    verifier.check_integrity()
    assert verifier.pages_taken == 0
    return worst


class Rounded(NamedTuple):
    """Of answers in bf16: ``tokens`` up to the first that differs in each, ``parted``: how many
    answers have such a token, ``gap``: the largest difference between the two largest logits there,
    relative to the largest logit.
    """

    tokens: int
    parted: int
    gap: float


def rounded(name: str, prompts: int, new_tokens: int) -> Rounded:
    """Plain decoding against a chain in bf16, where a forward over several tokens rounds otherwise
    than one over a single token.
    """
    model, inputs, layouts, _ = families.build(name)
    for parameter in model.parameters():  # buffers stay as they are, as when loading in bf16
        parameter.data = parameter.data.bfloat16()
    tokens, parted, widest = 0, 0, 0.0
    for seed in range(prompts):
        given = inputs(seed, 4 + seed % 7, layouts[seed % len(layouts)])
        given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}
        out = model.generate(
            **given,
            max_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        pairs = [(given, out.sequences)]
        verifier = TransformersVerifier(model)
        (said,), _ = run(model, verifier, pairs, partly_right(pairs), TREES["chain"], new_tokens)
        plain = out.sequences[0, given["input_ids"].shape[1] :].tolist()
        same = next(
            (i for i, both in enumerate(zip(plain, said, strict=False)) if both[0] != both[1]),
            len(plain),
        )
        tokens += same
        if same < len(plain):
            parted += 1
            first, second = out.logits[same][0].float().topk(2).values.tolist()
            widest = max(widest, (first - second) / float(out.logits[same].abs().max()))
    return Rounded(tokens, parted, widest)
