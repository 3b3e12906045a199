"""prune.py from end to end, and programs that load its checkpoint."""

import json

import cv2
import pytest
import torch
from helpers_plots import overlapping_texts
from helpers_run import script

import detect
import export
import prune
import val
from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fuse import fuse
from tools.pruning import program
from tools.pruning.plots import draw_pruning
from utils.backends import BACKENDS
from utils.core.errors import UserError

pytest.importorskip("torch_pruning", reason="pruning needs torch-pruning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "seven.pt"
    names = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]
    network = build_network(read_architecture("yolov5n"), 7, names)
    save_checkpoint(path, network, {"task": "detect", "imgsz": 64}, half=True)  # as prune.py stores the result
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory, data, weights):
    """A run with an epoch of fine-tuning."""
    runs = tmp_path_factory.mktemp("runs")
    text = script(
        "prune.py", "--weights", weights, "--data", data, "--target-flops", 0.7, "--samples", 8, "--batch-size", 4,
        "--workers", 0, "--epochs", 1, "--project", runs,
    )  # fmt: skip
    return runs / "exp", text


def test_output_files(done):
    folder, text = done
    found = json.loads((folder / "prune.json").read_text())["networks"]
    assert [row["network"] for row in found] == ["before", "pruned", "fine-tuned"]
    assert found[1]["gflops"] <= 0.705 * found[0]["gflops"] and found[1]["parameters"] < found[0]["parameters"]
    assert found[2]["gflops"] == found[1]["gflops"]
    fewer = found[1]["parameters"] / found[0]["parameters"]
    assert found[1]["megabytes"] / found[0]["megabytes"] == pytest.approx(fewer, abs=0.1)
    assert all(row["milliseconds"] > 0 and "detect/map50_95" in row["scores"] for row in found)
    assert (folder / "prune.png").is_file() and (folder / "finetune" / "weights" / "best.pt").is_file()
    assert "fine-tuned" in text and "GFLOPs" in text


def test_pruned_checkpoint_is_usable(done, data, tmp_path):
    pruned = done[0] / "pruned.pt"
    row = json.loads((done[0] / "prune.json").read_text())["networks"][1]
    state = torch.load(pruned, weights_only=True)["state"]
    assert (
        sum(value.numel() for name, value in state.items() if name.endswith((".weight", ".bias"))) == row["parameters"]
    )
    common = {"weights": [str(pruned)], "imgsz": [64], "project": str(tmp_path)}
    scores = val.run(**common, data=str(data), workers=0, noplots=True, name="v")
    assert row["scores"].keys() <= scores.keys()
    images = data.parent / "tiny" / "images" / "val"
    report = detect.run(**common, source=str(images), nosave=True, name="d")
    assert report.frames == len(list(images.iterdir())) > 0
    export.run(weights=[str(pruned)], include=["onnx"], imgsz=[64], output=str(tmp_path), allow_mismatch=True)
    runner, _ = BACKENDS.get("onnx").open([tmp_path / "pruned.onnx"], torch.device("cpu"))
    network, images = load_checkpoint(pruned).network, torch.rand(1, 3, 64, 64)
    expected = network.decode(network(images))["detect"]["predictions"]
    assert torch.allclose(runner.run(images).decoded["detect"]["predictions"], expected, rtol=1e-3, atol=1e-2)
    again = prune.run(
        weights=[str(pruned)], target_flops=0.9, importance="l2", noval=True, noplots=True, project=str(tmp_path)
    )
    assert again[1]["gflops"] < again[0]["gflops"]
    assert load_checkpoint(again[1]["weights"]).meta["pruning"]["from"] == "pruned.pt"
    onnx = str(tmp_path / "pruned.onnx")
    with pytest.raises(UserError, match="exported file"):
        prune.run(weights=[onnx], target_flops=0.9, project=str(tmp_path))


def test_latency_target(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "TRIES", 2)
    common = {"weights": [str(weights)], "data": "", "importance": "l1", "noplots": True, "project": str(tmp_path)}
    rows = prune.run(target_latency="1000ms", **common)
    assert 0.6 < rows[1]["gflops"] / rows[0]["gflops"] <= 0.75  # bisection: 0.5 is fast enough, then 0.75
    with pytest.raises(UserError, match="not reached"):
        prune.run(target_latency="0.001ms", **common)
    assert len(list(tmp_path.iterdir())) == 1  # failed runs leave no folder


def test_sparsity_keeps_shapes(weights, tmp_path):
    rows = prune.run(weights=[str(weights)], sparsity=0.5, project=str(tmp_path), noplots=True)
    assert rows[1]["zeros"] == pytest.approx(0.5, abs=0.01) and rows[1]["gflops"] == rows[0]["gflops"]
    assert load_checkpoint(tmp_path / "exp" / "sparse.pt").network.architecture.get("widths") is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "expected one of --target-flops"), ({"target_flops": 0.7, "sparsity": 0.3}, "one of"),
        ({"target_flops": 1.5}, "between 0 and 1"), ({"sparsity": 0}, "between 0 and 1"),
        ({"target_latency": "fast"}, "milliseconds"), ({"target_latency": "2"}, "fraction"),
        ({"sparsity": 0.3, "epochs": 2}, "change the zeros"), ({"target_flops": 0.7, "max_cut": 1}, "--max-cut"),
        ({"target_flops": 0.7, "round_to": 0}, "--round-to"), ({"target_flops": 0.7, "imgsz": [8]}, "--imgsz"),
        ({"target_flops": 0.7}, "--data"), ({"target_flops": 0.7, "importance": "l2", "epochs": 1}, "--data"),
        ({"target_flops": 0.7, "data": "shapes.yaml", "weights": ["eighty"]}, "classes"),
        ({"target_flops": 0.7, "importance": "l2", "weights": ["folded"]}, "fused"),
        ({"target_flops": 0.1, "importance": "l2"}, "--max-cut"),
    ],
)  # fmt: skip
def test_invalid_options(options, says, weights, tmp_path):
    given = {"weights": [str(weights)], "project": str(tmp_path / "runs"), **options}
    for name, change in (("eighty", lambda network: network), ("folded", fuse)):
        if given["weights"] == [name]:
            path = tmp_path / f"{name}.pt"
            save_checkpoint(path, change(build_network(read_architecture("yolov5n")).eval()), {"imgsz": 64})
            given["weights"] = [str(path)]
    with pytest.raises(UserError, match=says):
        prune.run(**given)
    assert not list((tmp_path / "runs").glob("*"))


def test_plot_texts_do_not_overlap(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("tools.pruning.plots.save_figure", lambda figure, path: figures.append(figure))
    sizes = {"parameters": 2e6, "gflops": 4.5, "milliseconds": 30.0}
    smaller = {"parameters": 1.9e6, "gflops": 4.4, "milliseconds": 29.5}
    rows = [
        {"network": name, "scores": {"map50": score}, **values}
        for name, score, values in (("before", 0.56, sizes), ("pruned", 0.55, smaller), ("fine-tuned", 0.555, smaller))
    ]
    draw_pruning(rows, tmp_path / "points.png")
    assert overlapping_texts(figures[0]) == []
    assert [text.get_text() for text in figures[0].legends[0].texts] == [
        "before 0.560",
        "pruned 0.550",
        "fine-tuned 0.555",
    ]
    assert figures[0].axes[0].get_xlabel() == "million parameters: 2 → 1.9 (95%)"


def test_plot_without_scores(tmp_path):
    row = {"parameters": 2e6, "gflops": 4.5, "milliseconds": 30.0, "scores": None}
    rows = [{**row, "network": "before"}, {**row, "network": "pruned", "gflops": 3.1}]
    image = cv2.imread(str(draw_pruning(rows, tmp_path / "bars.png")))
    third = image.shape[1] // 3  # one axis per measure, of which the second is GFLOPs
    for number, ratio in enumerate((1.0, 3.1 / 4.5, 1.0)):
        axes = image[:, number * third : (number + 1) * third]
        before, after = ((axes == colour).all(axis=2).sum(axis=0).max() for colour in ((85, 85, 85), (40, 39, 214)))
        assert before > 50 and after / before == pytest.approx(ratio, abs=0.03)
