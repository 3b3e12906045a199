"""The measuring programs: each runs with its smallest settings and says what can be true; no speed is asked."""

import datetime
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers_run import tiny_data

from benchmarks import (
    accuracy,
    class_map,
    coco_index,
    data_sample,
    ema,
    gpu,
    gpu_checks,
    loss,
    loss_curve,
    machine,
    mask_step,
    memory,
    mosaic_window,
    panoptic_merge,
    plain,
    pruning,
    runtimes,
    semantic_heads,
    semantic_loss,
    shards,
    train_step,
)
from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from models.kernels import conv_commute as coarse
from utils.backends.open_weights import open_weights
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.engine.ema import ModelEma
from utils.ops.iou import paired_iou

SMALL_RUN = ("--epochs", "1", "--imgsz", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu")


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Reports go to a folder of the test; the number of threads is put back."""
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    threads = torch.get_num_threads(), cv2.getNumThreads()
    yield tmp_path / "results"
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=8, val=4, size=64)


def check_report(path, rows, program=""):
    """A report says command, commit and date, has a table of at least `rows` rows, and shows no absolute paths."""
    text = path.read_text()
    assert text.startswith("# ") and "commit " in text and datetime.date.today().isoformat() in text
    assert f"`python benchmarks/{program or path.stem}.py " in text
    assert sum(line.startswith("|") for line in text.splitlines()) >= rows + 2
    assert not [word for word in text.split() if word.strip("`").startswith(("/home", "/tmp", "/root", "/var"))]


def test_train_step_parts(results):
    found = train_step.main(
        ["--cfg", "yolov5n", "--size", "64", "--batch-size", "2", "--steps", "2", "--warm-up", "1", "--write"]
    )
    assert found["yolov5n"] > 0
    check_report(results / "train_step.md", rows=1 + len(train_step.PARTS))


def test_mask_step(results):
    small = ["--size", "64", "--batch-size", "2", "--boxes", "300", "--steps", "1", "--warm-up", "0"]
    found = mask_step.main([*small, "--write"])
    assert found.keys() == {"memory", "training", "validation", "validation/training"} and min(found.values()) > 0
    check_report(results / "mask_step.md", rows=3)


def test_train_step_sides_are_equal():
    options = train_step.build_parser().parse_args(["--size", "64", "--batch-size", "2", "--amp", "fp32"])
    batch = train_step.random_batch(2, 64, 3, 80)
    assert len(batch.boxes) == 6 and batch.boxes[:, 2:].min() > 0
    norms = []
    for make in (train_step.our_side, train_step.plain_side):
        side = make("yolov5n", options, torch.device("cpu"))
        clip, seen = side.clip, norms
        side.clip = lambda parameters, clip=clip, seen=seen: seen.append(float(clip(parameters)))
        assert side.step(batch) > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and norms[0] > 0


def test_ema(results):
    assert ema.main(["--cfg", "yolov5n", "--rounds", "2", "--repeats", "2", "--write"])["yolov5n"] > 0
    check_report(results / "ema.md", rows=1)


def test_class_map(results):
    found = class_map.main(["--size", "96x64", "--rounds", "2", "--repeats", "1", "--classes", "5", "--write"])
    assert set(found) == {"street/96x64", "noise/96x64"} and min(found.values()) > 0
    check_report(results / "class_map.md", rows=2)


def test_class_map_invalid_size():
    with pytest.raises(UserError, match=r"--size 96: expected width and height"):
        class_map.main(["--size", "96"])


def test_semantic_loss(results):
    line = ["--size", "64x64", "--batch-size", "1", "--classes", "4", "--rounds", "1", "--kinds", "ohem", "--write"]
    found = semantic_loss.main(line)
    assert found["ohem"] > 0 and found["ohem/mb"] >= 0
    check_report(results / "semantic_loss.md", rows=1)


def test_plain_ema_equals_engine():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    ours, other = ModelEma(network), plain.PlainEma(network)
    network[0].weight.data.add_(1.0)
    for average in (ours, other):
        average.update()
    for name, tensor in ours.network.state_dict().items():
        torch.testing.assert_close(tensor, other.network.state_dict()[name])


def test_loss(results):
    found = loss.main(["--pairs", "10", "200", "--rounds", "2", "--repeats", "2", "--write"])
    assert found.keys() == {10, 200} and min(found.values()) > 0
    check_report(results / "loss.md", rows=2)


def test_plain_ciou_golden_value():
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 2.0, 2.0]])
    # overlap 2 of union 6; centres 1 apart, enclosing box 3 by 2; equal aspects
    assert plain.plain_ciou(a, b).item() == pytest.approx(1 / 3 - 1 / 13, abs=1e-6)
    torch.testing.assert_close(plain.plain_ciou(a, b), paired_iou(a, b, "ciou"))


def test_data_sample(results, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(4):
        assert cv2.imwrite(str(tmp_path / "images" / f"{number}.jpg"), rng.integers(0, 255, (48, 64, 3), np.uint8))
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    found = data_sample.main(
        ["--images", str(tmp_path / "images"), "--size", "64", "--epochs", "1", "--batch-size", "2", "--write"]
    )
    assert found[64] > 0
    check_report(results / "data_sample.md", rows=1)


def test_loss_curve(results, shapes):
    found = loss_curve.main(["--data", str(shapes), *SMALL_RUN, "--seeds", "0", "--mixed", "bf16", "--write"])
    assert 0 <= found["losses/precision"] < 0.2 and math.isnan(found["losses/seed"])
    check_report(results / "loss_curve.md", rows=2)


def test_loss_curve_distance():
    def run(*losses):
        return loss_curve.Training(list(losses), [0.1 * value for value in losses], {}, 1.0)

    runs = {
        ("bf16", 0): run(1.1, 1.0),
        ("fp32", 0): run(1.0, 1.0),
        ("bf16", 1): run(2.0, 2.0),
        ("fp32", 1): run(2.0, 2.0),
    }
    assert loss_curve.gaps(runs, ("bf16", "fp32"), (0, 1), "losses") == pytest.approx((0.025, 1.0))
    assert loss_curve.gaps(runs, ("bf16", "fp32"), (0, 1), "scores") == pytest.approx((0.0025, 0.1))


def test_mosaic_window(results, shapes):
    found = mosaic_window.main(["--data", str(shapes), *SMALL_RUN, "--seeds", "0", "--windows", "4", "0", "--write"])
    assert abs(found["4/mAP50-95"]) <= 1 and found["0/mAP50-95"] == 0
    check_report(results / "mosaic_window.md", rows=4)


def test_alternate_skips_warm_up():
    calls = []
    actions = {name: (lambda name=name: calls.append(name) or float(len(calls))) for name in "ab"}
    found = machine.alternate(actions, rounds=2, warm_up=1)
    assert "".join(calls) == "abbaab"
    assert found == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert machine.ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == machine.Spread(3.0, 2.0, 4.0)


def test_reported_command_has_no_absolute_paths():
    shown = machine.command(
        "x", ["--data", "/home/me/data.yaml", "--weights=/home/me/a.pt", "--images", "../some/b", "--cfg", "c/d"]
    )
    assert shown == "python benchmarks/x.py --data data.yaml --weights=a.pt --images b --cfg c/d"


def test_plain_sgd_parameter_groups():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    decays = [group["weight_decay"] for group in plain.plain_sgd(network, Hyp()).param_groups]
    assert decays == [0.0, Hyp().weight_decay, 0.0]


def test_coco_index(results):
    found = coco_index.main(["--images", "20", "--boxes", "150", "--polygons", "--epochs", "2", "--write"])
    assert 0 < found["start from the cache, seconds"] < 60 and 0 < found["first start, seconds"] < 60
    assert 0 < found["first start, GiB"] < 1
    assert found["epoch 1, MiB"] > 0 and found["epoch 2, MiB"] < found["epoch 1, MiB"] + 16
    check_report(results / "coco_index.md", rows=4)


def test_shards(results):
    small = ["--indexed", "300", "--shards", "3", "--images", "8", "--side", "96", "--rounds", "1", "--write"]
    found = shards.main(small)
    assert 0 < found["CPU seconds"] < 5 and 0 <= found["GiB"] < 1
    assert found["reading and decoding"] > 0 and found["training loader"] > 0
    check_report(results / "shards.md", rows=2)


def test_semantic_heads_restores_layers(results, monkeypatch):
    monkeypatch.setattr(semantic_heads, "memory", lambda job: dict.fromkeys(semantic_heads.WAYS, 1.0))
    before = coarse.use_cpu_kernels
    small = ["--cfg", "yolov5n", "--size", "64", "128", "--classes", "4", "--rounds", "2", "--designs", "base", "psp"]
    found = semantic_heads.main([*small, "--write"])
    assert set(found) == {"base", "psp"} and all(set(shares) == {"ours", "plain"} for shares in found.values())
    assert coarse.use_cpu_kernels is before
    check_report(results / "semantic_heads.md", rows=2)


def test_semantic_heads_memory():
    job = semantic_heads.Job("yolov5n", "psp", (128, 256), 19, "cpu")
    plain = semantic_heads.peak_megabytes(job, "plain")
    assert math.isnan(plain) or plain >= 0


def test_semantic_heads_sides_are_equal():
    job = semantic_heads.Job("yolov5n", "bise", (256, 512), 3, "cpu")
    network, image = semantic_heads.network_of(job, "ours"), torch.rand(1, 3, 256, 512)
    with torch.inference_mode():
        short = network(image)["semantic"]["logits"]
        with semantic_heads.plain_layers():
            plain = network(image)["semantic"]["logits"]
    assert not torch.equal(short, plain)
    torch.testing.assert_close(short, plain, rtol=1e-3, atol=1e-4)


def test_panoptic_merge(results):
    found = panoptic_merge.main(["--instances", "2", "5", "--imgsz", "64", "--rounds", "2", "--write"])
    assert found.keys() == {2, 5} and min(found.values()) > 0
    check_report(results / "panoptic_merge.md", rows=2)


def test_pruning(results, shapes, tmp_path):
    names = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]
    files = [str(tmp_path / f"{name}.pt") for name in ("yolov5n", "yolov3-tiny", "yolov5n-cls")]
    for path in files:
        name = path.rpartition("/")[2].removesuffix(".pt")
        save_checkpoint(path, build_network(read_architecture(name), 7, names), {})
    small = ("--imgsz", "64", "--rounds", "2", "--calls", "1")
    assert pruning.main(["--weights", *files[:2], "--data", str(shapes), *small, "--write"]) > 0
    check_report(results / "pruning.md", 2)
    with pytest.raises(UserError, match="one task"):
        pruning.main(["--weights", files[0], files[2], *small])


def test_runtimes(results, tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "tiny.pt", build_network(read_architecture("yolov5n"), 2, ("a", "b")), {"imgsz": 96})
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((48, 64, 3), np.uint8))
    kept = [one for one in runtimes.VARIANTS if one.name in ("TorchScript", "onnxruntime INT8")]
    kept.append(runtimes.Variant("TorchScript, one size", "torchscript", ("static",)))
    monkeypatch.setattr(runtimes, "VARIANTS", kept)
    options = ["--weights", str(tmp_path / "tiny.pt"), "--source", str(tmp_path / "photo.jpg"), "--size", "64"]
    options += ["--files", str(tmp_path / "files")]
    runtimes.main([*options, "--rounds", "1", "--threads", "1", "--write"])
    (report,) = results.glob("runtimes_*[.]md")
    assert report.stem == "runtimes_tiny"
    check_report(report, rows=3, program="runtimes")  # 8-bit integers need --data
    text = report.read_text()
    assert "| PyTorch, plain |" in text and "| TorchScript |" in text and "INT8" not in text
    (exported,) = (tmp_path / "files" / "torchscript-static").glob("*.torchscript")
    assert open_weights([str(exported)], torch.device("cpu")).runner.fixed_hw == (64, 64)


def test_epochs_that_fit():
    # a start of 1, epochs of 2, of 1.5 without mosaic, validations of 0.5
    ends = [1 + time for time in (2.5, 4.5, 6.5, 8.5, 10.0, 12.0)]
    durations = accuracy._durations([ends, [time + 0.2 for time in ends]])
    assert (durations.start, durations.epoch) == (pytest.approx(1.1), pytest.approx(2))
    assert (durations.closed_epoch, durations.validation) == (pytest.approx(1.5), pytest.approx(0.5))
    options = SimpleNamespace(minutes=60, validations=4)
    assert accuracy._fitting(durations, options, closes=False) == 28  # 59.1; 29 take 61.1
    assert accuracy._fitting(durations, options, closes=True) == 31  # 60.1, 10 of them closed; 30 take 58.1
    assert accuracy._fitting(durations, SimpleNamespace(minutes=0.1, validations=4), closes=True) == 1


def test_accuracy_per_time(shapes, results):
    line = ["--data", str(shapes), "--minutes", "0.001", "--seeds", "0", "1", "--imgsz", "64", "--batch-size", "4"]
    line += ["--workers", "0", "--device", "cpu", "--recipes", "auto", "--write"]
    line += ["--cfgs", "yolov5n", "polyolo-n:end-to-end"]
    found = accuracy.main(line)
    assert found.keys() == {"yolov5n/auto", "polyolo-n:end-to-end/auto"}
    assert all(0 <= value <= 1 for value in found.values())
    (report,) = results.glob("accuracy_detect_*[.]md")
    assert report.stem == f"accuracy_detect_{shapes.stem}_0s"
    rows = [row.split(" | ") for row in report.read_text().splitlines() if "auto" in row]
    assert [len(row) for row in rows[-2:]] == [7, 7] and rows[-2][-1] == " |" and "±" in rows[-1][-1]
    check_report(report, rows=2, program="accuracy")
    assert report.with_suffix(".png").stat().st_size > 1000


def test_accuracy_refuses_unknown_suffixes():
    wrong = (
        (["polyolo-n:fast"], "unknown suffix 'fast'"),
        (["polyolo-n:distill"], "go together"),
        (["polyolo-n", "--distill", "teacher.pt"], "go together"),
    )
    for line, words in wrong:
        with pytest.raises(UserError, match=words):
            accuracy.main(["--cfgs", "yolov5n", *line])


def test_gpu(results, shapes):
    found = gpu.main(["--device", "cpu", "--quick", "--data", str(shapes), "--write"])
    assert found == {"passed": 4, "failed": 0, "skipped": 1}  # host waits exist on GPUs only
    check_report(results / "gpu.md", rows=9)


def test_gpu_checks_report_failures(tmp_path):
    wrong = gpu_checks.run_program("detect", ["detect.py", "--weights", str(tmp_path / "no.pt")], tmp_path, 60)
    assert wrong.passed is False and "no.pt" in wrong.detail and "**failed**" in wrong.row()
    late = gpu_checks.run_program("train", ["train.py"], tmp_path, 0.01)
    assert late.passed is None and "skipped" in late.row()


def test_memory():
    sizes = ["--epochs", "6", "--requests", "60", "--clients", "2", "--imgsz", "64"]
    rows = memory.main([*sizes, "--parts", "train", "service"])
    assert {row.part for row in rows} == {"train.py", "serve.py"}
    assert all(30 < row.start_mb < 2000 for row in rows) and rows[-1].cpu_ms > 0
    line = {1: [(time, 100 + 2 * time) for time in range(31)], 2: [(0, 1.0)]}
    (row,) = memory.fitted("part", line, 60, "unit")
    assert row.slope_mb == pytest.approx(1) and row.percent == pytest.approx(100 / 121, rel=0.02)
