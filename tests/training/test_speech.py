"""The decoder's losses: twins have swappable images, and only words that state no fact are held."""

import pytest
import torch
from transformers import LlavaProcessor

from specdec.training import chat, lvlm, packing, scenes, speech

pytest.importorskip("sklearn", reason="the train extra")
pytest.importorskip("matplotlib", reason="the train extra")


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return chat.build_processor(scenes_per_kind=15)


def test_twins_show_one_kind(processor: LlavaProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches images that are swapped for such as no question of the pack could be asked about;
    packs that are not twins must differ somewhere, or the test says nothing."""
    shown: list[str] = []
    make = scenes.make_scene

    def noted(seed: int, split: scenes.Split, kind: str | None = None) -> scenes.Scene:
        if kind is not None:  # else it is a wrong image
            shown.append(kind)
        return make(seed, split, kind)

    monkeypatch.setattr(scenes, "make_scene", noted)
    tasks = ("grid_cell", "shapes_at", "receipt_price", "pair_first")
    encoder, alike = packing.Encoder(processor.tokenizer), []
    for twins in (True, False):
        mix = packing.Mix(rows=4, brief=1, full=2, twins=twins)
        packs, same = packing.Packs(encoder, 0, mix, tasks), []
        for seed in range(0, 48, 4):
            shown.clear()
            packs.batch(seed)
            half = len(shown) // 2
            same.append(shown[:half] == shown[half:])
        alike.append(all(same))
    assert alike == [True, False]


def test_what_does_not_depend_on_the_image_does_not_move(processor: LlavaProcessor) -> None:
    """Identical twins move nothing; a blank image does, and only words that state no fact count."""
    torch.manual_seed(0)
    model = lvlm.build().eval()
    mix = packing.Mix(rows=2, brief=1, full=1, twins=True)
    batch = packing.Packs(packing.Encoder(processor.tokenizer), 0, mix, ("shapes_at",)).batch(0)
    batch = batch._replace(images=batch.images[:1].expand_as(batch.images).contiguous())
    with torch.no_grad():
        seen = lvlm.visual(model, lvlm.pixels(batch.images.numpy()))
        logits = speech._told(model, batch, seen)

        def moved(logits: torch.Tensor, other: str) -> float:
            return float(speech.moved(model, batch, seen, logits, other))

        assert moved(logits, "swapped") < 1e-6  # fp32 rounding
        assert moved(logits, "blank") > 1e-4
        weights = batch.weights[:, 1:]
        facts = weights[weights > 0] == packing.FACT_WEIGHT
        assert facts.any()
        other = logits.clone()
        other[facts] = other[facts].roll(1, -1)
        assert moved(other, "swapped") < 1e-6
        other = logits.clone()
        other[~facts] = other[~facts].roll(1, -1)
        assert moved(other, "swapped") > 1e-4
