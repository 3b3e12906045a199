"""ONNX files as graphs: write and check them, put suppression behind the boxes, find the last convolutions."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from utils.backends.export_metadata import KEY, Description, Suppression
from utils.backends.exported_runner import require
from utils.backends.flat_outputs import ExportJob
from utils.core.contracts import HeadSpec
from utils.core.errors import UserError
from utils.ops.nms import CLASS_OFFSET_PX, MAX_FLOAT32_OFFSET

DEFAULT_OPSET = 17
LEAST_OPSET, MOST_TRACED = 12, 20  # what torch's tracing exporter writes; newer ones come from torch.export
CANDIDATES = 4096  # boxes of an image that enter suppression in the graph


def build(job: ExportJob, path: Path) -> Any:
    """Write the job's network to `path`, checked, with suppression and metadata, and return it as a model."""
    require("onnx", "ONNX", "onnx onnxruntime")
    import onnx

    about = job.description
    opset = job.opset or DEFAULT_OPSET
    if opset < LEAST_OPSET or opset > onnx.defs.onnx_opset_version():
        most = onnx.defs.onnx_opset_version()
        raise UserError(f"--opset {opset}: ONNX files are written for {LEAST_OPSET} to {most} here")
    with _quiet(job.verbose), torch.no_grad():
        (_trace if opset <= MOST_TRACED else _export)(job, path, opset)
    model = onnx.load(str(path))
    check_opset(model, opset, f"torch {torch.__version__}")
    if about.suppression:
        for index, (head, key) in enumerate(about.outputs):
            if key == "predictions":
                suppress_in_graph(model, f"output{index}", about.specs[head], about.suppression)
    if job.simplify:
        model = _simplified(model)
        check_opset(model, opset, "onnxslim")
    describe(model, about)
    onnx.checker.check_model(model, full_check=not about.suppression)
    onnx.save(model, str(path))
    return model


def check_opset(model: Any, wanted: int, who: str) -> None:
    """Raise UserError unless the model has the operator set `wanted`; `who` wrote it."""
    found = opset_of(model)
    if found != wanted:
        raise UserError(f"--opset {wanted}: {who} wrote operator set {found} instead; ask for that")


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def describe(model: Any, about: Description) -> None:
    """Put the description into the model's metadata, with the entries of YOLOv5's files beside it."""
    import onnx

    entries = {**about.as_yolov5(), "task": next(iter(about.specs)), KEY: about.to_json()}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    model.producer_name = "polyolo"


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keep the exporter's talk off the terminal unless it was asked for."""
    with warnings.catch_warnings():
        if verbose:
            yield
            return
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            yield


def _example(job: ExportJob) -> torch.Tensor:
    """Return the input to trace with; for open sizes one whose sizes all differ, so that none is taken for another."""
    if not job.description.dynamic:
        return job.example()
    step = job.description.stride
    return job.example(batch=2, image_hw=(4 * step, 6 * step))


def _axes(key: str, rank: int) -> dict[int, str]:
    if rank == 4:
        what = "mask" if key == "prototypes" else "map"
        return {0: "batch", 2: f"{what}_height", 3: f"{what}_width"}
    return {0: "batch", 1: "anchors"} if rank == 3 else {0: "batch"}


def _trace(job: ExportJob, path: Path, opset: int) -> None:
    about, module, example = job.description, job.module(), _example(job)
    open_axes: dict[str, dict[int, str]] = {}
    if about.dynamic:
        sides = (1, 2) if about.colors else (2, 3)
        open_axes["images"] = {0: "batch", sides[0]: "height", sides[1]: "width"}
        for name, (_, key), tensor in zip(about.output_names, about.outputs, module(example), strict=True):
            open_axes[name] = _axes(key, tensor.ndim)
    try:
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(about.output_names),
            opset_version=opset,
            dynamic_axes=open_axes or None,
            dynamo=False,
        )
    except (RuntimeError, TypeError, ValueError) as error:  # torch's own classes of errors derive from these
        raise UserError(f"--opset {opset}: this network cannot be written as ONNX ({_line(error)})") from error


def _export(job: ExportJob, path: Path, opset: int) -> None:
    require("onnxscript", f"--opset {opset}")
    about, example = job.description, _example(job)
    open_axes = None
    if about.dynamic:
        free = torch.export.Dim.DYNAMIC
        open_axes = ({0: free, 1: free, 2: free} if about.colors else {0: free, 2: free, 3: free},)
    try:
        torch.onnx.export(
            job.module(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(about.output_names),
            opset_version=opset,
            dynamic_shapes=open_axes,
            dynamo=True,
            external_data=False,
            verbose=job.verbose,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--opset {opset}: this network cannot be written as ONNX ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _simplified(model: Any) -> Any:
    require("onnxslim", "--simplify")
    import onnxslim

    return onnxslim.slim(model)


# ----------------------------------------------------------------------------------------------------------------------
# Suppression


class _Tail:
    """Appends nodes to a graph; values are called by name."""

    def __init__(self, graph: Any, opset: int, prefix: str) -> None:
        self.graph, self.opset, self.prefix, self.count = graph, opset, prefix, 0

    def _name(self) -> str:
        self.count += 1
        return f"{self.prefix}/{self.count}"

    def add(self, kind: str, *inputs: str, results: int = 1, **attributes: Any) -> Any:
        import onnx

        names = [self._name() for _ in range(results)]
        self.graph.node.append(onnx.helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names[0] if results == 1 else names

    def constant(self, values: Any, kind: str = "int64") -> str:
        import numpy as np
        import onnx

        name = self._name()
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, dtype=kind), name))
        return name

    def columns(self, value: str, start: int, end: int) -> str:
        """Return [..., start:end] of a (B, K, columns) value."""
        return self.add("Slice", value, *(self.constant([number]) for number in (start, end, 2)))

    def largest(self, value: str) -> str:
        """Return the largest of the last of three dimensions, which goes away."""
        if self.opset >= 18:
            return self.add("ReduceMax", value, self.constant([2]), keepdims=0)
        return self.add("ReduceMax", value, axes=[2], keepdims=0)

    def at_most(self, value: str, limit: int) -> str:
        """Return [min(K, limit)] of a (B, K) or (B, K, columns) value."""
        shape = self.add("Shape", value)
        return self.add("Min", self.add("Gather", shape, self.constant([1])), self.constant([limit]))

    def rows(self, value: str, places: str) -> str:
        """Return (B, T, columns) rows of a (B, K, columns) value at (B, T) places."""
        return self.add("GatherND", value, self.deeper(places), batch_dims=1)

    def deeper(self, value: str) -> str:
        """Return a (B, K) value as (B, K, 1)."""
        return self.add("Reshape", value, self.constant([0, 0, 1]))


def suppress_in_graph(model: Any, output: str, spec: HeadSpec, how: Suppression) -> None:
    """Replace the (B, N, 5 + C + M) predictions `output` by (B, T, 6 + M) rows: see `Description.outputs`."""
    import onnx

    graph = model.graph
    opset = opset_of(model)
    place, value = next((i, value) for i, value in enumerate(graph.output) if value.name == output)
    num_classes, columns = spec.num_classes, 5 + spec.num_classes + spec.num_masks
    predictions = f"{output}_before_suppression"
    for node in graph.node:
        node.output[:] = [predictions if name == output else name for name in node.output]
        node.input[:] = [predictions if name == output else name for name in node.input]
    tail = _Tail(graph, opset, f"suppress_{output}")
    scores, rows = _candidates(tail, predictions, num_classes)
    boxes = _corners(tail, rows)
    classes = tail.add("ArgMax", tail.columns(rows, 5, 5 + num_classes), axis=2, keepdims=0)
    kept = _kept_scores(tail, boxes, scores, classes, num_classes, how)
    best, places = tail.add("TopK", kept, tail.at_most(kept, how.total), axis=1, largest=1, sorted=1, results=2)
    parts = [boxes, tail.deeper(scores), tail.deeper(tail.add("Cast", classes, to=onnx.TensorProto.FLOAT))]
    if spec.num_masks:
        objectness = tail.columns(rows, 4, 5)
        parts.append(tail.add("Mul", tail.columns(rows, 5 + num_classes, columns), objectness))
    found = tail.rows(tail.add("Concat", *parts, axis=2), places)
    there = tail.add("Cast", tail.add("Greater", best, tail.constant(0, "float32")), to=onnx.TensorProto.FLOAT)
    graph.node.append(onnx.helper.make_node("Mul", [found, tail.deeper(there)], [output], name=f"{tail.prefix}/last"))
    batch = value.type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value, "detections", 6 + spec.num_masks]
    graph.output[place].CopyFrom(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape))


def _candidates(tail: _Tail, predictions: str, num_classes: int) -> tuple[str, str]:
    """Return (B, K) scores by falling score and the (B, K, columns) predictions they belong to."""
    products = tail.add("Mul", tail.columns(predictions, 5, 5 + num_classes), tail.columns(predictions, 4, 5))
    best = tail.largest(products)
    count = tail.at_most(best, CANDIDATES)
    scores, places = tail.add("TopK", best, count, axis=1, largest=1, sorted=1, results=2)
    return scores, tail.rows(predictions, places)


def _corners(tail: _Tail, rows: str) -> str:
    centre, size = tail.columns(rows, 0, 2), tail.columns(rows, 2, 4)
    half = tail.add("Div", size, tail.constant(2.0, "float32"))
    return tail.add("Concat", tail.add("Sub", centre, half), tail.add("Add", centre, half), axis=2)


def _apart(tail: _Tail, boxes: str, classes: str) -> str:
    """Return boxes moved as ours are by class, for the same rounding; classes are kept apart with or without it."""
    shift = tail.add("Mul", tail.add("Cast", classes, to=1), tail.constant(CLASS_OFFSET_PX, "float32"))  # 1: float
    return tail.add("Add", boxes, tail.deeper(shift))


def _kept_scores(tail: _Tail, boxes: str, scores: str, classes: str, num_classes: int, how: Suppression) -> str:
    """Return (B, K) scores of the boxes that survive, zero for the others."""
    if how.agnostic:
        by_class, limit = tail.add("Reshape", scores, tail.constant([0, 1, -1])), how.total
    else:
        boxes = _apart(tail, boxes, classes) if num_classes * CLASS_OFFSET_PX <= MAX_FLOAT32_OFFSET else boxes
        flags = tail.add("OneHot", classes, tail.constant(num_classes), tail.constant([0, 1], "float32"), axis=1)
        by_class = tail.add("Mul", flags, tail.add("Reshape", scores, tail.constant([0, 1, -1])))
        limit = how.per_class
    limits = [tail.constant([how.iou], "float32"), tail.constant([how.confidence], "float32")]
    chosen = tail.add("NonMaxSuppression", boxes, by_class, tail.constant([limit]), *limits)
    places = tail.add("Gather", chosen, tail.constant([0, 2]), axis=1)  # (S, 2): image, box
    none = tail.add("Mul", scores, tail.constant(0.0, "float32"))
    return tail.add("ScatterND", none, places, tail.add("GatherND", scores, places))


# ----------------------------------------------------------------------------------------------------------------------
# INT8


def tail(model: Any, depth: int) -> list[str]:
    """Return the names of the nodes from the outputs back to the `depth`-th convolution on every way, all included."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = {}
    ends: Sequence[str] = [value.name for value in model.graph.output]
    for _ in range(depth):
        starts: list[str] = []
        seen: set[str] = set()
        waiting = list(ends)
        while waiting:
            name = waiting.pop()
            if name in seen or name not in makers:
                continue
            seen.add(name)
            node = makers[name]
            found[node.name] = None
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                starts.append(node.input[0])
            else:
                waiting.extend(node.input)
        ends = starts
    return list(found)
