"""Two processes of which one is killed, stopped or interrupted, and the restart by torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_run import ROOT, command, environment, results, same, script, tiny_data, weights

from utils.core.data_config import load_data
from utils.core.process_state import is_ended
from utils.datasets.generators.prepare import ensure_generated

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tiny_data(tmp_path_factory.mktemp("data"), train=16, val=4, size=64)
    ensure_generated(load_data(str(path)))
    return path


def options(data, project):
    return (
        "train.py", "--data", data, "--cfg", "yolov5n", "--img", 64, "--batch", 4, "--workers", 0, "--epochs", 3,
        "--noplots", "--save-steps", 1, "--seed", 3, "--project", project, "--name", "run",
    )  # fmt: skip


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def variable(pid, name):
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((word.decode().partition("=")[2] for word in words if word.startswith(f"{name}=".encode())), "")


def run_and_hit(line, last, rank, number):
    """Start a distributed run, send a signal to a rank (None: the launcher) after the first checkpoint, wait."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(line, cwd=ROOT, env=environment(), **pipe) as run:
        while not last.exists() and run.poll() is None:
            time.sleep(0.01)
        ranks = children(run.pid)
        hit = run.pid if rank is None else next(pid for pid in ranks if variable(pid, "RANK") == str(rank))
        start = time.monotonic()
        os.kill(hit, number)
        text, _ = run.communicate(timeout=100)  # until the last rank has closed its output
    assert all(is_ended(pid) for pid in ranks)
    return run.returncode, text, time.monotonic() - start


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    project = tmp_path_factory.mktemp("whole")
    script(*options(data, project), processes=2)
    return project / "run"


def assert_same_end(folder, whole):
    for name in ("best.pt", "last.pt"):
        assert same(weights(folder / "weights" / name), weights(whole / "weights" / name))
    first, second = (
        {name: value for name, value in results(place).items() if not name.startswith("speed/")}
        for place in (folder, whole)
    )
    assert first == second
    assert (folder / "results.csv").read_text() == (whole / "results.csv").read_text()


@pytest.mark.parametrize(("rank", "number", "says"), [
    (1, signal.SIGKILL, "error: rank 1 (process "), (0, signal.SIGKILL, "error: rank 0 (process "),
    (1, signal.SIGINT, "saved; continue with --resume"), (None, signal.SIGKILL, "saved; continue with --resume"),
])  # fmt: skip
def test_lost_rank(data, whole, tmp_path, rank, number, says):
    last = tmp_path / "run" / "weights" / "last.pt"
    status, text, seconds = run_and_hit(command(*options(data, tmp_path), processes=2), last, rank, number)
    assert status != 0 and seconds < 60 and says in text, text
    assert text.count("Traceback") <= 1, text  # that of torchrun itself
    if number == signal.SIGKILL and rank == 1:  # the other cases end in the same way
        script(*options(data, tmp_path)[:1], "--resume", last, processes=2)
        assert_same_end(tmp_path / "run", whole)


def test_torchrun_restart_continues_the_run(data, whole, tmp_path):
    line = command(*options(data, tmp_path), processes=2)
    line[3:3] = ["--max-restarts", "2"]
    status, text, _ = run_and_hit(line, tmp_path / "run" / "weights" / "last.pt", 1, signal.SIGKILL)
    assert status == 0 and "restart 1 by torchrun: continuing" in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_same_end(tmp_path / "run", whole)


def test_stopped_rank_is_named(tmp_path):
    """A watch of rank 0 over a stopped process, with a short time limit."""
    code = (
        "import sys, time; from torch.distributed import HashStore; from utils.core import rank_watch as w;"
        "w.POLL_S, w.STOPPED_S = 0.1, 1.0; store = HashStore();"
        "store.set('rank1', f'1 {sys.argv[1]} {w._machine()}'); w.RankWatch(store, 0, 2, 0).start(); time.sleep(20)"
    )
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        other.send_signal(signal.SIGSTOP)
        line = [sys.executable, "-c", code, str(other.pid)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        other.kill()
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: rank 1 (process {other.pid} on ") and " is stopped; all" in done.stderr
