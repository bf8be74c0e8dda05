"""EAGLE heads for other engines: that these read them as they were meant, or are not given them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.drafters.eagle_export import VerifierFacts, read_verifier
from specdec.drafters.eagle_files import eagle_form, read_eagle
from specdec.drafters.eagle_raw import export_raw
from specdec.drafters.eagle_speculators import export_speculators
from support import eagle_heads, families, raw_eagle
from support.eagle_heads import KINDS, VERIFIER


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("form", ["raw", "speculators"])
def test_an_exported_head_comes_back(tmp_path: Path, form: str, changes: dict[str, Any]) -> None:
    """A table, a norm or a layer that is written as one thing and read as another."""
    head = eagle_heads.head(**changes)
    if form == "raw":
        export_raw(head, tmp_path, VERIFIER, engine="vllm")
    else:
        export_speculators(head, tmp_path, VERIFIER)
    read, facts = read_eagle(tmp_path)
    assert eagle_heads.same(head, read)
    assert facts == {"verifier": VERIFIER.name, "form": form}
    assert eagle_form(tmp_path) == form


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, None])
@pytest.mark.parametrize("embeddings", [False, True])
def test_raw_folders_are_what_engines_read(
    tmp_path: Path, dtype: torch.dtype | None, embeddings: bool
) -> None:
    """Names, shapes and types that an engine would drop, fill with noise, or misread in silence:
    tied embeddings, absolute ids in d2t, layers left out or counted from the wrong end of a layer.
    """
    head = eagle_heads.head(own_embeddings=embeddings)
    export_raw(head, tmp_path, VERIFIER, engine="vllm", dtype=dtype)
    settings, tensors = raw_eagle.read_strictly(tmp_path, embeddings=embeddings)
    assert settings["max_position_embeddings"] == VERIFIER.max_positions
    assert raw_eagle.hidden_states(settings, "sglang") == list(head.config.layers)
    spoken = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    assert spoken.equal(head.spoken)
    assert tensors["t2d"].nonzero()[:, 0].equal(head.spoken)
    assert tensors["fc.weight"].dtype == (dtype or torch.float32)


@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_engines_compute_what_the_head_does(tmp_path: Path, norm_before_residual: bool) -> None:
    """Weights under each other's names, hidden_norm and input_layernorm above all. Both sides are
    fp32 and differ in the order of sums only.
    """
    head = eagle_heads.head(norm_before_residual=norm_before_residual)
    export_raw(head, tmp_path, VERIFIER, engine="vllm")
    embeds, states = torch.randn(13, 24), torch.randn(13, 72)
    theirs = raw_eagle.forward(raw_eagle.read_strictly(tmp_path), embeds, states)
    positions = torch.arange(13)[None]
    with torch.no_grad():
        hidden = head(embeds[None], head.fuse(states)[None], positions, eagle_heads.causal)
        ours = torch.full((13, 97), -torch.inf)
        ours[:, head.spoken] = head.logits(hidden)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "verifier", "message"),
    [
        ({"vision": "compressed"}, VERIFIER, "'compressed' runs in specdec only"),
        ({"vision": "shared", "shared_layer": 2}, VERIFIER, "do not let a drafter read"),
        ({"layers": (2, 4)}, VERIFIER, "reads 2 layers of its verifier"),
        ({"hidden_size": 12}, VERIFIER, "12 wide and its verifier 24"),
        ({}, VERIFIER._replace(hidden_size=32), "of hidden size 24, org/verifier has 32"),
        ({}, VERIFIER._replace(vocab_size=99), "of vocabulary 97, org/verifier has 99"),
        ({}, VERIFIER._replace(layers=4), "hidden state 5, org/verifier has 4 layers"),
    ],
)
def test_what_no_engine_runs_is_not_exported(
    tmp_path: Path, changes: dict[str, Any], verifier: VerifierFacts, message: str
) -> None:
    head = eagle_heads.head(**changes)
    with pytest.raises(ValueError, match=message):
        export_raw(head, tmp_path / "raw", verifier, engine="vllm")
    with pytest.raises(ValueError, match=message):
        export_speculators(head, tmp_path / "speculators", verifier)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_before_residual": True}, "SGLang does not know"),
        ({"own_embeddings": True}, "SGLang puts the verifier's in their place"),
        ({"layers": (0, 3, 5)}, "SGLang does not give"),
    ],
)
def test_what_sglang_would_run_wrongly(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    head = eagle_heads.head(**changes)
    with pytest.raises(ValueError, match=message):
        export_raw(head, tmp_path, VERIFIER, engine="sglang")
    export_raw(head, tmp_path, VERIFIER, engine="vllm")


def test_facts_of_a_verifier(tmp_path: Path) -> None:
    """The text tower's, not those of the vision tower or of the whole."""
    model = families.build("llava").model
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.save_pretrained(tmp_path)
    text = families.TEXT
    assert read_verifier(str(tmp_path)) == VerifierFacts(
        str(tmp_path),
        ("LlavaForConditionalGeneration",),
        text["num_hidden_layers"],
        text["hidden_size"],
        text["vocab_size"],
        text["max_position_embeddings"],
    )
    with pytest.raises(ValueError, match=r"the config of verifier .* cannot be read"):
        read_verifier(str(tmp_path / "none"))
