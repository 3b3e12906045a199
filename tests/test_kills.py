"""Killed runs: whatever was written last, a resumed run ends like an undisturbed one."""

import importlib
import json
import shutil
import signal
from pathlib import Path
from unittest import mock

import pytest
from filelock import FileLock
from helpers_run import same, tiny_data, weights

from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.interrupt import StopSignal, raise_stop_signal
from utils.datasets.generators.prepare import ensure_generated
from utils.engine import conclude_run
from utils.engine import fit as engine


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


@pytest.fixture(scope="module", autouse=True)
def later_is_better():
    """Let every epoch be the best one so far, so that each writes best.pt."""
    finish, epochs = engine._finish_epoch, [0]

    def finish_epoch(run, *results):
        epochs[0] = float(run.state.epoch)
        finish(run, *results)

    with mock.patch.multiple(engine, _finish_epoch=finish_epoch, weighted_sum=lambda *_: epochs[0]):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tiny_data(tmp_path_factory.mktemp("data"), train=8, val=4, size=64)
    ensure_generated(load_data(str(path)))
    return path


def train(data, project, **more):
    options = {"data": str(data), "cfg": "yolov5n", "imgsz": [64], "batch_size": 8, "workers": 0, "epochs": 2}
    options |= {"noplots": True, "save_period": 1, "project": str(project), "name": "run", "seed": 2, "exist_ok": True}
    return importlib.import_module("train").run(**(options | more))


def resume(folder):
    return importlib.import_module("train").run(resume=str(folder / "weights" / "last.pt"), workers=0)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def numbers(folder):
    found = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in found.items() if not name.startswith("speed/")}


def assert_same_end(folder, whole):
    assert files(folder) == files(whole)
    assert numbers(folder) == numbers(whole)
    assert (folder / "results.csv").read_text() == (whole / "results.csv").read_text()
    for name in ("best.pt", "last.pt", "epoch0.pt", "epoch1.pt"):
        assert same(weights(folder / "weights" / name), weights(whole / "weights" / name)), name


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an undisturbed run, the files that it renames into place in order, and the folder after each."""
    project, renamed, rename = tmp_path_factory.mktemp("whole"), [], Path.replace

    def replace(self, target):
        result = rename(self, target)
        if Path(target).suffix != ".npz":  # a scan cache
            renamed.append(Path(target).name)
            shutil.copytree(project / "run", project / f"after {len(renamed)}")
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        train(data, project)
    return project / "run", renamed


def killed_after(number, whole, project):
    """Put the folder that a process killed after so many renames leaves into `project`; return it."""
    return shutil.copytree(whole[0].with_name(f"after {number}"), project / "run")


def test_last_checkpoint_commits_the_epoch(whole):
    assert whole[1] == [
        "args.yaml", "hyp.yaml",
        "results.csv", "epoch0.pt", "best.pt", "last.pt",
        "results.csv", "epoch1.pt", "best.pt", "last.pt",
        "results.json", "best.pt", "last.pt",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [5, 9, 10, 11, 12])
def test_kill_after_each_rename(data, whole, tmp_path, number):
    folder = killed_after(number, whole, tmp_path)
    if (folder / "weights" / "last.pt").exists():
        (folder / ".results.ab12_xyz.csv").write_text("half")  # SIGKILL leaves such files
        (folder / "weights" / ".last.ab12_xyz.pt").write_text("half")
        resume(folder)
    else:
        train(data, tmp_path)
    assert_same_end(folder, whole[0])
    with pytest.raises(UserError, match="finished after 2 epochs"):
        resume(folder)


def test_stopped_conclusion_is_resumed(whole, tmp_path, monkeypatch, caplog):
    """SIGTERM while the best checkpoint is evaluated, which has no steps to stop after."""
    caplog.set_level("INFO", logger="polyolo")
    folder = killed_after(10, whole, tmp_path)
    monkeypatch.setattr(conclude_run, "evaluate", lambda *_, **__: raise_stop_signal(signal.SIGTERM, None))
    with pytest.raises(StopSignal):
        resume(folder)
    assert f"all epochs are saved; --resume {folder / 'weights' / 'last.pt'}" in caplog.text
    monkeypatch.undo()
    resume(folder)
    assert_same_end(folder, whole[0])


def test_uncommitted_best_checkpoint_is_taken_back(whole, tmp_path, monkeypatch):
    folder = killed_after(9, whole, tmp_path)  # after best.pt of the second epoch
    monkeypatch.setattr(engine, "weighted_sum", lambda *_: -2.0)  # the repeated epoch is worse, as it may be on GPUs
    first = weights(folder / "weights" / "epoch0.pt")
    resume(folder)
    best = weights(folder / "weights" / "best.pt")
    assert all((best[name] == value.to(best[name].dtype)).all() for name, value in first.items())


def test_early_stop_is_resumed_as_complete(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "conclude", kill)
    monkeypatch.setattr(engine, "weighted_sum", lambda *_: 0.5)
    with pytest.raises(Killed):
        train(data, tmp_path, epochs=5, patience=1)
    stopped = (tmp_path / "run" / "results.csv").read_text()
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "results.csv").read_text() == stopped
    assert numbers(tmp_path / "run")["epochs"] == len(stopped.splitlines()) - 1 < 5


def kill(_):
    raise Killed


def test_run_folder_is_locked(data, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.engine.run_lock.WAIT_S", 0.1)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="another training writes"):
        train(data, tmp_path)
    shutil.rmtree(tmp_path / "run")
    killed_after(6, whole, tmp_path)
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="another training writes"):
        resume(tmp_path / "run")
    resume(tmp_path / "run")
