"""Boxes, labels, masks and batches, drawn."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers_run import ROOT

from utils.core.contracts import Batch, Geometry, ImageInfo, Results
from utils.plots import batches
from utils.plots.batches import boxes_to_network, draw_batch
from utils.plots.draw import (
    DrawStyle,
    annotate,
    draw_label,
    draw_masks,
    palette_colour,
    text_colour_on,
)
from utils.plots.text_rendering import text_mask


def test_ascii_text_does_not_import_matplotlib():
    code = (
        "import sys; from utils.plots.text_rendering import text_mask; assert text_mask('person 0.88', 20).any(); "
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def found(boxes, classes=None, scores=None, hw=(100, 120), **more) -> Results:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.tensor(classes if classes is not None else [0] * len(boxes), dtype=torch.int64)
    scores = torch.tensor(scores if scores is not None else [0.9] * len(boxes))
    return Results(ImageInfo(0, "a.jpg", Geometry(hw, hw)), boxes, scores, classes, **more)


def grey(height=100, width=120) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def test_palette():
    assert palette_colour(0) == (0x38, 0x38, 0xFF) and palette_colour(9) == (0xBB, 0xD4, 0x00)
    assert palette_colour(23) == palette_colour(3) and palette_colour(19) == (0xC7, 0x37, 0xFF)


def test_box_edges():
    image = grey()
    drawn = annotate(image, found([[20, 30, 80, 90]]), ["thing"], DrawStyle(line_px=1, labels=False))
    assert (image == 90).all()  # the original is left alone
    assert tuple(drawn[60, 20]) == palette_colour(0) and tuple(drawn[90, 50]) == palette_colour(0)
    assert (drawn[32:88, 22:78] == 90).all() and (drawn[:28] == 90).all()


@pytest.mark.parametrize("width", [1, 3, 8])
def test_line_width(width):
    drawn = annotate(grey(), found([[30, 30, 90, 80]]), ["x"], DrawStyle(line_px=width, labels=False))
    column = (drawn[55] != 90).any(axis=1)[:60].sum()
    assert column == width


def test_no_results():
    assert (annotate(grey(), found([]), ["x"]) == 90).all()
    bare = Results(ImageInfo(0, "a", Geometry((100, 120), (100, 120))))
    assert (annotate(grey(), bare, ["x"]) == 90).all()


@pytest.mark.parametrize(
    "box", [[0, 0, 119, 99], [-9, -9, 200, 200], [100, 0, 119.9, 10], [0, 95, 4, 99.9], [5, 5, 5, 5]]
)
def test_labels_stay_inside_the_image(box):
    image = grey()
    plain = annotate(image, found([box]), ["name"], DrawStyle(line_px=1, labels=False))
    with_label = annotate(image, found([box]), ["name"], DrawStyle(line_px=1))
    plate = (with_label != plain).any(axis=2)
    assert plate.sum() > 200  # a whole label, not a cut one
    assert with_label.shape == image.shape


def test_label_position():
    high, low = grey(), grey()
    draw_label(high, "a", (10, 50), (0, 0, 255), 12)
    draw_label(low, "a", (10, 0), (0, 0, 255), 12)
    assert (high[51:] == 90).all() and (high[36:50] != 90).any()
    assert (low[:14] != 90).any()


def test_text_colour_contrast():
    assert text_colour_on((255, 255, 255)) == (0, 0, 0) and text_colour_on((0, 0, 0)) == (255, 255, 255)
    assert text_colour_on((0, 255, 255)) == (0, 0, 0) and text_colour_on((255, 0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["person", "кошка", "Straße", "مرحبا", "猫", "", "a\nb", "😀"])
def test_unicode_names(name):
    mask = text_mask(f"{name} 0.87", 16)
    assert mask.dtype == np.uint8 and mask.max() > 150 and mask.shape[0] == text_mask("x", 16).shape[0]
    assert ((mask > 20) & (mask < 235)).any()  # smooth edges
    assert annotate(grey(), found([[5, 40, 60, 80]]), [name]).shape == (100, 120, 3)


def test_letters_are_distinct():
    assert not np.array_equal(text_mask("к", 20), text_mask("ш", 20))


def test_hide_labels_and_scores():
    image = grey(200, 300)
    boxes = found([[20, 90, 200, 190]], hw=(200, 300))
    full, short, none = (
        (annotate(image, boxes, ["name"], style)[:88] != 90).sum()
        for style in (DrawStyle(), DrawStyle(scores=False), DrawStyle(labels=False))
    )
    assert full > short > none == 0


def test_highest_score_is_drawn_last():
    boxes = found([[20, 30, 80, 90], [20, 30, 80, 90]], classes=[3, 5], scores=[0.9, 0.4])
    drawn = annotate(grey(), boxes, ["x"] * 6, DrawStyle(line_px=1, labels=False))
    assert tuple(drawn[60, 20]) == palette_colour(3)


def test_masks_and_outlines():
    mask = np.zeros((1, 100, 120), bool)
    mask[0, 10:50, 10:50] = True
    filled, outlined = grey(), grey()
    draw_masks(filled, mask, [(255, 255, 0)])
    draw_masks(outlined, mask, [(255, 255, 0)], outline=True)
    assert tuple(filled[30, 30]) == (172, 172, 45) and tuple(filled[5, 5]) == (90, 90, 90)
    assert tuple(outlined[10, 30]) == (255, 255, 0) and tuple(outlined[30, 30]) == (172, 172, 45)


def make_batch(count=5, height=64, width=96) -> Batch:
    images = torch.full((count, 3, height, width), 0, dtype=torch.uint8)
    for i in range(count):
        images[i, 0] = 40 * i  # red
    geometry = Geometry((128, 192), (height, width), (0.5, 0.5), (0.0, 0.0))
    info = [ImageInfo(i, f"/data/photo{i}.jpg", geometry) for i in range(count)]
    return Batch(images, torch.tensor([[1, 2, 0.5, 0.5, 0.5, 0.5], [4, 0, 0.5, 0.5, 1.0, 1.0]]), info)


def test_batch_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MIN_TILE_PX", 1)
    batch = make_batch()
    draw_batch(batch, tmp_path / "a.png", ["a", "b", "c"])
    mosaic = cv2.imread(str(tmp_path / "a.png"))
    assert mosaic.shape == (2 * 64, 3 * 96, 3)
    assert mosaic[32, 96 + 48, 2] == 40 and mosaic[64 + 40, 48, 2] == 120  # image 1 and image 3, red channel
    assert tuple(mosaic[32, 96 + 24]) == palette_colour(2)  # left edge of the box in image 1
    assert (mosaic[64:, 192:] == 255).all()  # no sixth image


def test_batch_grid_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MIN_TILE_PX", 1)
    batch = make_batch(1)
    results = [found([[48, 32, 144, 96], [0, 0, 190, 126]], classes=[1, 0], scores=[0.8, 0.1], hw=(128, 192))]
    results[0].info = batch.info[0]
    draw_batch(batch, tmp_path / "a.png", ["a", "b"], results)
    photo = cv2.imread(str(tmp_path / "a.png"))
    assert tuple(photo[40, 24]) == palette_colour(1)  # x 48 / 2
    assert not (photo == np.array(palette_colour(0))).all(axis=2).any()  # below the confidence threshold


def test_original_to_network_mapping():
    info = ImageInfo(0, "a", Geometry((720, 1280), (384, 640), (0.5, 0.5), (0.0, 12.0)))
    boxes = boxes_to_network(np.array([[20, 16, 600, 716]], np.float32), info)  # the inverse of mapping back
    assert boxes.tolist() == [[10, 20, 300, 370]]


def test_labels_leave_objects_of_small_images_visible(tmp_path):
    """A mosaic of 64 pixel images is enlarged; labels wider than two boxes are left out, the boxes are not."""
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    info = [ImageInfo(0, "a.jpg", Geometry((64, 64), (64, 64)))]
    rows = torch.tensor([[0, 0, 0.5, 0.6, 0.5, 0.5], [0, 1, 0.9, 0.9, 0.05, 0.1]])
    draw_batch(Batch(images, rows, info), tmp_path / "a.png", ["person", "traffic light"])
    drawn = cv2.imread(str(tmp_path / "a.png"))
    assert drawn.shape == (batches.MIN_TILE_PX, batches.MIN_TILE_PX, 3)
    large, small = ((drawn == np.array(palette_colour(index))).all(axis=2) for index in (0, 1))
    box_px = 2 * 2 * (160 + 160)  # a line of two pixels
    assert large.sum() > box_px + 200  # with the plate of its label, which is above the box
    assert not large[120:260, 90:230].any() and 0 < small.sum() <= 2 * 2 * (18 + 34)


def test_batch_grid_limits(tmp_path):
    images = torch.rand(20, 3, 640, 640)
    info = [ImageInfo(i, f"{i}.jpg", Geometry((640, 640), (640, 640))) for i in range(20)]
    draw_batch(Batch(images, torch.zeros(0, 6), info), tmp_path / "a.jpg", ["a"])
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (1920, 1920, 3)
