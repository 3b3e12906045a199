"""Training with two processes equals training with one on the same global batch."""

import json
import os
import subprocess

import pytest
from helpers_run import ROOT, command, environment, tiny_data

from utils.core.data_config import load_data
from utils.datasets.generators.prepare import ensure_generated

STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tiny_data(tmp_path_factory.mktemp("data"), train=20, val=8)
    ensure_generated(load_data(str(path)))
    return path


def run(out, data, mode, processes, task):
    line = command(str(ROOT / "tests" / "ddp_worker.py"), out, data, STEPS, mode, task, processes=processes)
    env = environment() | {"PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("task", ["detect", "segment", "classify", "detect+psp", "semantic", "detect:polyolo-n"])
def test_two_processes_match_one(data, tmp_path, task):
    data = data if task != "classify" else data.parent / "tiny" / "classes"
    one = run(tmp_path / "one.json", data, "frozen", 1, task)
    two = run(tmp_path / "two.json", data, "frozen", 2, task)
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    assert two["norms"][0] == two["norms"][1] == pytest.approx(one["norms"][0], rel=1e-5)
    # the first losses of anchor-free heads are small, because no box has a high target score yet
    assert one["losses"][-1] < max(one["losses"]) and min(one["losses"][1:]) < one["losses"][1]
