"""Anchors: the fit's golden values, k-means, the search, the decision."""

import logging

import numpy as np
import pytest

from utils.ops.anchors import anchor_fit, check_anchors, fit_anchors, in_stride_order, k_means, label_sizes_px

P5 = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))


@pytest.fixture(autouse=True)
def quiet():
    logger = logging.getLogger("polyolo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def test_anchor_fit_golden_values():
    labels = np.array([(12, 14), (30, 60), (200, 150), (5, 5), (600, 40)], dtype=float)
    fit = anchor_fit(labels, np.array(P5), 4.0)
    assert fit.recall == pytest.approx(0.8)
    assert fit.above_per_label == pytest.approx(3.0)
    assert fit.fitness == pytest.approx(0.591826, abs=1e-6)


def test_k_means_finds_separate_groups():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.concatenate([centre + rng.normal(0, 0.1, (50, 2)) for centre in centres])
    found = k_means(points, 3, rng)
    nearest = np.linalg.norm(found[:, None] - centres, axis=2).argmin(axis=0)
    assert found[nearest] == pytest.approx(centres, abs=0.1)


def test_k_means_degenerate_points():
    rng = np.random.default_rng(0)
    assert np.isfinite(k_means(np.ones((20, 2)), 3, rng)).all()
    with pytest.raises(ValueError, match="2 points"):
        k_means(np.ones((2, 2)), 3, rng)


def test_fitted_anchors():
    labels = np.exp(np.random.default_rng(1).normal(3.0, 0.8, (2000, 2)))
    rough = fit_anchors(labels, 9, 640, 4.0, np.random.default_rng(0), generations=0)
    anchors = fit_anchors(labels, 9, 640, 4.0, np.random.default_rng(0), generations=300)
    assert anchors.shape == (9, 2)
    assert anchors.dtype == np.float32
    assert (np.diff(anchors.prod(axis=1)) >= 0).all()
    assert anchor_fit(labels, anchors, 4.0).fitness > anchor_fit(labels, rough, 4.0).fitness
    assert (fit_anchors(labels, 9, 640, 4.0, np.random.default_rng(0), generations=300) == anchors).all()


@pytest.mark.parametrize("labels", [np.zeros((0, 2)), np.full((3, 2), 40.0), np.full((30, 2), 40.0)])
def test_fit_with_few_labels(labels):
    anchors = fit_anchors(labels, 9, 640, 4.0, np.random.default_rng(0), generations=20)
    assert anchors.shape == (9, 2)
    assert np.isfinite(anchors).all()
    assert (anchors >= 0).all()


def test_label_sizes():
    labels = [np.array([[0, 0.5, 0.5, 0.5, 0.5]]), np.zeros((0, 5)), np.array([[0, 0.5, 0.5, 1.0, 1.0]])]
    sizes = label_sizes_px(labels, np.array([[100, 200], [50, 50], [400, 100]]), 640)
    assert sizes.tolist() == [[320, 160], [160, 640]]


def test_anchor_levels_are_sorted():
    anchors = np.array(P5, dtype=float)
    assert (in_stride_order(anchors[::-1], (8, 16, 32)) == anchors).all()
    assert (in_stride_order(anchors, (8, 16, 32)) == anchors).all()
    assert (in_stride_order(anchors, (32, 16, 8)) == anchors[::-1]).all()


def boxes_of(sides_n, seed=0):
    rng = np.random.default_rng(seed)
    return [np.column_stack((np.zeros(20), rng.random((20, 2)), rng.uniform(*sides_n, (20, 2)))) for _ in range(20)]


def test_fitting_anchors_are_unchanged():
    decision = check_anchors(boxes_of((0.05, 0.5)), np.full((20, 2), 640), P5, 640, 4.0, np.random.default_rng(0))
    assert decision.new is None
    assert decision.old_fit.recall > 0.98
    assert "fit the data" in decision.message


def test_unfitting_anchors_are_replaced():
    decision = check_anchors(boxes_of((0.005, 0.02)), np.full((20, 2), 640), P5, 640, 2.0, np.random.default_rng(0))
    assert decision.new is not None
    assert decision.new_fit.recall > decision.old_fit.recall
    assert decision.old == P5
    areas = np.array(decision.new).prod(axis=2).mean(axis=1)
    assert (np.diff(areas) > 0).all()
    assert (np.float16(decision.new) == np.array(decision.new)).all()


def test_anchors_unchanged_without_boxes():
    decision = check_anchors([np.zeros((0, 5))], np.array([[10, 10]]), P5, 640, 4.0, np.random.default_rng(0))
    assert decision.new is None
    assert "no labels" in decision.message
