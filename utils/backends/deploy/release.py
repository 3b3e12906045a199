"""Exported files of a checkpoint, and the inputs and outputs of their graphs, from which deployments are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.backends.export_metadata import ExportMetadata
from utils.core.errors import UserError

DYNAMIC = -1  # size of a dynamic dimension


@dataclass(frozen=True)
class TensorInfo:
    """Input or output of a graph."""

    name: str
    dtype: str  # as numpy names it: float32, float16, uint8
    shape: tuple[int, ...]  # `DYNAMIC` where any size is possible


@dataclass(frozen=True)
class Release:
    """A checkpoint and its exported files."""

    stem: str  # of the files
    task: str  # name of the first head
    checkpoint: Path
    files: Mapping[str, Path]  # by export format
    metadata: Mapping[str, ExportMetadata]  # by export format
    training: Mapping[str, Any] = field(default_factory=dict)  # metadata of the checkpoint

    def first_format(self, formats: Sequence[str]) -> str:
        """Get the first of some formats that was exported."""
        return next(name for name in formats if name in self.files)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the first head."""
        about = next(iter(self.metadata.values()))
        return about.specs[self.task].names or about.names


def read_onnx_tensors(path: Path) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """Read the inputs and outputs of an ONNX file.

    Returns:
        Inputs and outputs in the order of the graph.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return [_describe(value) for value in graph.input], [_describe(value) for value in graph.output]


def _describe(value: Any) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(one.dim_value if one.HasField("dim_value") else DYNAMIC for one in tensor.shape.dim)
    return TensorInfo(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def label_lines(names: Sequence[str]) -> str:
    """Format class names as the lines of a labels file.

    Raises:
        UserError: A name has a line break, which would shift the names after it.
    """
    for name in names:
        if len(name.splitlines()) > 1:
            raise UserError(f"class name {name!r}: has a line break, which a labels file cannot hold; rename the class")
    return "".join(f"{name}\n" for name in names)
