"""Every task on the simulated GPU: two training steps an epoch, validation, prediction, a resumed run."""

import csv
import json
import math

import pytest
import simulated_gpu
from helpers_run import tiny_data

from utils.core.yaml_file import read_yaml, write_yaml

needs_simulation = pytest.mark.skipif(bool(simulated_gpu.available()), reason=simulated_gpu.available() or "available")
BATCH, VALIDATION_BATCH = 16, 32  # of detect and segment, whose launches are counted
SMALL_BATCH = 4  # of the other tasks; validation takes twice as many images
LAUNCHES = 15  # per image of a validation batch
PROGRAMS = {  # training, validation, prediction
    "detect": ("train.py", "val.py", "detect.py"),
    "segment": ("segment/train.py", "segment/val.py", "segment/predict.py"),
    "classify": ("classify/train.py", "classify/val.py", "classify/predict.py"),
    "joint": ("train.py", "val.py", "detect.py"),
    "semantic": ("train.py", "val.py", "detect.py"),
}
AMP = {"detect": "fp32", "segment": "bf16", "classify": "bf16", "joint": "bf16", "semantic": "fp32"}
STEPS = ("train", "resume", "val", "predict")


def data_of(folder, task):
    """Write the data YAML of a task; the images are generated at first use."""
    if task in ("detect", "segment"):
        return tiny_data(folder, train=2 * BATCH, val=VALIDATION_BATCH, size=64)
    (folder / "small").mkdir(exist_ok=True)
    boxes = tiny_data(folder / "small", train=2 * SMALL_BATCH, val=2, size=64)
    values = read_yaml(boxes)
    if task == "classify":
        generate = {"kind": "shape-classes", "train": 2, "val": 1, "size": 64, "seed": 3}
        names = ["circle", "square", "star", "cross"]
        values = {"path": "folders", "train": "train", "val": "val", "names": names, "format": "folders"}
        values["generate"] = generate
    elif task == "semantic":  # the images of the joint task, without their boxes
        names = [*values["names"], "other"]
        values = {"path": str(folder / "small" / "tiny"), "semantic": {**values["semantic"], "names": names}}
    else:
        return boxes
    path = folder / f"{task}.yaml"
    write_yaml(path, values)
    return path


def programs_of(folder, task):
    """Return the command lines of a task, in the order of STEPS."""
    train, val, predict = PROGRAMS[task]
    data, weights = data_of(folder, task), folder / task / "weights"
    common = ["--device", "0", "--project", folder]
    sizes = ["--img", 64, "--workers", 0]
    batch = BATCH if task in ("detect", "segment") else SMALL_BATCH
    extra = ["--semantic", "psp"] if task in ("semantic", "joint") else []
    extra += ["--cfg", "yolov5n"] if task == "semantic" else []
    options = ["--batch", batch, "--epochs", 2, "--save-period", 1, "--noplots", "--amp", AMP[task], "--name", task]
    source = folder / ("folders/val/circle" if task == "classify" else "tiny/images/val/shapes_000000.jpg")
    lines = [
        [train, "--data", data, *common, *sizes, *options, *extra],
        [train, "--resume", weights / "epoch0.pt", "--device", "0", "--workers", 0],
        [val, "--data", data, "--weights", weights / "best.pt", *common, *sizes, "--noplots", "--name", f"{task}-val"],
        [predict, "--weights", weights / "best.pt", "--source", source, *common, "--img", 64, "--name", f"{task}-new"],
    ]
    return [{"line": [str(word) for word in line], "results": str(folder / task / "results.csv")} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run the programs of all tasks in one process; return the folder and, by task and step, what they did."""
    folder = tmp_path_factory.mktemp("tasks")
    names = [(task, step) for task in PROGRAMS for step in STEPS]
    lines = [line for task in PROGRAMS for line in programs_of(folder, task)]
    (folder / "programs.json").write_text(json.dumps(lines))
    report = folder / "report.json"
    done, _ = simulated_gpu.run_simulated(
        ["tests/gpu_task_programs.py", report, folder / "programs.json"], strict=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder, dict(zip(names, json.loads(report.read_text()), strict=True))


def losses(text):
    """Read the losses of every epoch from the text of results.csv."""
    rows = [{name.strip(): float(value) for name, value in row.items()} for row in csv.DictReader(text.splitlines())]
    return [[value for name, value in row.items() if name.startswith(("train/", "val/"))] for row in rows]


@needs_simulation
@pytest.mark.parametrize("task", PROGRAMS)
def test_task_trains_resumes_validates_and_predicts(runs, task):
    folder, steps = runs
    for step in STEPS:
        assert steps[task, step]["mixed"] == {}, step
        assert steps[task, step]["launches"] > 100, step
    # two steps of each epoch; joint training takes two more with pixels in the first
    updates = [steps[task, step]["updates"] for step in ("train", "resume")]
    assert updates == ([6, 2] if task == "joint" else [4, 2])
    whole, resumed = (losses(steps[task, step]["results"]) for step in ("train", "resume"))
    assert len(resumed) == 2 and resumed[0] == whole[0]
    assert all(map(math.isfinite, whole[1])) and whole[1] != whole[0]
    assert resumed[1] == pytest.approx(whole[1], rel=1e-4)
    assert any(path.suffix == ".jpg" for path in (folder / f"{task}-new").rglob("*"))


@needs_simulation
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_launches_of_scoring_while_training(runs, task):
    """Both epochs and the best checkpoint are scored by a folded network."""
    _, steps = runs
    batches = steps[task, "train"]["batches"]
    assert [batch["images"] for batch in batches] == [VALIDATION_BATCH] * 3
    assert all(10 < batch["launches"] <= LAUNCHES * VALIDATION_BATCH for batch in batches), batches
