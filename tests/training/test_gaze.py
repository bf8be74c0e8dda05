"""Where the decoder is told to look: at patches that show the word, not at another thing's."""

import pytest
import torch

from specdec.training import chat, gaze, lvlm, packing, scenes
from specdec.training.wording import Turn

pytest.importorskip("sklearn", reason="the train extra")
pytest.importorskip("matplotlib", reason="the train extra")


def test_a_price_is_looked_up_on_the_line_of_the_item_asked_for() -> None:
    """Catches aims at any patch with the right digit: the item named before must narrow them."""
    encoder = packing.Encoder(chat.build_processor(scenes_per_kind=15).tokenizer)
    scene = scenes.make_scene(3, "train", "receipt")
    labels = torch.from_numpy(packing.render.dense_labels(scene))[None]
    for e in scene.entities:
        ids, weights = encoder.branch((Turn(e.name, str(e.value)),), packing.FACT_WEIGHT)
        prefix = encoder.prefix(1)
        row = torch.tensor([prefix + ids])
        marks = torch.tensor([[0] * len(prefix) + [1] * len(ids)])
        loss = torch.tensor([[0.0] * len(prefix) + weights])
        batch = packing.Batch(row, row, marks, loss, torch.zeros(1), labels)
        aimed = gaze.aims(batch, gaze.names(encoder.tokenizer))
        assert len(aimed.rows) == len(str(e.value))
        line = torch.zeros(lvlm.VISUAL_TOKENS, dtype=torch.bool)
        y = e.box[1] // scenes.PATCH * scenes.SIDE
        line[y : y + scenes.SIDE] = True
        assert not (aimed.shown & ~line).any()
        assert (row[0, aimed.columns + 1] >= lvlm.IMAGE).all()
