"""The wheel: one package `polyolo` and one command, which train, validate, predict and export from another folder."""

import ast
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from helpers_run import ROOT, environment, tiny_data

sys.path.insert(0, str(ROOT / "wheelbuild"))
from package_layout import LIBRARIES, rewrite_module

SMALL = ("--imgsz", "64", "--device", "cpu", "--workers", "0")


def run(line, folder, status=0):
    paths = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, line)), cwd=folder, env=paths, capture_output=True, text=True, timeout=300, check=False
    )
    text = done.stdout + done.stderr
    assert done.returncode == status, text[-4000:]
    return text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", "77", reason="setuptools is not installed")
    pytest.importorskip("pip", reason="pip is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    line = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        folder,
        ROOT,
    ]
    run(line, folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel in an empty environment that sees the packages of this one; return its folder of programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    line = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-deps", "--no-index"]
    run([*line, wheel], folder)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    target = Path(run([programs / "python", "-c", code], folder).strip())
    (target / "outer.pth").write_text(sysconfig.get_paths()["purelib"])
    return programs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    tiny_data(folder)
    return folder


def test_one_top_level_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"polyolo", "polyolo-0.1.0.dist-info"}
    assert {"polyolo/train.py", "polyolo/segment/train.py", "polyolo/utils/engine/fit.py"} <= set(names)
    assert {"polyolo/data/shapes.yaml", "polyolo/data/hyps/hyp.scratch-low.yaml", "polyolo/py.typed"} <= set(names)
    assert {"polyolo/models/configs/yolov5.yaml", "polyolo/tools/service/page/index.html"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_no_module_imports_a_top_level_library(wheel):
    archive = zipfile.ZipFile(wheel)
    for name in (name for name in archive.namelist() if name.endswith(".py")):
        for node in ast.walk(ast.parse(archive.read(name))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [module for module in modules if module.split(".")[0] in LIBRARIES], name


def test_installed_programs_in_another_folder(installed, place):
    polyolo = installed / "polyolo"
    run([polyolo, "train", "--data", "tiny.yaml", "--cfg", "yolov5n", "--epochs", "1", "--batch", "8", *SMALL], place)
    best = place / "runs/train/exp/weights/best.pt"
    assert best.is_file()
    assert "all" in run([polyolo, "val", "--noplots", *SMALL], place)  # the newest run, on its own data
    run([polyolo, "detect", "--source", "tiny/images/val", "--imgsz", "64", "--device", "cpu"], place)
    assert len(list((place / "runs/detect/exp").glob("*.*g"))) == 8
    text = run([polyolo, "export", "--weights", best, "--include", "torchscript", "--imgsz", "64"], place)
    assert best.with_suffix(".torchscript").is_file() and "polyolo detect --weights" in text
    text = run([polyolo, "val", "--weights", "absent.pt"], place, status=2)
    assert "absent.pt" in text and "Traceback" not in text


def test_programs_of_the_other_tasks_answer(installed, place):
    polyolo = installed / "polyolo"
    for words in (["segment", "predict"], ["classify", "train"], ["convert"], ["check"], ["tune"], ["serve"]):
        assert run([polyolo, *words, "--help"], place).startswith(f"usage: polyolo {' '.join(words)} ")
    assert "parameters" in run([polyolo, "summary", "--cfg", "yolov5n"], place)


def test_generated_data_stay_out_of_the_environment(installed, place):
    code = (
        "from polyolo.utils.core.data_config import load_data\n"
        "from polyolo.utils.core.data_paths import datasets_folder\n"
        "print(load_data('shapes').root, datasets_folder(), sep='|')"
    )
    root, folder = run([installed / "python", "-c", code], place).strip().split("|")
    assert Path(root).resolve() == (place / "datasets" / "shapes").resolve()
    assert Path(folder).resolve() == (place / "datasets").resolve()


def test_registries_of_the_package_are_complete(installed, place):
    code = (
        "from {0}utils.core.registry import registered_names as names;"
        "packages = 'utils.losses', 'utils.loggers', 'models.heads', 'utils.datasets.generators';"
        "print([names('{0}' + one) for one in packages])"
    )
    inside = run([installed / "python", "-c", code.format("polyolo.")], place)
    beside = run([sys.executable, "-c", code.format("")], ROOT)
    assert inside == beside and "'detect'" in inside


def test_checkpoints_of_clone_and_package_are_alike(installed, place, tmp_path):
    """Weights written by one are read by the other, and both predict the same numbers."""
    code = (
        "import sys, torch; from {0}models.builder import build_network, read_architecture;"
        "from {0}models.checkpoint import save_checkpoint; torch.manual_seed(0);"
        "save_checkpoint(__import__('pathlib').Path(sys.argv[1]), build_network(read_architecture('yolov5n'), 3), {{}})"
    )
    read = (
        "import sys, torch; from polyolo import load; torch.manual_seed(1);"
        "torch.save(load(sys.argv[1], device='cpu').model(torch.rand(1, 3, 64, 64)), sys.argv[2])"
    )
    writers = ((installed / "python", place, "polyolo."), (sys.executable, ROOT, ""))
    outputs = []
    for number, (python, folder, prefix) in enumerate(writers):
        run([python, "-c", code.format(prefix), tmp_path / f"{number}.pt"], folder)
    for file in ("0.pt", "1.pt"):
        for number, (python, folder, _) in enumerate(writers):
            run([python, "-c", read, tmp_path / file, tmp_path / f"out{number}"], folder)
            outputs.append(torch.load(tmp_path / f"out{number}", weights_only=True))
    assert outputs[0].shape == (1, 252, 8) and all(torch.equal(outputs[0], one) for one in outputs[1:])


NEEDS_NO_CLONE = "not help_does_not_load_torch"  # which runs the scripts of the repository
SUITE = (
    "core_yaml", "core_files", "ops_anchors", "models_layers", "losses_detect", "postprocess_detect",
    "contracts",
)  # fmt: skip


def test_suite_against_the_package(installed, place):
    """A selection of the suite passes against the rewritten package, its own imports being rewritten alike."""
    tests = place / "tests"
    tests.mkdir()
    sources = [ROOT / "tests" / f"test_{name}.py" for name in SUITE]
    for source in [*sources, ROOT / "tests" / "conftest.py", *(ROOT / "tests").glob("helpers_*.py")]:
        (tests / source.name).write_text(rewrite_module(source.read_text()))
    text = run(
        [installed / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", NEEDS_NO_CLONE, tests], place
    )
    assert "passed" in text


def test_rewriting():
    text = (
        "import sys\nfrom utils.core import cli\nimport models.fuse as fuse\n"
        "sys.path.insert(0, 'x')\nLOSSES = Registry('ö', 'utils.losses')\n"
        "NAME = 'models.yolo'  # the name of a class in YOLOv5's files\n"
        "HELP = 'python val.py or python segment/val.py'\n"
    )
    assert rewrite_module(text) == (
        "import sys\nfrom polyolo.utils.core import cli\nimport polyolo.models.fuse as fuse\n"
        "pass\nLOSSES = Registry('ö', 'polyolo.utils.losses')\n"
        "NAME = 'models.yolo'  # the name of a class in YOLOv5's files\nHELP = 'polyolo val or polyolo segment val'\n"
    )
    with pytest.raises(ValueError, match="binds a library"):
        rewrite_module("import utils.core\n")
