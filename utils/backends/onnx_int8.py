"""ONNX files that compute in 8-bit integers, for onnxruntime."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.backends.exported_runner import require
from utils.backends.flat_outputs import ExportJob
from utils.backends.onnx_graph import DEFAULT_OPSET, check_opset, describe, tail
from utils.core.errors import UserError

KINDS = ("Conv", "Sigmoid", "Mul", "MaxPool", "Resize")  # residual sums (Add) would cost the scores
LEAST_OPSET = 13
LEAST = -6.0  # below it SiLU gives nearly nothing (-0.015): no steps of the scale are spent there


class _Reader:
    """Calibration images in the form onnxruntime asks for."""

    def __init__(self, images: Iterator[Tensor]) -> None:
        self._images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image.numpy()}


def quantize(job: ExportJob, path: Path) -> None:
    """Replace the file at `path` by one whose convolutions and activations compute in INT8.

    Not from the last convolutions on: joining boxes and scores in one INT8 tensor would cost the scores (decisions.md).
    """
    opset = job.opset or DEFAULT_OPSET
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    require("onnxruntime", "--int8")
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if job.calibration is None:
        raise ValueError("INT8 needs images to calibrate with")
    if opset < LEAST_OPSET and not job.per_tensor:
        raise UserError(f"--int8 --opset {opset}: a scale per channel needs {LEAST_OPSET}; or give --per-tensor")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = onnx.shape_inference.infer_shapes(onnx.load(str(prepared)))
        ranges = _ranges(prepared, job.calibration(), Path(folder) / "calibrating.onnx")
    for name in silu_inputs(model):
        if name in ranges:
            ranges[name].lowest = np.maximum(ranges[name].lowest, np.float32(LEAST))
    quantizer = QDQQuantizer(
        model,
        per_channel=not job.per_tensor,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=tail(model, 1 + job.caution),
        op_types_to_quantize=list(KINDS),
        extra_options={},
    )
    quantizer.quantize_model()
    quantized = quantizer.model.model
    check_opset(quantized, opset, "onnxruntime's quantization")
    describe(quantized, job.description)
    onnx.save(quantized, str(path))


def _ranges(model: Path, images: Iterator[Tensor], place: Path) -> Any:
    """Return what values the inputs and outputs of convolutions take: the mean of the images' extremes.

    So no outlier of a single image sets the scale.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    calibrator = create_calibrator(
        model,
        list(KINDS),
        augmented_model_path=str(place),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"moving_average": True},
    )
    calibrator.collect_data(_Reader(images))
    return calibrator.compute_data()


def silu_inputs(model: Any) -> set[str]:
    """Return the names of values x that become x * sigmoid(x) and nothing else."""
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = set()
    for name, nodes in users.items():
        sigmoid = next((node for node in nodes if node.op_type == "Sigmoid"), None)
        product = next((node for node in nodes if node.op_type == "Mul"), None)
        if sigmoid and product and len(nodes) == 2 and set(product.input) == {name, sigmoid.output[0]}:
            found.add(name)
    return found
