"""ONNX graphs: export and check them, append non-maximum suppression, find the last convolutions."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from utils.backends.export_metadata import METADATA_KEY, ExportMetadata, NmsSettings
from utils.backends.exported_runner import first_line, require_package
from utils.backends.flat_outputs import ExportJob
from utils.core.contracts import HeadSpec
from utils.core.errors import UserError
from utils.ops.nms import CLASS_OFFSET_PX, MAX_FLOAT32_OFFSET

DEFAULT_OPSET = 17
MIN_OPSET = 12
MAX_TRACED_OPSET = 20  # newest operator set of torch's tracing exporter; newer ones are written by torch.export
MAX_NMS_CANDIDATES = 4096  # highest-scoring boxes per image that enter NMS in the graph


def build(job: ExportJob, path: Path) -> Any:
    """Export a network to an ONNX file with metadata and, if requested, NMS.

    Args:
        job: What to export.
        path: The file to write.

    Returns:
        The checked `onnx.ModelProto`.

    Raises:
        UserError: The operator set is not supported, or the network cannot be expressed in it.
    """
    require_package("onnx", "ONNX", "onnx onnxruntime")
    import onnx

    metadata = job.metadata
    opset = job.opset or DEFAULT_OPSET
    max_opset = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= max_opset:
        raise UserError(f"--opset expects {MIN_OPSET} to {max_opset}, got {opset}")
    with _quiet(job.verbose), torch.no_grad():
        (_trace if opset <= MAX_TRACED_OPSET else _export)(job, path, opset)
    model = onnx.load(str(path))
    check_opset(model, opset, f"torch {torch.__version__}")
    if metadata.dynamic:
        _state_fixed_axes(model, job)
    if metadata.nms:
        for index, (head, key) in enumerate(metadata.outputs):
            if key == "predictions":
                append_nms(model, f"output{index}", metadata.specs[head], metadata.nms)
    if job.simplify:
        require_package("onnxslim", "--simplify")
        import onnxslim

        model = onnxslim.slim(model)
        check_opset(model, opset, "onnxslim")
    set_metadata(model, metadata)
    onnx.checker.check_model(model, full_check=not metadata.nms)
    onnx.save(model, str(path))
    return model


def check_opset(model: Any, expected: int, writer: str) -> None:
    """Raise UserError unless the model has the operator set `expected`; `writer` names what wrote it."""
    found = opset_of(model)
    if found != expected:
        raise UserError(f"--opset {expected}: {writer} wrote operator set {found} instead; give --opset {found}")


def opset_of(model: Any) -> int:
    """Find the version of ONNX's own operator set that a model uses."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def set_metadata(model: Any, metadata: ExportMetadata) -> None:
    """Store our metadata and the entries of YOLOv5's files in the model."""
    import onnx

    entries = {**metadata.to_yolov5(), "task": next(iter(metadata.specs)), METADATA_KEY: metadata.to_json()}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    model.producer_name = "polyolo"


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Suppress warnings, and unless `verbose` also the exporter's output on stdout."""
    with warnings.catch_warnings():
        if verbose:
            yield
            return
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            yield


def _example(job: ExportJob) -> torch.Tensor:
    """Create the input to trace with; dynamic dimensions get distinct sizes, so that none is taken for another."""
    if not job.metadata.dynamic:
        return job.example()
    step = job.metadata.stride
    return job.example(batch=2, image_hw=(4 * step, 6 * step))


def _dynamic_axes(key: str, rank: int) -> dict[int, str]:
    if key == "end_to_end":
        return {0: "batch"}
    if rank == 4:
        what = "mask" if key == "prototypes" else "map"
        return {0: "batch", 2: f"{what}_height", 3: f"{what}_width"}
    return {0: "batch", 1: "anchors"} if rank == 3 else {0: "batch"}


def _state_fixed_axes(model: Any, job: ExportJob) -> None:
    """Write the size of the axes that do not depend on the input, such as the columns of a box, into the outputs."""
    with torch.no_grad():
        tensors = job.module()(_example(job))
    outputs = {value.name: value for value in model.graph.output}
    for name, (_, key), tensor in zip(job.metadata.output_names, job.metadata.outputs, tensors, strict=True):
        dynamic = _dynamic_axes(key, tensor.ndim)
        for axis, dimension in enumerate(outputs[name].type.tensor_type.shape.dim):
            if axis not in dynamic:
                dimension.dim_value = tensor.shape[axis]


def _trace(job: ExportJob, path: Path, opset: int) -> None:
    metadata, module, example = job.metadata, job.module(), _example(job)
    dynamic_axes: dict[str, dict[int, str]] = {}
    if metadata.dynamic:
        sides = (1, 2) if metadata.colors else (2, 3)
        dynamic_axes["images"] = {0: "batch", sides[0]: "height", sides[1]: "width"}
        for name, (_, key), tensor in zip(metadata.output_names, metadata.outputs, module(example), strict=True):
            dynamic_axes[name] = _dynamic_axes(key, tensor.ndim)
    try:
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(metadata.output_names),
            opset_version=opset,
            dynamic_axes=dynamic_axes or None,
            dynamo=False,
        )
    except (RuntimeError, TypeError, ValueError) as error:  # torch's exporter errors derive from these
        raise UserError(f"--opset {opset}: this network cannot be exported to ONNX ({first_line(error)})") from error


def _export(job: ExportJob, path: Path, opset: int) -> None:
    require_package("onnxscript", f"--opset {opset}")
    metadata, example = job.metadata, _example(job)
    dynamic_shapes = None
    if metadata.dynamic:
        free = torch.export.Dim.DYNAMIC
        dynamic_shapes = ({0: free, 1: free, 2: free} if metadata.colors else {0: free, 2: free, 3: free},)
    try:
        torch.onnx.export(
            job.module(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(metadata.output_names),
            opset_version=opset,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            external_data=False,
            verbose=job.verbose,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--opset {opset}: this network cannot be exported to ONNX ({first_line(error)})") from error


# ----------------------------------------------------------------------------------------------------------------------
# Non-maximum suppression


class _GraphBuilder:
    """Append nodes to a graph; values are referred to by name."""

    def __init__(self, graph: Any, opset: int, prefix: str) -> None:
        self.graph, self.opset, self.prefix, self.count = graph, opset, prefix, 0

    def _next_name(self) -> str:
        self.count += 1
        return f"{self.prefix}/{self.count}"

    def add(self, kind: str, *inputs: str, results: int = 1, **attributes: Any) -> Any:
        """Append a node; return the name of its output, or a list of names for several `results`."""
        import onnx

        names = [self._next_name() for _ in range(results)]
        self.graph.node.append(onnx.helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names[0] if results == 1 else names

    def constant(self, values: Any, dtype: str = "int64") -> str:
        import numpy as np
        import onnx

        name = self._next_name()
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def columns(self, value: str, start: int, end: int) -> str:
        """Slice [..., start:end] of a (B, K, columns) value."""
        return self.add("Slice", value, *(self.constant([number]) for number in (start, end, 2)))

    def max_over_columns(self, value: str) -> str:
        """Reduce a (B, K, columns) value to its (B, K) maximum."""
        if self.opset >= 18:
            return self.add("ReduceMax", value, self.constant([2]), keepdims=0)
        return self.add("ReduceMax", value, axes=[2], keepdims=0)

    def row_count(self, value: str, limit: int) -> str:
        """Compute [min(K, limit)] of a (B, K) or (B, K, columns) value."""
        shape = self.add("Shape", value)
        return self.add("Min", self.add("Gather", shape, self.constant([1])), self.constant([limit]))

    def gather_rows(self, value: str, indices: str) -> str:
        """Gather (B, T, columns) rows of a (B, K, columns) value at (B, T) indices."""
        return self.add("GatherND", value, self.unsqueeze(indices), batch_dims=1)

    def unsqueeze(self, value: str) -> str:
        """Reshape a (B, K) value to (B, K, 1)."""
        return self.add("Reshape", value, self.constant([0, 0, 1]))


def append_nms(model: Any, output: str, spec: HeadSpec, nms: NmsSettings) -> None:
    """Append non-maximum suppression to an output of a model, in place.

    Args:
        model: `onnx.ModelProto`.
        output: Name of the (B, N, 5 + C + M) predictions, which become (B, T, 6 + M) rows, see `ExportMetadata`.
        spec: Of the head.
        nms: Thresholds and limits.
    """
    import onnx

    graph = model.graph
    index, value = next((i, value) for i, value in enumerate(graph.output) if value.name == output)
    num_classes, columns = spec.num_classes, 5 + spec.num_classes + spec.num_masks
    predictions = f"{output}_before_nms"
    for node in graph.node:
        node.output[:] = [predictions if name == output else name for name in node.output]
        node.input[:] = [predictions if name == output else name for name in node.input]
    builder = _GraphBuilder(graph, opset_of(model), f"nms_{output}")
    scores, rows = _top_candidates(builder, predictions, num_classes)
    boxes = _corners(builder, rows)
    classes = builder.add("ArgMax", builder.columns(rows, 5, 5 + num_classes), axis=2, keepdims=0)
    selected = _selected_scores(builder, boxes, scores, classes, num_classes, nms)
    count = builder.row_count(selected, nms.total)
    best, indices = builder.add("TopK", selected, count, axis=1, largest=1, sorted=1, results=2)
    class_column = builder.unsqueeze(builder.add("Cast", classes, to=onnx.TensorProto.FLOAT))
    parts = [boxes, builder.unsqueeze(scores), class_column]
    if spec.num_masks:
        objectness = builder.columns(rows, 4, 5)
        parts.append(builder.add("Mul", builder.columns(rows, 5 + num_classes, columns), objectness))
    found = builder.gather_rows(builder.add("Concat", *parts, axis=2), indices)
    is_box = builder.add("Greater", best, builder.constant(0, "float32"))
    mask = builder.unsqueeze(builder.add("Cast", is_box, to=onnx.TensorProto.FLOAT))
    graph.node.append(onnx.helper.make_node("Mul", [found, mask], [output], name=f"{builder.prefix}/last"))
    batch = value.type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value, "detections", 6 + spec.num_masks]
    graph.output[index].CopyFrom(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape))


def _top_candidates(builder: _GraphBuilder, predictions: str, num_classes: int) -> tuple[str, str]:
    """Select the (B, K) highest scores in descending order and the (B, K, columns) predictions they belong to."""
    class_scores = builder.columns(predictions, 5, 5 + num_classes)
    best = builder.max_over_columns(builder.add("Mul", class_scores, builder.columns(predictions, 4, 5)))
    count = builder.row_count(best, MAX_NMS_CANDIDATES)
    scores, indices = builder.add("TopK", best, count, axis=1, largest=1, sorted=1, results=2)
    return scores, builder.gather_rows(predictions, indices)


def _corners(builder: _GraphBuilder, rows: str) -> str:
    centre, size = builder.columns(rows, 0, 2), builder.columns(rows, 2, 4)
    half = builder.add("Div", size, builder.constant(2.0, "float32"))
    return builder.add("Concat", builder.add("Sub", centre, half), builder.add("Add", centre, half), axis=2)


def _offset_by_class(builder: _GraphBuilder, boxes: str, classes: str) -> str:
    """Shift boxes by class as `utils.ops.nms` does, which gives the same rounding; NMS per class does not need it."""
    class_floats = builder.add("Cast", classes, to=1)  # 1: FLOAT
    shift = builder.add("Mul", class_floats, builder.constant(CLASS_OFFSET_PX, "float32"))
    return builder.add("Add", boxes, builder.unsqueeze(shift))


def _selected_scores(
    builder: _GraphBuilder, boxes: str, scores: str, classes: str, num_classes: int, nms: NmsSettings
) -> str:
    """Compute (B, K) scores in which boxes removed by NMS have zero."""
    if nms.agnostic:
        by_class, limit = builder.add("Reshape", scores, builder.constant([0, 1, -1])), nms.total
    else:
        if num_classes * CLASS_OFFSET_PX <= MAX_FLOAT32_OFFSET:
            boxes = _offset_by_class(builder, boxes, classes)
        one_hot = builder.add(
            "OneHot", classes, builder.constant(num_classes), builder.constant([0, 1], "float32"), axis=1
        )
        by_class = builder.add("Mul", one_hot, builder.add("Reshape", scores, builder.constant([0, 1, -1])))
        limit = nms.per_class
    thresholds = [builder.constant([nms.iou], "float32"), builder.constant([nms.confidence], "float32")]
    selected = builder.add("NonMaxSuppression", boxes, by_class, builder.constant([limit]), *thresholds)
    indices = builder.add("Gather", selected, builder.constant([0, 2]), axis=1)  # (S, 2): image, box
    zeros = builder.add("Mul", scores, builder.constant(0.0, "float32"))
    return builder.add("ScatterND", zeros, indices, builder.add("GatherND", scores, indices))


# ----------------------------------------------------------------------------------------------------------------------
# Layers that INT8 quantization leaves out


def nodes_up_to_last_convolutions(model: Any, depth: int) -> list[str]:
    """List the nodes from the outputs back to the `depth`-th convolution on every path, convolutions included.

    Args:
        model: `onnx.ModelProto`.
        depth: Number of convolutions (or matrix products) per path.

    Returns:
        Names of the nodes.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = {}
    ends: Sequence[str] = [value.name for value in model.graph.output]
    for _ in range(depth):
        starts: list[str] = []
        seen: set[str] = set()
        pending = list(ends)
        while pending:
            name = pending.pop()
            if name in seen or name not in producers:
                continue
            seen.add(name)
            node = producers[name]
            found[node.name] = None
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                starts.append(node.input[0])
            else:
                pending.extend(node.input)
        ends = starts
    return list(found)
