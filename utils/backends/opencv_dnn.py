"""Runner of ONNX files with OpenCV's DNN module instead of onnxruntime (`--dnn`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.backends.exported_runner import (
    ExportedRunner,
    combine_runners,
    copy_to_tensors,
    first_line,
    require_package,
    resolve_metadata,
    warn_half_ignored,
)
from utils.core.contracts import Runner
from utils.core.errors import UserError


def open_with_opencv(
    paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
) -> tuple[Runner, dict[str, Any]]:
    """Open .onnx files with OpenCV, several as an ensemble.

    Args:
        paths: The files.
        device: Must be the CPU; OpenCV uses its own number of threads.
        half: Ignored with a warning: the precision is that of the file.
        augment: Apply test-time augmentation.

    Returns:
        The runner, and training metadata of the first file.

    Raises:
        UserError: OpenCV cannot run a file, or `device` is not the CPU.
    """
    for path in paths:
        if path.suffix != ".onnx":
            raise UserError(f"{path}: --dnn runs .onnx files only; leave --dnn out")
    if device.type != "cpu":
        raise UserError(f"--dnn: OpenCV runs on the CPU, not on {device}; give --device cpu or leave --dnn out")
    warn_half_ignored(half, paths[0])
    return combine_runners([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    entries, shape = _read_header(path)
    try:
        network = cv2.dnn.readNetFromONNX(str(path))
        names = list(network.getUnconnectedOutLayersNames())
    except cv2.error as error:
        raise _unsupported(path, error) from error

    def infer(images: Tensor) -> list[Tensor]:
        try:
            network.setInput(images.detach().cpu().numpy())
            return copy_to_tensors(network.forward(names))
        except cv2.error as error:
            raise _unsupported(path, error) from error

    metadata = resolve_metadata(entries, shape, infer, path)
    del names[len(metadata.outputs) :]  # YOLOv5's files may have raw outputs, which are not read
    return ExportedRunner(metadata, infer, path)


def _read_header(path: Path) -> tuple[dict[str, str], tuple[int, ...]]:
    """Read the metadata of a file and the shape of its input with `onnx`, since OpenCV provides neither.

    Returns:
        The metadata table and the (B, 3, H, W) shape, -1 for dynamic dimensions.
    """
    require_package("onnx", f"{path}: --dnn")
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        (images,) = (one for one in model.graph.input if one.name not in {w.name for w in model.graph.initializer})
    except Exception as error:  # protobuf's errors have no public base
        raise UserError(f"{path}: not an ONNX file with one input ({first_line(error)})") from error
    kind = images.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim)
    if kind.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4:
        found = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        raise UserError(f"{path}: --dnn supports inputs of float32, this file takes {found}; leave --dnn out")
    return {entry.key: entry.value for entry in model.metadata_props}, shape


def _unsupported(path: Path, error: cv2.error) -> UserError:
    return UserError(f"{path}: OpenCV {cv2.__version__} cannot run this file ({first_line(error)}); leave --dnn out")
