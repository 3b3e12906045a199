"""Colours of semantic classes and what is drawn of their scores."""

import numpy as np
import pytest

from utils.plots.palette import CITYSCAPES, palette


def test_cityscapes_names_have_multiyolov5s_colours():
    colours = palette(tuple(CITYSCAPES))
    assert colours.dtype == np.uint8 and colours.shape == (19, 3)
    assert colours[0].tolist() == [128, 64, 128] and colours[18].tolist() == [119, 11, 32]
    assert colours[10].tolist() == [0, 130, 180]  # the official sky is 70, 130, 180
    assert palette(["Sky", "traffic_light"]).tolist() == [[0, 130, 180], [250, 170, 30]]


@pytest.mark.parametrize("count", [1, 2, 21, 133, 255])
def test_other_classes_have_colours_that_differ(count):
    colours = palette([f"class{index}" for index in range(count)])
    assert colours.shape == (count, 3) and len(np.unique(colours, axis=0)) == count
    far = np.abs(colours[:, None].astype(int) - colours[None]).sum(axis=2) + 999 * np.eye(count, dtype=int)
    assert far.min() >= (80 if count <= 21 else 15)
    assert colours.max(axis=1).min() > 40  # none is black, which is how nothing looks


def test_colours_of_the_first_classes_do_not_depend_on_how_many_follow():
    names = [f"class{index}" for index in range(40)]
    assert np.array_equal(palette(names)[:7], palette(names[:7]))


def test_given_colours_come_first_and_the_rest_keeps_away_from_them():
    assert palette(["a", "b"], [(1, 2, 3), (4, 5, 6), (7, 8, 9)]).tolist() == [[1, 2, 3], [4, 5, 6]]
    free = palette(["a"])[0]
    colours = palette(["b", "a"], [free])
    assert colours[0].tolist() == free.tolist() and np.abs(colours[1].astype(int) - free).sum() > 100
    assert palette(["road", "sky"], [(9, 9, 9)]).tolist() == [[9, 9, 9], [0, 130, 180]]


@pytest.mark.parametrize("colour", [(1, 2), (1, 2, 256), (-1, 0, 0)])
def test_what_is_no_colour_is_refused(colour):
    with pytest.raises(ValueError, match="three numbers"):
        palette(["a"], [colour])
