"""`export.py --deploy`: each configuration states the true inputs and outputs of the file beside it."""

import configparser
import json

import numpy as np
import pytest
import torch
from helpers_export import CLASSES, CPU, detecting_network

import export
from models.builder import classification_network
from models.checkpoint import load_checkpoint, save_checkpoint
from utils.backends.deploy import DEPLOYMENTS
from utils.backends.deploy.release import label_lines
from utils.backends.open_weights import open_weights
from utils.core.errors import UserError
from utils.core.yaml_file import parse_yaml

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="needs requirements-export.txt")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "weights"
    folder.mkdir()
    networks = {
        "detect": detecting_network("yolov5n"),
        "classify": classification_network(detecting_network("yolov5n"), 3, CLASSES).eval(),
    }
    for name, network in networks.items():
        save_checkpoint(folder / f"{name}.pt", network, {"imgsz": 96, "data": "data/animals.yaml"})
    return {name: folder / f"{name}.pt" for name in networks}


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr("utils.programs.export_certificate.IMAGES", 2)


def exported(checkpoint, folder, *targets, include=("onnx",), **options):
    return export.run(
        weights=[str(checkpoint)], include=list(include), output=str(folder), deploy=list(targets), **options
    )


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


# ----------------------------------------------------------------------------------------------------------------------
# Triton


def triton_message():
    """Build the part of Triton's ModelConfig message that we write, for protobuf's own text parser."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    types = file.enum_type.add(name="DataType")
    names = ["INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
    for number, name in enumerate([*names, "FP16", "FP32", "FP64"]):
        types.value.add(name=f"TYPE_{name}", number=number)

    def message(name, *fields):
        one = file.message_type.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, 1):
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if isinstance(kind, str):
                enum = kind == "DataType"
                number_of_kind = kinds.TYPE_ENUM if enum else kinds.TYPE_MESSAGE
                one.field.add(
                    name=field, number=number, label=label, type=number_of_kind, type_name=f".inference.{kind}"
                )
            else:
                one.field.add(name=field, number=number, label=label, type=kind)

    text, integer = kinds.TYPE_STRING, kinds.TYPE_INT64
    shared = [("name", text, False), ("data_type", "DataType", False), ("dims", integer, True)]
    message("ModelInput", *shared)
    message("ModelOutput", *shared, ("label_filename", text, False))
    message("ModelDynamicBatching", ("max_queue_delay_microseconds", kinds.TYPE_UINT64, False))
    message("ModelParameter", ("string_value", text, False))
    message("Parameter", ("key", text, False), ("value", "ModelParameter", False))  # an entry of a map
    message(
        "ModelConfig",
        *(("name", text, False), ("platform", text, False), ("max_batch_size", kinds.TYPE_INT32, False)),
        *(("input", "ModelInput", True), ("output", "ModelOutput", True)),
        *(("dynamic_batching", "ModelDynamicBatching", False), ("parameters", "Parameter", True)),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


def triton_config(folder, name):
    from google.protobuf import text_format

    return text_format.Parse((folder / f"{name}_triton" / name / "config.pbtxt").read_text(), triton_message())


FLOAT = 11  # TYPE_FP32 of Triton's DataType


@pytest.mark.parametrize(
    ("task", "options"), [("detect", {}), ("detect", {"imgsz": [96], "batch_size": 2}), ("classify", {})]
)
def test_triton_config_matches_the_file(task, options, checkpoints, tmp_path):
    written = exported(checkpoints[task], tmp_path, "triton", **options)
    assert written == [tmp_path / f"{task}.onnx", tmp_path / f"{task}_triton"]
    config = triton_config(tmp_path, task)
    session = session_of(tmp_path / f"{task}_triton" / task / "1" / "model.onnx")
    dynamic = not options
    assert (config.name, config.platform, config.max_batch_size) == (task, "onnxruntime_onnx", 8 if dynamic else 0)
    for stated, true in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [one.name for one in stated] == [one.name for one in true]
        for one, tensor in zip(stated, true, strict=True):
            dims = [side if isinstance(side, int) else -1 for side in tensor.shape]
            assert list(one.dims) == dims[dynamic:] and (one.data_type, tensor.type) == (FLOAT, "tensor(float)")
    # what the server accepts by the configuration, the file computes, with outputs as stated
    batch = config.max_batch_size or options["batch_size"]
    sides = [96 if side < 0 else side for side in (config.input[0].dims if dynamic else config.input[0].dims[1:])]
    outputs = session.run(None, {config.input[0].name: np.zeros((batch, *sides), np.float32)})
    for one, output in zip(config.output, outputs, strict=True):
        stated = list(one.dims) if dynamic else list(one.dims[1:])
        assert all(side in (-1, true) for side, true in zip(stated, output.shape[1:], strict=True))
    parameters = {one.key: one.value.string_value for one in config.parameters}
    assert parameters["names"] == str(dict(enumerate(CLASSES))) and parameters["task"] == task
    labels = [one.label_filename for one in config.output]
    assert labels == (["labels.txt"] if task == "classify" else [""])
    assert (tmp_path / f"{task}_triton" / task / "labels.txt").read_text() == "ant\nbee\ncat\n"


def test_metadata_for_other_readers(checkpoints, tmp_path):
    exported(checkpoints["detect"], tmp_path, imgsz=[96, 128])
    session = session_of(tmp_path / "detect.onnx")
    entries = session.get_modelmeta().custom_metadata_map
    assert entries["names"] == "{0: 'ant', 1: 'bee', 2: 'cat'}" and entries["task"] == "detect"
    assert (entries["stride"], entries["imgsz"], entries["batch"]) == ("32", "[96, 128]", "1")
    assert [one.name for one in session.get_outputs()] == ["output0"] and session.get_outputs()[0].shape[2] == 5 + 3


def test_dynamic_file_states_its_fixed_axes(checkpoints, tmp_path, caplog):
    with caplog.at_level("INFO", logger="polyolo"):
        exported(checkpoints["detect"], tmp_path)
    session = session_of(tmp_path / "detect.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", "anchors", 8]
    assert "--static fixes both" in caplog.text


# ----------------------------------------------------------------------------------------------------------------------
# OpenVINO Model Server, DeepStream


@pytest.mark.parametrize("include", [("openvino",), ("onnx",)])
def test_model_server_repository(include, checkpoints, tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs requirements-export.txt")
    exported(checkpoints["detect"], tmp_path, "ovms", include=include, imgsz=[96])
    folder = tmp_path / "detect_ovms"
    (entry,) = json.loads((folder / "config.json").read_text())["model_config_list"]
    assert entry["config"] == {"name": "detect", "base_path": "/models/detect"}  # with the folder mounted at /models
    versions = [path for path in (folder / "detect").iterdir() if path.is_dir()]
    assert [path.name for path in versions] == ["1"]  # versions are numbers
    (model,) = [path for path in versions[0].iterdir() if path.suffix in (".xml", ".onnx")]
    compiled = openvino.Core().compile_model(str(model), "CPU")
    image = torch.rand(1, 3, 96, 96)
    runner = open_weights([str(checkpoints["detect"])], CPU).runner
    expected = runner.run(image).decoded["detect"]["predictions"].numpy()
    np.testing.assert_allclose(compiled([image.numpy()])["output0"], expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("task", "options"), [("detect", {}), ("detect", {"imgsz": [96, 128]}), ("classify", {})])
def test_deepstream_config_matches_the_file(task, options, checkpoints, tmp_path):
    exported(checkpoints[task], tmp_path, "deepstream", **options)
    folder = tmp_path / f"{task}_deepstream"
    parser = configparser.ConfigParser()
    parser.read(folder / "config_infer.txt")
    assert parser.sections() == ["property"]
    about = parser["property"]
    session = session_of(folder / about["onnx-file"])
    assert about["output-blob-names"].split(";") == [one.name for one in session.get_outputs()]
    size = [int(part) for part in about["infer-dims"].split(";")]
    assert size == [3, *(options.get("imgsz") or [96, 96])]
    outputs = session.run(None, {"images": np.zeros((about.getint("batch-size"), *size), np.float32)})
    assert len(outputs) == 1
    assert about.getfloat("net-scale-factor") * 255 == pytest.approx(1) and about["model-color-format"] == "0"
    text = (folder / about["labelfile-path"]).read_text()
    if task == "classify":  # parsed by nvinfer itself, from probabilities
        assert (
            text == "ant;bee;cat\n" and about["network-type"] == "1" and outputs[0].sum() == pytest.approx(1, abs=1e-4)
        )
    else:  # left to the application
        assert text == "ant\nbee\ncat\n" and about["network-type"] == "100" and about["output-tensor-meta"] == "1"
    assert about.getint("num-detected-classes") == len(CLASSES)


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face Hub: safetensors, model card


def test_safetensors_file_computes_the_same_and_can_be_trained(checkpoints, tmp_path):
    path = exported(checkpoints["detect"], tmp_path, include=["safetensors"])[0]
    loaded, original = load_checkpoint(path), load_checkpoint(checkpoints["detect"])
    assert loaded.meta == original.meta and loaded.names == CLASSES
    assert loaded.network.state_dict().keys() == original.network.state_dict().keys()  # with its normalisation
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        after, before = (one.network.decode(one.network(image))["detect"]["predictions"] for one in (loaded, original))
    assert torch.equal(after, before)
    with pytest.raises(UserError, match="safetensors not exported"):  # integers need their own weights
        exported(checkpoints["detect"], tmp_path / "int8", include=["safetensors"], int8=True, data="shapes.yaml")
    assert not list((tmp_path / "int8").glob("*"))


def test_model_card(checkpoints, tmp_path):
    best = checkpoints["detect"].with_name("best.pt")
    best.write_bytes(checkpoints["detect"].read_bytes())
    results = best.parent.parent / "results.json"
    results.write_text(json.dumps({"epochs": 3, "images": 8, "detect/map50": 0.51234, "speed/nms_ms": 1.0}))
    exported(best, tmp_path, "model-card", include=["onnx", "safetensors"])
    text = (tmp_path / "best_model_card" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    about = parse_yaml(front, "README.md")
    assert about["library_name"] == "polyolo" and about["pipeline_tag"] == "object-detection"
    assert about["datasets"] == ["animals"] and "object-detection" in about["tags"]
    assert "license" not in about  # the user's decision
    for part in ("| detect/map50 | 0.5123 |", "`best.onnx`", "`best.safetensors`", "ant, bee, cat", "96 x 96"):
        assert part in body, part
    assert "speed" not in body
    exported(checkpoints["detect"], tmp_path, "model-card")
    assert "## Metrics" not in (tmp_path / "detect_model_card" / "README.md").read_text()


# ----------------------------------------------------------------------------------------------------------------------
# Wrong requests


def test_refused_deployments(checkpoints, tmp_path):
    for options, says in (
        ({"targets": ["triton"], "include": ["torchscript"]}, "serves onnx; add it to --include"),
        ({"targets": ["tritn"]}, "did you mean 'triton'"),
        ({"targets": ["deepstream"], "with_preprocess": "rgb"}, "--with-preprocess"),
    ):
        targets = options.pop("targets")
        with pytest.raises(UserError, match=says):
            exported(checkpoints["classify"], tmp_path / "out", *targets, **options)
    left = [path.name for path in (tmp_path / "out").rglob("*")] if (tmp_path / "out").exists() else []
    assert not [name for name in left if "deepstream" in name or name.startswith(".")]
    with pytest.raises(UserError, match="line break"):
        label_lines(["a\nb"])


def test_recommended_commands_fit_the_task(checkpoints, tmp_path, caplog):
    with caplog.at_level("INFO", logger="polyolo"):
        exported(checkpoints["classify"], tmp_path, include=["torchscript"])
    file = tmp_path / "classify.torchscript"
    assert f"python classify/predict.py --weights {file}   python classify/val.py --weights {file}" in caplog.text


def test_help_names_every_deployment():
    text = next(action.help for action in export.build_parser()._actions if "--deploy" in action.option_strings)
    assert all(name in text for name in DEPLOYMENTS.names())
