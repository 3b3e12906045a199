"""The programs from end to end on a tiny generated data set, the way a user runs them."""

import csv
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers_run import ROOT, command, environment, results, same, script, weights

from utils.core.log import LOGGER
from utils.programs.next_commands import NextCommands

TINY = ("--cfg", "yolov5n", "--img", 64, "--batch", 4, "--workers", 0, "--epochs", 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A finished run of two epochs."""
    runs = tmp_path_factory.mktemp("runs")
    text = script("train.py", "--data", data, *TINY, "--project", runs, "--name", "run")
    return runs / "run", text


def test_training_output_files(trained):
    folder, text = trained
    expected = """
        args.yaml hyp.yaml results.csv results.json results.png labels.jpg labels_correlogram.jpg train_batch0.jpg
        val_batch0_labels.jpg val_batch0_pred.jpg PR_curve.png P_curve.png R_curve.png F1_curve.png confusion_matrix.png
        weights/last.pt weights/best.pt"""
    missing = [name for name in expected.split() if not (folder / name).is_file()]
    assert not missing
    assert "waiting for data" in text and "bottleneck" in text and "epochs=2" in text


def test_training_ends_with_commands_that_run(trained, data, tmp_path):
    folder, text = trained
    best, images = folder / "weights" / "best.pt", data.parent / "tiny" / "images" / "val"
    lines = text[text.index("next:\n") :].splitlines()[1:4]
    assert [line.strip() for line in lines] == [
        f"python detect.py --weights {best} --source IMAGES",
        f"python val.py --weights {best}",
        f"python export.py --weights {best} --include onnx",
    ]
    detect, val, export = (line.replace("IMAGES", str(images)).split()[1:] for line in lines)
    script(*detect, "--project", tmp_path)
    script(*val, "--project", tmp_path)
    exported = script(*export, "--output", tmp_path)
    file = tmp_path / "best.onnx"
    assert f"usage: python detect.py --weights {file}   python val.py --weights {file}" in exported
    assert f"over HTTP: python serve.py --weights {file}" in exported
    script("detect.py", "--weights", file, "--source", images, "--project", tmp_path)


@pytest.mark.parametrize(
    ("task", "predict", "validate"),
    [
        ("detect", "detect.py", "val.py"),
        ("segment", "segment/predict.py", "segment/val.py"),
        ("classify", "classify/predict.py", "classify/val.py"),
    ],
)
def test_next_commands_of_a_task(task, predict, validate, monkeypatch):
    texts = []
    monkeypatch.setattr(LOGGER, "info", texts.append)
    commands = NextCommands(task)
    commands.finish({}, [])
    commands.log()
    assert not texts  # interrupted
    commands.finish({}, [Path("my runs/best.pt"), Path("my runs/last.pt")])
    commands.log()
    assert texts[0].splitlines() == [
        "next:",
        f"  python {predict} --weights 'my runs/best.pt' --source IMAGES",
        f"  python {validate} --weights 'my runs/best.pt'",
        "  python export.py --weights 'my runs/best.pt' --include onnx",
    ]
    assert all((ROOT / name).is_file() for name in (predict, validate))


def test_results_csv_columns(trained):
    rows = list(csv.reader((trained[0] / "results.csv").read_text().splitlines(), skipinitialspace=True))
    columns = """epoch train/box_loss train/obj_loss train/cls_loss metrics/precision metrics/recall metrics/mAP_0.5
        metrics/mAP_0.5:0.95 val/box_loss val/obj_loss val/cls_loss x/lr0 x/lr1 x/lr2"""
    assert [name.strip() for name in rows[0]] == columns.split()
    assert [int(row[0]) for row in rows[1:]] == [0, 1]


def test_results_json(trained):
    found = results(trained[0])
    for name in ("precision", "recall", "map50", "map50_95"):
        assert 0 <= found[f"detect/{name}"] <= 1
    coco = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert all(f"coco/{name}" in found for name in coco)
    assert found["speed/inference_ms"] > 0


def test_val_matches_training_on_one_and_two_processes(trained, data, tmp_path):
    best = trained[0] / "weights" / "best.pt"
    options = ("--weights", best, "--data", data, "--img", 64, "--batch", 8, "--workers", 0, "--project", tmp_path)
    script("val.py", *options, "--name", "one", "--save-txt", "--save-conf", "--save-json")
    script("val.py", *options, "--name", "two", "--noplots", processes=2)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    scores = [name for name in one if name.startswith(("detect/", "coco/"))]
    assert len(scores) >= 16
    for name in scores:
        assert one[name] == two[name], name
        assert one[name] == pytest.approx(results(trained[0])[name], abs=1e-6), name
    assert (tmp_path / "one" / "best_predictions.json").is_file()


def test_detect_outputs(trained, data, tmp_path):
    best = trained[0] / "weights" / "best.pt"
    source = data.parent / "tiny" / "images" / "val"
    text = script(
        "detect.py", "--weights", best, "--source", source, "--img", 64, "--conf", 0.001, "--max-det", 5,
        "--save-txt", "--save-csv", "--project", tmp_path, "--name", "d",
    )  # fmt: skip
    assert len(list((tmp_path / "d").glob("*.jpg"))) == 8 and (tmp_path / "d" / "predictions.csv").is_file()
    assert "image 1/8" in text and "Speed" in text


KEEP = ("--noplots", "--noval", "--save-steps", 2, "--epochs", 3, "--seed", 5)


def of(program):
    """Return the command-line start of a tiny training of a program, which may have options of its own."""
    return (*program.split(), *(TINY if program == "train.py" else TINY[2:]))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data):
    """Final weights of uninterrupted runs, computed once per program."""
    found = {}

    def end_of(program="train.py"):
        if program not in found:
            runs = tmp_path_factory.mktemp("whole")
            script(*of(program), "--data", data, *KEEP, "--project", runs, "--name", "run")
            found[program] = weights(runs / "run" / "weights" / "last.pt")
        return found[program]

    return end_of


@pytest.mark.parametrize(
    ("program", "workers", "wait"),
    [
        ("train.py", 0, 0.0),
        ("train.py", 2, 0.7),
        ("segment/train.py", 2, 0.3),
        ("train.py --cfg yolov5n-psp", 2, 0.3),
        ("train.py --cfg yolov5n-sem --batch 2", 0, 0.2),
    ],
)
def test_resume_is_bit_exact(uninterrupted, data, tmp_path, program, workers, wait):
    line = command(*of(program), "--data", data, *KEEP, "--workers", workers, "--project", tmp_path, "--name", "run")
    last = tmp_path / "run" / "weights" / "last.pt"
    with subprocess.Popen(
        line, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        while not last.exists() and run.poll() is None:
            time.sleep(0.005)
        time.sleep(wait)  # a moment that no step of the run chooses
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL, "the run ended before it was killed"
    script(program.split()[0], "--resume", last, "--workers", workers)
    assert same(weights(last), uninterrupted(program))


def test_ctrl_c_saves_checkpoint(uninterrupted, data, tmp_path):
    line = command("train.py", "--data", data, *TINY, *KEEP, "--project", tmp_path, "--name", "run")
    last = tmp_path / "run" / "weights" / "last.pt"
    with subprocess.Popen(
        line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        while not last.exists() and run.poll() is None:
            time.sleep(0.005)
        run.send_signal(signal.SIGINT)
        text, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and f"--resume {last}" in text and "Traceback" not in text, text
    script("train.py", "--resume", last)
    assert same(weights(last), uninterrupted())


def test_ctrl_c_while_importing(tmp_path):
    (tmp_path / "tqdm.py").write_text("raise KeyboardInterrupt")  # as if it came while that module is imported
    env = environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command("val.py"), cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("", "error: interrupted\n") and done.returncode == -signal.SIGINT


def test_finished_run_is_not_resumed(trained):
    text = script("train.py", "--resume", trained[0] / "weights" / "last.pt", status=2)
    assert "finished after 2 epochs" in text


BAD = [
    (("--data", "nothing.yaml"), "no such data-set YAML"),
    (("--weights", "nothing.pt"), "nothing.pt"),
    (("--cfg", "yolov9.yaml"), "yolov9"),
    (("--hyp", "nothing.yaml"), "no such hyperparameter file"),
    (("--resume", "nothing.pt"), "no such file"),
    (("--device", "7"), "--device"),
    (("--amp", "fp16", "--device", "cpu"), "GPU"),
    (("--epochs", "0"), "--epochs"),
]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_invalid_options(data, tmp_path, options, says):
    text = script("train.py", "--data", data, *TINY, "--project", tmp_path, *options, status=2)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
    assert not list(tmp_path.rglob("*.pt"))


def test_unwritable_output_folder(data, tmp_path):
    (tmp_path / "file").write_text("")
    text = script("train.py", "--data", data, *TINY, "--project", tmp_path / "file" / "runs", status=2)
    assert "cannot be written" in text
