"""Instance masks: golden values, rasterising, assembly, mapping back, overlap."""

import numpy as np
import pytest
import torch

from utils.core.contracts import Geometry
from utils.ops import masks as module
from utils.ops.letterbox import letterbox_geometry
from utils.ops.masks import (
    PrototypeMasks,
    encode_rle,
    inside_boxes,
    instance_map,
    largest_contour,
    mask_iou,
    polygon_mask,
    polygon_masks,
    prototype_masks,
    upsampled_masks,
)

COEFFICIENTS = torch.tensor([[1, -1, 0.5, 0.2], [-0.3, 0.8, 0.1, 1]])
PROTOTYPES = torch.cos(0.13 * torch.arange(2 * 4 * 16 * 16, dtype=torch.float64)).float().view(2, 4, 16, 16)
BOXES = torch.tensor([[8.0, 8, 48, 40], [0, 0, 64, 64]])


def square(low, high):
    return np.array([[low, low], [high, low], [high, high], [low, high]], np.float32)


def sums(masks):
    return masks.flatten(1).sum(1).tolist()


def test_golden_masks():
    args = (PROTOTYPES[0], COEFFICIENTS, BOXES, (64, 64))
    assert sums(prototype_masks(*args)) == [34, 131]
    assert sums(upsampled_masks(*args, crop_first=True)) == [573, 2083]
    assert sums(upsampled_masks(*args)) == [623, 2083]


def test_golden_crop():
    inside = inside_boxes(torch.tensor([[1.5, 2, 5, 4.2]]), (6, 8))[0]
    assert inside.nonzero().tolist() == [[row, column] for row in (2, 3, 4) for column in (2, 3, 4)]


def test_golden_overlap_map():
    joined, order = instance_map([square(4, 40), square(20, 60)], (64, 64), 4)
    assert joined.shape == (16, 16) and joined.dtype == np.uint8 and order.tolist() == [1, 0]
    assert np.bincount(joined.ravel()).tolist() == [100, 75, 81]


def test_more_than_255_objects():
    places = [(x, y) for y in range(20) for x in range(15)]
    polygons = [square(0, 3) + np.float32([4 * x, 4 * y]) for x, y in places]
    joined, order = instance_map(polygons, (80, 60), 1)
    assert joined.dtype == np.int32 and sorted(order.tolist()) == list(range(300))
    assert np.unique(joined).tolist() == list(range(1, 301))


def test_degenerate_polygons():
    masks = polygon_masks([square(-1e9, 1e9), np.zeros((0, 2), np.float32), square(200, 300)], (64, 96), 4)
    assert masks.shape == (3, 16, 24) and sums(torch.from_numpy(masks)) == [16 * 24, 0, 0]
    assert instance_map([], (64, 64), 4)[0].shape == (16, 16)


def test_chunk_size_does_not_matter(monkeypatch):
    args = (PROTOTYPES[1], torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), BOXES.repeat(5, 1)[:9])
    whole = prototype_masks(*args, (64, 64))
    overlaps = mask_iou(whole[:4], whole)
    monkeypatch.setattr(module, "_CHUNK", 512)
    assert torch.equal(prototype_masks(*args, (64, 64)), whole) and torch.equal(mask_iou(whole[:4], whole), overlaps)


def test_polygon_edge_pixels():
    half = np.array([[0, 0], [5, 0], [5, 63], [0, 63]], np.float32)  # covers columns 0 to 5, the middle of 4 to 7
    loose, strict = (polygon_mask(half, (64, 64), 4, strict) for strict in (False, True))
    assert loose.sum(axis=1).tolist() == [2] * 16 and strict.sum(axis=1).tolist() == [1] * 16


def test_mask_iou():
    first = torch.from_numpy(polygon_masks([square(0, 9), square(50, 59)], (64, 64))).bool()
    second = torch.from_numpy(polygon_masks([square(0, 9), square(5, 14), square(30, 31)], (64, 64))).bool()
    wanted = [[1, 25 / 175, 0], [0, 0, 0]]
    assert mask_iou(first, second).numpy() == pytest.approx(np.array(wanted), abs=1e-6)
    assert mask_iou(first[:0], second).shape == (0, 3)


def test_polygon_and_rle_round_trip():
    from hotcoco.mask import decode

    mask = polygon_mask(np.array([[5, 4], [50, 20], [30, 60]], np.float32), (64, 80)).astype(bool)
    assert (polygon_mask(largest_contour(mask), (64, 80)) > 0).sum() == pytest.approx(mask.sum(), rel=0.02)
    assert (decode(encode_rle(mask)).astype(bool) == mask).all() and encode_rle(mask)["size"] == [64, 80]
    assert largest_contour(np.zeros((4, 4), bool)).shape == (0, 2)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("original_hw", [(100, 200), (400, 150), (64, 64), (1000, 999)])
def test_masks_in_original_image(native, original_hw):
    """A disc in network pixels, known exactly, must come out as the disc of the original image."""
    fitted = letterbox_geometry(original_hw, (128, 128))
    geometry = Geometry(original_hw, (128, 128), fitted.scale_xy, fitted.pad_xy)
    y, x = np.mgrid[:32, :32] * 4 + 2.0
    disc = torch.from_numpy((30.0 - np.hypot(x - 64, y - 64)) / 4).float()[None]
    maker = PrototypeMasks(disc, torch.ones(1, 1), torch.tensor([[30.0, 30, 98, 98]]), geometry, native)
    mask = maker.original(0)
    rows, columns = np.mgrid[: original_hw[0], : original_hw[1]] + 0.5
    inside = np.hypot(
        columns * geometry.scale_xy[0] + geometry.pad_xy[0] - 64, rows * geometry.scale_xy[1] + geometry.pad_xy[1] - 64
    )
    wanted = inside < 30
    assert mask.shape == original_hw and (mask & wanted).sum() / (mask | wanted).sum() > 0.94
    assert not mask[(inside > 33)].any() and mask[inside < 27].all()


def test_empty_box_has_empty_mask():
    maker = PrototypeMasks(
        torch.ones(1, 8, 8), torch.ones(1, 1), torch.tensor([[5.0, 5, 5, 5]]), Geometry((32, 32), (32, 32))
    )
    assert len(maker.cpu()) == 1 and not maker.original(0).any()
