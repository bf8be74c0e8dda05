"""Packing and the processor: training computes what `generate` will compute."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaProcessor

from specdec.training import assess, chat, dialogues, lvlm, packing, render, scenes

pytest.importorskip("sklearn", reason="the train extra")
pytest.importorskip("matplotlib", reason="the train extra")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> LlavaProcessor:
    """A processor fitted to a small corpus, saved and loaded as its users load it."""
    folder: Path = tmp_path_factory.mktemp("processor")
    chat.build_processor(scenes_per_kind=15).save_pretrained(folder)
    loaded = AutoProcessor.from_pretrained(folder)
    assert isinstance(loaded, LlavaProcessor)
    return loaded


@pytest.mark.parametrize("task", dialogues.TASK_NAMES)
def test_training_ids_are_the_processor_s(processor: LlavaProcessor, task: str) -> None:
    """Catches a template, a newline or an image token that differs between training and use."""
    sample = assess.samples(1, 4, "held_out", [task])[0]
    inputs = assess.model_inputs(processor, [sample])
    assert inputs["pixel_values"].shape == (len(sample.images), 3, scenes.SIZE, scenes.SIZE)
    encoder = packing.Encoder(processor.tokenizer)
    ids = inputs["input_ids"][0].tolist()
    prefix = encoder.prefix(len(sample.images))
    assert ids[: len(prefix)] == prefix
    assert ids[-2:] == [lvlm.EOS, lvlm.ASSISTANT]
    visual = ids.count(lvlm.IMAGE)
    assert visual == lvlm.VISUAL_TOKENS * len(sample.images)
    assert visual >= 3 * (len(ids) - visual)


def test_pixels_are_the_processor_s(processor: LlavaProcessor) -> None:
    """Catches a resize or a normalisation that training does not do; white must be exactly 0."""
    image = render.render(scenes.make_scene(2, "train", "shapes"))
    given = processor.image_processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        given, lvlm.pixels(image[None]), rtol=0, atol=1e-6
    )  # one fp32 rounding
    assert lvlm.pixels(np.full((1, 8, 8, 3), 255, np.uint8)).abs().max() == 0


def test_every_digit_is_its_own_token(processor: LlavaProcessor) -> None:
    """Catches merges that hide a digit inside a longer token."""
    ids = processor.tokenizer.encode("row 12, 345", add_special_tokens=False)
    assert [t for t in processor.tokenizer.convert_ids_to_tokens(ids) if t.isdigit()] == list(
        "12345"
    )
    assert processor.tokenizer.decode(ids) == "row 12, 345"


def test_block_mask_matches_an_elementwise_oracle() -> None:
    """The mask written as a double loop; catches branches that see each other."""
    segments = torch.tensor([[0, 0, 1, 1, 2, -1], [0, 1, 1, 2, 3, 3]])
    mask = packing.block_mask(segments)
    for row, segment in enumerate(segments.tolist()):
        for q, mine in enumerate(segment):
            for k, other in enumerate(segment):
                assert bool(mask[row, 0, q, k]) == (k <= q and other in (0, mine))


def test_a_packed_branch_is_computed_as_alone(processor: LlavaProcessor) -> None:
    """Catches wrong positions or leaks in the shared prefix; 1e-4 is far above fp32 rounding."""
    batch = packing.Packs(packing.Encoder(processor.tokenizer), 5, packing.Mix(1, 2, 2)).batch(5)
    model = lvlm.build().eval()
    inner = model.model
    values = lvlm.pixels(batch.images.numpy())
    with torch.no_grad():
        embeds = inner.language_model.embed_tokens(batch.ids)
        embeds = embeds.masked_scatter(
            (batch.ids == lvlm.IMAGE)[..., None], lvlm.visual(model, values)
        )
        mask = packing.block_mask(batch.segments)
        packed = inner.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state[0]
        segment = batch.segments[0]
        own = segment == segment.max()
        ids = torch.cat([batch.ids[0][segment == 0], batch.ids[0][own]])[None]
        alone = inner(input_ids=ids, pixel_values=values).last_hidden_state[0]
    torch.testing.assert_close(packed[own], alone[-int(own.sum()) :], rtol=0, atol=1e-4)


def test_fact_words_weigh_more(processor: LlavaProcessor) -> None:
    """Catches offsets that miss the facts; questions carry no loss."""
    turn = dialogues.Turn("How high?", "bar B reaches 7")
    ids, weights = packing.Encoder(processor.tokenizer).branch((turn,), 3.0)
    heavy = processor.tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == 3.0])
    assert heavy.replace(" ", "") == "B7"
    assert weights[0] == 0.0
    assert weights[-1] == 1.0
