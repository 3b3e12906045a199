"""export.py and the exported files: every format that this machine can run is written, run and compared."""

import json
import math

import numpy as np
import pytest
import torch
from helpers_export import CLASSES, CPU, detecting_network, needs, noise, reference, written
from helpers_run import tiny_data
from torch import nn

import export
from models.builder import classification_network
from models.checkpoint import save_checkpoint
from models.fuse import fuse
from models.network_runner import NetworkRunner
from utils.backends.export_metadata import ExportMetadata, ForeignFile, NmsSettings, infer_metadata, parse_metadata
from utils.backends.exported_runner import ExportedRunner, nms_rows_to_predictions
from utils.backends.flat_outputs import FlatNetwork, decoded_output_names
from utils.backends.onnx_graph import append_nms
from utils.backends.open_weights import open_weights
from utils.core.contracts import EvalSettings, HeadSpec
from utils.core.errors import UserError
from utils.core.version import VERSION
from utils.core.yaml_file import read_yaml, write_yaml
from utils.engine.parity import Limits, MatchSettings, Parity, compare
from utils.ops.nms import batched_nms


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return the paths of checkpoints by task or head."""
    folder = tmp_path_factory.mktemp("checkpoints")
    networks = {
        "detect": detecting_network("yolov5n"),
        "segment": detecting_network("yolov5n-seg"),
        "dense": detecting_network("polyolo-n-seg"),
        "classify": classification_network(detecting_network("yolov5n"), 3, CLASSES).eval(),
    }
    for task, network in networks.items():
        save_checkpoint(folder / f"{task}.pt", network, {"imgsz": 96})
    return {task: folder / f"{task}.pt" for task in networks}


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Compare on two images; eight take longer and show no more here."""
    monkeypatch.setattr("utils.programs.export_certificate.IMAGES", 2)


EACH = ("torchscript", "onnx", "openvino", "ncnn", "pt2", "tflite")  # AOTInductor and ExecuTorch take half a minute


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((name, task) for task in ("segment", "dense") for name in EACH),
        ("onnx", "detect"),
        ("onnx", "classify"),
        ("ncnn", "classify"),
    ],
)
def test_exported_file_matches_checkpoint(name, task, checkpoints, tmp_path):
    needs(name)
    path, runner = written(checkpoints[task], tmp_path, name)
    images = noise(3, 96, 96)
    ours, theirs = reference(checkpoints[task]).run(images).decoded, runner.run(images).decoded
    assert theirs.keys() == ours.keys()
    loose = 3 if name in ("ncnn", "openvino") else 1  # they order sums otherwise
    for head in ours:
        for key, tensor in ours[head].items():
            torch.testing.assert_close(theirs[head][key], tensor, rtol=1e-3 * loose, atol=1e-3 * loose)
    assert runner.names == CLASSES and runner.stride == 32 and runner.fixed_hw == (96, 96)
    assert runner.specs == reference(checkpoints[task]).specs
    certificate = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert certificate["passed"] and certificate["polyolo"] == VERSION and certificate["parity"]["images"] == 2


def test_missing_package(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.backends.exported_runner.is_installed", lambda package: package != "onnx")
    with pytest.raises(UserError, match="onnx not exported"):
        export.run(weights=[str(checkpoints["detect"])], include=["onnx"], output=str(tmp_path), imgsz=[96])
    assert not list(tmp_path.iterdir())


def test_version_matches_package(root):
    assert f'version = "{VERSION}"' in (root / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
@pytest.mark.parametrize("head", ["segment", "dense"])
def test_dynamic_shapes(name, head, checkpoints, tmp_path):
    needs(name)
    _, runner = written(checkpoints[head], tmp_path, name, dynamic=True)
    assert runner.fixed_hw is None
    ours = reference(checkpoints[head])
    for shape in ((1, 64, 160), (3, 128, 96)):
        parity = compare(runner, ours, [noise(*shape)], MatchSettings(0.05))
        assert parity.violations(Limits(1e-2, 1e-1)) == [] and parity.detections > 0


@pytest.mark.parametrize("opset", [12, 20])
def test_opset(opset, checkpoints, tmp_path):
    needs("onnx")
    import onnx

    path, _ = written(checkpoints["detect"], tmp_path, "onnx", opset=opset)
    model = onnx.load(str(path))
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "output0"]


@pytest.mark.parametrize("opset", [11, 99])
def test_unsupported_opset(opset, checkpoints, tmp_path):
    needs("onnx")
    with pytest.raises(UserError, match="not exported"):
        written(checkpoints["detect"], tmp_path, "onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def suppressing(num_classes: int, num_masks: int, how: NmsSettings):
    """Return an onnxruntime session that only suppresses the (B, N, 5 + C + M) predictions it is given."""
    needs("onnx")
    import onnx
    import onnxruntime

    columns = 5 + num_classes + num_masks
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], ["output0"], name="same")],
        "suppress",
        [onnx.helper.make_tensor_value_info("images", kind, ["batch", "n", columns])],
        [onnx.helper.make_tensor_value_info("output0", kind, ["batch", "n", columns])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)], ir_version=8)
    append_nms(model, "output0", HeadSpec("x", num_classes, (8,), (), num_masks), how)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def scattered(batch: int, count: int, num_classes: int, num_masks: int) -> torch.Tensor:
    """Return predictions that overlap a lot and whose scores all differ."""
    random = torch.Generator().manual_seed(count)
    boxes = torch.rand(batch, count, 4, generator=random) * torch.tensor([100.0, 60, 50, 50]) + 5
    objectness = (torch.randperm(batch * count, generator=random) / (batch * count)).view(batch, count, 1)
    rest = torch.rand(batch, count, num_classes + num_masks, generator=random)
    return torch.cat((boxes, objectness, rest), dim=-1)


@pytest.mark.parametrize(("num_classes", "num_masks"), [(1, 0), (3, 4), (200, 0)])
@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_in_file_matches_ours(num_classes, num_masks, agnostic):
    session = suppressing(num_classes, num_masks, NmsSettings(0.1, 0.4, agnostic, 1000, 1000))
    predictions = scattered(3, 500, num_classes, num_masks)
    settings = EvalSettings(confidence=0.1, iou=0.4, max_detections=1000, multi_label=False, agnostic=agnostic)
    rows = torch.from_numpy(session.run(None, {"images": predictions.numpy()})[0])
    for ours, theirs in zip(batched_nms(predictions, num_classes, settings).rows, rows, strict=True):
        assert 15 < len(ours) < 450
        torch.testing.assert_close(theirs[: len(ours)], ours, rtol=1e-5, atol=1e-4)
        assert not theirs[len(ours) :].any()


def test_nms_in_file_without_boxes():
    session = suppressing(2, 0, NmsSettings())
    rows = session.run(None, {"images": np.zeros((2, 40, 7), np.float32)})[0]
    assert rows.shape == (2, 40, 6) and not rows.any()


@pytest.mark.parametrize("head", ["segment", "dense"])
def test_file_with_nms_matches_checkpoint(head, checkpoints, tmp_path):
    needs("onnx")
    _, runner = written(checkpoints[head], tmp_path, "onnx", nms=True, conf_thres=0.1, batch_size=2)
    images = noise(3, 96, 96, seed=3)
    parity = compare(runner, reference(checkpoints[head]), [images], MatchSettings(0.1), raw=False)
    assert parity.detections > 30 and parity.detections - parity.matched <= 2


def test_nms_in_file_max_detections():
    session = suppressing(3, 0, NmsSettings(0.05, 0.9, per_class=3, total=7))
    rows = session.run(None, {"images": scattered(1, 300, 3, 0).numpy()})[0]
    assert rows.shape == (1, 7, 6)
    assert (rows[0, :, 4] > 0).all() and np.bincount(rows[0, :, 5].astype(int)).max() == 3


def test_nms_is_idempotent_on_file_output():
    rows = torch.tensor([[[10, 20, 30, 60, 0.9, 2, 0.45], [0, 0, 0, 0, 0, 0, 0]]])
    predictions = nms_rows_to_predictions(rows, 3)
    assert predictions[0, 0].tolist() == pytest.approx([20, 40, 20, 40, 0.9, 0, 0, 1, 0.5])
    again = batched_nms(predictions, 3, EvalSettings(confidence=0.25, multi_label=False)).rows[0]
    assert again.tolist() == [pytest.approx([10, 20, 30, 60, 0.9, 2, 0.45])]


@pytest.mark.parametrize(("name", "colors"), [("torchscript", "rgb"), ("onnx", "bgr")])
def test_preprocessing_in_file(name, colors, checkpoints, tmp_path):
    needs(name)
    _, runner = written(checkpoints["detect"], tmp_path, name, with_preprocess=colors)
    images = noise(1, 96, 96)
    parity = compare(runner, reference(checkpoints["detect"]), [images], MatchSettings(0.05))
    assert parity.violations(Limits(1e-2, 1e-1)) == []
    fed = []
    about = runner.metadata
    ExportedRunner(about, lambda batch: fed.append(batch) or runner._infer(batch), runner.path).run(images)
    assert fed[0].dtype == torch.uint8 and fed[0].shape == (1, 96, 96, 3)
    assert fed[0][0, 5, 7].tolist() == images[0, :, 5, 7].tolist()[:: 1 if colors == "rgb" else -1]


@pytest.mark.parametrize("name", ["onnx"])
def test_half_precision_export(name, checkpoints, tmp_path):
    needs(name)
    whole, _ = written(checkpoints["detect"], tmp_path / "whole", name)
    half, runner = written(checkpoints["detect"], tmp_path / "half", name, half=True, allow_mismatch=True)
    sizes = [sum(f.stat().st_size for f in (path.rglob("*") if path.is_dir() else [path])) for path in (whole, half)]
    assert 0.4 < sizes[1] / sizes[0] < 0.7 and runner.metadata.precision == "fp16"
    ours = reference(checkpoints["detect"]).run(noise(1, 96, 96)).decoded["detect"]["predictions"]
    theirs = runner.run(noise(1, 96, 96)).decoded["detect"]["predictions"]
    assert 0 < (theirs - ours)[..., 4:].abs().max() < 0.1


def test_differing_file_is_removed(checkpoints, tmp_path, monkeypatch):
    run = ExportedRunner.run

    @torch.inference_mode()
    def moved(self, images):
        outputs = run(self, images)
        outputs.decoded["detect"]["predictions"][..., 0] += 0.1
        return outputs

    monkeypatch.setattr(ExportedRunner, "run", moved)
    with pytest.raises(UserError, match="torchscript not exported"):
        written(checkpoints["detect"], tmp_path, "torchscript")
    assert not list(tmp_path.iterdir())
    path, _ = written(checkpoints["detect"], tmp_path, "torchscript", allow_mismatch=True)
    certificate = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert certificate["passed"] is False and "pixels" in certificate["faults"][0]


def test_rounding_of_pytorch_widens_the_limits():
    parity = Parity({"detect/predictions/pixels": 0.004, "detect/predictions/scores": 1e-5})
    assert parity.violations(Limits()) == ["detect/predictions/pixels differs by 0.004 (limit 0.001)"]
    name = "detect/predictions/pixels"
    assert parity.violations(Limits(), Parity({name: 0.002})) == []
    assert parity.violations(Limits(), Parity({name: 0.001})) == [f"{name} differs by 0.004 (limit 0.003)"]
    for broken in (float("nan"), float("inf")):
        assert len(parity.violations(Limits(), Parity({name: broken}))) == 1
        assert len(Parity({name: broken}).violations(Limits(), Parity({name: 0.002}))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": ["pb"]}, "TensorFlow GraphDef is not supported"),
        ({"include": ["onxx"]}, "unknown format"),
        ({"simplify": True}, "--simplify: not supported by torchscript"),
        ({"keras": True}, "Keras files are not supported"),
        ({"half": True, "int8": True}, "one precision"),
        ({"agnostic_nms": True}, "contains no NMS"),
        ({"nms": True}, "torchscript not exported"),
        ({"batch_size": -1}, "at least 1"),
        ({"imgsz": [1, 2, 3]}, "one size, or height and width"),
        ({"train": True}, "decoded outputs"),
    ],
)
def test_unsupported_combinations(options, words, checkpoints, tmp_path):
    chosen = {"weights": [str(checkpoints["detect"])], "output": str(tmp_path), "imgsz": [96], **options}
    with pytest.raises(UserError, match=words):
        export.run(**chosen)
    assert not list(tmp_path.iterdir())


def test_nms_needs_boxes(checkpoints, tmp_path):
    with pytest.raises(UserError, match="--nms requires a network with boxes"):
        export.run(weights=[str(checkpoints["classify"])], include=["onnx"], nms=True, output=str(tmp_path))


def test_any_heads_can_be_exported():
    """A head of an unknown type is described by the names of its tensors."""
    network = fuse(detecting_network("yolov5n-seg"))
    names = decoded_output_names(network)
    assert names == (("segment", "predictions"), ("segment", "prototypes"))
    images = torch.rand(1, 3, 64, 64)
    decoded = network.decode(network(images))
    for tensor, (head, key) in zip(FlatNetwork(network, names[::-1])(images), names[::-1], strict=True):
        assert torch.equal(tensor, decoded[head][key])
    about = ExportMetadata({"depth": HeadSpec("depth", 1)}, ("far",), 32, (64, 64), (("depth", "metres"),))
    runner = ExportedRunner(parse_metadata(about.to_json(), "x"), lambda fed: [fed.sum(dim=1)], "x")
    assert runner.run(images).decoded["depth"]["metres"].shape == (1, 64, 64)


def test_metadata_round_trip():
    spec = HeadSpec("segment", 2, (8, 16), (((1.5, 2.0),), ((3.0, 4.25),)), 32)
    about = ExportMetadata(
        {"segment": spec}, ("a", "b"), 16, (64, 96), (("segment", "predictions"),), 4, True, "bgr",
        nms=NmsSettings(0.1, 0.2, True, 3, 4), meta={"data": "x.yaml"},
    )  # fmt: skip
    assert parse_metadata(about.to_json(), "x") == about
    for text in ("{", "[]", '{"format": 1}', about.to_json().replace('"stride": 16', '"stride": null')):
        with pytest.raises(UserError, match="damaged"):
            parse_metadata(text, "x")
    with pytest.raises(UserError, match="incompatible version"):
        parse_metadata('{"format": 2, "polyolo": "9"}', "x")


def test_damaged_files(tmp_path):
    for name in ("x.onnx", "x.torchscript", "x.pt2"):
        path = tmp_path / name
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(UserError, match=name):
            open_weights([str(path)], CPU)
    with pytest.raises(UserError, match="unknown format"):
        open_weights([str(tmp_path / "x.gguf")], CPU)


@pytest.mark.parametrize("name", ["onnx"])
def test_int8_excludes_output_layers(name, checkpoints, tmp_path, monkeypatch):
    needs(name)
    import onnx

    monkeypatch.setattr("utils.programs.export_certificate.CALIBRATION_IMAGES", 4)
    data = tiny_data(tmp_path, train=8, val=4)
    values = read_yaml(data)
    write_yaml(data, {**values, "names": values["names"][:3]})
    chosen = {"int8": True, "data": str(data), "max_drop": 1.0}
    path, runner = written(checkpoints["detect"], tmp_path / "files", name, **chosen)
    assert path.name == "detect_int8.onnx" and runner.metadata.precision == "int8"
    graph = onnx.load(str(path)).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    kinds = [makers.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]  # of their weights
    assert kinds.count("DequantizeLinear") == len(kinds) - 3  # the last convolution of each level stays
    accuracy = json.loads((path.parent / f"{path.name}.json").read_text())["accuracy"]
    assert accuracy["drop"] == accuracy["before"]["detect/map50_95"] - accuracy["after"]["detect/map50_95"]

    def accuracy(runner, *rest, **more):
        return {"x": 0.9 if isinstance(runner, NetworkRunner) else 0.5}

    monkeypatch.setattr("utils.programs.export_certificate.accuracy", accuracy)
    with pytest.raises(UserError, match="not exported"):
        written(checkpoints["detect"], tmp_path / "worse", name, **{**chosen, "max_drop": 0.02})
    assert not list((tmp_path / "worse").iterdir())


# ----------------------------------------------------------------------------------------------------------------------
# Files of YOLOv5


def yolov5_file(path, network, outputs, metadata, dynamic=False):
    """Write an ONNX file as YOLOv5 does: bare outputs, two entries of metadata, nothing of ours."""
    import onnx

    class Bare(nn.Module):
        def forward(self, images):
            raw = network(images)
            decoded = network.decode(raw)
            return tuple((raw if key == "logits" else decoded)[head][key] for head, key in outputs)

    names = [f"output{index}" for index in range(len(outputs))]
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 1: "anchors"}}
    size = (1, 3, 128, 96) if dynamic else (1, 3, 96, 96)
    torch.onnx.export(
        Bare(), (torch.rand(size),), str(path), input_names=["images"], output_names=names, opset_version=12,
        dynamic_axes=axes if dynamic else None, dynamo=False,
    )  # fmt: skip
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(path))


METADATA = {"stride": "32", "names": "{0: 'ant', 1: 'bee', 2: 'cat'}"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
def test_yolov5_export_runs(dynamic, checkpoints, tmp_path):
    needs("onnx")
    path = tmp_path / "yolov5s.onnx"
    network = fuse(detecting_network("yolov5n"))
    yolov5_file(path, network, [("detect", "predictions")], METADATA, dynamic)
    runner = open_weights([str(path)], CPU).runner
    assert runner.names == CLASSES and runner.specs["detect"].num_classes == 3
    assert runner.fixed_hw == (None if dynamic else (96, 96))
    assert (
        compare(runner, reference(checkpoints["detect"]), [noise(2, 96, 96)], MatchSettings(0.05)).match_fraction == 1
    )


@pytest.mark.filterwarnings("ignore")
def test_yolov5_segmentation_export_runs(checkpoints, tmp_path):
    needs("onnx")
    path = tmp_path / "yolov5s-seg.onnx"
    outputs = [("segment", "predictions"), ("segment", "prototypes")]
    yolov5_file(path, fuse(detecting_network("yolov5n-seg")), outputs, METADATA)
    runner = open_weights([str(path)], CPU).runner
    assert runner.specs["segment"].num_masks == 32 and runner.specs["segment"].num_classes == 3
    parity = compare(runner, reference(checkpoints["segment"]), [noise(1, 96, 96)], MatchSettings(0.05))
    assert parity.violations(Limits(1e-2, 1e-1)) == []


def test_yolov5_export_detected_by_shapes():
    fixed = (1, 3, 640, 640)
    about = infer_metadata(ForeignFile({}, fixed, ((1, 25200, 85),)), "x")
    assert about.names[79] == "class79" and about.stride == 32 and about.outputs == (("detect", "predictions"),)
    about = infer_metadata(ForeignFile({"stride": "64", "names": "['a']"}, (-1, 3, -1, -1), ((1, 102000, 6),)), "x")
    assert about.dynamic and about.specs["detect"].strides == (8, 16, 32, 64) and about.names == ("a",)
    about = infer_metadata(ForeignFile({}, (1, 3, 224, 224), ((1, 10),)), "x")
    runner = ExportedRunner(about, lambda images: [images.mean(dim=(2, 3))[:, [0, 1, 2] * 3 + [0]]], "x")
    found = runner.run(torch.zeros(1, 3, 224, 224)).decoded["classify"]["probabilities"][0]
    logits = np.array([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225] * 3 + [-0.485 / 0.229])
    assert found.tolist() == pytest.approx((np.exp(logits) / np.exp(logits).sum()).tolist(), rel=1e-4)
    for entries, shapes, words in (
        ({}, ((1, 2, 3, 4),), "not that of a YOLOv5 export"),
        ({"names": "__import__('os')"}, ((1, 9, 8),), "not a list or dict"),
        ({"names": "['a']"}, ((1, 9, 8),), "names 1 classes"),
        ({"stride": "x"}, ((1, 9, 8),), "expected a number"),
        ({}, ((1, 9, 5),), "no class columns"),
    ):
        with pytest.raises(UserError, match=words):
            infer_metadata(ForeignFile(entries, fixed, shapes), "x")


# ----------------------------------------------------------------------------------------------------------------------
# Parity itself


def test_comparison_detects_differences(checkpoints):
    ours = reference(checkpoints["segment"])

    class Wrong:
        specs, names, stride, fixed_hw = ours.specs, ours.names, ours.stride, None

        def __init__(self, change):
            self.change = change

        def run(self, images):
            outputs = ours.run(images)
            part = {key: tensor.clone() for key, tensor in outputs.decoded["segment"].items()}
            self.change(part)
            outputs.decoded["segment"] = part
            return outputs

    def parity(change):
        return compare(Wrong(change), ours, [noise(2, 96, 96)], MatchSettings(0.05))

    assert parity(lambda part: None).violations(Limits(0, 0, 0, 0, 1)) == []
    shifted = parity(lambda part: part["predictions"][..., 0].add_(20))
    assert shifted.errors["segment/predictions/faint_pixels"] == pytest.approx(20, abs=1e-3)
    assert shifted.match_fraction < 0.5 and any("match" in fault for fault in shifted.violations(Limits()))
    assert "segment/prototypes/relative" in parity(lambda part: part["prototypes"].mul_(1.1)).violations(Limits())[0]
    assert parity(lambda part: part["predictions"][..., 6].fill_(math.nan)).violations(Limits())
