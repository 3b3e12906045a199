"""OpenVINO export and runner: a folder with the graph (.xml) and its weights (.bin), run on CPUs."""

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
from utils.backends.export_metadata import METADATA_KEY, ExportMetadata, parse_metadata
from utils.backends.exported_runner import (
    MAX_REASON_LENGTH,
    ExportedRunner,
    InferFunction,
    combine_runners,
    first_line,
    require_package,
    resolve_metadata,
)
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.backends.onnx_graph import build
from utils.backends.per_anchor_decoder import with_per_anchor_decoder
from utils.core.contracts import Runner
from utils.core.errors import UserError
from utils.core.yaml_file import read_yaml

SPECIALISE_AFTER = 3  # runs with one input shape before the model is compiled for it
MAX_SPECIALISED = 8  # shapes that the model is compiled for
_CONVOLUTIONS = ("Convolution", "GroupConvolution", "MatMul")


@BACKENDS.register("openvino")
class OpenVinoBackend(ExportBackend):
    """Writes and runs folders called *_openvino_model, also those that YOLOv5 exported."""

    title, suffixes, ending = "OpenVINO", ("_openvino_model", ".xml"), "_openvino_model"
    packages = ("openvino", "onnx")
    dynamic_by_default = True
    capabilities = frozenset(
        {"dynamic", "half", "int8", "nms", "end_to_end", "preprocess", "opset", "simplify", "batch", "per_tensor"}
    )

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert an ONNX file. FP16 stores weights in half precision; INT8 quantizes convolutions with NNCF."""
        require_package("openvino", "OpenVINO")
        import openvino

        path.mkdir()
        onnx_file = path / "temporary.onnx"
        try:
            fp32_metadata = job.metadata.with_precision("fp32")  # OpenVINO rounds the weights itself
            network = with_per_anchor_decoder(job.network)
            graph = build(replace(job, network=network, metadata=fp32_metadata), onnx_file).graph
            model = openvino.convert_model(str(onnx_file))
        finally:
            onnx_file.unlink(missing_ok=True)
        for output, value in zip(model.outputs, graph.output, strict=True):
            output.get_tensor().set_names({value.name})
        if job.metadata.precision == "int8":
            model = _quantize(job, model)
        metadata = job.metadata
        model.set_rt_info(metadata.to_json(), [METADATA_KEY])
        for key, value in metadata.to_yolov5().items():
            model.set_rt_info(value, ["model_info", key])
        xml = path / f"{path.name.removesuffix('_openvino_model')}.xml"
        try:
            openvino.save_model(model, str(xml), compress_to_fp16=metadata.precision == "fp16")
        except RuntimeError as error:
            raise UserError(f"{path}: cannot be written ({first_line(error)}); check the free disk space") from error

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open folders on the CPU, several as an ensemble; `half` permits the CPU's half-precision arithmetic."""
        return combine_runners([_open(path, half) for path in paths], augment)


def _quantize(job: ExportJob, model: Any) -> Any:
    """Quantize convolutions to INT8, except the last ones, whose outputs join pixels and probabilities."""
    require_package("nncf", "--int8 for OpenVINO")
    import logging

    import nncf
    import numpy as np

    if job.calibration is None:
        raise ValueError("INT8 export requires calibration images")
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
        ignored_scope=nncf.IgnoredScope(names=_nodes_up_to_last_convolutions(model, 1 + job.extra_float_layers)),
        advanced_parameters=advanced,
    )


def _nodes_up_to_last_convolutions(model: Any, depth: int) -> list[str]:
    """List the nodes from the outputs back to the `depth`-th convolution on every path, convolutions included."""
    found: dict[str, None] = {}
    ends = [result.input_value(0).get_node() for result in model.get_results()]
    for _ in range(depth):
        starts: list[Any] = []
        pending, seen = list(ends), set()
        while pending:
            node = pending.pop()
            name = node.get_friendly_name()
            if name in seen:
                continue
            seen.add(name)
            kind = node.get_type_name()
            if kind not in ("Constant", "Parameter", "Result"):
                found[name] = None
            inputs = [node.input_value(i).get_node() for i in range(node.get_input_size())]
            if kind in _CONVOLUTIONS:
                starts.append(inputs[0])
            else:
                pending.extend(inputs)
        ends = starts
    return list(found)


def _open(path: Path, half: bool) -> ExportedRunner:
    require_package("openvino", f"{path}: running OpenVINO files")
    import openvino

    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.xml")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise UserError(f"{path}: expected one .xml file, found {len(files) if path.is_dir() else 0}")
    core = openvino.Core()
    try:
        model = core.read_model(str(files[0]))
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        metadata = None
        if model.has_rt_info([METADATA_KEY]):
            metadata = parse_metadata(str(model.get_rt_info([METADATA_KEY]).value), path)
        if not half and (metadata is None or metadata.precision != "int8"):
            # the default is bf16 where the CPU supports it, which would differ from PyTorch; beside INT8 it is accepted
            config["INFERENCE_PRECISION_HINT"] = "f32"
        requests = _InferRequests(model, partial(core.compile_model, device_name="CPU", config=config))
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[-1][:MAX_REASON_LENGTH]
        raise UserError(f"{files[0]}: OpenVINO cannot open this file ({reason})") from error

    def infer(images: Tensor) -> list[Tensor]:
        request = requests.for_shape(tuple(images.shape))
        request.infer([images.detach().cpu().numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(len(model.outputs))]

    return ExportedRunner(metadata or _yolov5_metadata(model, files[0], infer), infer, path)


class _InferRequests:
    """Inference requests of a model; a dynamic one is also compiled for frequent shapes, which is a quarter faster."""

    def __init__(self, model: Any, compile_model: Callable[[Any], Any]) -> None:
        self._model, self._compile = model, compile_model
        self._general = compile_model(model).create_infer_request()
        self._runs: Counter[tuple[int, ...]] = Counter()
        self._specialised: dict[tuple[int, ...], Any] = {}

    def for_shape(self, shape: tuple[int, ...]) -> Any:
        if not self._model.is_dynamic():
            return self._general
        self._runs[shape] += 1
        frequent = self._runs[shape] > SPECIALISE_AFTER
        if shape not in self._specialised and frequent and len(self._specialised) < MAX_SPECIALISED:
            model = self._model.clone()
            model.reshape(list(shape))
            self._specialised[shape] = self._compile(model).create_infer_request()
        return self._specialised.get(shape, self._general)


def _yolov5_metadata(model: Any, xml: Path, infer: InferFunction) -> ExportMetadata:
    """Infer the metadata of a folder that YOLOv5 exported; a YAML file beside the graph has stride and names."""
    yaml_file = xml.with_suffix(".yaml")
    entries = {key: str(value) for key, value in read_yaml(yaml_file).items()} if yaml_file.is_file() else {}
    sides = model.inputs[0].get_partial_shape()
    shape = tuple(side.get_length() if side.is_static else -1 for side in sides)
    return resolve_metadata(entries, shape, infer, xml)
