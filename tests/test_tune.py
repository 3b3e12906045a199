"""Hyperparameter search: ranges, samplers, shared studies, killed processes, pruning, output files."""

import csv
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_plots import overlapping_texts
from helpers_run import ROOT, environment, tiny_data
from tune_worker import TASK, build, score

from tools.search import report
from tools.search.confirm import compare_pairs, confirm_best
from tools.search.mutation import choose_parent, mutate
from tools.search.plots import draw_slices
from tools.search.search_options import find_task, tune
from tools.search.shared_study import SearchSettings
from tools.search.space import build_space, default_space, start_value
from utils.core.cli import explicit_options
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.yaml_file import read_yaml, write_yaml

pytest.importorskip("optuna")


# ----------------------------------------------------------------------------------------------------------------------
# Ranges


def hyp_file(folder, **values):
    write_yaml(folder / "hyp.yaml", {"lr0": 0.01, **values})
    return folder / "hyp.yaml"


def space_of(folder, keys=(), space="", task="detect", **values):
    path = hyp_file(folder, **values)
    return {one.name: one for one in build_space(task, Hyp.from_file(path), path, space, keys)}


def test_default_search_space(tmp_path):
    found = space_of(tmp_path)
    assert (
        len(found) == 23 and not {"anchors", "copy_paste", "perspective", "fliplr", "fl_gamma", "iou_t"} & found.keys()
    )
    assert (found["lr0"].low, found["lr0"].high, found["lr0"].log) == (1e-5, 0.1, True)
    assert found["momentum"].gain == 0.3 and found["degrees"].high == 45
    assert "copy_paste" in space_of(tmp_path, task="segment") and "anchors" in space_of(tmp_path, anchors=3)
    assert "crop" in space_of(tmp_path, task="classify") and "box" not in space_of(tmp_path, task="classify")
    for task in ("detect", "segment", "classify", "semantic"):
        for one in default_space(task, Hyp(anchors=3)):  # both ends are values that a file may have
            Hyp(**{one.name: one.low}), Hyp(**{one.name: one.high})


def test_range_includes_default(tmp_path):
    found = space_of(tmp_path, keys=("lr0", "weight_decay", "anchors"), lr0=0.5, weight_decay=0.002)
    assert found["lr0"].high == 0.5 and found["weight_decay"].high == 0.002
    assert start_value(Hyp(lr0=0.5), found["lr0"]) == 0.5 and start_value(Hyp(), found["anchors"]) == 3


def test_range_files(tmp_path):
    block = {
        "lr0": [0.001, 0.05],
        "seg_loss": {"choices": ["ce", "ohem"]},
        "mixup": {"low": 0.1, "high": 0.3, "log": True},
    }
    found = space_of(tmp_path, search=block)
    assert list(found) == ["lr0", "seg_loss", "mixup"]
    assert (found["lr0"].low, found["lr0"].high, found["seg_loss"].choices) == (0.001, 0.05, ("ce", "ohem"))
    assert found["mixup"].low == 0 and not found["mixup"].log  # the file's 0 has no logarithm
    write_yaml(tmp_path / "space.yaml", {"box": [0.01, 0.3]})
    assert list(space_of(tmp_path, space=str(tmp_path / "space.yaml"), search=block)) == ["box"]
    assert list(space_of(tmp_path, keys=("lr0", "cls"), search=block)) == ["lr0", "cls"]


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"lr_0": [0, 1]}, "did you mean 'lr0'"), ({"lr0": [1]}, "low, high"), ({"lr0": [0.1, 0.01]}, "below high"),
        ({"lr0": {"low": 0, "high": 1, "log": True}}, "above 0"), ({"mosaic": [0, 2]}, "probability"),
        ({"lr0": {"choices": []}}, "list of numbers"), ({"seg_loss": {"choices": ["x"]}}, "seg_loss"), ([1], "table"),
        ({"lr0": {"choices": [0.1], "low": 1}}, "without a range"), ({"lr0": {"step": 1}}, "choices"),
    ],
)  # fmt: skip
def test_invalid_ranges(tmp_path, block, says):
    with pytest.raises(UserError, match=f"hyp.yaml.*{says}"):
        space_of(tmp_path, search=block)


def test_unknown_key(tmp_path):
    with pytest.raises(UserError, match=r"--keys.*momentun.*momentum"):
        space_of(tmp_path, keys=("momentun",))


# ----------------------------------------------------------------------------------------------------------------------
# Mutation


def test_evolution_parents():
    rng = np.random.default_rng(0)
    drawn = [choose_parent([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.0], rng) for _ in range(2000)]
    counts = np.bincount(drawn, minlength=7)
    assert counts[[0, 6]].sum() == 0 and counts.argmax() == 1
    assert counts[1] / 2000 == pytest.approx(0.7 / 1.3, abs=0.04)  # 0.9 - 0.2 of all that is above the fifth


def test_evolution_mutation(tmp_path):
    space = list(space_of(tmp_path).values())
    parent = {one.name: start_value(Hyp(), one) for one in space}
    rng = np.random.default_rng(1)
    children = [mutate(parent, space, rng) for _ in range(500)]
    for one in space:
        values = np.array([child[one.name] for child in children])
        assert one.low <= values.min() and values.max() <= one.high
        if parent[one.name] == 0:
            assert not values.any()  # what is multiplied stays 0
    lr = np.array([child["lr0"] for child in children]) / 0.01
    assert np.mean(lr == 1) == pytest.approx(0.2, abs=0.06) and 0.05 < lr.std() < 0.15
    momentum = np.array([child["momentum"] for child in children]) / 0.937
    assert momentum.std() < 0.05
    assert all(child["lr0"] == round(child["lr0"], 5) for child in children)


# ----------------------------------------------------------------------------------------------------------------------
# Trials


def trains(hyp, folder, logger):
    logger.task = TASK
    return {"score": score(hyp)}


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "random", "mutation"])
def test_samplers(tmp_path, sampler):
    search = build(tmp_path, 10, trains, sampler=sampler)
    search.run()
    summary = report.summarize_study(search.study)
    assert len(summary.complete) == 10 and summary.defaults.number == 0
    assert summary.defaults.hyps == {"lr0": 0.01, "momentum": 0.937}
    assert summary.best.values[0] > summary.defaults.values[
        0
    ] and "is better than the defaults" in report.compare_with_defaults(summary)
    assert len({tuple(trial.hyps.values()) for trial in summary.trials}) > 7
    report.write_best(summary, search.hyp, tmp_path / "best.yaml")
    assert Hyp.from_file(tmp_path / "best.yaml").lr0 == summary.best.hyps["lr0"]
    assert f"*{summary.best.number:>6}" in report.format_trials(summary)


def test_defaults_remain_best(tmp_path):
    def worse(hyp, folder, logger):
        logger.task = TASK
        return {"score": -abs(read_yaml(hyp)["lr0"] - 0.01)}

    search = build(tmp_path, 5, worse)
    search.run()
    assert "no trial is better than the defaults (trial 0" in report.compare_with_defaults(
        report.summarize_study(search.study)
    )


def test_pareto_front(tmp_path):
    def two(hyp, folder, logger):
        logger.task = TASK
        return {"score": read_yaml(hyp)["lr0"], "other": -read_yaml(hyp)["lr0"]}

    search = build(tmp_path, 6, two, sampler="nsga2", maximize=("score", "other"))
    search.run()
    summary = report.summarize_study(search.study)
    assert len(summary.front) == 6 and "in every objective: none" in report.compare_with_defaults(summary)


def test_pruner(tmp_path):
    from utils.core.contracts import StopTraining

    def falling(hyp, folder, logger):
        logger.task = TASK
        good = read_yaml(hyp)["momentum"] > 0.9
        number = int(folder.name)
        worth = 0.0 if number == 0 else 1.0 - number / 100
        for epoch in range(10):
            try:
                logger.epoch(epoch, {"metrics/score": worth})
            except StopTraining:
                break
        (folder / f"epochs{epoch}").touch()
        return {"score": worth + 0 * good}

    search = build(tmp_path, 10, falling, pruner="median")
    search.run()
    states = [trial.state for trial in report.summarize_study(search.study).trials]
    assert states[0] == "complete" and "pruned" in states[6:] and states[:5] == ["complete"] * 5
    last = tmp_path / "trials" / f"{len(states) - 1:04d}"
    assert (last / "epochs1").is_file() and (tmp_path / "trials" / "0000" / "epochs9").is_file()


def test_failed_trials(tmp_path):
    def fails(hyp, folder, logger):
        raise UserError("no memory left")

    with pytest.raises(UserError, match="last trial failed: no memory left"):
        build(tmp_path, 3, fails).run()


def test_only_best_checkpoints_are_kept(tmp_path):
    def leaves(hyp, folder, logger):
        (folder / "weights").mkdir()
        return trains(hyp, folder, logger)

    search = build(tmp_path, 6, leaves, sampler="random")
    search.run()
    kept = [path.parent.name for path in tmp_path.glob("trials/*/weights")]
    assert kept == [f"{report.summarize_study(search.study).best.number:04d}"]


def test_joining_workers_must_match(tmp_path):
    build(tmp_path, 2, trains).run()
    with pytest.raises(UserError, match="maximizes fitness, not score"):
        build(tmp_path, 2, trains, maximize=("score",))
    (tmp_path / "hyp.yaml").write_text("lr0: 0.7\n")
    from tools.search.shared_study import open_study

    space = build_space("detect", Hyp(lr0=0.7), tmp_path / "hyp.yaml", keys=("lr0", "momentum"))
    with pytest.raises(UserError, match="other ranges for lr0"):
        open_study(SearchSettings(pruner="none"), tmp_path, space, [{}], 10, 0)


def test_invalid_database(tmp_path):
    with pytest.raises(UserError, match=r"--storage .*cannot be opened"):
        build(tmp_path, 2, trains, storage=f"sqlite:///{tmp_path}/no/such/folder/x.db")


def test_ctrl_c_requeues_trial(tmp_path):
    places = []

    def interrupted(hyp, folder, logger):
        places.append((folder.name, read_yaml(hyp)))
        if len(places) == 3:
            raise KeyboardInterrupt
        return trains(hyp, folder, logger)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, 4, interrupted).run()
    search = build(tmp_path, 4, interrupted)
    search.run()
    assert places[2] == places[3] and len(places) == 5  # the same values in the same folder
    assert [trial.state for trial in report.summarize_study(search.study).trials].count("complete") == 4


def worker(folder, hang="none", trials=8):
    line = [sys.executable, str(ROOT / "tests" / "tune_worker.py"), str(folder), str(trials), hang]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        line, env=environment() | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_shared_study(tmp_path):
    """SIGKILL in the middle of a trial: it is marked failed and done again in its folder; none is lost or doubled."""
    folder = tmp_path / "hunt"
    first = worker(folder, hang="0002")
    deadline = time.monotonic() + 60
    while not (folder / "hangs").exists():
        assert time.monotonic() < deadline and first.poll() is None, first.stdout.read().decode()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    begun = (folder / "trials" / "0002" / "begun").read_text().splitlines()
    both = [worker(folder), worker(folder)]
    texts = [process.communicate(timeout=90)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    trials = report.summarize_study(build(folder, 8, trains).study).trials
    assert [trial.state for trial in trials].count("complete") == 8
    assert next(trial.number for trial in trials if trial.state == "failed") == 2
    again = (folder / "trials" / "0002" / "begun").read_text().splitlines()
    assert len(again) == 2 and again[0] == begun[0] == again[1]  # the same hyperparameters
    values = [tuple(trial.hyps.values()) for trial in trials if trial.state == "complete"]
    assert len(set(values)) == 8


# ----------------------------------------------------------------------------------------------------------------------
# Confirming


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([(0.1, 0.3), (0.2, 0.41), (0.1, 0.3)], "higher in 3 of 3 .*: better"),
        ([(0.3, 0.1), (0.4, 0.2), (0.3, 0.12)], "higher in 0 of 3 .*: worse"),
        ([(0.1, 0.3), (0.3, 0.1)], "no significant difference"), ([(0.1, 0.2)], "not conclusive"),
    ],
)  # fmt: skip
def test_paired_comparison(pairs, says):
    import re

    assert re.search(says, compare_pairs(pairs, "fitness"))


def test_confirm(tmp_path):
    search = build(tmp_path, 6, trains)
    search.run()
    summary, calls = report.summarize_study(search.study), []

    def with_seed(seed):
        def train(hyp, folder, logger):
            calls.append((seed, read_yaml(hyp)["lr0"]))
            return trains(hyp, folder, logger)

        return train

    for _ in range(2):  # what is there is not trained again
        text = confirm_best(search, with_seed, summary.defaults, summary.best, range(1, 3))
    assert calls == [(seed, lr) for seed in (1, 2) for lr in (0.01, summary.best.hyps["lr0"])] and "better" in text


# ----------------------------------------------------------------------------------------------------------------------
# The programs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=8, val=4, size=64)


BASE = {"cfg": "yolov5n", "imgsz": [64], "batch_size": 4, "workers": 0}


def test_slice_texts_do_not_overlap(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("tools.search.plots.save_figure", lambda figure, path: figures.append(figure))
    random = np.random.default_rng(0)
    names = ["lr0", "weight_decay", "warmup_bias_lr", "semantic_class_weight", "hsv_h", "translate"]
    trials = [(0.3 + 0.01 * i, {name: float(random.uniform(2e-5, 9e-5)) for name in names}, i == 0) for i in range(12)]
    draw_slices(trials, "fitness", tmp_path / "slices.png", {"lr0", "weight_decay"})
    assert overlapping_texts(figures[0]) == []


def test_search_resume_and_files(data, tmp_path):
    program = importlib.import_module("tune")
    keys = ["lr0", "hsv_h"]
    options = BASE | {"data": str(data), "project": str(tmp_path), "epochs": 2, "keys": keys, "seed": 5}
    program.run(**options, trials=2)
    folder = tmp_path / "exp"
    numbers = program.run(resume=str(folder), trials=3, workers=0)
    assert "detect/map50" in numbers and "fitness" in numbers
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["0", "1", "2"] and rows[0]["defaults"] == "1"
    assert float(rows[0]["lr0"]) == 0.01 and {"fitness", "hsv_h", "detect/map50_95", "seconds"} <= rows[0].keys()
    assert {"history.png", "slices.png", "study.db", "search.yaml"} <= {path.name for path in folder.iterdir()}
    Hyp.from_file(folder / "best_hyp.yaml")
    assert (folder / "best_hyp.yaml").read_text().startswith("# trial ")
    settings = read_yaml(folder / "trials" / "0001" / "args.yaml")
    assert settings["seed"] == 5 and settings["imgsz"] == [64]
    assert read_yaml(folder / "trials" / "0001" / "hyp.yaml")["lr0"] == float(rows[1]["lr0"])


def test_evolve_files(data, tmp_path):
    program = importlib.import_module("train")
    write_yaml(tmp_path / "some" / "own.yaml", {"lr0": 0.02})
    options = BASE | {"data": str(data), "project": str(tmp_path / "evolve"), "epochs": 1}
    program.run(**options, evolve=2, evolve_population=str(tmp_path / "some"))
    folder = tmp_path / "evolve" / "exp"
    program.run(resume_evolve=str(folder), evolve=3)
    lines = (folder / "evolve.csv").read_text().splitlines()
    head = [cell.strip() for cell in lines[0].split(",")]
    assert head[:7] == [
        "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95", "val/box_loss",
        "val/obj_loss", "val/cls_loss",
    ]  # fmt: skip
    assert head[7:10] == ["lr0", "lrf", "momentum"] and len(lines) == 4 and len(lines[1].split(",")[0]) == 20
    column = head.index("lr0")
    assert [float(line.split(",")[column]) for line in lines[1:3]] == [0.01, 0.02]
    assert (folder / "evolve.png").is_file() and not (folder / "trials.csv").exists()
    assert Hyp.from_file(folder / "hyp_evolve.yaml") and (folder / "hyp_evolve.yaml").read_text().startswith("#")


def parsed(line):
    words = line.split()
    return explicit_options(importlib.import_module("tune").build_parser(find_task(words)), words)


def test_task_options():
    assert parsed("--task segment --mask-ratio 2")["mask_ratio"] == 2
    assert parsed("--task classify --model yolov5n-cls --lr0 0.1")["model"] == "yolov5n-cls"
    assert parsed("--task=semantic --base-size 64")["base_size"] == 64
    with pytest.raises(UserError, match="invalid choice"):
        parsed("--task pose")
    with pytest.raises(UserError, match="--mask-ratio"):
        parsed("--mask-ratio 2")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--trials 0", "at least 1"), ("--sampler best", "tpe, cmaes"), ("--pruner x", "hyperband"),
        ("--confirm -1", "seeds"),
        ("--maximize a b --sampler cmaes --pruner none", "single objective"), ("--maximize a b", "give --pruner none"),
        ("--maximize a a", "twice"), ("--noval", "give --pruner none"),
        ("--keys nothing", "unknown hyperparameter 'nothing'"),
        ("--resume no/such", "no search.yaml"), ("--space no.yaml", "no.yaml"), ("--resume", "no search under"),
    ],
)  # fmt: skip
def test_invalid_options(tmp_path, data, monkeypatch, line, says):
    options = parsed(line) | {"project": str(tmp_path / "runs")}
    if "resume" not in options:
        options |= {"data": str(data)}
    with pytest.raises(UserError, match=says):
        tune(importlib.import_module("tune").build_parser(), options)
    assert not (tmp_path / "runs").exists()


def test_launcher_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for options in ({"evolve": 2}, {"evolve": 2, "batch_size": 8}):
        with pytest.raises(UserError, match="without torchrun"):
            importlib.import_module("train").run(data=str(data), project=str(tmp_path / "runs"), **options)


def test_evolve_options_need_evolve(tmp_path):
    program = importlib.import_module("train")
    with pytest.raises(UserError, match="has no effect without --evolve"):
        program.run(evolve_population=str(tmp_path))
    with pytest.raises(UserError, match="no hyperparameter YAMLs"):
        program.run(evolve=2, evolve_population=str(tmp_path))
    with pytest.raises(UserError, match="--resume_evolve"):
        program.run(evolve=2, resume="newest")
    with pytest.raises(UserError, match="plan of a search"):
        program.run(resume_evolve=str(tmp_path))


def test_resume_restrictions(tmp_path):
    write_yaml(tmp_path / "search.yaml", {"task": "detect", "training": {}, "search": {}, "evolves": False})
    with pytest.raises(UserError, match="--epochs: cannot change"):
        importlib.import_module("tune").run(resume=str(tmp_path), epochs=3)
    write_yaml(tmp_path / "search.yaml", {"task": "detect"})
    with pytest.raises(UserError, match="damaged"):
        importlib.import_module("tune").run(resume=str(tmp_path))


def test_missing_package(monkeypatch):
    from tools.search.shared_study import require_optuna

    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(UserError, match=r"requirements-tune.txt \(cmaes\)"):
        require_optuna("cmaes")
    assert (Path(ROOT) / "requirements-tune.txt").is_file()
