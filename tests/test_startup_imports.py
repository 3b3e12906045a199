"""Programs start without modules that take seconds to import and that they do not use."""

import json
import subprocess
import sys

import pytest
import torch
from helpers_run import ROOT, environment
from torch.utils.flop_counter import FlopCounterMode

from models.builder import build_network, read_architecture
from models.operation_count import OperationCounter
from models.summary import count_operations
from utils.engine.eager_optimizer import eager
from utils.engine.optimizers import OPTIMIZERS, OptimizerOptions

REPORT = """
import atexit, json, runpy, sys
SLOW = ("torch._dynamo", "torch.utils.flop_counter", "sympy", "torchvision", "pandas", "scipy")
atexit.register(lambda: print("LOADED", json.dumps([name for name in SLOW if name in sys.modules])))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def loaded(*line):
    """Run a program; return the slow modules that it imported."""
    options = ["--img", "64", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *map(str, line), *options], cwd=ROOT, env=environment(), capture_output=True,
        text=True, timeout=300, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.split("LOADED")[1].splitlines()[0])


def test_programs_do_not_import_the_compiler(data, tmp_path):
    options = ["--batch", "4", "--epochs", "1", "--workers", "0", "--project", tmp_path, "--noplots"]
    assert loaded("train.py", "--data", data, "--cfg", "yolov5n", *options) == []
    best = tmp_path / "exp" / "weights" / "best.pt"
    assert loaded("val.py", "--data", data, "--weights", best, "--project", tmp_path, "--name", "val") == []
    source = next(data.parent.rglob("*.jpg"))
    assert loaded("detect.py", "--source", source, "--weights", best, "--project", tmp_path, "--name", "detect") == []


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_eager_optimizer_matches_torch(name):
    found = []
    for derived in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        groups = [{"params": list(layer.parameters()), "weight_decay": 0.1, "role": "decay"}]
        optimizer = OPTIMIZERS.get(name)(groups, OptimizerOptions(0.1, 0.9, fused=True))
        kind = type(optimizer)
        if not derived:
            optimizer.step = kind.__mro__[1].step.__get__(optimizer)
        steps = []
        optimizer.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert len(steps) == 3 or not derived
        assert eager(kind.__mro__[1]) is kind
        found.append(layer.weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "name", ["yolov5n", "yolov5n-seg", "yolov5n-cls", "yolov5n-psp", "yolov5n-transformer", "polyolo-n"]
)
def test_operation_count_matches_torch(name):
    network = build_network(read_architecture(name)).eval()
    normalised = []
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output: normalised.append(output.numel()))
    meta = network.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(torch.empty(1, 3, 128, 256, device="meta"))
    assert normalised
    network = build_network(read_architecture(name))
    expected = counter.get_total_flops() + 8 * sum(normalised)
    assert count_operations(network, (128, 256)) == expected
    assert network.training


def test_operation_counter_of_transposed_convolutions():
    layers = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        torch.nn.Conv2d(6, 4, (3, 1), stride=(2, 1), padding=(2, 0), dilation=(2, 1), groups=2),
    )
    image = torch.zeros(2, 4, 9, 7)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected = layers(image)
    with torch.no_grad(), OperationCounter() as found:
        output = layers(image)
    assert output.shape == expected.shape
    assert found.products == counter.get_total_flops()
