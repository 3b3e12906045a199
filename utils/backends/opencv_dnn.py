"""ONNX files, run by OpenCV instead of onnxruntime (`--dnn`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.backends.exported_runner import ExportedRunner, described, from_arrays, joined, require, warn_half
from utils.core.contracts import Runner
from utils.core.errors import UserError


def open_with_opencv(
    paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
) -> tuple[Runner, dict[str, Any]]:
    """Return a runner for .onnx files, several as an ensemble, and what the first says about itself.

    OpenCV computes on the CPU with its own number of threads. A file it does not understand is a UserError.
    """
    for path in paths:
        if path.suffix != ".onnx":
            raise UserError(f"{path}: --dnn runs .onnx files by OpenCV; leave it out for others")
    if device.type != "cpu":
        raise UserError(f"--dnn: OpenCV computes on the CPU, not on {device}; give --device cpu or leave --dnn out")
    warn_half(half, paths[0])
    return joined([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    entries, shape = _read(path)
    try:
        network = cv2.dnn.readNetFromONNX(str(path))
        names = list(network.getUnconnectedOutLayersNames())
    except cv2.error as error:
        raise _fault(path, error) from error

    def call(images: Tensor) -> list[Tensor]:
        try:
            network.setInput(images.detach().cpu().numpy())
            return from_arrays(network.forward(names))
        except cv2.error as error:
            raise _fault(path, error) from error

    about = described(entries, shape, call, path)
    del names[len(about.outputs) :]  # YOLOv5's files may give more than is read
    return ExportedRunner(about, call, path)


def _read(path: Path) -> tuple[dict[str, str], tuple[int, ...]]:
    """Return an .onnx file's metadata and the (B, 3, H, W) shape of its input, -1 for what is open.

    OpenCV tells neither.
    """
    require("onnx", f"{path}: --dnn")
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        (images,) = (one for one in model.graph.input if one.name not in {w.name for w in model.graph.initializer})
    except Exception as error:  # protobuf's errors have no public base
        raise UserError(f"{path}: no ONNX file with one input ({str(error).splitlines()[0][:150]})") from error
    kind = images.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim)
    if kind.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4:
        found = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        raise UserError(f"{path}: --dnn feeds images of 32-bit floats, this file takes {found}; leave --dnn out")
    return {entry.key: entry.value for entry in model.metadata_props}, shape


def _fault(path: Path, error: cv2.error) -> UserError:
    reason = str(error).strip().splitlines()[0][:200]
    return UserError(f"{path}: OpenCV {cv2.__version__} cannot run it ({reason}); leave --dnn out")
