"""Colours of semantic classes and what is drawn of their scores."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from utils.plots.palette import CITYSCAPES, palette
from utils.plots.semantic_scores import draw_iou_bars, draw_semantic_scores


def test_cityscapes_colours():
    colours = palette(tuple(CITYSCAPES))
    assert colours.dtype == np.uint8 and colours.shape == (19, 3)
    assert colours[0].tolist() == [128, 64, 128] and colours[18].tolist() == [119, 11, 32]
    assert colours[10].tolist() == [0, 130, 180]  # the official sky is 70, 130, 180
    assert palette(["Sky", "traffic_light"]).tolist() == [[0, 130, 180], [250, 170, 30]]


@pytest.mark.parametrize("count", [1, 2, 21, 133, 255])
def test_colours_are_distinct(count):
    colours = palette([f"class{index}" for index in range(count)])
    assert colours.shape == (count, 3) and len(np.unique(colours, axis=0)) == count
    far = np.abs(colours[:, None].astype(int) - colours[None]).sum(axis=2) + 999 * np.eye(count, dtype=int)
    assert far.min() >= (80 if count <= 21 else 15)
    assert colours.max(axis=1).min() > 40  # none is black, which is how nothing looks


def test_colours_independent_of_class_count():
    names = [f"class{index}" for index in range(40)]
    assert np.array_equal(palette(names)[:7], palette(names[:7]))


def test_given_colours_come_first():
    assert palette(["a", "b"], [(1, 2, 3), (4, 5, 6), (7, 8, 9)]).tolist() == [[1, 2, 3], [4, 5, 6]]
    free = palette(["a"])[0]
    colours = palette(["b", "a"], [free])
    assert colours[0].tolist() == free.tolist() and np.abs(colours[1].astype(int) - free).sum() > 100
    assert palette(["road", "sky"], [(9, 9, 9)]).tolist() == [[9, 9, 9], [0, 130, 180]]


@pytest.mark.parametrize("colour", [(1, 2), (1, 2, 256), (-1, 0, 0)])
def test_invalid_colours(colour):
    with pytest.raises(ValueError, match="three numbers"):
        palette(["a"], [colour])


def scores_of(classes, absent=0, seed=0):
    rng = np.random.default_rng(seed)
    iou = rng.random(classes)
    iou[:absent] = np.nan
    confusion = rng.integers(0, 50, (classes, classes)) + np.diag(np.full(classes, 400))
    return SimpleNamespace(names=tuple(f"class {index}" for index in range(classes)), confusion=confusion, iou=iou)


@pytest.mark.parametrize(("classes", "absent"), [(1, 0), (1, 1), (12, 2)])
def test_score_plot_for_few_or_no_classes(tmp_path, classes, absent):
    paths = draw_semantic_scores(scores_of(classes, absent), tmp_path)
    assert [path.name for path in paths] == ["semantic_IoU.png", "semantic_confusion_matrix.png"]
    for path in paths:
        image = cv2.imread(str(path))
        assert image is not None and min(image.shape[:2]) > 250 and image.std() > 1


def test_score_plot_for_many_classes(tmp_path):
    many = scores_of(133, absent=30)
    image = cv2.imread(str(draw_iou_bars(many.iou, tmp_path / "iou.png", many.names)))
    assert image.shape[0] > 103 * 30 and image.std() > 1


def test_score_bars(tmp_path):
    names = ("road", "sky")
    image = cv2.imread(str(draw_iou_bars(np.array([0.25, 0.75]), tmp_path / "iou.png", names)))
    widths = {}
    for name, colour in zip(names, palette(names), strict=True):
        rows, columns = np.nonzero((np.abs(image[:, :, ::-1].astype(int) - colour) < 6).all(axis=2))
        widths[name] = (np.ptp(columns), rows.mean())
    assert widths["sky"][0] / widths["road"][0] == pytest.approx(3, rel=0.05)
    assert widths["sky"][1] < widths["road"][1]  # the best on top


def test_score_bars_use_given_colours(tmp_path):
    path = draw_semantic_scores(scores_of(1), tmp_path, [(12, 200, 34)])[0]
    assert (np.abs(cv2.imread(str(path))[:, :, ::-1].astype(int) - (12, 200, 34)) < 6).all(axis=2).sum() > 1000
