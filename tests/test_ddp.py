"""Two processes train as one does on the same global batch."""

import json
import os
import subprocess

import pytest
from helpers_run import ROOT, command, environment, tiny_data

STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=20, val=8)


def run(out, data, task, processes):
    line = command(str(ROOT / "tests" / "ddp_worker.py"), out, data, STEPS, "frozen", task, processes=processes)
    env = environment() | {"PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_two_processes_follow_one_with_frozen_statistics(data, tmp_path, task):
    one = run(tmp_path / "one.json", data, task, 1)
    two = run(tmp_path / "two.json", data, task, 2)
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    assert two["norms"][0] == two["norms"][1] == pytest.approx(one["norms"][0], rel=1e-5)
    assert one["losses"][-1] < one["losses"][0]
