"""Test the colours and legend of semantic maps, and mosaics of batches with them."""

import cv2
import numpy as np
import pytest
import torch

from utils.core.contracts import Batch, Geometry, ImageInfo, Results
from utils.ops.class_fractions import class_fractions
from utils.plots import batches
from utils.plots.batches import draw_batch, map_in_network
from utils.plots.draw import DrawStyle, annotate, palette_colour
from utils.plots.semantic_overlay import (
    class_colour,
    colourize,
    draw_legend,
    legend_strip,
    overlay_semantic_map,
)
from utils.plots.semantic_style import SemanticStyle

STREET = SemanticStyle(("road", "sidewalk", "sky"))  # 128,64,128; 244,35,232; 0,130,180 in Cityscapes
PLAIN = SemanticStyle(("road", "sidewalk", "sky"), legend=False)


def grey(height=100, width=120) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def halves(height=100, width=120, left=0, right=2) -> np.ndarray:
    classes = np.full((height, width), left, np.uint8)
    classes[:, width // 2 :] = right
    return classes


def found(pixels, **more) -> Results:
    hw = pixels.shape
    return Results(ImageInfo(0, "a.jpg", Geometry(hw, hw)), semantic=torch.from_numpy(pixels), **more)


def test_class_fractions():
    classes = np.array([[0, 0, 3, 255], [0, 3, 7, 255]], np.uint8)
    assert list(class_fractions(classes).items()) == [(0, 3 / 6), (3, 2 / 6), (7, 1 / 6)]
    assert class_fractions(np.full((2, 2), 255, np.uint8)) == {}


def test_overlay_blending():
    classes = halves()
    classes[:10] = 255
    drawn = annotate(grey(), found(classes), (), DrawStyle(semantic=PLAIN))
    # blue, green, red: .6 * 90 + .4 * (128, 64, 128), and with sky (180, 130, 0)
    assert np.abs(drawn[50, 10].astype(float) - (105.2, 79.6, 105.2)).max() <= 0.5
    assert np.abs(drawn[50, 110].astype(float) - (126, 106, 54)).max() <= 0.5
    assert (drawn[:10] == 90).all()


@pytest.mark.parametrize(("opacity", "wanted"), [(0.0, (90, 90, 90)), (1.0, (128, 64, 128))])
def test_opacity(opacity, wanted):
    canvas = grey()
    overlay_semantic_map(canvas, halves(), SemanticStyle(STREET.names, opacity=opacity))
    assert tuple(canvas[50, 10]) == wanted


def test_draw_into_view():
    large = grey(200, 240)
    overlay_semantic_map(large[50:150, 60:180], halves(20, 24), SemanticStyle(STREET.names, opacity=1.0))
    assert tuple(large[100, 70]) == (128, 64, 128) and tuple(large[100, 170]) == (180, 130, 0)
    assert (large[:50] == 90).all() and (large[:, 180:] == 90).all()


def test_data_set_colours():
    own = SemanticStyle(("a", "b"), colours=((1, 2, 3), (4, 5, 6)))
    photo = colourize(np.array([[0, 1, 2, 254, 255]], np.uint8), own)
    assert photo[0, :2].tolist() == [[3, 2, 1], [6, 5, 4]]
    assert photo[0, 2:4].any() and not photo[0, 4].any()


def test_boxes_and_masks_above_semantic_map():
    mask = torch.zeros(1, 100, 120, dtype=torch.bool)
    mask[0, 40:60, 40:60] = True
    boxes = {"boxes": torch.tensor([[40.0, 40, 60, 60]]), "scores": torch.tensor([0.9]), "classes": torch.tensor([4])}
    style = DrawStyle(line_px=1, labels=False, semantic=PLAIN)
    drawn = annotate(grey(), found(halves(), **boxes, masks=mask), ["x"] * 5, style)
    below = np.array((105.2, 79.6, 105.2))
    assert tuple(drawn[40, 50]) == palette_colour(4)
    assert np.abs(drawn[50, 50] - (below + palette_colour(4)) / 2).max() <= 1.5
    assert np.abs(drawn[50, 20] - below).max() <= 1


# ----------------------------------------------------------------------------------------------------------------------
# Legends


def visible_classes(photo: np.ndarray, look: SemanticStyle, count: int) -> set[int]:
    """Return the classes whose unblended colour occurs in the image."""
    return {i for i in range(count) if (photo == np.array(class_colour(i, look), np.uint8)).all(axis=2).any()}


def test_legend_lists_present_classes():
    classes = halves(300, 400)
    canvas = grey(300, 400)
    draw_legend(canvas, classes, STREET, 12)
    assert visible_classes(canvas, STREET, 3) == {0, 2}
    canvas = grey(300, 400)
    classes[0, :10] = 1  # ten pixels of 120 000 are a speck
    draw_legend(canvas, classes, STREET, 12)
    assert visible_classes(canvas, STREET, 3) == {0, 2}


@pytest.mark.parametrize("size_hw", [(360, 480), (1080, 1920), (240, 240)])
def test_legend_size(size_hw):
    classes = (np.arange(size_hw[0] * size_hw[1]).reshape(size_hw) * 150 // (size_hw[0] * size_hw[1])).astype(np.uint8)
    look = SemanticStyle(tuple(f"class {i}" for i in range(150)))
    canvas = grey(*size_hw)
    draw_legend(canvas, classes, look, 12)
    changed = (canvas != 90).any(axis=2)
    assert changed.any() and changed.mean() < 0.21
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert len(rows) <= 0.45 * size_hw[0] and len(columns) <= 0.45 * size_hw[1]


def test_legend_truncation():
    classes = np.zeros((240, 400), np.uint8)  # room for four lines of the nine
    for index in range(1, 9):
        classes[:, 300 + 10 * index :] = index
    names = tuple(f"number {i}" for i in range(9))
    look, canvas = SemanticStyle(names), grey(240, 400)
    draw_legend(canvas, classes, look, 16)
    assert visible_classes(canvas, look, 9) == {0, 1, 8}  # and a line `+ 6`; the last class reaches the border


def test_no_legend_on_small_images():
    canvas = grey(24, 32)
    draw_legend(canvas, halves(24, 32), STREET, 11)
    assert (canvas == 90).all()
    assert annotate(grey(1, 1), found(np.zeros((1, 1), np.uint8)), ()).shape == (1, 1, 3)


def test_legend_avoids_boxes():
    free, taken = grey(300, 400), grey(300, 400)
    draw_legend(free, halves(300, 400), STREET, 12)
    draw_legend(taken, halves(300, 400), STREET, 12, np.array([[0.0, 200, 300, 300]]))
    assert (free[280:, :20] != 90).any()
    assert (taken[200:, :300] == 90).all() and (taken[280:, 380:] != 90).any()


def test_legend_disabled():
    with_legend, without = (
        annotate(grey(300, 400), found(halves(300, 400)), (), DrawStyle(semantic=look)) for look in (STREET, PLAIN)
    )
    assert visible_classes(with_legend, STREET, 3) == {0, 2} and visible_classes(without, STREET, 3) == set()


def test_legend_strip_lines():
    look = SemanticStyle(tuple(f"name {i}" for i in range(30)))
    wide, narrow = legend_strip(range(30), look, 4000), legend_strip(range(30), look, 300)
    assert wide.shape[1] == 4000 and narrow.shape[1] == 300 and narrow.shape[0] > 4 * wide.shape[0]
    assert visible_classes(narrow, look, 30) == set(range(30))
    assert legend_strip([], look, 300).shape == (0, 300, 3)


# ----------------------------------------------------------------------------------------------------------------------
# Batches


def test_map_in_network_coordinates():
    # 100 x 200 at half size is 50 x 100; borders of 7 and 14 make it 64 x 128. Column 100 becomes 100 / 2 + 14 = 64
    geometry = Geometry((100, 200), (64, 128), (0.5, 0.5), (14.0, 7.0))
    shown = map_in_network(halves(100, 200), geometry, (64, 128))
    assert (shown[7:57, 14:64] == 0).all() and (shown[7:57, 64:114] == 2).all()
    border = np.ones((64, 128), bool)
    border[7:57, 14:114] = False
    assert (shown[border] == 255).all()
    half = map_in_network(halves(100, 200), geometry, (32, 64))
    assert (half[5:28, 8:32] == 0).all() and (half[5:28, 32:56] == 2).all() and (half[:3] == 255).all()


def test_background_class_is_not_tinted():
    style = SemanticStyle(("background", "crack"))
    canvas = np.full((100, 200, 3), 90, np.uint8)
    overlay_semantic_map(canvas, halves(100, 200, right=1), style)
    assert (canvas[:, :100] == 90).all() and (canvas[:, 100:] != 90).any(axis=2).all()
    plain = np.full((100, 200, 3), 90, np.uint8)
    overlay_semantic_map(plain, halves(100, 200, right=1), SemanticStyle(("road", "crack")))
    assert (plain != 90).any(axis=2).all()
    legend = np.zeros((400, 400, 3), np.uint8)
    draw_legend(legend, np.zeros((400, 400), np.uint8), style, 12)
    assert not legend.any()  # nothing but background: nothing to explain


def scored_batch() -> Batch:
    geometry = Geometry((100, 200), (64, 128), (0.5, 0.5), (14.0, 7.0))
    info = [ImageInfo(i, f"{i}.jpg", geometry) for i in range(2)]
    maps = torch.from_numpy(np.stack([halves(100, 200), np.full((100, 200), 255, np.uint8)]))
    images = torch.full((2, 3, 64, 128), 90, dtype=torch.uint8)
    return Batch(images, torch.zeros(0, 6), info, semantic=maps)


def test_validation_batch_plots(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MIN_TILE_PX", 1)
    batch = scored_batch()
    results = [Results(info, semantic=torch.full((100, 200), 1, dtype=torch.uint8)) for info in batch.info]
    draw_batch(batch, tmp_path / "labels.png", (), None, STREET)
    draw_batch(batch, tmp_path / "found.png", (), results, STREET)
    labels, predicted = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("labels", "found"))
    assert np.abs(labels[40, 40] - (105.2, 79.6, 105.2)).max() <= 1  # road
    assert np.abs(labels[40, 100] - (126.0, 106, 54)).max() <= 1  # sky
    assert (labels[60, 10:100] == 90).all() and (labels[40, 128 + 40] == 90).all()  # border; unlabelled
    for x in (40, 128 + 40):
        assert np.abs(predicted[40, x] - (146.8, 68.0, 151.6)).max() <= 1  # sidewalk: .6 * 90 + .4 * (232, 35, 244)
    assert labels.shape[0] > 64 and visible_classes(labels[64:], STREET, 3) == {0, 2}  # the legend is below the images
    assert visible_classes(predicted[64:], STREET, 3) == {1}


def test_training_map_plots(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MIN_TILE_PX", 1)
    info = [ImageInfo(0, "0.jpg", Geometry((64, 128), (64, 128), (3.0, 3.0), (-40.0, 9.0)))]
    images = torch.full((1, 3, 64, 128), 90, dtype=torch.uint8)
    batch = Batch(images, torch.zeros(0, 6), info, semantic=torch.from_numpy(halves(64, 128))[None])
    draw_batch(batch, tmp_path / "a.png", (), None, PLAIN)
    photo = cv2.imread(str(tmp_path / "a.png"))
    assert photo.shape == (64, 128, 3)  # without a legend
    assert np.abs(photo[50, 60] - (105.2, 79.6, 105.2)).max() <= 1
    assert np.abs(photo[50, 70] - (126.0, 106, 54)).max() <= 1
