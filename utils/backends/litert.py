"""TFLite export with litert-torch, which requires torch older than 2.15, and runner with LiteRT."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import METADATA_KEY, parse_metadata
from utils.backends.exported_runner import (
    ExportedRunner,
    combine_runners,
    copy_to_tensors,
    first_line,
    require_package,
    warn_half_ignored,
)
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.core.contracts import Runner
from utils.core.errors import UserError

_METADATA_FILE = f"{METADATA_KEY}.json"


@BACKENDS.register("tflite")
class LiteRtBackend(ExportBackend):
    """Writes and runs .tflite files. Inputs are (B, 3, H, W); YOLOv5's files, made with Keras, are (B, H, W, 3)."""

    title, suffixes, ending = "TFLite", (".tflite",), ".tflite"
    packages = ("litert_torch",)
    capabilities = frozenset({"end_to_end", "preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert the network; the metadata is appended as an associated file, which TFLite's tools can read."""
        require_package("litert_torch", "TFLite", "litert-torch")
        import litert_torch

        try:
            litert_torch.convert(job.module(), (job.example(),)).export(str(path))
        except Exception as error:  # unsupported operators raise many unrelated classes
            raise UserError(f"litert-torch cannot convert this network ({first_line(error)})") from error
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_METADATA_FILE, job.metadata.to_json())

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open files on the CPU, several as an ensemble."""
        warn_half_ignored(half, paths[0])
        return combine_runners([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    require_package("ai_edge_litert", f"{path}: running TFLite files", "ai-edge-litert")
    from ai_edge_litert.interpreter import Interpreter

    try:
        with zipfile.ZipFile(path) as archive:
            metadata = parse_metadata(archive.read(_METADATA_FILE).decode(), path)
        interpreter = Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a .tflite file written by export.py ({first_line(error)})") from error
    input_index = interpreter.get_input_details()[0]["index"]
    output_indices = [one["index"] for one in interpreter.get_output_details()]

    def infer(images: Tensor) -> list[Tensor]:
        interpreter.set_tensor(input_index, images.cpu().numpy())
        interpreter.invoke()
        return copy_to_tensors([interpreter.get_tensor(index) for index in output_indices])

    return ExportedRunner(metadata, infer, path)
