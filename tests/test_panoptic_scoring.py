"""Panoptic networks: which one is built, how it is scored, two processes, COCO's result files."""

import json
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest
import torch
from helpers_panoptic import id_map, panoptic_data, write_panoptic
from helpers_run import ROOT, command, environment, results, same, script, weights

from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from models.network_runner import NetworkRunner
from models.semantic_inference import SemanticOverride
from tools.search.program import TrialTrainer
from tools.search.trial import PruningLogger
from utils.core.contracts import (
    Batch,
    EvalSettings,
    Geometry,
    HeadSpec,
    ImageInfo,
    Outputs,
    Results,
)
from utils.core.data_config import load_data
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.segment_types import PanopticLabels, PanopticMap, Segment
from utils.core.train_settings import TrainSettings
from utils.engine.trainable_network import build_trainable_network
from utils.metrics.panoptic import PanopticEvaluator
from utils.metrics.semantic import SemanticEvaluator
from utils.ops.panoptic import decode_ids
from utils.programs.export_certificate import accuracy
from utils.tasks.task_selection import select_task, select_training_task

SPEC = HeadSpec("panoptic", 3, names=("cat", "dog", "grass"), things=("cat", "dog"))


def network_for(data, **settings):
    task = select_task("segment", ())
    return build_trainable_network(task.for_data(task, data), TrainSettings(**settings), Hyp(), data, None)


def test_panoptic_data_choose_a_panoptic_network(tmp_path):
    data = panoptic_data(tmp_path)
    network = network_for(data)
    assert network.architecture["name"] == "yolov5n-pan"
    assert {name: spec.names for name, spec in network.specs.items()} == {
        "segment": ("cat", "dog"),
        "semantic": ("cat", "dog", "grass"),
    }
    assert list(network_for(data, cfg="yolov5n-seg").specs) == ["segment"]  # an explicit choice


def test_weights_without_a_semantic_head_get_one(tmp_path):
    data, source = panoptic_data(tmp_path), build_network(read_architecture("yolov5n-seg"), 5)
    with torch.no_grad():
        source.model[0].conv.weight.fill_(0.125)
    save_checkpoint(tmp_path / "seg.pt", source, {"task": "segment"})
    network = network_for(data, weights=str(tmp_path / "seg.pt"))
    assert list(network.specs) == ["segment", "semantic"] and network.specs["semantic"].num_classes == 3
    assert (network.model[0].conv.weight == 0.125).all()
    direct = network_for(data, weights=str(tmp_path / "seg.pt"), cfg="yolov5n-pan")
    assert list(direct.specs) == ["segment", "semantic"] and (direct.model[0].conv.weight == 0.125).all()


def test_epochs_are_ranked_by_panoptic_quality(tmp_path):
    data, heads = panoptic_data(tmp_path), ("segment", "semantic")
    task = select_task("segment", heads)
    adapted = task.for_data(task, data)
    assert adapted.fitness == {"panoptic/pq": 1.0} and adapted.columns["metrics/PQ"] == "panoptic/pq"
    assert not adapted.periodic_heads
    count = sum(column.startswith("metrics/") for column in task.columns)
    chosen = select_training_task("segment", (1.0, *(0.0,) * (count - 1)), heads)
    assert "panoptic/pq" not in chosen.for_data(chosen, data).fitness  # an explicit --fitness
    alone = select_task("segment", ("segment",))
    assert alone.for_data(alone, data).heads == ("segment",)


def batches(tmp_path, training, **options):
    data = panoptic_data(tmp_path, count=3, **options)
    task = select_task("segment", ("segment", "semantic"))
    request = LoadRequest(data, "train", training, 64, 2, 32, Hyp(), workers=0, rect=not training)
    loader = task.for_data(task, data).load(request)
    return loader, list(loader.epoch(0))


def test_training_batches_have_boxes_masks_and_maps(tmp_path):
    loader, found = batches(tmp_path, training=True)
    assert loader.num_images == 3 and not loader.heads
    for batch in found:
        assert batch.panoptic is None and batch.masks is not None
        assert batch.semantic.shape == (len(batch), 64, 64) and set(batch.semantic.unique().tolist()) <= {0, 1, 2, 255}


def test_evaluation_batches_have_panoptic_labels(tmp_path):
    loader, found = batches(tmp_path, training=False)
    assert loader.heads == ("segment", "semantic", "panoptic")
    labels = found[0].panoptic[0]
    assert labels.classes == (2, 0, 1, 1) and labels.crowd == (False, False, False, True)
    assert labels.map_name == "0.png" and labels.image_id == 0 and labels.category_ids == (3, 7, 90)
    ids = id_map()
    numbers = np.select([ids == 70_000, ids == 1, ids == 300, ids == 5], [1, 2, 3, 4], 0)
    assert (labels.numbers == numbers).all()
    assert (labels.semantic(255)[:, :10] == 255).all() and labels.semantic(255)[55, 25] == 1


def test_a_map_that_vanishes_is_void(tmp_path):
    data = panoptic_data(tmp_path, count=2)
    task = select_task("segment", ("segment", "semantic"))
    request = LoadRequest(data, "train", False, 64, 2, 32, Hyp(), workers=0, rect=True)
    loader = task.for_data(task, data).load(request)
    (tmp_path / "panoptic" / "train" / "1.png").unlink()
    batch = next(iter(loader.epoch(0)))
    by_path = {info.path[-5:]: labels for info, labels in zip(batch.info, batch.panoptic, strict=True)}
    assert by_path["1.jpg"].classes == () and not by_path["1.jpg"].numbers.any() and by_path["0.jpg"].classes


def prediction(index, ids, segments):
    info = ImageInfo(index, f"{index}.jpg", Geometry(ids.shape, ids.shape))
    semantic = torch.from_numpy(np.array([255, *(one.category for one in segments)], np.uint8)[ids])
    return Results(info, panoptic=PanopticMap(ids.astype(np.int32), tuple(segments)), semantic=semantic)


def labelled(numbers, classes, crowd=None, **more):
    return PanopticLabels(numbers, classes, crowd or (False,) * len(classes), **more)


def batch_of(panoptic):
    count = len(panoptic)
    return Batch(torch.zeros(count, 3, 8, 8), torch.zeros(0, 6), [None] * count, panoptic=panoptic)


def test_panoptic_scores_of_known_damage(tmp_path):
    numbers = np.zeros((10, 10), np.uint8)
    numbers[:, :5], numbers[:5, 5:] = 1, 2  # a cat, grass, void
    truth = labelled(numbers, (0, 2), image_id=5, map_name="a/5.png", category_ids=(3, 7, 90))
    ids = numbers.copy()
    ids[:, 4] = 0  # 40 of 50 pixels of the cat
    ids[5:, 5:] = 2  # on void
    found = prediction(0, ids, [Segment(1, 0, True, 40, 0.9), Segment(2, 2, False, 50)])
    evaluator = PanopticEvaluator(SPEC, EvalSettings(save_json=tmp_path / "best_predictions.json"))
    evaluator.update([found], batch_of([truth]))
    evaluator.update([found], batch_of([truth]))  # an image that occurs twice counts once
    scores = evaluator.compute()
    assert scores.metrics["pq"] == pytest.approx(0.9) and scores.metrics["rq"] == 1
    assert scores.metrics["pq_things"] == pytest.approx(0.8) and scores.metrics["pq_stuff"] == 1
    assert scores.metrics["pq/cat"] == pytest.approx(0.8) and "pq/dog" not in scores.metrics
    assert [name for name, _ in scores.rows] == ["all", "things", "stuff", "cat", "grass"]
    written = json.loads((tmp_path / "best_panoptic.json").read_text())["annotations"]
    assert [(one["image_id"], one["file_name"]) for one in written] == [(5, "a/5.png")]
    assert [one["category_id"] for one in written[0]["segments_info"]] == [3, 90]
    assert written[0]["segments_info"][0] == {"id": 1, "category_id": 3, "area": 40, "bbox": [0, 0, 4, 10]}
    assert (decode_ids(cv2.imread(str(tmp_path / "best_panoptic" / "a" / "5.png"))) == ids).all()


def test_groups_without_segments_are_nan():
    numbers = np.ones((4, 4), np.uint8)
    evaluator = PanopticEvaluator(SPEC, EvalSettings())
    evaluator.update([prediction(0, numbers, [Segment(1, 2, False, 16)])], batch_of([labelled(numbers, (2,))]))
    scores = evaluator.compute()
    assert scores.metrics["pq"] == 1 == scores.metrics["pq_stuff"] and np.isnan(scores.metrics["pq_things"])


def test_semantic_maps_are_scored_from_panoptic_labels():
    numbers = np.array([[0, 1, 1, 2], [0, 1, 2, 2]], np.uint8)
    found = prediction(3, np.array([[1, 1, 1, 1], [1, 1, 2, 2]]), [Segment(1, 0, True, 6), Segment(2, 2, False, 2)])
    evaluator = SemanticEvaluator(HeadSpec("semantic", 3, names=SPEC.names), EvalSettings())
    evaluator.update([found], batch_of([labelled(numbers, (0, 2))]))
    scores = evaluator.compute()
    assert scores.metrics["pixel_accuracy"] == pytest.approx(5 / 6)
    assert scores.metrics["iou/cat"] == pytest.approx(3 / 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a panoptic network for three epochs."""
    root = tmp_path_factory.mktemp("pan")
    data = write_panoptic(root, count=6)
    options = (
        "--data",
        data,
        "--epochs",
        3,
        "--save-period",
        1,
        "--batch",
        2,
        "--img",
        64,
        "--workers",
        0,
        "--device",
        "cpu",
    )
    script("segment/train.py", *options, "--project", root / "runs", "--name", "a", "--noplots", "--noautoanchor")
    network = load_checkpoint(root / "runs" / "a" / "weights" / "best.pt").network
    bias = next(tensor for tensor in reversed(list(network.heads["semantic"].parameters())) if tensor.shape == (3,))
    with torch.no_grad():
        bias[2] += 100  # everything is grass
    save_checkpoint(root / "grass.pt", network, {"task": "segment", "data": str(data), "imgsz": 64})
    return root


def test_training_reports_panoptic_quality(trained):
    found = results(trained / "runs" / "a")
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff"):
        assert f"panoptic/{name}" in found
    assert "semantic/miou" in found and "segment/mask_map50" in found
    header = (trained / "runs" / "a" / "results.csv").read_text().splitlines()[0]
    assert "metrics/PQ_stuff" in header


def test_a_resumed_run_is_bit_exact(trained):
    folder = trained / "runs" / "a" / "weights"
    whole, table = weights(folder / "last.pt"), (trained / "runs" / "a" / "results.csv").read_text()
    script("segment/train.py", "--resume", folder / "epoch0.pt", "--workers", 0)
    assert same(weights(folder / "last.pt"), whole)
    assert (trained / "runs" / "a" / "results.csv").read_text() == table


def test_an_anchor_free_network_trains_and_resumes(trained, tmp_path):
    options = ("--data", trained / "data.yaml", "--cfg", "polyolo-n-pan", "--epochs", 2, "--save-period", 1)
    options += ("--batch", 2, "--img", 64, "--workers", 0, "--device", "cpu", "--noplots")
    script("segment/train.py", *options, "--project", tmp_path, "--name", "a")
    folder = tmp_path / "a" / "weights"
    whole = weights(folder / "last.pt")
    assert {"panoptic/pq", "segment/mask_map50_95", "semantic/miou"} <= results(tmp_path / "a").keys()
    script("segment/train.py", "--resume", folder / "epoch0.pt", "--workers", 0)
    assert same(weights(folder / "last.pt"), whole)


def test_a_killed_run_resumes_bit_exact(trained, tmp_path):
    options = ("--data", trained / "data.yaml", "--epochs", 3, "--save-period", 1, "--batch", 2, "--img", 64)
    options += ("--workers", 0, "--device", "cpu", "--project", tmp_path, "--name", "a", "--noplots", "--noautoanchor")
    folder, whole = tmp_path / "a", trained / "runs" / "a"
    line = command("segment/train.py", *options)
    with subprocess.Popen(
        line, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as run:
        while run.poll() is None and not (folder / "weights" / "last.pt").exists():
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL, "the run ended before it was killed"
    script("segment/train.py", "--resume", folder / "weights" / "last.pt", "--workers", 0)
    for name in ("best.pt", "last.pt"):
        assert same(weights(folder / "weights" / name), weights(whole / "weights" / name)), name
    assert (folder / "results.csv").read_text() == (whole / "results.csv").read_text()


def validate(root, name, *more, processes=1):
    options = (
        "--weights",
        root / "grass.pt",
        "--workers",
        0,
        "--device",
        "cpu",
        "--project",
        root / "val",
        "--name",
        name,
    )
    script("segment/val.py", *options, "--noplots", "--exist-ok", *more, processes=processes)
    return results(root / "val" / name)


def test_two_processes_give_the_same_panoptic_quality(trained):
    options = ("--batch-size", 2, "--min-stuff-area", 1, "--save-json")
    one = validate(trained, "one", *options)
    two = validate(trained, "two", *options, processes=2)
    pick = [name for name in one if name.startswith(("panoptic/", "semantic/"))]
    assert len(pick) > 10 and one["panoptic/pq_stuff"] > 0
    assert {name: one[name] for name in pick} == {name: two[name] for name in pick}
    files = [sorted(path.name for path in (trained / "val" / n / "grass_panoptic").iterdir()) for n in ("one", "two")]
    assert files[0] == files[1] == [f"{number}.png" for number in range(6)]
    texts = [(trained / "val" / name / "grass_panoptic.json").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1] and len(json.loads(texts[0])["annotations"]) == 6


def test_constants_of_the_merge_change_the_score(trained):
    assert validate(trained, "large", "--min-stuff-area", 4801)["panoptic/pq_stuff"] == 0


def test_semantic_inference_options_change_the_panoptic_maps(trained):
    plain = validate(trained, "plain", "--min-stuff-area", 1, "--img", 96)
    for name, *options in (("window", "--seg-window", 64), ("scales", "--seg-scales", 0.5, 1, "--seg-flip")):
        found = validate(trained, name, "--min-stuff-area", 1, "--img", 96, *options)
        assert found["panoptic/pq_stuff"] > 0
        assert plain.keys() == found.keys()
        assert found["segment/mask_map50"] == plain["segment/mask_map50"]  # boxes and masks see the whole image


def test_only_the_semantic_maps_are_replaced():
    class Constant:
        stride, names, fixed_hw = 32, ("a",), None
        specs = dict.fromkeys(("segment", "semantic"))

        def __init__(self, value):
            self.value = value

        def run(self, images):
            return Outputs({name: {"logits": images[:, :1] + self.value} for name in self.specs})

    found = SemanticOverride(Constant(1), Constant(2)).run(torch.zeros(1, 3, 4, 4)).decoded
    assert found["segment"]["logits"].unique() == 1 and found["semantic"]["logits"].unique() == 2


def test_test_time_augmentation_gives_panoptic_quality(trained):
    found = validate(trained, "augmented", "--min-stuff-area", 1, "--augment")
    assert found["panoptic/pq_stuff"] > 0 and found["panoptic/pq_things"] is not None


def test_searches_rank_trials_by_panoptic_quality(tmp_path, monkeypatch):
    data, logger = panoptic_data(tmp_path), PruningLogger(None, "fitness")

    def fit(select, settings, loggers):
        task = select(("segment", "semantic"))
        assert task.for_data(task, data).fitness == logger.task.fitness
        return {}

    monkeypatch.setattr("utils.engine.fit.fit", fit)
    TrialTrainer("segment", TrainSettings())(tmp_path / "hyp.yaml", tmp_path / "0", logger)
    assert logger.task.fitness == {"panoptic/pq": 1.0} and "metrics/PQ" in logger.task.columns


def test_benchmark_reports_panoptic_quality(trained):
    network = load_checkpoint(trained / "grass.pt").network
    found = accuracy(NetworkRunner(network.eval(), torch.device("cpu")), load_data(str(trained / "data.yaml")), 64)
    assert {"panoptic/pq", "semantic/miou", "segment/mask_map50_95"} <= found.keys()
