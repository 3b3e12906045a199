"""Panoptic maps and panoptic quality, against definitions that visit segments one by one."""

import math
import time

import numpy as np
import pytest

from utils.core.segment_types import MergeSettings, PanopticMap, Segment
from utils.metrics.panoptic_quality import PanopticQuality, TrueSegment, compare
from utils.ops.panoptic import decode_ids, encode_ids, merge_panoptic

IS_THING = [True, True, True, False, False]


def rectangle(shape, y1, y2, x1, x2):
    mask = np.zeros(shape, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def merged(masks, scores, things, semantic, **settings):
    stuff = ~np.array(IS_THING)
    return merge_panoptic(scores, things, lambda row: masks[row], semantic, stuff, MergeSettings(**settings))


# ----------------------------------------------------------------------------------------------------------------------
# Merge


def test_better_instances_cover_worse_ones():
    shape = (20, 20)
    masks = [rectangle(shape, 0, 10, 0, 10), rectangle(shape, 0, 10, 6, 16)]
    found = merged(masks, [0.9, 0.8], [0, 1], np.full(shape, 3, np.uint8), min_stuff_area=1)
    assert [(s.category, s.is_thing, s.area) for s in found.segments] == [
        (0, True, 100),
        (1, True, 60),
        (3, False, 240),
    ]
    assert found.ids[5, 8] == 1 and found.ids[5, 12] == 2 and found.ids[15, 5] == 3
    for segment in found.segments:
        assert (found.ids == segment.id).sum() == segment.area


@pytest.mark.parametrize(("covered", "dropped"), [(5, False), (6, True)])
def test_instances_that_are_mostly_covered_are_dropped(covered, dropped):
    shape = (10, 20)
    masks = [rectangle(shape, 0, 10, 0, 10), rectangle(shape, 0, 10, 10 - covered, 20 - covered)]
    found = merged(masks, [0.9, 0.8], [0, 0], np.full(shape, 4, np.uint8))
    assert len(found.segments) == 2 - dropped


def test_low_scores_empty_masks_and_small_stuff_are_void():
    shape = (10, 10)
    semantic = np.full(shape, 3, np.uint8)
    semantic[:2] = 4
    semantic[2] = 0  # a thing without an instance
    asked = []

    def mask_of(row):
        asked.append(row)
        return np.zeros(shape, bool)

    stuff = ~np.array(IS_THING)
    found = merge_panoptic([0.9, 0.49], [0, 0], mask_of, semantic, stuff, MergeSettings(min_stuff_area=30))
    assert asked == [0] and [(s.category, s.area) for s in found.segments] == [(3, 70)]
    assert (found.ids[:3] == 0).all() and (found.ids[3:] == 1).all()


def test_unlabelled_values_of_the_semantic_map_are_void():
    found = merged([], [], [], np.full((10, 10), 255, np.uint8), min_stuff_area=1)
    assert found.segments == () and not found.ids.any()


def test_merging_an_image_takes_milliseconds():
    shape = (640, 640)
    rng = np.random.default_rng(0)
    masks = [rectangle(shape, y, y + 160, x, x + 160) for y, x in rng.integers(0, 480, (20, 2))]
    semantic = rng.integers(3, 5, shape).astype(np.uint8)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        merged(masks, np.linspace(0.9, 0.6, 20), [0] * 20, semantic)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1  # about 0.005 on one core


def test_ids_survive_the_image_format():
    ids = np.array([[0, 1, 255], [256, 65_536, 2**24 - 1]])
    assert (decode_ids(encode_ids(ids)) == ids).all()
    assert encode_ids(np.array([[1 + 2 * 256 + 3 * 65_536]]))[0, 0].tolist() == [3, 2, 1]


# ----------------------------------------------------------------------------------------------------------------------
# Quality


def quality_by_definition(images, category):
    """Compute PQ, SQ and RQ of one category from boolean masks, pair by pair."""
    total, matched_pairs, unmatched, missed = 0.0, 0, 0, 0
    for truth, labelled, predicted in images:
        void = ~np.isin(truth, [segment.id for segment in labelled])
        used_true, used_predicted = set(), set()
        for segment in labelled:
            for other in predicted.segments:
                if segment.is_crowd or not segment.category == other.category == category:
                    continue
                a, b = truth == segment.id, predicted.ids == other.id
                iou = (a & b).sum() / ((a | b) & ~(b & void & ~a)).sum()
                if iou > 0.5:
                    total, matched_pairs = total + iou, matched_pairs + 1
                    used_true.add(segment.id)
                    used_predicted.add(other.id)
        missed += sum(s.category == category and not s.is_crowd and s.id not in used_true for s in labelled)
        crowds = [segment for segment in labelled if segment.is_crowd and segment.category == category]
        ignored = void | (truth == crowds[-1].id) if crowds else void
        for other in predicted.segments:
            if other.category == category and other.id not in used_predicted:
                area = predicted.ids == other.id
                unmatched += (area & ignored).sum() / area.sum() <= 0.5
    denominator = matched_pairs + (unmatched + missed) / 2
    if not denominator:
        return None
    return total / denominator, total / matched_pairs if matched_pairs else 0.0, matched_pairs / denominator


def grid_map(rng, cells, size):
    """Return an index map of random rectangles in a coarse grid, so that segments of two maps often coincide."""
    ids = rng.integers(0, cells, (size, size)).repeat(8, 0).repeat(8, 1)
    return ids.astype(np.int32)


def random_image(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 5))
    truth = grid_map(rng, 7, size) * 1000  # ids are not contiguous
    labelled = [
        TrueSegment(int(number), int(rng.integers(0, 5)), bool(rng.random() < 0.2))
        for number in np.unique(truth)
        if number
    ]
    ids = np.where(rng.random(truth.shape) < 0.2, grid_map(rng, 6, size), np.searchsorted(np.unique(truth), truth))
    ids = ids.astype(np.int32)
    category_of = {i: segment.category for i, segment in enumerate(labelled, 1)}
    segments = []
    for number in np.unique(ids):
        if number:
            category = category_of.get(int(number), 0) if rng.random() < 0.8 else int(rng.integers(0, 5))
            area = int((ids == number).sum())
            segments.append(Segment(int(number), category, IS_THING[category], area))
    return truth, labelled, PanopticMap(ids, tuple(segments))


@pytest.mark.parametrize("seed", range(40))
def test_quality_equals_its_definition(seed):
    images = [random_image(100 * seed + number) for number in range(4)]
    quality = PanopticQuality(IS_THING)
    for index, image in enumerate(images):
        quality.add(index, compare(*image))
    groups, by_category = quality.compute()
    expected = {c: q for c in range(5) if (q := quality_by_definition(images, c)) is not None}
    assert by_category.keys() == expected.keys()
    for category, values in expected.items():
        found = by_category[category]
        assert (found.pq, found.sq, found.rq) == pytest.approx(values, abs=1e-12)
    things = [expected[c][0] for c in expected if IS_THING[c]]
    assert groups["things"].pq == pytest.approx(np.mean(things)) if things else math.isnan(groups["things"].pq)
    assert groups["all"].pq == pytest.approx(np.mean([values[0] for values in expected.values()]))


def whole(category, shape=(4, 4)):
    return PanopticMap(np.ones(shape, np.int32), (Segment(1, category, IS_THING[category], 16),))


def test_perfect_and_empty_predictions():
    truth, labelled = np.full((4, 4), 7), [TrueSegment(7, 3)]
    quality = PanopticQuality(IS_THING)
    quality.add(0, compare(truth, labelled, whole(3)))
    groups, _ = quality.compute()
    assert (groups["all"].pq, groups["stuff"].sq, groups["stuff"].rq) == (1, 1, 1)
    assert math.isnan(groups["things"].pq) and groups["things"].categories == 0
    quality.add(0, compare(truth, labelled, PanopticMap(np.zeros((4, 4), np.int32), ())))  # replaces the image
    assert quality.compute()[0]["all"].pq == 0


@pytest.mark.parametrize(("width", "matches"), [(2, 0), (3, 1)])
def test_match_needs_more_than_half(width, matches):
    truth = np.full((4, 4), 1)
    ids = np.zeros((4, 4), np.int32)
    ids[:, :width] = 1
    found = compare(truth, [TrueSegment(1, 0)], PanopticMap(ids, (Segment(1, 0, True, 4 * width),)))
    assert len(found.matches) == matches and len(found.missed) == len(found.false) == 1 - matches


@pytest.mark.parametrize(("void_columns", "false_positives"), [(2, 1), (3, 0)])
def test_predictions_in_void_are_no_errors(void_columns, false_positives):
    truth = np.full((4, 4), 5)
    truth[:, :void_columns] = 0
    found = compare(truth, [TrueSegment(5, 1)], whole(0))
    assert len(found.false) == false_positives


def test_crowds_are_neither_found_nor_missed():
    truth = np.full((4, 4), 5)
    crowd = [TrueSegment(5, 0, is_crowd=True)]
    assert compare(truth, crowd, whole(0)) == compare(truth, crowd, PanopticMap(np.zeros((4, 4), np.int32), ()))
    assert compare(truth, crowd, whole(1)).false == (1,)


def test_invalid_maps():
    with pytest.raises(ValueError, match=r"expected a panoptic map of \(4, 4\)"):
        compare(np.zeros((4, 4), int), [], whole(0, (4, 5)))
    with pytest.raises(ValueError, match="segment 9, which is not listed"):
        compare(np.full((4, 4), 9), [TrueSegment(1, 0)], whole(0))
