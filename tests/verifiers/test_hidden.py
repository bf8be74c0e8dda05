"""The last hidden state behind every node, against what transformers says it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specdec.tree import DraftTree, chain, static
from specdec.verifiers import TransformersVerifier
from support import families


def last_hidden(model: Any, given: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """``(len(tokens), H)``: transformers' own, of ``tokens`` fed one by one behind the prompt."""
    # What comes last is not fed any more, so it may be anything.
    said = iter([*tokens, 0])

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(said)] = 0
        return forced

    out = model.generate(
        **given,
        max_new_tokens=len(tokens) + 1,
        eos_token_id=None,
        do_sample=False,
        logits_processor=[force],
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    return torch.cat([step[-1][0, -1:] for step in out.hidden_states[1:]])


@pytest.mark.parametrize("name", families.NAMES)
def test_hidden_is_what_transformers_gives_last(name: str, record_property: Any) -> None:
    """The state of another layer, without the last norm, or of another node.

    Two requests in one forward, then another one behind a partly refused tree, which makes a model
    that keeps states run tokens again in front of the new ones. 1e-5 on states of size one: fp32
    sums in another order.
    """
    model, inputs, layouts, _ = families.build(name)
    prompts = [inputs(seed, 9 - seed, layouts[0]) for seed in (0, 1)]
    verifier = TransformersVerifier(model, page_size=4, hidden=True)
    assert verifier.gives == {"hidden"}
    branching = chain(3) if name in families.CHAINS_ONLY else static((2, 1))
    torch.manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        handles = [
            verifier.prefill(families.prepare(model, given, 8), room=40).handles[0]
            for given in prompts
        ]
        texts: list[list[int]] = [[], []]
        for shapes in ([branching, chain(2)], [chain(1), branching]):
            trees = [
                DraftTree(shape, tuple(torch.randint(4, 140, (len(shape),)).tolist()))
                for shape in shapes
            ]
            verified = verifier.verify(handles, trees)
            assert verified.hidden is not None
            assert verified.hidden.shape == (len(verified.logits), verifier.spec.hidden_size)
            row = 0
            for given, tree, text, handle in zip(prompts, trees, texts, handles, strict=True):
                for node in range(len(tree)):
                    path = [tree.tokens[step] for step in tree.topology.path(node)]
                    expected = last_hidden(model, given, text + path)[-1]
                    size = max(1.0, float(expected.abs().max()))
                    worst = max(worst, float((verified.hidden[row] - expected).abs().max()) / size)
                    row += 1
                text += tree.tokens[:2]  # the root and its first child
                verifier.commit(handle, [0, 1])
    record_property("max_error", worst)
    assert worst <= 1e-5


def test_the_model_is_left_as_it_was() -> None:
    """A hook that stays slows the owner's forwards down, and keeps their tensors alive."""
    model, inputs, *_ = families.build("llava")
    verifier = TransformersVerifier(model, hidden=True)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    broken = head.register_forward_hook(_fail)
    prompt = families.prepare(model, inputs(0, 9), 8)
    with torch.no_grad(), pytest.raises(RuntimeError, match="planted"):
        verifier.prefill(prompt, room=40)
    broken.remove()
    with torch.no_grad():
        handles = verifier.prefill(prompt, room=40).handles
        verifier.verify(handles, [DraftTree(chain(0), (5,))])
    assert not head._forward_pre_hooks


def test_none_unless_asked_for() -> None:
    model, inputs, *_ = families.build("llava")
    verifier = TransformersVerifier(model)
    assert verifier.gives == frozenset()
    with torch.no_grad():
        handles = verifier.prefill(families.prepare(model, inputs(0, 9), 8), room=40).handles
        assert verifier.verify(handles, [DraftTree(chain(0), (5,))]).hidden is None


def test_models_without_it_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that is not what the logits were made of would train a probe on something else."""
    model, inputs, *_ = families.build("llava")
    verifier = TransformersVerifier(model, hidden=True)
    with torch.no_grad():
        handles = verifier.prefill(families.prepare(model, inputs(0, 9), 8), room=40).handles
        monkeypatch.setattr(verifier._paged._head, "_head", nn.Identity())  # never called
        with pytest.raises(ValueError, match="output embeddings read nothing"):
            verifier.verify(handles, [DraftTree(chain(0), (5,))])
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(ValueError, match="names no output embeddings"):
        TransformersVerifier(model, hidden=True)


def _fail(*args: Any) -> None:
    raise RuntimeError("planted")
