"""Loader workers that are killed or stopped."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers_run import ROOT, command, environment, tiny_data
from torch.utils.data import Dataset

from utils.core.errors import UserError
from utils.core.interrupt import Interrupt
from utils.core.process_state import is_ended
from utils.datasets.pipeline import worker_watch
from utils.datasets.pipeline.worker_pool import WorkerPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
CHUNKS = [(number,) for number in range(16)]


class Numbers(Dataset):
    """Creates batches that hold the number of their chunk; `deadly` kills its worker."""

    def __init__(self, deadly=-1):
        self.deadly = deadly

    def __getitem__(self, chunk):
        if chunk[0] == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return [torch.full((100,), number) for number in chunk], []


@pytest.fixture
def pool():
    made = WorkerPool(Numbers(), 2)
    yield made
    made.close()


def numbers(pool, hit=None):
    """Read all batches and call `hit` with worker 1 after the fourth."""
    found = []
    for batch in pool.batches(CHUNKS):
        found.append(int(batch[0]))
        if len(found) == 4 and hit:
            os.kill(pool.processes[1].pid, hit)
    return found


def test_killed_worker_is_replaced_at_the_same_batch(pool, caplog):
    assert numbers(pool, signal.SIGKILL) == list(range(16))
    assert "data loader worker 1 (process" in caplog.text and "was killed by SIGKILL" in caplog.text
    assert numbers(pool) == list(range(16))  # the next epoch


def test_stopped_worker_stops_the_training_in_order(pool, monkeypatch):
    monkeypatch.setattr(worker_watch, "STOPPED_S", 1.0)
    with Interrupt("stopping") as interrupt:
        assert numbers(pool, signal.SIGSTOP) == list(range(16))
    assert interrupt.requested and "data loader worker 1 (process" in interrupt.reason
    assert "is stopped and gave nothing for 1 s" in interrupt.reason


FORGETFUL = """
import sys
sys.path.insert(0, "tests")
from test_worker_kills import CHUNKS, Numbers, WorkerPool
pool = WorkerPool(Numbers(), 2)
batches = pool.batches(CHUNKS)
next(batches)
pool.processes = []
"""


def test_workers_of_a_forgotten_pool_end_with_the_program():
    subprocess.run([sys.executable, "-c", FORGETFUL], cwd=ROOT, env=environment(), timeout=60, check=True)


def test_workers_of_a_dropped_pool_end_at_once():
    """Torch's loader would wait 5 s or more for a worker that does not come to its end by itself."""
    dropped = WorkerPool(Numbers(), 2)
    assert numbers(dropped) == list(range(16))
    processes, start = list(dropped.processes), time.monotonic()
    os.kill(processes[0].pid, signal.SIGSTOP)
    del dropped
    gc.collect()
    assert time.monotonic() - start < 3 and not any(process.is_alive() for process in processes)


class Collecting(Dataset):
    """Collects garbage in its worker."""

    def __getitem__(self, chunk):
        gc.collect()
        return [torch.full((100,), number) for number in chunk], []


TWO_TRAININGS = """
import gc, sys
sys.path.insert(0, "tests")
from test_worker_kills import CHUNKS, Collecting, Numbers, WorkerPool
pool = WorkerPool(Numbers(), 1)
list(pool.batches(CHUNKS[:2]))
gc.disable()
pool.itself = pool
del pool
list(WorkerPool(Collecting(), 1).batches(CHUNKS[:2]))
"""


def test_workers_do_not_collect_the_loaders_of_an_earlier_training():
    done = subprocess.run(
        [sys.executable, "-c", TWO_TRAININGS], cwd=ROOT, env=environment(), timeout=60, check=True, capture_output=True
    )
    assert not done.stderr.decode()  # "can only test a child process"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_workers_leave_signals_to_the_trainer(pool, number, caplog):
    assert numbers(pool, number) == list(range(16)) and not caplog.records


def test_worker_that_always_dies_ends_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr("utils.datasets.pipeline.worker_pool._RESTARTS", 1)
    pool = WorkerPool(Numbers(deadly=0), 2)
    with pytest.raises(UserError, match=r"data loader worker 0 .* was killed by SIGKILL, 2 times without"):
        numbers(pool)
    assert not pool.processes


def children(pid):
    done = subprocess.run(
        ["ps", "--no-headers", "-o", "pid", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)])
def test_signal_to_the_process_group(tmp_path, number, status):
    line = command(
        "train.py", "--data", tiny_data(tmp_path), "--cfg", "yolov5n", "--img", 64, "--batch", 4, "--workers", 2,
        "--epochs", 200, "--noval", "--noplots", "--save-steps", 1, "--project", tmp_path, "--name", "run",
    )  # fmt: skip
    last = tmp_path / "run" / "weights" / "last.pt"
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(line, cwd=ROOT, env=environment(), start_new_session=True, **pipe) as run:
        while not last.exists() and run.poll() is None:
            time.sleep(0.05)
        workers = children(run.pid)
        if number == signal.SIGKILL:
            os.kill(run.pid, number)  # the workers end with their parent
        else:
            os.killpg(run.pid, number)
        text, _ = run.communicate(timeout=60)
    assert run.returncode == status and "Traceback" not in text, text
    assert status < 0 or f"--resume {last}" in text, text
    time.sleep(0.5)
    assert workers and not [pid for pid in workers if not is_ended(pid)]
