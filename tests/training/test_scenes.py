"""Scenes and their images: seeded, and split without overlap."""

import numpy as np
import pytest

from specdec.training import render, scenes

pytest.importorskip("sklearn", reason="the train extra")
pytest.importorskip("matplotlib", reason="the train extra")


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_same_seed_same_scene_and_pixels(kind: str) -> None:
    """Catches state shared between calls, such as a global random generator."""
    first = scenes.make_scene(11, "train", kind)
    image = render.render(first)
    scenes.make_scene(12, "train", kind)
    again = scenes.make_scene(11, "train", kind)
    assert again == first
    np.testing.assert_array_equal(render.render(again), image)
    assert scenes.make_scene(11, "held_out", kind) != first


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_splits_share_no_layout_no_font_pair_and_no_scan(kind: str) -> None:
    """Catches a generator that draws layout, fonts or scans without asking for the split."""
    train = [scenes.make_scene(seed, "train", kind) for seed in range(150)]
    held = [scenes.make_scene(seed, "held_out", kind) for seed in range(150)]
    for facet in (
        lambda s: {s.layout},
        lambda s: {(s.style.name_font, s.style.number_font)},
        lambda s: {e.scan for e in s.entities} - {-1},
    ):
        assert not set().union(*map(facet, train)) & set().union(*map(facet, held))


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_entities_lie_on_the_canvas_and_off_each_other(kind: str) -> None:
    """Catches layouts that draw one fact over another, which no reader could tell apart."""
    for seed in range(100):
        covered = np.zeros((scenes.SIZE, scenes.SIZE), int)
        for e in scenes.make_scene(seed, "held_out", kind).entities:
            x0, y0, x1, y1 = e.box
            assert 0 <= x0 < x1 <= scenes.SIZE
            assert 0 <= y0 < y1 <= scenes.SIZE
            covered[y0:y1, x0:x1] += 1
        assert covered.max() == 1


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_dense_labels_fit_their_heads(kind: str) -> None:
    """Catches a label outside the classes of its head."""
    for seed in range(30):
        labels = render.dense_labels(scenes.make_scene(seed, "train", kind))
        assert labels.shape == (len(render.HEADS), scenes.SIDE**2)
        assert (labels >= 0).all()
        assert (labels.max(1) < np.array(list(render.HEADS.values()))).all()


def test_unknown_kind_is_refused() -> None:
    """The error names both sides."""
    with pytest.raises(ValueError, match=r"'photo'.*receipt"):
        scenes.make_scene(0, "train", "photo")
