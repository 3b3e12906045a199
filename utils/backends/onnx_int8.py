"""INT8 quantization of ONNX files for onnxruntime."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.backends.exported_runner import require_package
from utils.backends.flat_outputs import ExportJob
from utils.backends.onnx_graph import DEFAULT_OPSET, check_opset, nodes_up_to_last_convolutions, set_metadata
from utils.core.errors import UserError

QUANTIZED_OPERATORS = ("Conv", "Sigmoid", "Mul", "MaxPool", "Resize")  # quantizing residual sums (Add) costs accuracy
MIN_PER_CHANNEL_OPSET = 13
MIN_SILU_INPUT = -6.0  # SiLU is nearly zero below it (-0.015), so the quantization range is clipped there


class _CalibrationReader:
    """Calibration images through onnxruntime's reader interface."""

    def __init__(self, images: Iterator[Tensor]) -> None:
        self._images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image.numpy()}


def quantize(job: ExportJob, path: Path) -> None:
    """Quantize convolutions and activations of an ONNX file to INT8, in place.

    Nodes from the last convolutions on keep floating point: boxes in pixels and scores from 0 to 1 are joined in one
    tensor, and a common INT8 scale would round all scores to zero.

    Args:
        job: With calibration images and metadata.
        path: The file, which is replaced.

    Raises:
        UserError: The operator set is too old for one scale per channel.
    """
    opset = job.opset or DEFAULT_OPSET
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    require_package("onnxruntime", "--int8")
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if job.calibration is None:
        raise ValueError("INT8 export requires calibration images")
    if opset < MIN_PER_CHANNEL_OPSET and not job.per_tensor:
        raise UserError(
            f"--int8 --opset {opset}: one scale per channel requires opset {MIN_PER_CHANNEL_OPSET}; give --per-tensor"
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = onnx.shape_inference.infer_shapes(onnx.load(str(prepared)))
        ranges = _value_ranges(prepared, job.calibration(), Path(folder) / "calibrating.onnx")
    for name in silu_inputs(model):
        if name in ranges:
            ranges[name].lowest = np.maximum(ranges[name].lowest, np.float32(MIN_SILU_INPUT))
    quantizer = QDQQuantizer(
        model,
        per_channel=not job.per_tensor,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=nodes_up_to_last_convolutions(model, 1 + job.extra_float_layers),
        op_types_to_quantize=list(QUANTIZED_OPERATORS),
        extra_options={},
    )
    quantizer.quantize_model()
    quantized = quantizer.model.model
    check_opset(quantized, opset, "onnxruntime's quantization")
    set_metadata(quantized, job.metadata)
    onnx.save(quantized, str(path))


def _value_ranges(model: Path, images: Iterator[Tensor], augmented_model: Path) -> Any:
    """Measure the value ranges of tensors: the mean of the images' extremes, which limits the effect of outliers."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    calibrator = create_calibrator(
        model,
        list(QUANTIZED_OPERATORS),
        augmented_model_path=str(augmented_model),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"moving_average": True},
    )
    calibrator.collect_data(_CalibrationReader(images))
    return calibrator.compute_data()


def silu_inputs(model: Any) -> set[str]:
    """Find the names of values x that are used for x * sigmoid(x) only."""
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
