"""OpenVINO: a folder with the graph (.xml) and its weights (.bin), for Intel's and other CPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import KEY, Description, from_json
from utils.backends.exported_runner import ExportedRunner, described, joined, require
from utils.backends.flat_outputs import ExportJob
from utils.backends.onnx_graph import build
from utils.backends.per_anchor_decoder import with_per_anchor_decoder
from utils.core.contracts import Runner
from utils.core.errors import UserError
from utils.core.yaml_file import read_yaml

OFTEN, MANY = 3, 8  # a shape gets a form of its own after so many runs; so many shapes do
_CONVOLUTIONS = ("Convolution", "GroupConvolution", "MatMul")


@BACKENDS.register("openvino")
class OpenVinoBackend:
    """Writes and runs folders called *_openvino_model, YOLOv5's included."""

    title, suffixes, ending = "OpenVINO", ("_openvino_model", ".xml"), "_openvino_model"
    packages = ("openvino", "onnx")
    open_sizes = True  # unless a size is named
    can = frozenset({"dynamic", "half", "int8", "nms", "preprocess", "opset", "simplify", "batch", "per_tensor"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert by way of ONNX. FP16 keeps weights in half precision; INT8 quantizes convolutions with nncf."""
        require("openvino", "OpenVINO")
        import openvino

        path.mkdir()
        through = path / "through.onnx"
        try:
            full = job.description.with_precision("fp32")  # OpenVINO rounds weights itself
            network = with_per_anchor_decoder(job.network)
            graph = build(replace(job, network=network, description=full), through).graph
            model = openvino.convert_model(str(through))
        finally:
            through.unlink(missing_ok=True)
        for output, value in zip(model.outputs, graph.output, strict=True):
            output.get_tensor().set_names({value.name})
        if job.description.precision == "int8":
            model = _quantized(job, model)
        about = job.description
        model.set_rt_info(about.to_json(), [KEY])
        for key, value in about.as_yolov5().items():
            model.set_rt_info(value, ["model_info", key])
        xml = path / f"{path.name.removesuffix('_openvino_model')}.xml"
        openvino.save_model(model, str(xml), compress_to_fp16=about.precision == "fp16")

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner on the CPU; `half` lets it compute in the CPU's own half precision."""
        return joined([_open(path, half) for path in paths], augment)


def _quantized(job: ExportJob, model: Any) -> Any:
    """Return the model with convolutions in INT8, except those next to the outputs (decisions.md)."""
    require("nncf", "--int8 for OpenVINO")
    import logging

    import nncf
    import numpy as np

    if job.calibration is None:
        raise ValueError("INT8 needs images to calibrate with")
    nncf.set_log_level(logging.ERROR)
    images = [np.ascontiguousarray(image.numpy()) for image in job.calibration()]
    advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=False)
    if job.per_tensor:
        per_tensor = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
        advanced.weights_quantization_params = per_tensor
    return nncf.quantize(
        model,
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(names=_ends(model, 1 + job.caution)),
        advanced_parameters=advanced,
    )


def _ends(model: Any, depth: int) -> list[str]:
    """Return the names of everything from the outputs back to the `depth`-th convolution on every way."""
    found: dict[str, None] = {}
    ends = [result.input_value(0).get_node() for result in model.get_results()]
    for _ in range(depth):
        starts: list[Any] = []
        waiting, seen = list(ends), set()
        while waiting:
            node = waiting.pop()
            name = node.get_friendly_name()
            if name in seen:
                continue
            seen.add(name)
            kind = node.get_type_name()
            if kind not in ("Constant", "Parameter", "Result"):
                found[name] = None
            before = [node.input_value(i).get_node() for i in range(node.get_input_size())]
            if kind in _CONVOLUTIONS:
                starts.append(before[0])
            else:
                waiting.extend(before)
        ends = starts
    return list(found)


def _open(path: Path, half: bool) -> ExportedRunner:
    require("openvino", f"{path}: running OpenVINO files")
    import openvino

    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.xml")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise UserError(f"{path}: wanted one .xml file there, found {len(files) if path.is_dir() else 0}")
    core = openvino.Core()
    try:
        model = core.read_model(str(files[0]))
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        about = from_json(str(model.get_rt_info([KEY]).value), path) if model.has_rt_info([KEY]) else None
        if not half and (about is None or about.precision != "int8"):
            # bf16 is what it takes by itself where the CPU can (decisions.md); beside 8-bit integers it may
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        prepared = _Prepared(model, partial(core.compile_model, device_name="CPU", config=settings))
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[-1][:200]
        raise UserError(f"{files[0]}: OpenVINO cannot open it ({reason})") from error

    def call(images: Tensor) -> list[Tensor]:
        request = prepared.request(tuple(images.shape))
        request.infer([images.detach().cpu().numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(len(model.outputs))]

    return ExportedRunner(about or _foreign(model, files[0], call), call, path)


class _Prepared:
    """A model ready to run; one with open sizes a second time for those that come again and again, a quarter faster."""

    def __init__(self, model: Any, compiled: Callable[[Any], Any]) -> None:
        self._model, self._compiled = model, compiled
        self._general = compiled(model).create_infer_request()
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._own: dict[tuple[int, ...], Any] = {}

    def request(self, shape: tuple[int, ...]) -> Any:
        """Return what runs images of a shape."""
        if not self._model.is_dynamic():
            return self._general
        self._seen[shape] += 1
        if shape not in self._own and self._seen[shape] > OFTEN and len(self._own) < MANY:
            model = self._model.clone()
            model.reshape(list(shape))
            self._own[shape] = self._compiled(model).create_infer_request()
        return self._own.get(shape, self._general)


def _foreign(model: Any, xml: Path, call: Any) -> Description:
    """Return the description of a folder that YOLOv5 wrote: stride and names are in a YAML beside the graph."""
    beside = xml.with_suffix(".yaml")
    entries = {key: str(value) for key, value in read_yaml(beside).items()} if beside.is_file() else {}
    sides = model.inputs[0].get_partial_shape()
    shape = tuple(side.get_length() if side.is_static else -1 for side in sides)
    return described(entries, shape, call, xml)
