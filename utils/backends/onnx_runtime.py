"""ONNX export, and runner with onnxruntime, also for files that YOLOv5 exported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.exported_runner import (
    ExportedRunner,
    combine_runners,
    first_line,
    require_package,
    resolve_metadata,
    warn_half_ignored,
)
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.backends.onnx_graph import build
from utils.backends.onnx_int8 import quantize
from utils.core.contracts import Runner
from utils.core.errors import UserError
from utils.core.log import LOGGER

_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@BACKENDS.register("onnx")
class OnnxBackend(ExportBackend):
    """Writes and runs .onnx files."""

    title, suffixes, ending = "ONNX", (".onnx",), ".onnx"
    packages = ("onnx", "onnxruntime")
    dynamic_by_default = True
    capabilities = frozenset(
        {
            "dynamic",
            "half",
            "int8",
            "nms",
            "end_to_end",
            "preprocess",
            "opset",
            "simplify",
            "batch",
            "per_tensor",
            "verbose",
        }
    )

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Write a single file that includes the weights."""
        build(job, path)
        if job.metadata.precision == "int8":
            quantize(job, path)

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open files, several as an ensemble."""
        warn_half_ignored(half, paths[0])
        return combine_runners([_open(path, device) for path in paths], augment)


def _create_session(path: Path, device: torch.device) -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must be set before the import; nothing is sent over the network
    require_package("onnxruntime", f"{path}: running ONNX files")
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would slow torch down
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            LOGGER.warning(f"{path}: this onnxruntime has no CUDA support (onnxruntime-gpu has); running on the CPU")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        reason = first_line(error) if path.is_file() else "no such file"
        raise UserError(f"{path}: onnxruntime cannot open this file ({reason})") from error


def _open(path: Path, device: torch.device) -> ExportedRunner:
    session = _create_session(path, device)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _INPUT_TYPES:
        raise UserError(
            f"{path}: expects {len(inputs)} input(s), {inputs[0].type}{inputs[0].shape}; only files with one input of "
            "images can run"
        )
    name, dtype = inputs[0].name, _INPUT_TYPES[inputs[0].type]
    entries = session.get_modelmeta().custom_metadata_map
    output_names = [out.name for out in session.get_outputs()]

    def infer(images: Tensor) -> list[Tensor]:
        array = images.detach().cpu().numpy().astype(dtype, copy=False)
        return [torch.from_numpy(output) for output in session.run(output_names, {name: array})]  # newly allocated

    shape = tuple(side if isinstance(side, int) else -1 for side in inputs[0].shape)
    metadata = resolve_metadata(entries, shape, infer, path)
    del output_names[len(metadata.outputs) :]  # YOLOv5's files may have raw outputs, which are not read
    return ExportedRunner(metadata, infer, path)
