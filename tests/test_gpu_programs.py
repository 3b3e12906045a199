"""Programs on the simulated GPU: files exported on a CPU and the automatic batch size."""

import pytest
import simulated_gpu
import torch
from helpers_export import CPU, detecting_network, noise
from helpers_run import tiny_data

import export
from models.add_semantic_head import with_semantic_head
from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.backends.open_weights import open_weights
from utils.core.yaml_file import read_yaml

needs_simulation = pytest.mark.skipif(bool(simulated_gpu.available()), reason=simulated_gpu.available() or "available")
SMALL = ("--img", "64", "--workers", "0", "--noplots", "--batch-size", "8", "--exist-ok")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=16, val=4, size=64)


def run_on_gpu(*arguments, **options):
    """Run a program on the simulated GPU; it must end normally and mix no devices."""
    done, record = simulated_gpu.run_simulated(arguments, strict=True, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert record["mixed"] == {}
    return done.stdout + done.stderr


def psp_network():
    torch.manual_seed(0)
    architecture = with_semantic_head(read_architecture("yolov5n"), "psp", alone=False)
    return build_network(architecture, head_names={"detect": ("a", "b"), "semantic": ("a", "b", "c")}).eval()


@needs_simulation
@pytest.mark.parametrize("network", [lambda: detecting_network("yolov5n-seg"), psp_network], ids=["segment", "psp"])
def test_torchscript_of_a_cpu_runs_on_a_gpu(network, tmp_path):
    save_checkpoint(tmp_path / "net.pt", network(), {"imgsz": 96})
    options = {"imgsz": [96], "dynamic": True, "allow_mismatch": True, "output": str(tmp_path)}
    (path,) = export.run(weights=[str(tmp_path / "net.pt")], include=["torchscript"], **options)
    images = noise(2, 64, 96)
    torch.save(images, tmp_path / "images.pt")
    run_on_gpu("tests/simulated_torchscript.py", path, tmp_path / "images.pt", tmp_path / "outputs.pt")
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    expected = open_weights([str(path)], CPU).runner.run(images).decoded
    compared = {f"{head}/{key}": tensor for head, tensors in expected.items() for key, tensor in tensors.items()}
    assert found.keys() == compared.keys()
    for name, tensor in compared.items():
        assert torch.equal(found[name], tensor), name


@needs_simulation
def test_batch_size_of_a_large_gpu(data, tmp_path):
    options = ("--device", "0", "--epochs", "1", "--amp", "bf16", "--noval", "--nosave")
    run_on_gpu("train.py", "--data", data, "--project", tmp_path, *SMALL, *options, "--batch-size", "-1")
    assert read_yaml(tmp_path / "exp" / "args.yaml")["batch_size"] == 1024
