"""Where time goes: the table and the trace of a profiled training, the layers of a network, the study of sizes."""

import gzip
import json
import time

import pytest
import torch
from helpers_run import script, tiny_data

import models.summary
import val
from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from models.layer_times import time_layers
from models.summary import count_operations
from utils.core.errors import UserError
from utils.engine import image_size_study as study
from utils.engine.bn_sparsity import add_slimming
from utils.engine.profiler import PHASES, Profile, untimed
from utils.plots.size_study import draw_study


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = tiny_data(tmp_path_factory.mktemp("data"), train=16, val=4)
    text = script(
        "train.py", "--data", data, "--cfg", "yolov5n", "--img", 64, "--batch", 4, "--workers", 0, "--epochs", 3,
        "--noplots", "--profile", "--slimming", 1e-3, "--project", folder, "--name", "run",
    )  # fmt: skip
    return folder / "run", text


def test_profile_table(profiled):
    folder, text = profiled
    found = json.loads((folder / "profile.json").read_text())
    rows = {row["phase"]: row for row in found["phases"]}
    assert [*rows] == [*PHASES, "other"] and found["steps"] == 12
    assert {rows[name]["calls"] for name in ("transfer", "forward", "loss", "backward")} == {12}
    assert rows["validation"]["calls"] == 4 and rows["optimizer"]["calls"] == rows["ema"]["calls"] <= 12
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1, abs=0.01)
    assert rows["backward"]["seconds"] > rows["transfer"]["seconds"]
    table = (folder / "profile.txt").read_text()
    assert table.strip() in text and "backward" in table


def test_profile_trace(profiled):
    with gzip.open(profiled[0] / "profile_trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert names.count("forward") >= 2 and {"data", "loss", "backward"} <= set(names)
    assert any("conv" in str(event.get("name")) for event in events)


def test_disabled_profiler():
    start = time.perf_counter()
    for _ in range(10_000):
        with untimed("forward"):
            pass
    assert time.perf_counter() - start < 0.1  # 10 microseconds each at the very most


def test_empty_profile(tmp_path):
    profile = Profile(torch.device("cpu"))
    profile.start(tmp_path, {})
    with pytest.raises(ValueError, match="inside"), profile.phase("loss"):
        raise ValueError("inside")
    profile.finish({}, [])
    assert json.loads((tmp_path / "profile.json").read_text())["steps"] == 0


def test_slimming():
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    add_slimming(block, optimizer, 0.01, 64)
    before = block[1].weight.detach().clone()
    for parameter in block.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bias = block[0].bias.detach().clone()
    optimizer.step()
    assert torch.allclose(block[1].weight, before - 0.1 * 0.01 * 64) and torch.equal(block[0].bias, bias)


def test_layer_times_and_flops():
    network = build_network(read_architecture("yolov5n")).eval()
    rows = time_layers(network, (64, 64), 1, torch.device("cpu"), runs=2)
    assert [row.index for row in rows] == list(range(25)) and all(row.milliseconds > 0 for row in rows)
    normalised = count_operations(network, (64, 64)) / 1e9
    assert 0.9 * normalised < sum(row.gflops for row in rows) < normalised
    assert sum(row.parameters for row in rows) == 1_867_405  # of the fused network


def test_summary_profile(monkeypatch, caplog):
    monkeypatch.setattr("sys.argv", ["summary", "--img", "64", "--line-profile", "--runs", "1"])
    with caplog.at_level("INFO", "polyolo"):
        models.summary.main()
    assert "all layers" in caplog.text and "ms for 1 image" in caplog.text
    monkeypatch.setattr("sys.argv", ["summary", "--runs", "0"])
    with pytest.raises(UserError, match="--runs"):
        models.summary.main()
    monkeypatch.setattr(models.summary, "known_names", lambda: {"yolov5n": (), "yolov5n-cls": ()})
    monkeypatch.setattr("sys.argv", ["summary", "--test"])
    with caplog.at_level("INFO", "polyolo"):
        models.summary.main()
    assert "yolov5n-cls" in caplog.text
    monkeypatch.setattr(models.summary, "known_names", lambda: {"no-such": ()})
    with pytest.raises(UserError, match="no-such"):
        models.summary.main()


def test_study_resumes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(study, "SIZES", (64, 96))
    data = tiny_data(tmp_path, train=4, val=2)
    for index in range(2):
        torch.manual_seed(index)
        (tmp_path / str(index) / "weights").mkdir(parents=True)
        network = build_network(read_architecture("yolov5n"), 7)
        save_checkpoint(tmp_path / str(index) / "weights" / "best.pt", network, {"data": str(data)})
    options = {
        "task": "study", "weights": [str(tmp_path / str(index) / "weights" / "best.pt") for index in range(2)],
        "data": str(data), "workers": 0, "project": str(tmp_path), "exist_ok": True,
    }  # fmt: skip
    run = tmp_path / "exp"
    run.mkdir()
    row = "".join(f"{value:10.4g}" for value in (64, 0.1, 0.2, 0.3, 0.4, 1, 2, 3)) + "\n"
    (run / "study_tiny_best.txt").write_text(row)
    with caplog.at_level("INFO", "polyolo"):
        val.run(**options)
    assert caplog.text.count("known already") == 1
    found = json.loads((run / "study.json").read_text())
    assert [*found] == ["best", "1-best"] and all(len(rows) == 2 for rows in found.values())
    assert found["best"][0]["mAP_0.5:0.95"] == 0.4 and found["1-best"][1]["inference_ms"] > 0
    assert (run / "study.png").is_file() and (run / "study_tiny_1-best.txt").read_text().count("\n") == 2
    (run / "study_tiny_best.txt").write_text(row + "nonsense\n")
    with pytest.raises(UserError, match=r"study_tiny_best\.txt:2"):
        val.run(**options)


def test_study_plot(tmp_path):
    curves = {"a": [[256, 0.2, 1, 5, 1], [512, 0.3, 1, 20, 1]], "b": [[256, 0.3, 1, 9, 1], [512, 0.4, 1, 36, 1]]}
    assert draw_study(curves, ["mAP"], tmp_path / "study.png").stat().st_size > 10_000
