"""Exported files of every head: parity, open sizes, and the scripts that score and show with them."""

import json

import cv2
import numpy as np
import pytest
import torch
from helpers_export import CLASSES, detecting_network, needs, noise, reference, written
from helpers_run import results, tiny_data

import detect
import export
import val
from classify import predict as class_predict
from classify import val as class_val
from models.add_semantic_head import with_semantic_head
from models.architecture import read_architecture
from models.builder import build_network, classification_network
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fuse import fuse, replace_focus
from models.heads.anchor_head import decode_level
from models.layers.context import pool_to_grid
from models.layers.space_to_depth import Focus
from utils.backends.openvino import SPECIALISE_AFTER
from utils.backends.per_anchor_decoder import with_per_anchor_decoder
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.yaml_file import read_yaml, write_yaml
from utils.engine.parity import Limits, MatchSettings, compare
from utils.ops.crop import centre_crop
from utils.programs.export_certificate import LIMITS

SIDE = 96
SIZES = ((8, 12), (4, 6), (2, 3))
PIXELS = ("circle", "square", "triangle", "other")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return the paths of checkpoints by their heads; the first layer of `psp` slices the image."""
    folder = tmp_path_factory.mktemp("checkpoints")
    networks = {
        "detect": detecting_network("yolov5n"),
        "classify": classification_network(detecting_network("yolov5n"), 3, CLASSES).eval(),
        "semantic": detecting_network(with_semantic_head("yolov5n", "base", names=PIXELS, alone=True), PIXELS),
        "psp": detecting_network(with_semantic_head("yolov5n-v5", "psp", names=PIXELS), spread=0.2),
        "bise": detecting_network(with_semantic_head("yolov5n", "bise", names=PIXELS), spread=0.2),
        "lab": detecting_network(with_semantic_head("yolov5n", "lab", names=PIXELS), spread=0.2),
    }
    for name, network in networks.items():
        save_checkpoint(folder / f"{name}.pt", network, {"imgsz": SIDE})
    return {name: folder / f"{name}.pt" for name in networks}


# PyTorch's own fp32 is up to 0.009 px away from fp64 in networks that have learned nothing
NEAR = Limits(pixels=2e-2, faint_pixels=5e-2)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Compare on two images."""
    monkeypatch.setattr("utils.programs.export_certificate.IMAGES", 2)
    monkeypatch.setattr("utils.programs.export_certificate.LIMITS", {**LIMITS, "fp32": NEAR})


FORMATS = ("torchscript", "onnx", "openvino", "pt2", "ncnn")
HEADS = [*((name, "psp") for name in FORMATS), *((name, "classify") for name in ("torchscript", "openvino", "pt2"))]
HEADS += [("onnx", "semantic"), ("onnx", "bise"), ("onnx", "lab"), ("ncnn", "semantic")]


@pytest.mark.parametrize(("name", "heads"), HEADS)
def test_every_head_matches_checkpoint(name, heads, checkpoints, tmp_path):
    needs(name)
    path, runner = written(checkpoints[heads], tmp_path, name)
    ours = reference(checkpoints[heads])
    assert runner.specs == ours.specs and runner.names == ours.names
    parity = compare(runner, ours, [noise(2, SIDE, SIDE)], MatchSettings(0.05))
    assert parity.violations(Limits(0.4, 1.0, 2e-3, 2e-2) if name == "ncnn" else NEAR) == []
    found = runner.run(noise(1, SIDE, SIDE)).decoded
    assert {head: set(part) for head, part in found.items()} == {
        head: set(part) for head, part in ours.run(noise(1, SIDE, SIDE)).decoded.items()
    }
    if "semantic" in runner.specs:
        assert runner.specs["semantic"].names == PIXELS and found["semantic"]["logits"].shape == (1, 4, 12, 12)
        kinds = json.loads((tmp_path / f"{path.name}.json").read_text())["parity"]["largest_error"]
        assert kinds["semantic/logits/classes"] == 0.0


@pytest.mark.parametrize(
    ("name", "heads", "options"),
    [
        ("onnx", "psp", {"opset": 12}),
        ("openvino", "psp", {}),
        ("torchscript", "psp", {}),
        ("pt2", "psp", {}),
        ("onnx", "classify", {}),
    ],
)
def test_sizes_are_dynamic_by_default(name, heads, options, checkpoints, tmp_path):
    needs(name)
    _, runner = written(checkpoints[heads], tmp_path, name, imgsz=[], **options)
    assert runner.fixed_hw is None
    images = [noise(1, SIDE, SIDE), noise(3, SIDE, SIDE)]
    images += [] if heads == "classify" else [noise(2, 64, 160), noise(1, 224, 64)]
    parity = compare(runner, reference(checkpoints[heads]), images, MatchSettings(0.05))
    assert parity.violations(NEAR) == []


def test_static_shapes(checkpoints, tmp_path):
    for number, options in enumerate(({"imgsz": [64, 96]}, {"imgsz": [], "static": True})):
        _, runner = written(checkpoints["detect"], tmp_path / str(number), "torchscript", **options)
        assert runner.fixed_hw == ((64, 96) if options["imgsz"] else (SIDE, SIDE))
    with pytest.raises(UserError, match="dynamic or fixed"):
        written(checkpoints["detect"], tmp_path, "torchscript", static=True, dynamic=True)


# ----------------------------------------------------------------------------------------------------------------------
# What makes it possible


def test_grid_means_match_adaptive_pooling(monkeypatch):
    x = torch.randn(2, 3, 13, 20)
    for size in (1, 2, 3, 6):
        plain = torch.nn.functional.adaptive_avg_pool2d(x, size)
        assert torch.equal(pool_to_grid(x, size), plain)
        monkeypatch.setattr("models.layers.context.is_exporting", lambda: True)
        torch.testing.assert_close(pool_to_grid(x, size), plain)
        monkeypatch.undo()


@pytest.mark.parametrize("masks", [0, 4])
def test_traced_decoding_is_bit_exact(masks, monkeypatch):
    raw = torch.randn(2, 3, 5, 7, 5 + 3 + masks)
    anchors = torch.tensor([[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]])
    plain = decode_level(raw, anchors, 16, 3)
    monkeypatch.setattr("models.heads.anchor_head.is_exporting", lambda: True)
    assert torch.equal(decode_level(raw, anchors, 16, 3), plain)


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n-seg"])
def test_column_decoding_matches_head(name):
    torch.manual_seed(0)
    network = fuse(build_network(read_architecture(name), 3)).eval().requires_grad_(False)
    (head,) = network.heads.values()
    features = [torch.randn(2, layer.in_channels, *size) for layer, size in zip(head.m, SIZES, strict=True)]
    plain = head.decode(head(features))["predictions"]
    (changed,) = with_per_anchor_decoder(network).heads.values()
    found = changed.decode(changed(features))["predictions"]
    assert not torch.equal(found, plain)  # another way was taken
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-4)
    assert torch.equal(head.decode(head(features))["predictions"], plain)  # the original is unchanged


def test_openvino_compiles_frequent_shapes(checkpoints, tmp_path):
    needs("openvino")
    _, runner = written(checkpoints["detect"], tmp_path, "openvino", imgsz=[])
    images = noise(1, 64, 96)
    found = [runner.run(images).decoded["detect"]["predictions"] for _ in range(SPECIALISE_AFTER + 2)]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[-1], found[0], rtol=1e-4, atol=1e-3)
    assert runner.run(noise(2, 96, 32)).decoded["detect"]["predictions"].shape[0] == 2


@pytest.mark.parametrize("kernel", [1, 3])
def test_focus_as_convolution(kernel):
    torch.manual_seed(0)
    focus = Focus(3, 8, kernel).eval()
    focus.conv.bn.running_mean.normal_()
    x = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(focus.as_convolution()(x), focus(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="groups"):
        Focus(4, 8, kernel, groups=2).as_convolution()


def test_focus_is_replaced_in_exports_only(checkpoints):
    network = load_checkpoint(checkpoints["psp"]).network
    plain = replace_focus(network)
    assert isinstance(network.model[0], Focus) and not isinstance(plain.model[0], Focus)
    x = torch.rand(1, 3, 64, 64)
    ours, theirs = network.decode(network(x)), plain.decode(plain(x))
    torch.testing.assert_close(theirs["semantic"]["logits"], ours["semantic"]["logits"], rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# The scripts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write a data set of images with boxes and semantic maps."""
    path = tiny_data(tmp_path_factory.mktemp("data"), train=8, val=6)
    values = read_yaml(path)
    write_yaml(path, {**values, "names": values["names"][:3]})
    return path


def scored(path, data, project, name):
    """Return the numbers of val.py on a file."""
    val.run(weights=[str(path)], data=str(data), imgsz=[SIDE], workers=0, project=str(project), name=name, noplots=True)
    return results(project / name)


def test_val_of_exported_multitask_file(checkpoints, data, tmp_path, monkeypatch):
    needs("onnx")
    checkpoint = checkpoints["psp"]
    (path,) = export.run(weights=[str(checkpoint)], include=["onnx"], output=str(tmp_path), data=str(data))
    ours, theirs = scored(checkpoint, data, tmp_path, "ours"), scored(path, data, tmp_path, "theirs")
    names = [name for name in ours if name.startswith(("detect/", "semantic/"))]
    assert "semantic/miou" in names and "detect/map50_95" in names
    assert [theirs[name] for name in names] == pytest.approx([ours[name] for name in names], abs=2e-3)
    lines = []
    monkeypatch.setattr(LOGGER, "info", lambda text, *rest, **more: lines.append(str(text)))
    export.run(weights=[str(checkpoint)], include=["onnx"], output=str(tmp_path / "files"), static=True)
    fixed = scored(tmp_path / "files" / path.name, data, tmp_path, "fixed")
    assert [line for line in lines if "only takes 96 x 96 pixels" in line and "--dynamic" in line]
    assert fixed["semantic/miou"] == pytest.approx(ours["semantic/miou"], abs=0.1)  # photos of it are squares


def test_int8_multitask_accuracy_report(checkpoints, data, tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setattr("utils.programs.export_certificate.CALIBRATION_IMAGES", 4)
    checkpoint = checkpoints["psp"]
    chosen = {"include": ["onnx"], "int8": True, "max_drop": 1.0, "data": str(data), "opset": 13}
    (path,) = export.run(weights=[str(checkpoint)], output=str(tmp_path), **chosen)
    accuracy = json.loads((tmp_path / f"{path.name}.json").read_text())["accuracy"]
    assert set(accuracy["after"]) == {"detect/map50_95", "semantic/miou"}
    assert accuracy["after"]["semantic/miou"] == pytest.approx(accuracy["before"]["semantic/miou"], abs=0.1)


def test_detect_with_exported_multitask_file(checkpoints, data, tmp_path):
    needs("onnx")
    checkpoint = checkpoints["psp"]
    (path,) = export.run(weights=[str(checkpoint)], include=["onnx"], output=str(tmp_path))
    photos = data.parent / "tiny" / "images" / "val"
    for name, weights in (("theirs", path), ("ours", checkpoint)):
        detect.run(weights=[str(weights)], source=str(photos), project=str(tmp_path), name=name, save_mask=True)
    masks = {name: sorted((tmp_path / name).rglob("*.png")) for name in ("ours", "theirs")}
    assert len(masks["ours"]) == len(masks["theirs"]) > 0
    for one, other in zip(*masks.values(), strict=True):
        assert (cv2.imread(str(one)) != cv2.imread(str(other))).mean() < 0.01


@pytest.fixture(scope="module")
def classes(tmp_path_factory, checkpoints):
    """Return a folder of photos in three classes."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for index in range(4):
                photo = rng.integers(0, 60, (120, 100, 3), dtype=np.uint8)
                photo[..., number] += 120
                cv2.imwrite(str(folder / split / name / f"{index}.png"), photo)
    return folder


@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript"])
def test_classification_scripts_with_exported_files(name, checkpoints, classes, tmp_path):
    needs(name)
    path, _ = written(checkpoints["classify"], tmp_path, name, **({} if name == "onnx" else {"imgsz": []}))
    compared(path, checkpoints["classify"], classes, tmp_path)


def compared(path, checkpoint, photos, folder):
    """classify/val.py and classify/predict.py say of a file what they say of the checkpoint."""
    for name, weights in (("ours", checkpoint), ("theirs", path)):
        options = {"weights": [str(weights)], "project": str(folder)}
        class_val.run(**options, data=str(photos), workers=0, name=name, noplots=True)
        seen = {"source": str(photos / "val" / "bee"), "save_txt": True, "name": f"{name}-seen"}
        class_predict.run(**options, **seen)
    ours, theirs = results(folder / "ours"), results(folder / "theirs")
    for key in ("classify/top1", "classify/top5"):
        assert theirs[key] == ours[key]
    for one in sorted((folder / "ours-seen" / "labels").glob("*.txt")):
        assert one.read_text() == (folder / "theirs-seen" / "labels" / one.name).read_text() != ""


def test_int8_classifier(checkpoints, classes, tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setattr("utils.programs.export_certificate.CALIBRATION_IMAGES", 3)
    seen = []
    monkeypatch.setattr(
        "utils.programs.export_certificate.centre_crop", lambda *a: seen.append(a[0]) or centre_crop(*a)
    )
    chosen = {"include": ["onnx"], "int8": True, "max_drop": 1.0, "data": str(classes), "imgsz": [SIDE]}
    (path,) = export.run(weights=[str(checkpoints["classify"])], output=str(tmp_path), **chosen)
    accuracy = json.loads((tmp_path / f"{path.name}.json").read_text())["accuracy"]
    assert set(accuracy["after"]) == {"classify/top1"}
    brightest = {int(photo.mean(axis=(0, 1)).argmax()) for photo in seen[:3]}  # which tells the class
    assert brightest == {0, 1, 2}


@pytest.mark.filterwarnings("ignore")
def test_yolov5_classifier_export_logits(checkpoints, classes, tmp_path):
    """Its files want ImageNet's mean and deviation taken out, and know neither softmax nor how images are cut."""
    needs("onnx")
    import onnx

    network = load_checkpoint(checkpoints["classify"]).network.requires_grad_(False)
    mean, deviation = network.architecture["normalise"].values()

    class Logits(torch.nn.Module):
        def forward(self, images):
            raw = network(images * torch.tensor(deviation).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1))
            return raw["classify"]["logits"]

    path = tmp_path / "yolov5n-cls.onnx"
    torch.onnx.export(
        Logits(), (torch.rand(1, 3, SIDE, SIDE),), str(path), input_names=["images"], output_names=["output0"],
        opset_version=12, dynamo=False,
    )  # fmt: skip
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"stride": "32", "names": str(dict(enumerate(CLASSES)))})
    onnx.save(model, str(path))
    compared(path, checkpoints["classify"], classes, tmp_path)


WAYS = [("detect", option) for option in ({}, {"simplify": True}, {"half": True}, {"nms": True})]


@pytest.mark.parametrize(("heads", "options"), [*WAYS, ("detect", {"with_preprocess": "bgr"}), ("psp", {})])
def test_opset_12(heads, options, checkpoints, tmp_path):
    needs("onnx")
    import onnx

    if options.get("simplify"):
        pytest.importorskip("onnxslim")
    path, _ = written(
        checkpoints[heads], tmp_path, "onnx", opset=12, dynamic=True, allow_mismatch="half" in options, **options
    )
    assert {entry.version for entry in onnx.load(str(path)).opset_import if entry.domain == ""} == {12}


def test_opset_12_int8(checkpoints, data, tmp_path, monkeypatch):
    needs("onnx")
    import onnx

    monkeypatch.setattr("utils.programs.export_certificate.CALIBRATION_IMAGES", 4)
    checkpoint = checkpoints["psp"]
    chosen = {"include": ["onnx"], "int8": True, "max_drop": 1.0, "data": str(data), "opset": 12}
    with pytest.raises(UserError, match="not exported"):  # a scale per channel needs 13
        export.run(weights=[str(checkpoint)], output=str(tmp_path), **chosen)
    assert not list(tmp_path.iterdir())
    (path,) = export.run(weights=[str(checkpoint)], output=str(tmp_path), per_tensor=True, **chosen)
    assert {entry.version for entry in onnx.load(str(path)).opset_import if entry.domain == ""} == {12}


@pytest.mark.parametrize("name", ["pt2", "ncnn"])
def test_opset_refused_for_other_formats(name, checkpoints, tmp_path):
    with pytest.raises(UserError, match="--opset: not supported by"):
        written(checkpoints["detect"], tmp_path, name, opset=12)
