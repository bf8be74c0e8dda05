"""What a verifier saw over its answers: against the verifier itself, alone, and on disk."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

import specdec
from specdec.cache.layout import visual_places
from specdec.training import feature_shards
from specdec.training.answers import Teacher
from specdec.training.examples import Example, Examples, OnlineExamples
from specdec.training.feature_shards import FeatureShards, check_room, estimate
from specdec.training.features import FeatureReader, Features, Reading, features_of
from specdec.training.prompts import Asked, Asking
from specdec.training.shards import AnswerShards
from specdec.verifiers import TransformersVerifier
from support import families, processors

FAMILIES = ("llava", "qwen2_5_vl")
READING = Reading((0, 2, 3), shared_layer=1, page_size=4)
VISUAL = frozenset([families.IMAGE])


class Read(NamedTuple):
    """Prompts of one row each, their greedy answers, and what was read of all of them at once."""

    family: families.Family
    prompts: list[families.Inputs]
    said: list[Tensor]
    features: list[Features]


@cache
def read(name: str) -> Read:
    """Prompts of unlike lengths with an image each, and answers of unlike lengths."""
    family = families.build(name)
    prompts = [family.inputs(seed, 4 + 3 * seed, layout) for seed, layout in LAYOUTS]
    said = []
    for given, length in zip(prompts, (5, 9, 7), strict=True):
        out = specdec.generate(
            family.model, **given, do_sample=False, max_new_tokens=length, eos_token_id=None
        )
        said.append(out[0, given["input_ids"].shape[1] :])
    together = family.together(prompts)
    return Read(family, prompts, said, features_of(family.model, together, said, READING))


# Text, image and answer are not all there is: states, windows, masks across, expanded keys.
@pytest.mark.parametrize("name", ["mllama", "qwen3_5", "gemma3", "kimi_k25", "gemma4_shared"])
def test_other_kinds_of_layers(name: str) -> None:
    """A cache that drops keys behind a window, or a mask that ends with the prompt."""
    family = families.build(name)
    given, head = family.inputs(2, 9, family.layouts[0]), family.model.get_output_embeddings()
    start = given["input_ids"].shape[1]
    said = specdec.generate(
        family.model, **given, do_sample=False, max_new_tokens=12, eos_token_id=None
    )[0, start:]
    shared = None if name in ("qwen3_5", "mllama") else 0
    [features] = features_of(family.model, given, [said], Reading((0,), shared))
    assert isinstance(head, torch.nn.Module)
    assert torch.equal(head(features.last[start - 1 : -1]).argmax(-1), said)


LAYOUTS = [(0, "inside"), (2, "end"), (4, "inside")]


def assert_close(one: Features, other: Features, length: int | None = None) -> None:
    """1e-4 on states of size one: fp32 sums in another order."""
    for name, a, b in zip(Features._fields, one, other, strict=True):
        if name == "positions":
            assert torch.equal(a[:, :length], b[:, :length])
        elif name == "read":
            assert torch.equal(a, b)
        elif name in ("taps", "last"):
            torch.testing.assert_close(a[:length], b[:length], atol=1e-4, rtol=1e-4)
        else:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_reads_what_each_alone_reads(name: str) -> None:
    """Padding on the left of prompts and on the right of answers that is seen by others, or that
    moves positions.
    """
    found = read(name)
    for given, said, features in zip(found.prompts, found.said, found.features, strict=True):
        [alone] = features_of(found.family.model, given, [said], READING)
        length = given["input_ids"].shape[1] + len(said)
        assert features.positions.shape[1] == len(features.taps) == len(features.last) == length
        assert features.taps.shape[1] == 3 * features.last.shape[1]
        assert_close(features, alone)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_do_not_see_what_comes(name: str) -> None:
    """States that know the next token make a drafter that is perfect until it serves."""
    found = read(name)
    for given, said, features in zip(found.prompts, found.said, found.features, strict=True):
        other = torch.cat([said[:3], (said[3:] + 7) % 100 + 4])
        [changed] = features_of(found.family.model, given, [other], READING)
        length = given["input_ids"].shape[1] + 3
        assert_close(features, changed, length)
        assert not torch.allclose(features.last[length], changed.last[length], atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_state_gives_the_answer(name: str) -> None:
    """The state of another place, or one without the last norm, gives other tokens; so does a tap
    of another layer than was named.
    """
    found = read(name)
    head: Any = found.family.model.get_output_embeddings()
    for given, said, features in zip(found.prompts, found.said, found.features, strict=True):
        start = given["input_ids"].shape[1]
        assert torch.equal(head(features.last[start - 1 : -1]).argmax(-1), said)
        model: Any = found.family.model
        tokens = torch.cat([given["input_ids"][0], said])
        width = features.last.shape[1]
        words = ~torch.isin(tokens, torch.tensor(sorted(VISUAL)))
        embedded = model.get_input_embeddings()(tokens[words])
        torch.testing.assert_close(features.taps[words, :width], embedded)
        torch.testing.assert_close(features.taps[:, 2 * width :], features.last)  # of three layers


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_and_keys_are_the_verifiers(name: str) -> None:
    """A drafter that reads the verifier's pages was trained on the same keys at the same places,
    or reads noise: after position embeddings, of the same layer, whole pages that end with the
    image. 1e-4: fp32, other shapes.
    """
    found = read(name)
    verifier = TransformersVerifier(found.family.model, page_size=READING.page_size)
    for given, said, features in zip(found.prompts, found.said, found.features, strict=True):
        prompt = families.prepare(found.family.model, given, 4)
        tokens = given["input_ids"][0].tolist()
        with torch.no_grad():
            [handle] = verifier.prefill(prompt, room=99).handles
        places = torch.arange(len(tokens), len(tokens) + len(said))
        assert torch.equal(features.positions[:, len(tokens) :], handle.offset[:, None] + places)
        inputs: Any = found.family.model
        kwargs = {**prompt.model_kwargs, "past_key_values": None}
        inputs = inputs.prepare_inputs_for_generation(
            prompt.input_ids, is_first_iteration=True, **kwargs
        )
        positions = inputs.get("position_ids")
        if positions is not None:
            assert torch.equal(
                features.positions[:, : len(tokens)], positions.reshape(-1, len(tokens))
            )
        kv, sequence = verifier._paged.kv, handle.sequence
        last = max(place for place, token in enumerate(tokens) if token in VISUAL)
        assert (sequence.lead + last + 1) % READING.page_size == 0
        pages = {(sequence.lead + place) // READING.page_size for place in range(len(tokens))
                 if tokens[place] in VISUAL}  # fmt: skip
        slots = kv.view_slots(kv.view(sequence, sorted(pages)))
        pooled = [pool[0][:, slots].transpose(0, 1) for pool in kv.layer(1)]
        assert features.visual_keys is not None
        assert len(features.read) == len(slots) > 0
        torch.testing.assert_close(features.visual_keys, pooled[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(features.visual_values, pooled[1], atol=1e-4, rtol=1e-4)


def test_m_rope_is_not_a_count() -> None:
    """Without this the test of positions could pass on ordinary ones."""
    features = read("qwen2_5_vl").features[0]
    assert len(features.positions) in (3, 4)
    count = torch.arange(features.positions.shape[1])
    assert not torch.equal(features.positions[-1], count)
    assert not torch.equal(features.positions[-1], features.positions[-2])


@pytest.mark.parametrize("page_size", [1, 3, 4, 16])
def test_visual_places_against_a_double_loop(page_size: int) -> None:
    """Pages laid from the beginning of the text, or cut behind it, are not those that the verifier
    has.
    """
    generator = torch.Generator().manual_seed(0)
    for length in (0, 1, 7, 30):
        for share in (0.0, 0.1, 0.5):
            drawn = torch.rand(length, generator=generator) < share
            tokens = [150 if visual else 5 for visual in drawn.tolist()]
            wanted = []
            if 150 in tokens:
                stop = max(place for place in range(length) if tokens[place] == 150) + 1
                for place in range(stop):
                    page = -(-(stop - place) // page_size)  # counted from the end of the image
                    mates = [
                        other
                        for other in range(stop)
                        if -(-(stop - other) // page_size) == page and tokens[other] == 150
                    ]
                    if mates:
                        wanted.append(place)
            assert visual_places(tokens, {150}, page_size) == wanted
    with pytest.raises(ValueError, match="page_size"):
        visual_places([150], {150}, 0)


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        (Reading((4,)), r"layers \[4\].*has 3 layers"),
        (Reading((-1,)), r"layers \[-1\]"),
        (Reading((0,), shared_layer=3), r"keys of layer 3.*layers \[0, 1, 2\]"),
    ],
)
def test_what_a_verifier_has_not_is_refused(reading: Reading, reason: str) -> None:
    model = read("llava").family.model
    with pytest.raises(ValueError, match=reason):
        reading.check(model)


def test_the_model_is_left_as_it_was() -> None:
    """A hook that stays would cut all later logits to the last token's."""
    found = read("llava")
    head: Any = found.family.model.get_output_embeddings()
    assert not head._forward_pre_hooks


@pytest.fixture(scope="module")
def answers(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> AnswerShards:
    """Three shards of answers about one image, none and two."""
    shards = AnswerShards(tmp_path_factory.mktemp("answers"))
    for index, images in enumerate((1, 0, 2)):
        asked = [
            Asked(processors.messages(i, images), [processors.image(i + j) for j in range(images)])
            for i in range(5)
        ]
        shards.write(index, teacher.answer(Asking(asked, float(index)), seed=1).answers, 1.0)
    return shards


@pytest.fixture
def reader(teacher: Teacher) -> FeatureReader:
    return FeatureReader(teacher.model, teacher.processor, READING, batch=3)


def test_kept_features_are_those_that_are_read_online(
    answers: AnswerShards, reader: FeatureReader, tmp_path: Path
) -> None:
    """Rows of a shard that are parted at another place, or another order than was asked for; a
    DataLoader must get the same examples from both. fp32: to the last bits of other batches.
    """
    kept = FeatureShards(answers, READING, dtype=torch.float32, folder=tmp_path)
    assert list(feature_shards.collect(reader, kept)) == [(1, 3), (2, 3), (3, 3)]
    cached, online = Examples(answers, VISUAL, kept), OnlineExamples(answers, reader)
    assert len(cached) == len(online) == len(answers) >= 12
    order = torch.randperm(len(answers)).tolist()
    for one, other in zip(cached.__getitems__(order), online.__getitems__(order), strict=True):
        assert_same(one, other)
    batches: Any = DataLoader(cached, batch_size=4, collate_fn=list)
    for number, one in enumerate(each for batch in batches for each in batch):
        assert_same(one, online[number])


def assert_same(one: Example, other: Example) -> None:
    assert one.features is not None
    assert other.features is not None
    assert_close(one.features, other.features)
    assert len(one.features.last) == len(one.tokens) == len(one.visual)
    for name in ("tokens", "visual", "top_ids", "top_p"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name in ("prompt_length", "temperature", "task"):
        assert getattr(one, name) == getattr(other, name)


def test_only_what_is_asked_for_is_read(
    answers: AnswerShards, reader: FeatureReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of a whole shard in memory for each batch: that is what the slices are for."""
    kept = FeatureShards(answers, READING, folder=tmp_path)
    list(feature_shards.collect(reader, kept))
    whole: list[str] = []

    class Watched:
        def __init__(self, *args: Any) -> None:
            self._file = safe_open(*args)

        def __enter__(self) -> Any:
            self._inner = self._file.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self._file.__exit__(*args)

        def get_tensor(self, name: str) -> Tensor:
            whole.append(name)
            return self._inner.get_tensor(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    monkeypatch.setattr(feature_shards, "safe_open", Watched)
    [features] = kept.read(0, [1])
    assert features.last.dtype == torch.bfloat16
    assert set(whole) == {"lengths", "reads"}


def test_features_resume_and_refuse(
    answers: AnswerShards, reader: FeatureReader, tmp_path: Path
) -> None:
    """A shard that was cut off must be read again, one that is there must not; those of another
    reading, or of other answers, would be states of other layers under the same name.
    """
    kept = FeatureShards(answers, READING, folder=tmp_path)
    steps = feature_shards.collect(reader, kept)
    next(steps)
    steps.close()
    (tmp_path / "features-00001.tmp").write_bytes(b"cut off")
    before = kept.path(0).stat().st_mtime_ns
    assert kept.missing == [1, 2]
    assert list(feature_shards.collect(reader, FeatureShards(answers, READING, folder=tmp_path)))
    assert kept.path(0).stat().st_mtime_ns == before
    assert not kept.missing
    other = FeatureShards(answers, Reading((0,), 1, 4), folder=tmp_path)
    with pytest.raises(ValueError, match=r"features-00000.*reading=.*\[0, 2, 3\].*\[0\]"):
        other.read(0, [0])
    exact = FeatureShards(answers, READING, dtype=torch.float32, folder=tmp_path)
    with pytest.raises(ValueError, match="dtype=bfloat16, now it is float32"):
        next(feature_shards.collect(reader, exact))
    fewer = AnswerShards(tmp_path / "fewer")
    fewer.write(0, [answers.answer(0, 1)], 1.0)
    with pytest.raises(ValueError, match="answers="):
        FeatureShards(fewer, READING, folder=tmp_path).read(0, [0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_estimate_is_what_is_written(
    answers: AnswerShards, reader: FeatureReader, tmp_path: Path, dtype: torch.dtype
) -> None:
    """A run that fills the disk after hours is what the estimate is for. A header and two small
    tables come on top, and nothing that is there already.
    """
    kept = FeatureShards(answers, READING, dtype=dtype, folder=tmp_path)
    wanted = estimate(reader, kept)
    steps = feature_shards.collect(reader, kept)
    next(steps)
    rest = estimate(reader, kept)
    list(steps)
    sizes = [kept.path(index).stat().st_size for index in answers.indices]
    assert 0 < sum(sizes) - wanted < 3 * 2000
    assert 0 < sum(sizes[1:]) - rest < 2 * 2000
    assert estimate(reader, kept) == 0


def test_too_small_a_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(feature_shards.shutil, "disk_usage", lambda _: usage(9, 8, 2**30))
    check_room(tmp_path / "not" / "there", 2**30)
    with pytest.raises(ValueError, match=r"take 2.0 GiB, and .* has 1.0 GiB free"):
        check_room(tmp_path / "not" / "there", 2**31)


def test_another_processor_is_refused(answers: AnswerShards, teacher: Teacher) -> None:
    """States over other tokens than those that were answered belong to nothing."""
    processor = processors.build()
    processor.chat_template = "w9 " + processors.TEMPLATE
    reader = FeatureReader(teacher.model, processor, READING)
    with pytest.raises(ValueError, match=r"LlavaProcessor makes .* tokens of a prompt"):
        OnlineExamples(answers, reader)[0]
