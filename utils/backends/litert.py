"""TFLite files by way of litert-torch, run by LiteRT. litert-torch wants torch older than 2.15."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import KEY, from_json
from utils.backends.exported_runner import ExportedRunner, from_arrays, joined, require, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.core.contracts import Runner
from utils.core.errors import UserError

_ABOUT = f"{KEY}.json"


@BACKENDS.register("tflite")
class LiteRtBackend:
    """Writes and runs .tflite files. Images stay (B, 3, H, W), unlike in files that YOLOv5 makes by way of Keras."""

    title, suffixes, ending = "TFLite", (".tflite",), ".tflite"
    packages = ("litert_torch",)
    can = frozenset({"preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert; the description is an associated file at the end, where TFLite's tools look for such."""
        require("litert_torch", "TFLite", "litert-torch")
        import litert_torch

        try:
            litert_torch.convert(job.module(), (job.example(),)).export(str(path))
        except Exception as error:  # it fails in many ways with operators it does not know
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"litert-torch cannot convert this network ({reason})") from error
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_ABOUT, job.description.to_json())

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner on the CPU, several files as an ensemble, and what the first says about itself."""
        warn_half(half, paths[0])
        return joined([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    require("ai_edge_litert", f"{path}: running TFLite files", "ai-edge-litert")
    from ai_edge_litert.interpreter import Interpreter

    try:
        with zipfile.ZipFile(path) as archive:
            about = from_json(archive.read(_ABOUT).decode(), path)
        interpreter = Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: no .tflite file that export.py wrote ({str(error)[:120]})") from error
    fed = interpreter.get_input_details()[0]["index"]
    found = [one["index"] for one in interpreter.get_output_details()]

    def call(images: Tensor) -> list[Tensor]:
        interpreter.set_tensor(fed, images.cpu().numpy())
        interpreter.invoke()
        return from_arrays([interpreter.get_tensor(index) for index in found])

    return ExportedRunner(about, call, path)
