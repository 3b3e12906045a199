"""Scores of pixels: golden values, an independent count, and the contract with the engine."""

import numpy as np
import pytest
import torch
from test_losses_semantic import golden_labels, golden_scores

from utils.core.contracts import Batch, EvalSettings, Geometry, HeadSpec, ImageInfo, Results
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.engine.evaluate import table
from utils.losses import LOSSES
from utils.metrics import EVALUATORS, semantic
from utils.metrics.average_precision import weighted_sum
from utils.postprocess import POSTPROCESS


def spec_of(classes):
    return HeadSpec("semantic", classes, names=tuple(f"c{index}" for index in range(classes)))


def fill(evaluator, labels, found, first=0):
    """Feed (B, H, W) labels and predictions as one batch."""
    height, width = labels.shape[1:]
    infos = [
        ImageInfo(first + i, f"{first + i}.png", Geometry((height, width), (height, width))) for i in range(len(labels))
    ]
    results = [Results(info, semantic=torch.as_tensor(one)) for info, one in zip(infos, found, strict=True)]
    batch = Batch(torch.zeros(len(labels), 3, 2, 2), torch.zeros(0, 6), infos, semantic=torch.as_tensor(labels))
    evaluator.update(results, batch)
    return evaluator


def evaluator_of(classes, **settings):
    return EVALUATORS.get("semantic")(spec_of(classes), EvalSettings(**settings))


def test_multiyolov5_golden_value():
    labels, found = golden_labels(), golden_scores(0.0).argmax(dim=1).to(torch.uint8)
    scores = fill(evaluator_of(19), labels, found).compute()
    assert scores.metrics["miou_absent_zero"] == pytest.approx(0.0230804, abs=1e-7)
    assert scores.metrics["pixel_accuracy"] == pytest.approx(5 / 96)
    assert scores.details.confusion.trace() == 5 and scores.details.confusion.sum() == 96


def test_joint_fitness_weights():
    weights = {"detect/map50": 0.1, "detect/map50_95": 0.2, "semantic/miou": 0.7}
    numbers = {"detect/precision": 0.6, "detect/recall": 0.5, "detect/map50": 0.4, "detect/map50_95": 0.3}
    assert weighted_sum(numbers | {"semantic/miou": 0.7}, weights) == pytest.approx(0.59)


def test_hand_computed_case():
    labels = np.array([[[0, 0, 0, 1], [1, 1, 255, 255]]], np.uint8)
    found = np.array([[[0, 0, 1, 1], [1, 2, 2, 0]]], np.uint8)
    scores = fill(evaluator_of(4), labels, found).compute()
    iou = {"iou/c0": 2 / 3, "iou/c1": 2 / 4, "iou/c2": 0.0}  # class 3 is nowhere
    assert {name: value for name, value in scores.metrics.items() if name in iou} == pytest.approx(iou)
    assert "iou/c3" not in scores.metrics
    assert scores.metrics["miou"] == pytest.approx((2 / 3 + 0.5) / 3)
    assert scores.metrics["miou_absent_zero"] == pytest.approx((2 / 3 + 0.5) / 4)
    assert scores.metrics["pixel_accuracy"] == pytest.approx(4 / 6)
    assert scores.metrics["fw_iou"] == pytest.approx((2 / 3 * 3 + 0.5 * 3) / 6)
    assert scores.per_class == pytest.approx({0: 2 / 3, 1: 0.5})
    assert scores.details.confusion.tolist() == [[2, 0, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert scores.columns == ("Images", "Pixels", "IoU", "Accuracy")
    assert [name for name, _ in scores.rows] == ["all", "c0", "c1"]
    assert scores.rows[0][1] == pytest.approx(
        {"Images": 1, "Pixels": 6, "IoU": scores.metrics["miou"], "Accuracy": 4 / 6}
    )
    assert scores.rows[2][1] == pytest.approx({"Images": 1, "Pixels": 3, "IoU": 0.5, "Accuracy": 2 / 3})
    both = "mean IoU 0.3889, with classes that occur nowhere as 0 0.2917; weighted by pixels 0.5833"
    assert table(scores, verbose=False).splitlines()[-1] == both
    zero_scores = fill(evaluator_of(4, absent_as_zero=True), labels, found).compute()
    assert zero_scores.note == both  # both ways are always printed
    zero = zero_scores.metrics
    assert zero["miou"] == zero["miou_absent_zero"] == pytest.approx((2 / 3 + 0.5) / 4)


def random_maps(classes, images=3, seed=0, absent=()):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (images, 20, 31)).astype(np.uint8)
    found = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, classes, labels.shape)).astype(np.uint8)
    for label in absent:
        labels[labels == label] = 0
        found[found == label] = 0
    labels[rng.random(labels.shape) < 0.2] = 255
    return labels, found


def independent(labels, found, classes):
    """Return the numbers by sets of pixels, one class after the other."""
    known = labels != 255
    overlaps, weighted = [], 0.0
    for label in range(classes):
        true, said = set(np.flatnonzero((labels == label) & known)), set(np.flatnonzero((found == label) & known))
        if true | said:
            overlaps.append(len(true & said) / len(true | said))
            weighted += overlaps[-1] * len(true)
    return {
        "miou": sum(overlaps) / len(overlaps),
        "miou_absent_zero": sum(overlaps) / classes,
        "pixel_accuracy": float((labels == found)[known].mean()),
        "fw_iou": weighted / known.sum(),
    }


@pytest.mark.parametrize("absent", [(), (2,), (0, 5)])
def test_random_maps_match_reference(absent):
    labels, found = random_maps(6, absent=absent)
    numbers = fill(evaluator_of(6), labels, found).compute().metrics
    wanted = independent(labels, found, 6)
    assert {name: numbers[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("classes", [6, 19, 133])
def test_random_maps_match_hotcoco(classes):
    hotcoco = pytest.importorskip("hotcoco.semantic", reason="this hotcoco has no scores of pixels")
    labels, found = random_maps(classes, absent=(3,))
    other = hotcoco.SemanticEval(classes)
    other.update(labels, found)
    scores = fill(evaluator_of(classes), labels, found).compute()
    wanted = other.results()
    assert scores.metrics["miou"] == pytest.approx(wanted["mIoU"], rel=1e-9)
    assert scores.metrics["fw_iou"] == pytest.approx(wanted["fwIoU"], rel=1e-9)
    assert scores.metrics["pixel_accuracy"] == pytest.approx(wanted["aAcc"], rel=1e-9)
    assert np.array_equal(scores.details.confusion.T, other.confusion().astype(np.int64))


def test_scores_independent_of_order_and_repeats():
    labels, found = random_maps(6, images=4)
    whole = fill(evaluator_of(6), labels, found).compute()
    parts = evaluator_of(6)
    for first in (2, 0, 3, 1, 2):
        fill(parts, labels[first : first + 1], found[first : first + 1], first)
    again = parts.compute()
    assert again.metrics == whole.metrics and again.rows == whole.rows


def test_ranks_match_one_process(monkeypatch):
    labels, found = random_maps(6, images=4)
    whole = fill(evaluator_of(6), labels, found).compute()
    ranks = [fill(evaluator_of(6), labels[r::2], found[r::2], first=10 * r) for r in range(2)]
    monkeypatch.setattr(semantic, "gather", lambda value: [rank._counts for rank in ranks])
    for rank in ranks:
        scores = rank.compute()
        assert scores.metrics == whole.metrics
        assert np.array_equal(scores.details.confusion, whole.details.confusion)


def test_unlabelled_images_are_ignored():
    evaluator = evaluator_of(3)
    info = ImageInfo(0, "a.png", Geometry((2, 2), (2, 2)))
    evaluator.update([Results(info)], Batch(torch.zeros(1, 3, 2, 2), torch.zeros(0, 6), [info]))
    fill(evaluator, np.full((1, 2, 2), 255, np.uint8), np.zeros((1, 2, 2), np.uint8))
    scores = evaluator.compute()
    assert scores.rows == [("all", {"Images": 0, "Pixels": 0, "IoU": 0.0, "Accuracy": 0.0})]
    assert set(scores.metrics) == {"miou", "miou_absent_zero", "pixel_accuracy", "fw_iou"}
    assert not any(scores.metrics.values()) and scores.per_class == {}


def test_large_counts_are_exact():
    evaluator = evaluator_of(2)
    big = 2**40 + 1
    evaluator._counts[0] = semantic.PixelCounts(np.array([0, 1], np.int32), np.array([big, 3]))
    scores = evaluator.compute()
    assert scores.details.confusion.tolist() == [[big, 0], [3, 0]]


def test_errors_name_the_image():
    with pytest.raises(UserError, match=r"0\.png: its map of classes has pixels of class 7, but there are 3 classes"):
        fill(evaluator_of(3), np.full((1, 2, 2), 7, np.uint8), np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"0\.png: a map of \(2, 3\) pixels, labels of \(2, 2\)"):
        fill(evaluator_of(3), np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 3), np.uint8))
    info = ImageInfo(0, "a.png", Geometry((2, 2), (2, 2)))
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(0, 6), [info], semantic=torch.zeros(1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"a\.png: no classes of pixels"):
        evaluator_of(3).update([Results(info)], batch)


def test_names_of_the_head():
    evaluator = EVALUATORS.get("semantic")(HeadSpec("semantic", 2, names=("road", "sky")), EvalSettings(names=("car",)))
    assert evaluator.names == ("road", "sky")
    assert EVALUATORS.get("semantic")(HeadSpec("semantic", 2), EvalSettings()).names == ("0", "1")


@pytest.mark.parametrize("kind", ["ce", "ohem", "prob_ohem", "focal"])
def test_optimising_the_loss_improves_scores(kind):
    """Loss, post-processing and evaluator agree on where pixels are: free scores learn blocks of a small map."""
    rng = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 5, (2, 4, 6), generator=rng).to(torch.uint8)
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)  # (2, 32, 48)
    labels[0, :5] = 255
    maps = torch.zeros(2, 5, 16, 24, requires_grad=True)
    infos = [ImageInfo(i, f"{i}.png", Geometry((32, 48), (32, 48))) for i in range(2)]
    batch = Batch(torch.zeros(2, 3, 32, 48), torch.zeros(0, 6), infos, semantic=labels)
    loss = LOSSES.get("semantic")(spec_of(5), Hyp(seg=1.0, seg_loss=kind))
    optimizer, values = torch.optim.Adam([maps], lr=0.3), []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss({"logits": maps}, batch)["seg"]
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] / 4
    results = [Results(info) for info in infos]
    POSTPROCESS.get("semantic")(spec_of(5), EvalSettings())({"logits": maps.detach()}, results)
    evaluator = evaluator_of(5)
    evaluator.update(results, batch)
    assert evaluator.compute().metrics["miou"] > 0.9
