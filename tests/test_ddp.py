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


@pytest.mark.parametrize("task", ["detect", "segment", "classify", "detect+psp", "semantic", "segment:polyolo-n-seg"])
def test_two_processes_match_one(data, tmp_path, task):
    data = data if task != "classify" else data.parent / "tiny" / "classes"
    one = run(tmp_path / "one.json", data, "frozen", 1, task)
    two = run(tmp_path / "two.json", data, "frozen", 2, task)
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    assert two["norms"][0] == two["norms"][1] == pytest.approx(one["norms"][0], rel=1e-5)
    # the first losses of anchor-free heads are small, because no box has a high target score yet
    assert one["losses"][-1] < max(one["losses"]) and min(one["losses"][1:]) < one["losses"][1]


def test_gradients_are_reduced_once_per_update(data, tmp_path):
    every = run(tmp_path / "every.json", data, "every", 2, "detect")
    one = run(tmp_path / "one.json", data, "accumulate", 1, "detect")
    two = run(tmp_path / "two.json", data, "accumulate", 2, "detect")
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    assert two["norms"][0] == two["norms"][1] == pytest.approx(one["norms"][0], rel=1e-5)
    assert 0 < two["reductions"] < 0.6 * every["reductions"]


def test_statistics_of_the_first_rank_are_the_average(data, tmp_path):
    found = run(tmp_path / "live.json", data, "live", 2, "detect")
    assert found["own"][0] != found["own"][1]  # buffers are not exchanged in every step
    assert found["average"][0] == found["average"][1]
    assert found["norms"][0] == found["norms"][1]
