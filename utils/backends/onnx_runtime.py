"""ONNX, run by onnxruntime: our files and YOLOv5's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.exported_runner import ExportedRunner, described, joined, require, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.backends.onnx_graph import build
from utils.backends.onnx_int8 import quantize
from utils.core.contracts import Runner
from utils.core.errors import UserError
from utils.core.log import LOGGER

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@BACKENDS.register("onnx")
class OnnxBackend:
    """Writes and runs .onnx files."""

    title, suffixes, ending = "ONNX", (".onnx",), ".onnx"
    packages = ("onnx", "onnxruntime")
    open_sizes = True  # unless a size is named
    can = frozenset(
        {"dynamic", "half", "int8", "nms", "preprocess", "opset", "simplify", "batch", "per_tensor", "verbose"}
    )

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Write one file with everything inside."""
        build(job, path)
        if job.description.precision == "int8":
            quantize(job, path)

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner for the files, several as an ensemble, and what the first says about itself."""
        warn_half(half, paths[0])
        return joined([_open(path, device) for path in paths], augment)


def _session(path: Path, device: torch.device) -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: decisions.md
    require("onnxruntime", f"{path}: running ONNX files")
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the cores are torch's again afterwards
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            LOGGER.warning(f"{path}: this onnxruntime has no CUDA (onnxruntime-gpu has); running on the CPU")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its classes of errors have no common base but Exception
        reason = str(error).strip().splitlines()[0][:200] if path.is_file() else "no such file"
        raise UserError(f"{path}: onnxruntime cannot open it ({reason})") from error


def _open(path: Path, device: torch.device) -> ExportedRunner:
    session = _session(path, device)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        raise UserError(
            f"{path}: takes {len(inputs)} input(s), {inputs[0].type}{inputs[0].shape}; wanted one of images"
        )
    name, kind = inputs[0].name, _TYPES[inputs[0].type]
    entries = session.get_modelmeta().custom_metadata_map
    wanted = [out.name for out in session.get_outputs()]

    def call(images: Tensor) -> list[Tensor]:
        fed = images.detach().cpu().numpy().astype(kind, copy=False)
        return [torch.from_numpy(found) for found in session.run(wanted, {name: fed})]  # new arrays every time

    shape = tuple(side if isinstance(side, int) else -1 for side in inputs[0].shape)
    about = described(entries, shape, call, path)
    del wanted[len(about.outputs) :]  # YOLOv5's files may give more than is read
    return ExportedRunner(about, call, path)
