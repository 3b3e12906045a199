"""Scores of detections: golden values, COCO's numbers against pycocotools, the evaluator as the engine uses it."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.core.contracts import Batch, EvalSettings, Geometry, HeadSpec, ImageInfo, Results
from utils.core.errors import UserError
from utils.metrics import EVALUATORS
from utils.metrics.average_precision import average_precision, evaluate_detections, smooth, weighted_sum
from utils.metrics.coco import (
    COCO_NAMES,
    coco_metrics,
    ground_truth_from_file,
    ground_truth_from_labels,
    match_categories,
)
from utils.metrics.confusion import ConfusionMatrix
from utils.metrics.matching import match_detections, match_one_to_one
from utils.ops.iou import pairwise_iou_numpy

GOLDEN_DETECTIONS = np.array([(0, 0, 10, 10), (1, 0, 11, 10), (0, 0, 10, 10)], dtype=float)
GOLDEN_SCORES, GOLDEN_CLASSES = np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1])
GOLDEN_LABEL = np.array([(1, 0, 11, 10)], dtype=float)


def test_average_precision_golden_value():
    recall, precision = np.array((0.1, 0.2, 0.2, 0.4, 0.6, 0.6)), np.array((1, 1, 0.6667, 0.75, 0.6, 0.5))
    assert average_precision(recall, precision)[0] == pytest.approx(0.58325, abs=1e-5)
    assert average_precision(np.ones(1), np.ones(1))[0] == pytest.approx(0.995, abs=1e-9)


def test_scores_golden_values():
    correct = np.array([[1, 1], [1, 0], [0, 0], [1, 1], [0, 0], [1, 0]], dtype=bool)
    scores = np.array([0.9, 0.8, 0.75, 0.6, 0.5, 0.3])
    result = evaluate_detections(correct, scores, np.array([0, 0, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1]))
    assert result.true_positives.tolist() == [3, 1]
    assert result.false_positives.tolist() == [1, 1]
    assert result.precision == pytest.approx([0.75, 0.5], abs=1e-5)
    assert result.recall == pytest.approx([1, 0.5], abs=1e-5)
    assert result.f1 == pytest.approx([0.857143, 0.5], abs=1e-5)
    assert result.ap == pytest.approx(np.array([[0.9125, 0.417912], [0.6225, 0.6225]]), abs=1e-5)
    order = np.array([5, 2, 0, 4, 1, 3])  # the order given does not matter where scores differ
    again = evaluate_detections(
        correct[order], scores[order], np.array([0, 0, 0, 1, 1, 0])[order], np.array([1, 0, 0, 1, 0])
    )
    assert (again.ap == result.ap).all()


def test_smoothing_and_fitness_golden_values():
    wave = np.array([0, 1, 2, 3, 10, 3, 2, 1] + [0] * 12, dtype=float)
    expected = [0.3333, 1, 2, 5, 5.3333, 5, 2, 1, 0.3333] + [0] * 11
    assert smooth(wave, 0.1) == pytest.approx(expected, abs=1e-4)
    numbers = {"precision": 0.6, "recall": 0.5, "map50": 0.4, "map50_95": 0.3}
    assert weighted_sum(numbers, {"map50": 0.1, "map50_95": 0.9}) == pytest.approx(0.31)


def test_classes_without_detections_or_labels():
    result = evaluate_detections(np.ones((1, 10), bool), np.array([0.9]), np.array([0]), np.array([0, 5]))
    assert result.classes.tolist() == [0, 5]
    assert result.ap[1].tolist() == [0] * 10
    nothing = evaluate_detections(np.ones((1, 10), bool), np.array([0.9]), np.array([0]), np.zeros(0))
    assert len(nothing.classes) == 0


def test_matching_prefers_confidence():
    overlap = pairwise_iou_numpy(GOLDEN_LABEL, GOLDEN_DETECTIONS)
    assert overlap[0] == pytest.approx([0.818182, 1, 0.818182], abs=1e-6)
    correct = match_detections(overlap, (GOLDEN_CLASSES == 0)[None])
    assert correct.astype(int).tolist() == [[1] * 7 + [0] * 3, [0] * 7 + [1] * 3, [0] * 10]


def test_matching_is_one_to_one():
    overlap = np.array([[0.9, 0.6, 0.0], [0.7, 0.8, 0.5]])
    correct = match_detections(overlap, np.ones((2, 3), dtype=bool))
    assert correct[:, 0].tolist() == [True, True, False]
    assert correct[:, 8].tolist() == [True, False, False]  # at .9, which an overlap of .9 reaches
    assert match_detections(np.zeros((0, 3)), np.zeros((0, 3), bool)).shape == (3, 10)
    assert not match_detections(np.zeros((2, 2)), np.ones((2, 2), bool)).any()  # boxes that only touch


def test_confusion_golden_matrix():
    matrix = ConfusionMatrix(2)
    matrix.add(GOLDEN_DETECTIONS, GOLDEN_SCORES, GOLDEN_CLASSES, GOLDEN_LABEL, np.array([0]))
    assert matrix.matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_confusion_false_positives_and_misses():
    matrix = ConfusionMatrix(2)
    none, label = np.zeros((0, 4)), np.array([[50.0, 50, 60, 60]])
    matrix.add(GOLDEN_DETECTIONS[:1], np.array([0.9]), np.array([1]), none, np.zeros(0))  # no labels
    matrix.add(GOLDEN_DETECTIONS[:1], np.array([0.9]), np.array([1]), label, np.array([0]))  # nothing matches
    matrix.add(GOLDEN_DETECTIONS[:1], np.array([0.25]), np.array([1]), label, np.array([0]))  # not above .25
    matrix.add(none, np.zeros(0), np.zeros(0), label, np.array([1]))
    matrix.add(label, np.array([0.9]), np.array([1]), label, np.array([0]))  # the wrong class
    assert matrix.matrix.tolist() == [[0, 0, 0], [1, 0, 2], [2, 1, 0]]


def test_confusion_pairs_by_iou():
    overlap = np.array([[0.5, 0.9, 0.0], [0.48, 0.6, 0.0]])
    assert sorted(match_one_to_one(overlap, 0.45)) == [(0, 1)]  # detection 0 prefers label 0 and loses it
    assert match_one_to_one(np.array([[0.45]]), 0.45) == []
    assert match_one_to_one(np.zeros((0, 3)), 0.45) == []


# ----------------------------------------------------------------------------------------------------------------------
# COCO's numbers


def by_image(rows, category_ids, image_ids):
    """Return COCO-format predictions as found[index] = boxes, scores, classes."""
    found = {}
    for index, image in enumerate(image_ids):
        mine = [row for row in rows if row["image_id"] == image]
        boxes = np.array([row["bbox"] for row in mine], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([category_ids.index(row["category_id"]) for row in mine], dtype=int)
        found[index] = boxes, np.array([row["score"] for row in mine], dtype=float), classes
    return found


def pycocotools_numbers(truth_json, rows, image_ids):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(truth_json))
        evaluation = COCOeval(truth, truth.loadRes([dict(row) for row in rows]), "bbox")
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_NAMES, evaluation.stats.tolist(), strict=True))


def test_coco_sample_with_crowds(shared, capfd):
    folder = shared / "reference" / "cocoapi_val2014_100"
    expected = json.loads((folder / "EXPECTED_pycocotools_stats.json").read_text())["bbox"]
    content = json.loads((folder / "instances_val2014_100.json").read_text())
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    images = sorted(image["id"] for image in content["images"])
    names = [category["name"] for category in content["categories"]]
    paths = {index: f"{image:012d}.jpg" for index, image in enumerate(images)}
    truth = ground_truth_from_file(folder / "instances_val2014_100.json", names, paths)
    found = by_image(rows, truth.category_ids, images)
    numbers = coco_metrics(truth, found)
    whole = {name: expected[name] for name in COCO_NAMES}
    assert numbers == pytest.approx(whole, abs=1e-6)
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    half = coco_metrics(truth, dict(list(found.items())[::2]))  # other images of the file do not count as missed
    reference = pycocotools_numbers(folder / "instances_val2014_100.json", rows, images[::2])
    assert half == pytest.approx(reference, abs=1e-6)
    assert capfd.readouterr().out == ""


def random_scene(seed, images=30, classes=4):
    """Return labels and noisy detections: per index boxes xyxy, (scores,) classes."""
    rng = np.random.default_rng(seed)
    labels, found = {}, {}
    for index in range(images):
        count = int(rng.integers(0, 8))
        boxes = rng.uniform(0, 300, (count, 4))
        boxes[:, 2:] = boxes[:, :2] + rng.choice([10, 60, 180], (count, 1)) * rng.uniform(0.5, 1.5, (count, 2))
        labels[index] = boxes, rng.integers(0, classes, count)
        spurious = rng.uniform(0, 300, (4, 4))
        spurious[:, 2:] += spurious[:, :2]
        noisy = np.concatenate((np.repeat(boxes, 2, axis=0) + rng.normal(0, 5, (2 * count, 4)), spurious))
        guessed = np.concatenate((np.repeat(labels[index][1], 2), rng.integers(0, classes, 4)))
        scores = rng.random(len(noisy)).round(2)  # ties
        order = np.argsort(-scores, kind="stable")
        found[index] = noisy[order], scores[order], guessed[order]
    return labels, found


def coco_json(path, labels, names, offset=100):
    """Write `labels` as COCO annotations whose ids are not our indices."""
    annotations = []
    for index, (boxes, classes) in labels.items():
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), classes.tolist(), strict=True):
            box, number = [x1, y1, x2 - x1, y2 - y1], len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": index + offset, "category_id": 10 + 3 * label, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": int(number % 9 == 0)}
            )  # fmt: skip
    content = {
        "images": [{"id": i + offset, "file_name": f"a/{i:03d}.jpg", "width": 640, "height": 480} for i in labels],
        "categories": [{"id": 10 + 3 * i, "name": name} for i, name in enumerate(names)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


NAMES = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("seed", [0, 1])
def test_random_scenes_match_pycocotools(tmp_path, seed):
    labels, found = random_scene(seed)
    path = coco_json(tmp_path / "truth.json", labels, NAMES)
    truth = ground_truth_from_file(path, NAMES, {index: f"b/{index:03d}.png" for index in labels})
    settings = EvalSettings(names=NAMES, annotations=path, save_json=tmp_path / "found.json")
    evaluator = filled(EVALUATORS.get("detect")(HeadSpec("detect", 4), settings), labels, found, "b/{:03d}.png")
    numbers = evaluator.compute().metrics
    rows = json.loads((tmp_path / "found.json").read_text())
    expected = pycocotools_numbers(path, rows, [index + 100 for index in labels])
    assert {name: numbers[f"coco/{name}"] for name in COCO_NAMES} == pytest.approx(expected, abs=1e-6)
    assert coco_metrics(truth, found) == pytest.approx(expected, abs=1e-3)
    assert rows[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert all(round(value, 3) == value for value in rows[0]["bbox"])


def test_coco_labels_from_memory_match_file(tmp_path):
    labels, found = random_scene(3)
    path = coco_json(tmp_path / "truth.json", labels, NAMES)
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    path.write_text(json.dumps(content))
    from_file = ground_truth_from_file(path, NAMES, {index: f"{index:03d}.jpg" for index in labels})
    images = {index: (f"{index:03d}.jpg", (480, 640)) for index in labels}
    in_memory = ground_truth_from_labels(NAMES, images, labels)
    assert coco_metrics(in_memory, found) == pytest.approx(coco_metrics(from_file, found), abs=1e-9)


def test_coco_without_labels_or_detections(capfd):
    none = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    box = np.array([[1.0, 1, 50, 50]]), np.array([0.9]), np.array([0])
    images = {0: ("0.jpg", (100, 100))}
    unlabelled = ground_truth_from_labels(NAMES, images, {0: (none[0], none[2])})
    labelled = ground_truth_from_labels(NAMES, images, {0: (box[0], box[2])})
    assert set(coco_metrics(unlabelled, {0: none}).values()) == {-1}
    assert set(coco_metrics(unlabelled, {0: box}).values()) == {-1}
    assert coco_metrics(labelled, {0: none})["AP"] == 0
    assert coco_metrics(labelled, {0: box})["AP"] == pytest.approx(1)
    assert set(coco_metrics(ground_truth_from_labels(NAMES, {}, {}), {}).values()) == {-1}
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_coco_class_matching():
    categories = [{"id": 7, "name": "Dog"}, {"id": 9, "name": "cat "}]
    path = Path("x.json")
    assert match_categories(path, ("cat", "dog"), categories) == (9, 7)
    assert match_categories(path, ("cat",), categories) == (9,)
    assert match_categories(path, ("a", "b"), categories) == (7, 9)
    with pytest.raises(UserError, match=r"x\.json: 2 categories for 3 classes, and none is named 'bird'"):
        match_categories(path, ("cat", "bird", "dog"), categories)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"images": [1], "annotations": []}'])
def test_bad_annotation_files(tmp_path, content):
    path = tmp_path / "truth.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"truth\.json") as caught:
        ground_truth_from_file(path, NAMES, {0: "000.jpg"})
    assert "\n" not in str(caught.value)


def test_annotations_of_another_split(tmp_path):
    path = coco_json(tmp_path / "truth.json", random_scene(0, images=2)[0], NAMES)
    with pytest.raises(UserError, match="none of the 1 images"):
        ground_truth_from_file(path, NAMES, {0: "elsewhere.jpg"})


# ----------------------------------------------------------------------------------------------------------------------
# The evaluator


def filled(evaluator, labels, found, path="{:03d}.jpg", indices=None):
    """Feed scenes of 480x640 images, seen by a network of 320x320 behind a letterbox, one image per batch."""
    geometry = Geometry((480, 640), (320, 320), (0.5, 0.5), (0.0, 40.0))
    for index in labels if indices is None else indices:
        boxes, classes = labels[index]
        inside = boxes * 0.5 + np.array([0, 40, 0, 40])
        rows = np.column_stack(
            (
                np.zeros(len(boxes)),
                classes,
                (inside[:, :2] + inside[:, 2:]) / 640,
                (inside[:, 2:] - inside[:, :2]) / 320,
            )
        )
        info = ImageInfo(index, path.format(index), geometry)
        detected, scores, guessed = (torch.from_numpy(np.asarray(part)) for part in found[index])
        result = Results(info, detected.float(), scores.float(), guessed.long())
        evaluator.update([result], Batch(torch.zeros(1, 3, 320, 320), torch.from_numpy(rows).float(), [info]))
    return evaluator


def make(num_classes=4, **settings):
    return EVALUATORS.get("detect")(
        HeadSpec("detect", num_classes), EvalSettings(names=NAMES[:num_classes], **settings)
    )


def test_perfect_detections():
    labels = {0: (np.array([[10.0, 20, 110, 220], [300, 100, 400, 150]]), np.array([0, 2]))}
    found = {0: (labels[0][0], np.array([0.9, 0.8]), labels[0][1])}
    scores = filled(make(), labels, found).compute()
    assert scores.metrics["map50_95"] == pytest.approx(0.995)
    assert scores.metrics["coco/AP"] == pytest.approx(1)
    assert scores.metrics["precision"] == scores.metrics["recall"] == 1
    assert scores.per_class == {0: pytest.approx(0.995), 2: pytest.approx(0.995)}
    assert [name for name, _ in scores.rows] == ["all", "ant", "cat"]
    assert set(scores.columns) == set(scores.rows[0][1])
    assert scores.rows[0][1]["Instances"] == 2
    assert scores.details.confusion.diagonal().tolist() == [1, 0, 1, 0, 0]
    assert scores.details.f1.shape == (2, 1000)


def test_no_detections_or_labels():
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int)
    labels = {0: (np.array([[10.0, 20, 110, 220]]), np.array([0]))}
    numbers = filled(make(), labels, {0: nothing}).compute().metrics
    assert numbers["map50"] == numbers["coco/AP"] == 0
    empty = filled(make(), {0: (nothing[0], nothing[2])}, {0: nothing}).compute()
    assert empty.metrics["map50"] == 0
    assert empty.rows == [("all", dict.fromkeys(empty.columns, 0) | {"Images": 1})]
    assert make().compute().rows[0][1]["Images"] == 0


def test_single_class():
    labels, found = random_scene(5, classes=1)
    scores = filled(make(num_classes=1), labels, found).compute()
    assert 0 < scores.metrics["map50_95"] < 1
    assert scores.details.confusion.shape == (2, 2)


def test_images_with_unknown_boxes_are_ignored():
    evaluator = make()
    info = ImageInfo(0, "0.jpg", Geometry((10, 10), (10, 10)))
    result = Results(info, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    batch = Batch(torch.zeros(1, 3, 10, 10), torch.zeros(0, 6), [info], boxes_known=torch.tensor([False]))
    evaluator.update([result], batch)
    assert evaluator.compute().rows[0][1]["Images"] == 0


def test_scores_independent_of_order_and_repeats():
    labels, found = random_scene(7)
    expected = filled(make(), labels, found).compute()
    shuffled = [*np.random.default_rng(0).permutation(len(labels)).tolist(), 3, 0]
    again = filled(make(), labels, found, indices=shuffled).compute()
    assert again.metrics == expected.metrics
    assert (again.details.confusion == expected.details.confusion).all()


def test_evaluation_speed():
    labels, found = random_scene(8, images=128)
    evaluator = filled(make(), labels, found)
    start = time.perf_counter()
    evaluator.compute()
    assert time.perf_counter() - start < 1


# ----------------------------------------------------------------------------------------------------------------------
# Two processes


WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path[:0] = [{root!r}, {tests!r}]
from utils.core import distributed as dist
dist.start(torch.device("cpu"))
import test_losses_detect as losses
import test_metrics_detect as metrics
rank = dist.rank()
labels, found = metrics.random_scene(9)
mine = [index for index in labels if index % 2 == rank] + ([0] if rank else [])  # a sampler may repeat an image
scores = metrics.filled(metrics.make(), labels, found, indices=mine).compute()
known = torch.tensor([True])
raw = {{name: level[rank : rank + 1] for name, level in losses.golden_raw().items()}}
targets = losses.TARGETS[losses.TARGETS[:, 0] == rank].clone()
targets[:, 0] = 0
terms = losses.make(autobalance=True)
local = {{name: term.item() for name, term in terms(raw, losses.batch_of(targets, images=1)).items()}}
terms.eval()
for _ in range(1 + rank):  # ranks may have unequal numbers of batches to validate
    alone = sum(term.item() for term in terms(raw, losses.batch_of(targets, images=1)).values())
Path({out!r}, f"{{rank}}.json").write_text(
    json.dumps({{"numbers": scores.metrics, "confusion": scores.details.confusion.tolist(), "terms": local,
                "balance": terms.balance.tolist(), "alone": alone}})
)
dist.stop()
"""


def test_two_processes_match_one(tmp_path, root):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(root), tests=str(root / "tests"), out=str(tmp_path)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen([sys.executable, script], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))

    labels, found = random_scene(9)
    alone = filled(make(), labels, found).compute()
    assert first["numbers"] == second["numbers"] == alone.metrics
    assert first["confusion"] == alone.details.confusion.tolist()

    from test_losses_detect import TARGETS, batch_of, golden_raw
    from test_losses_detect import make as make_loss

    own = make_loss().eval()({name: level[:1] for name, level in golden_raw().items()}, batch_of(TARGETS[:2], images=1))
    assert first["alone"] == pytest.approx(sum(term.item() for term in own.values()), rel=1e-3)
    loss = make_loss(autobalance=True)
    for name, term in loss(golden_raw(), batch_of(TARGETS)).items():
        assert first["terms"][name] + second["terms"][name] == pytest.approx(term.item(), rel=1e-6)
    assert first["balance"] == second["balance"] == pytest.approx(loss.balance.tolist(), rel=1e-6)
