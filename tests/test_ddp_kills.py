"""Two processes of which one is killed, stopped or interrupted, and the restart by torchrun."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_run import ROOT, command, environment, free_port, results, same, script, tiny_data, weights

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


def start(line, **more):
    """Start a program whose output is read later."""
    return subprocess.Popen(
        line, cwd=ROOT, env=environment() | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(last, run):
    """Wait for the first checkpoint of a run."""
    while not last.exists() and run.poll() is None:
        time.sleep(0.01)


def run_and_hit(line, last, rank, number):
    """Start a distributed run, send a signal to a rank (None: the launcher) after the first checkpoint, wait."""
    with start(line) as run:
        wait_for(last, run)
        ranks = children(run.pid)
        hit = run.pid if rank is None else next(pid for pid in ranks if variable(pid, "RANK") == str(rank))
        begin = time.monotonic()
        os.kill(hit, number)
        text, _ = run.communicate(timeout=200)  # until the last rank has closed its output
    assert all(is_ended(pid) for pid in ranks)
    return run.returncode, text, time.monotonic() - begin


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
def test_lost_rank(data, tmp_path, rank, number, says):
    last = tmp_path / "run" / "weights" / "last.pt"
    line = command(*options(data, tmp_path), "--epochs", 500, processes=2)  # not over before the ranks notice
    status, text, seconds = run_and_hit(line, last, rank, number)
    assert status != 0 and seconds < 60 and says in text, text
    assert text.count("Traceback") <= 1, text  # that of torchrun itself


def test_torchrun_restart_continues_the_run(data, whole, tmp_path):
    line = command(*options(data, tmp_path), processes=2)
    line[3:3] = ["--max-restarts", "2"]
    status, text, _ = run_and_hit(line, tmp_path / "run" / "weights" / "last.pt", 1, signal.SIGKILL)
    assert status == 0 and "restart 1 by torchrun: continuing" in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_same_end(tmp_path / "run", whole)


def node(number, port, *line):
    """Build the command of one of two machines with one process each, both of them this one."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    return [*launcher, "--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", port, *map(str, line)]


def test_rank_lost_on_one_of_two_nodes(data, whole, tmp_path):
    """Two launchers: both ranks have LOCAL_RANK 0, and the run ends like one of two processes of one launcher."""
    last, port = tmp_path / "run" / "weights" / "last.pt", free_port()
    with (
        start(node(0, port, *options(data, tmp_path))) as first,
        start(node(1, port, *options(data, tmp_path))) as second,
    ):
        wait_for(last, first)
        ranks = [*children(first.pid), *children(second.pid)]
        assert [(variable(pid, "RANK"), variable(pid, "LOCAL_RANK")) for pid in ranks] == [("0", "0"), ("1", "0")]
        begin = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        texts = [run.communicate(timeout=200)[0] for run in (first, second)]
    assert time.monotonic() - begin < 60 and first.returncode and second.returncode and all(map(is_ended, ranks))
    assert f"error: rank 1 (process {ranks[1]} on {socket.gethostname()}) was killed" in texts[0], texts
    port = free_port()
    resume = ("train.py", "--resume", last)
    with start(node(0, port, *resume)) as first, start(node(1, port, *resume)) as second:
        texts = [run.communicate(timeout=200)[0] for run in (first, second)]
    assert first.returncode == second.returncode == 0, texts
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize(("machine", "says"), [("here", "is stopped"), ("gpu07/pid:[1]", "is unreachable")])
def test_lost_rank_is_named(machine, says):
    """A watch of rank 0 over a stopped process, and one without signs of life on another machine; short time limits."""
    code = (
        "import sys, time; from torch.distributed import HashStore; from utils.core import rank_watch as w;"
        "w.POLL_S, w.STOPPED_S, w.SILENT_S = 0.1, 1.0, 1.0; store = HashStore();"
        "machine = w._machine() if sys.argv[2] == 'here' else sys.argv[2];"
        "store.set('rank1', f'1 {sys.argv[1]} {machine}'); w.RankWatch(store, 0, 2, 0).start(); time.sleep(20)"
    )
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        other.send_signal(signal.SIGSTOP)
        line = [sys.executable, "-c", code, str(other.pid), machine]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        other.kill()
    place = socket.gethostname() if machine == "here" else "gpu07"
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: rank 1 (process {other.pid} on {place}) {says}; all")
