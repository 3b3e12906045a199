"""Programs on the simulated GPU: files exported on a CPU, runs resumed in fp16, the automatic batch size."""

import csv
import math

import pytest
import simulated_gpu
import torch
from helpers_export import CPU, detecting_network, noise
from helpers_run import script, tiny_data

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


def losses(folder):
    """Read the losses of all epochs of a run."""
    rows = [
        {k.strip(): v for k, v in row.items()}
        for row in csv.DictReader((folder / "results.csv").read_text().splitlines())
    ]
    return [float(value) for row in rows for key, value in row.items() if key.startswith("train/")]


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
def test_cpu_run_resumes_in_fp16(data, tmp_path):
    common = ("--data", data, "--project", tmp_path, "--name", "a", *SMALL)
    script("train.py", *common, "--device", "cpu", "--epochs", "2", "--save-period", "1", "--noval")
    first = tmp_path / "a" / "weights" / "epoch0.pt"
    text = run_on_gpu("train.py", "--resume", first, "--device", "0", "--workers", "0", capability=(7, 0))
    assert "resuming" in text and "float16" in text
    values = losses(tmp_path / "a")
    assert len(values) >= 6 and all(map(math.isfinite, values))


@needs_simulation
def test_batch_size_of_a_large_gpu(data, tmp_path):
    options = ("--device", "0", "--epochs", "1", "--amp", "bf16", "--noval", "--nosave")
    run_on_gpu("train.py", "--data", data, "--project", tmp_path, *SMALL, *options, "--batch-size", "-1")
    assert read_yaml(tmp_path / "exp" / "args.yaml")["batch_size"] == 1024


@needs_simulation
def test_training_validation_and_prediction(data, tmp_path):
    """fp16 with SGD stays finite; the checkpoint is validated in half precision and predicts with TTA."""
    common = ("--device", "0", "--project", tmp_path, "--exist-ok")
    options = ("--amp", "fp16", "--epochs", "2", "--deterministic", "--no-tf32")
    run_on_gpu("train.py", "--data", data, *SMALL, *options, *common)
    values = losses(tmp_path / "exp")
    assert len(values) >= 6 and all(map(math.isfinite, values))
    weights = tmp_path / "exp" / "weights" / "best.pt"
    run_on_gpu("val.py", "--weights", weights, "--half", "--workers", "0", "--noplots", "--img", "64", *common)
    source = data.parent / "tiny" / "images" / "val"
    run_on_gpu("detect.py", "--weights", weights, "--source", source, "--augment", "--img", "64", *common)
