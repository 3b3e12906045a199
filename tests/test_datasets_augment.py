"""Geometry and colour of training samples, against numbers worked out by hand and stored reference vectors."""

import math

import cv2
import numpy as np
import pytest

from utils.datasets.pipeline.augment import apply_optional, copy_paste, covered_fractions, hsv_tables, mixup, write_rgb
from utils.datasets.pipeline.collate import normalised_rows
from utils.datasets.pipeline.mosaic import Tile, View, compose, mosaic4, mosaic9
from utils.datasets.pipeline.sample import Sample
from utils.ops.letterbox import letterbox, letterbox_geometry, points_to_network, points_to_original
from utils.ops.transform import (
    Warp,
    polygon_box,
    resample_polygon,
    sample_warp,
    transform_boxes,
    transform_points,
    usable_boxes,
)

RNG = np.random.default_rng(5)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth random image."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4) * 3


def boxed(image: np.ndarray, *boxes: tuple[float, ...], **fields) -> Sample:
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes), dtype=np.float32), **fields)


# ----------------------------------------------------------------------------------------------------------------------
# Letterbox


@pytest.mark.parametrize(("original_hw", "options", "network_hw", "scale", "pad_xy"), [
    ((720, 1280), {"auto": True}, (384, 640), 0.5, (0, 12)),
    ((333, 500), {"auto": True}, (448, 640), 1.28, (0, 11)),
    ((333, 500), {}, (640, 640), 1.28, (0, 107)),
    ((333, 500), {"scale_up": False}, (640, 640), 1.0, (70, 153.5)),
    ((640, 640), {}, (640, 640), 1.0, (0, 0)),
    ((427, 640), {}, (640, 640), 1.0, (0, 106.5)),
    ((100, 50), {"auto": True, "stride": 64}, (640, 320), 6.4, (0, 0)),
])  # fmt: skip
def test_letterbox_table(original_hw, options, network_hw, scale, pad_xy):
    geometry = letterbox_geometry(original_hw, (640, 640), **options)
    image, same = letterbox(np.full((*original_hw, 3), 7, np.uint8), (640, 640), **options)
    assert geometry == same
    assert geometry.network_hw == network_hw == image.shape[:2]
    assert geometry.scale_xy == pytest.approx((scale, scale))
    assert geometry.pad_xy == pytest.approx(pad_xy)
    top, left = round(pad_xy[1] - 0.1), round(pad_xy[0] - 0.1)
    inside = (image == 7).all(-1)
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    assert (rows[0], columns[0]) == (top, left)
    assert len(rows) == round(original_hw[0] * scale)
    assert (image[~inside] == 114).all()


def test_stretch_has_no_border():
    image, geometry = letterbox(np.zeros((100, 50, 3), np.uint8), (64, 96), stretch=True)
    assert image.shape == (64, 96, 3)
    assert geometry.scale_xy == pytest.approx((96 / 50, 64 / 100))
    assert geometry.pad_xy == (0, 0)


def test_geometry_round_trip():
    geometry = letterbox_geometry((720, 1280), (640, 640), auto=True)
    original = points_to_original(np.array([[10.0, 20.0], [300.0, 370.0]]), geometry)  # clipped when mapped back
    np.testing.assert_allclose(original, [[20, 16], [600, 716]])
    np.testing.assert_allclose(points_to_network(original, geometry), [[10, 20], [300, 370]])


def test_letterbox_keeps_at_least_one_pixel():
    assert letterbox(np.zeros((2, 4000, 3), np.uint8), (640, 640))[0].shape == (640, 640, 3)


# ----------------------------------------------------------------------------------------------------------------------
# Matrix, boxes, polygons


def test_mean_warp_only_crops():
    matrix = Warp().matrix((200, 200), (100, 100))
    np.testing.assert_allclose(matrix, [[1, 0, -50], [0, 1, -50], [0, 0, 1]])


def test_rotation_and_shear_match_opencv():
    warp = Warp(angle=30, scale=1.5, shear_xy=(10, -5), translate_xy=(0.4, 0.6))
    shear = np.array([[1, math.tan(math.radians(10)), 0], [math.tan(math.radians(-5)), 1, 0], [0, 0, 1]])
    rotation = np.vstack((cv2.getRotationMatrix2D((0, 0), 30, 1.5), [0, 0, 1]))
    centre, place = np.eye(3), np.eye(3)
    centre[:2, 2], place[:2, 2] = (-40, -30), (0.4 * 160, 0.6 * 120)
    np.testing.assert_allclose(warp.matrix((60, 80), (120, 160)), place @ shear @ rotation @ centre, atol=1e-12)


def test_warp_parameter_ranges():
    warps = [sample_warp(np.random.default_rng(i), 10, 0.1, 0.5, 3, 0.001) for i in range(300)]
    for values, low, high in (
        ([w.angle for w in warps], -10, 10),
        ([w.scale for w in warps], 0.5, 1.5),
        ([w.translate_xy[1] for w in warps], 0.4, 0.6),
        ([w.shear_xy[0] for w in warps], -3, 3),
        ([w.perspective_xy[0] for w in warps], -0.001, 0.001),
    ):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_warped_boxes_enclose_clipped_corners():
    quarter_turn = np.array([[0, -1, 100], [1, 0, 0], [0, 0, 1.0]])
    moved = transform_boxes(np.array([[10, 20, 40, 80.0], [-5, 0, 500, 10]]), quarter_turn, (100, 100))
    np.testing.assert_allclose(moved, [[20, 10, 80, 40], [90, 0, 100, 100]])


def test_perspective_division():
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0.01, 0, 1.0]])
    np.testing.assert_allclose(transform_points(np.array([[100.0, 50.0]]), matrix), [[50, 25]])


def test_polygon_resampling():
    points = resample_polygon(np.array([[0, 0], [10, 0], [10, 10.0]]), 7)
    np.testing.assert_allclose(points, [[0, 0], [5, 0], [10, 0], [10, 5], [10, 10], [5, 5], [0, 0]])


def test_polygon_box_uses_points_inside():
    polygon = np.array([[-10, 5], [3, 5], [8, 9], [50, 20.0]])
    np.testing.assert_allclose(polygon_box(polygon, (10, 10)), [3, 5, 8, 9])
    np.testing.assert_allclose(polygon_box(polygon[:1], (10, 10)), 0)


@pytest.mark.parametrize(("old", "new", "kept"), [
    ((10, 10), (3, 3), False), ((10, 10), (3.2, 3.2), True), ((10, 100), (1.9, 100), False),
    ((300, 3), (300, 2.9), False), ((10, 10), (2, 10), False), ((0, 0), (5, 5), True),
])  # fmt: skip
def test_box_candidates(old, new, kept):
    assert usable_boxes(np.array([[0, 0, *old]], float), np.array([[0, 0, *new]], float)).tolist() == [kept]


def test_normalised_labels_are_clipped():
    rows = normalised_rows(boxed(photo(4, 4), (-5, 10, 700, 320)), 3, (320, 640))
    np.testing.assert_allclose(rows[0], [3, 0, 0.499999, 0.515623, 0.999998, 0.968747], atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Mosaics


def test_mosaic4():
    sizes = [(30, 40), (20, 50), (60, 10), (64, 64)]
    samples = [
        boxed(np.full((h, w, 3), 10 * (i + 1), np.uint8), (1, 2, w - 1, h - 2)) for i, (h, w) in enumerate(sizes)
    ]
    tiles = mosaic4(samples, 64, (50, 70))
    assert [(t.left, t.top) for t in tiles] == [(10, 40), (50, 50), (40, 70), (50, 70)]
    canvas = compose(tiles, View((128, 128), (128, 128)))
    expected = [[11, 42, 49, 68], [51, 52, 99, 68], [41, 72, 49, 128], [51, 72, 113, 128]]  # the last two clipped
    np.testing.assert_allclose(canvas.boxes_xyxy, expected)
    assert canvas.classes.tolist() == [0, 0, 0, 0]
    for (x, y), value in {(49, 69): 10, (50, 69): 20, (49, 70): 30, (50, 70): 40, (9, 69): 114, (113, 127): 40,
                          (114, 100): 114}.items():  # fmt: skip
        assert (canvas.image[y, x] == value).all(), (x, y)


def test_mosaic9():
    size = 40
    sizes = [(20, 30), (10, 12), (14, 16), (40, 8), (9, 11), (13, 7), (6, 5), (18, 17), (4, 21)]
    samples = [boxed(np.full((h, w, 3), i + 1, np.uint8)) for i, (h, w) in enumerate(sizes)]
    tiles = mosaic9(samples, size, (20, 25))
    places = [(t.left + 20, t.top + 25) for t in tiles]
    assert places == [
        (40, 40), (40, 30), (52, 26), (70, 40), (70, 80), (63, 60), (58, 60), (23, 42), (19, 38),
    ]  # fmt: skip
    canvas = compose(tiles, View((80, 80), (80, 80))).image[..., 0]
    counts = {value: int((canvas == value).sum()) for value in range(1, 10)}
    assert counts[1] == 600
    assert counts[8] == 18 * 17
    for tile, (height, width) in zip(tiles, sizes, strict=True):  # nothing overlaps
        right, bottom = min(80, tile.left + width), min(80, tile.top + height)
        assert counts[int(tile.sample.image[0, 0, 0])] == (right - max(0, tile.left)) * (bottom - max(0, tile.top))


def straightforward(tiles: list[Tile], side: int, warp: Warp, out: int) -> np.ndarray:
    """Return the image composed the plain way: paste everything on a large canvas, warp that once."""
    canvas = np.full((side, side, 3), 114, np.uint8)
    for tile in tiles:
        height, width = tile.sample.size_hw
        x1, y1, x2, y2 = (max(0, tile.left), max(0, tile.top), min(side, tile.left + width),
                          min(side, tile.top + height))  # fmt: skip
        canvas[y1:y2, x1:x2] = tile.sample.image[y1 - tile.top : y2 - tile.top, x1 - tile.left : x2 - tile.left]
    matrix = warp.matrix((side, side), (out, out))
    return cv2.warpPerspective(canvas, matrix, (out, out), borderValue=(114, 114, 114))


@pytest.mark.parametrize("warp", [
    Warp(scale=0.7, translate_xy=(0.45, 0.56)),
    Warp(scale=1.4, translate_xy=(0.6, 0.41)),
    Warp(angle=12, scale=0.9, shear_xy=(4, -3), translate_xy=(0.52, 0.47)),
    Warp(angle=-5, scale=1.1, perspective_xy=(6e-4, -4e-4)),
    Warp(),
    Warp(perspective_xy=(9e-3, 0.0)),  # part of the canvas lies behind the horizon
], ids=["small", "large", "turned", "perspective", "crop", "horizon"])  # fmt: skip
def test_tile_warp_matches_canvas_warp(warp):
    size = 160
    samples = [boxed(photo(h, w, i)) for i, (h, w) in enumerate([(120, 160), (160, 107), (96, 160), (160, 160)])]
    tiles = mosaic4(samples, size, (130, 190))
    ours = compose(tiles, View((2 * size, 2 * size), (size, size), warp)).image
    theirs = straightforward(tiles, 2 * size, warp, size)
    difference = np.abs(ours.astype(int) - theirs).max(-1)
    assert (difference > 6).mean() < 0.03  # seams, one pixel wide
    assert difference[difference <= 6].mean() < 1


def test_flips_in_warp():
    sample = boxed(
        photo(64, 64), (8, 16, 24, 40), polygons=[np.array([[8, 16], [24, 16], [24, 40], [8, 40.0]])],
        semantic=np.arange(64 * 64).reshape(64, 64).astype(np.uint8) % 9,
    )  # fmt: skip
    plain = compose([Tile(sample, 0, 0)], View((64, 64), (64, 64), Warp()))
    np.testing.assert_array_equal(plain.image, sample.image)
    for lr, ud, axes in ((True, False, (1,)), (False, True, (0,)), (True, True, (0, 1))):
        flipped = compose([Tile(sample, 0, 0)], View((64, 64), (64, 64), Warp(), lr, ud))
        np.testing.assert_array_equal(flipped.image, np.flip(sample.image, axes))
        np.testing.assert_array_equal(flipped.semantic, np.flip(sample.semantic, axes))
        x = [64 - 24, 64 - 8] if lr else [8, 24]
        y = [64 - 40, 64 - 16] if ud else [16, 40]
        np.testing.assert_allclose(flipped.boxes_xyxy, [[x[0], y[0], x[1], y[1]]])
        np.testing.assert_allclose(polygon_box(flipped.polygons[0], (64, 64)), [x[0], y[0], x[1], y[1]], atol=0.1)


def test_polygon_and_box_warp_alike():
    corners = np.array([[20, 30], [60, 30], [60, 80], [20, 80.0]])
    warp = Warp(scale=1.3, translate_xy=(0.55, 0.48))  # upright, so that the outline's box is the box of the corners
    with_polygon = boxed(photo(100, 100), (20, 30, 60, 80), polygons=[corners])
    without = boxed(photo(100, 100), (20, 30, 60, 80))
    view = View((100, 100), (100, 100), warp)
    a, b = (compose([Tile(sample, 0, 0)], view) for sample in (with_polygon, without))
    np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=0.2)  # resampling cuts corners a little
    assert a.polygons[0].shape == (1000, 2)


def test_polygon_area_threshold():
    square = np.array([[0, 0], [60, 0], [60, 60], [0, 60.0]])
    view = View((100, 100), (100, 100), Warp(translate_xy=(0.05, 0.05)))  # moved out by 45: 15 x 15 of 60 x 60 remain
    kept = compose([Tile(boxed(photo(100, 100), (0, 0, 60, 60), polygons=[square]), 0, 0)], view)
    lost = compose([Tile(boxed(photo(100, 100), (0, 0, 60, 60)), 0, 0)], view)
    np.testing.assert_allclose(kept.boxes_xyxy, [[0, 0, 15, 15]], atol=0.25)  # points lie 0.24 px apart
    assert len(lost.boxes_xyxy) == 0


def test_mosaic_mixes_boxes_and_polygons():
    with_polygon = boxed(photo(50, 50), (5, 5, 45, 45), polygons=[np.array([[5, 5], [45, 5], [45, 45], [5, 45.0]])])
    without = boxed(photo(50, 50), (10, 10, 40, 40))
    out = compose([Tile(with_polygon, 0, 0), Tile(without, 50, 0)], View((100, 100), (100, 100), Warp()))
    assert [len(polygon) for polygon in out.polygons] == [1000, 0]
    np.testing.assert_allclose(out.boxes_xyxy[1], [60, 10, 90, 40])


def test_mosaic_with_semantic_map():
    image = np.full((40, 40, 3), 50, np.uint8)
    image[10:30, 10:30] = 200
    semantic = np.where(image[..., 0] == 200, 3, 1).astype(np.uint8)
    warp = Warp(scale=0.6, angle=20)
    out = compose([Tile(boxed(image, semantic=semantic), 0, 0)], View((40, 40), (40, 40), warp))
    assert set(np.unique(out.semantic)) == {1, 3, 255}
    agree = (out.semantic == 3) == (out.image[..., 0] > 157)
    assert agree.mean() > 0.97


def test_four_channel_image():
    image = photo(60, 60)
    view = View((60, 60), (50, 50), Warp(angle=7, scale=1.2))
    three = compose([Tile(boxed(image), 0, 0)], view).image
    four = compose([Tile(boxed(cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)), 0, 0)], view).image
    assert np.abs(three.astype(int) - four[..., :3]).max() <= 1


# ----------------------------------------------------------------------------------------------------------------------
# Colour, mixup, copy-paste


def test_hsv_lookup_tables():
    hue, saturation, value = hsv_tables(np.array([1.5, 2.0, 0.5]))
    assert hue[[0, 100, 120, 130]].tolist() == [0, 150, 0, 15]
    assert saturation[[10, 127, 128, 255]].tolist() == [20, 254, 255, 255]
    assert value[[10, 255]].tolist() == [5, 127]


def test_hsv_jitter_outputs_rgb():
    image, out = photo(20, 20), np.zeros((20, 20, 3), np.uint8)
    write_rgb(image, out, None)
    np.testing.assert_array_equal(out, image[..., ::-1])
    write_rgb(image, out, np.array([1.0, 1.0, 0.5]))
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 2] //= 2
    np.testing.assert_array_equal(out, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def test_mixup():
    first, second = (
        boxed(np.full((4, 4, 3), 200, np.uint8), (0, 0, 1, 1)),
        boxed(np.full((4, 4, 3), 100, np.uint8), (1, 1, 3, 3), (0, 0, 2, 2)),
    )
    out = mixup(first, second, 0.6)
    assert (out.image == 160).all()
    np.testing.assert_allclose(out.boxes_xyxy, [[0, 0, 1, 1], [1, 1, 3, 3], [0, 0, 2, 2]])
    assert out.classes.tolist() == [0, 0, 1]


def test_covered_fraction():
    others = np.array([[2, 2, 6, 6], [0, 0, 2, 2.0]])
    np.testing.assert_allclose(covered_fractions(np.array([0, 0, 4, 4.0]), others), [0.25, 1], atol=1e-9)


def test_copy_paste():
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:21, 10:31] = 200
    square = np.array([[10, 10], [30, 10], [30, 20], [10, 20.0]])
    sample = boxed(image, (10, 10, 30, 20), polygons=[square])
    out = copy_paste(sample, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(out.boxes_xyxy, [[10, 10, 30, 20], [70, 10, 90, 20]])
    np.testing.assert_allclose(out.polygons[1][0], [90, 10])
    assert out.classes.tolist() == [0, 0]
    assert (out.image[12:19, 72:88] == 200).all()
    assert (out.image[:, 40:69] == 0).all()
    assert sample.image[15, 80, 0] == 0  # the input is left alone


def test_copy_paste_does_not_hide_objects():
    middle = np.array([[40, 10], [60, 10], [60, 20], [40, 20.0]])  # its mirror image lies on top of it
    sample = boxed(photo(40, 100), (40, 10, 60, 20), polygons=[middle])
    assert copy_paste(sample, 1.0, np.random.default_rng(0)) is sample
    assert copy_paste(sample, 0.0, np.random.default_rng(0)) is sample


def test_optional_transforms_probability():
    class Brighter:
        """Stands in for a transform of the optional package."""

        def set_random_seed(self, seed: int) -> None:
            self.value = seed % 256

        def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
            return {"image": np.full_like(image, self.value)}

    image = np.zeros((4, 4, 4), np.uint8)
    results = [apply_optional(image, (Brighter(), Brighter()), np.random.default_rng(i)) for i in range(1000)]
    changed = [i for i, result in enumerate(results) if result is not image]
    assert 5 <= len(changed) <= 40  # 20 expected
    for i in changed:
        assert results[i].shape == (4, 4, 3)
        again = apply_optional(image, (Brighter(), Brighter()), np.random.default_rng(i))
        np.testing.assert_array_equal(again, results[i])


def test_mosaic_labels_match_reference():
    size, rng = 160, np.random.default_rng(3)
    for trial in range(20):
        samples = []
        for height, width in [(120, 160), (160, 107), (96, 160), (160, 160)]:
            corner = rng.uniform(0, 0.7, (5, 2)) * (width, height)
            side = rng.uniform(0.02, 0.3, (5, 2)) * (width, height)
            samples.append(boxed(np.zeros((height, width, 3), np.uint8), *np.concatenate((corner, corner + side), 1)))
        tiles = mosaic4(samples, size, (int(rng.integers(80, 240)), int(rng.integers(80, 240))))
        warp = sample_warp(np.random.default_rng(trial), 10, 0.1, 0.5, 3, 0.0003)
        ours = compose(tiles, View((320, 320), (size, size), warp))
        matrix, expected = warp.matrix((320, 320), (size, size)), []
        for tile in tiles:
            for x1, y1, x2, y2 in tile.sample.boxes_xyxy.astype(float):
                (x1, x2), (y1, y2) = (
                    np.clip(np.array([x1, x2]) + tile.left, 0, 320),
                    np.clip(np.array([y1, y2]) + tile.top, 0, 320),
                )
                points = matrix @ np.array([[x1, x2, x2, x1], [y1, y1, y2, y2], [1, 1, 1, 1]])
                x, y = (points[:2] / points[2]).clip(0, size)
                width, height = x.max() - x.min(), y.max() - y.min()
                area = (x2 - x1) * (y2 - y1) * warp.scale**2
                if (
                    min(width, height) > 2
                    and width * height > 0.1 * area
                    and max(width, height) < 100 * min(width, height)
                ):
                    expected.append([x.min(), y.min(), x.max(), y.max()])
        assert len(expected) > 0
        np.testing.assert_allclose(ours.boxes_xyxy, expected, atol=1e-3)
