"""Weights as a .safetensors file with the description of their network; the file can be trained further."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import save_checkpoint
from utils.backends import BACKENDS
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.backends.pytorch import PyTorchBackend
from utils.core.contracts import Runner


@BACKENDS.register("safetensors")
class SafetensorsBackend(ExportBackend):
    """Writes .safetensors files; they are opened like checkpoints."""

    title, suffixes, ending = "safetensors", (), ".safetensors"
    packages = ("safetensors",)
    dynamic_by_default = True
    capabilities = frozenset({"dynamic", "half", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Write the network as it was trained: normalisation is not folded into convolutions."""
        save_checkpoint(path, job.trained or job.network, dict(job.training), half=job.metadata.precision == "fp16")

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open files like checkpoints."""
        return PyTorchBackend.open(paths, device, half, augment)
