"""Open the files of `--weights` as a runner: find them and choose the backend by suffix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from models.checkpoint import load_checkpoint, save_checkpoint
from models.ensemble import Ensemble
from models.network_runner import NetworkRunner
from models.tta import MultiViewRunner
from models.weight_download import resolve_weights
from utils.backends import BACKENDS
from utils.backends.opencv_dnn import open_with_opencv
from utils.backends.pytorch import networks_of
from utils.core.contracts import Backend, Runner
from utils.core.errors import UserError
from utils.core.files import newest_file
from utils.core.log import LOGGER

DEFAULT_RUNS = Path("runs/train")


@dataclass(frozen=True)
class OpenedModel:
    """A runner and the files it was opened from."""

    runner: Runner
    name: str  # stem of the first file
    meta: dict[str, Any]  # training metadata of the first file
    paths: tuple[Path, ...]


class OpenSettings(Protocol):
    """Settings of a program that choose the model to run; the names are those of the options."""

    @property
    def weights(self) -> Sequence[str]:
        """Checkpoints or exported files; empty: the newest best.pt."""

    @property
    def half(self) -> bool:
        """Compute in half precision."""

    @property
    def augment(self) -> bool:
        """Apply test-time augmentation."""

    @property
    def download(self) -> bool:
        """Fetch official checkpoints that are missing."""

    @property
    def dnn(self) -> bool:
        """Run .onnx files with OpenCV."""

    @property
    def compile(self) -> bool:
        """Compile checkpoints with torch.compile."""


def open_model(settings: OpenSettings, device: torch.device, runs: Path = DEFAULT_RUNS) -> OpenedModel:
    """Open the model that the settings of a program choose; see `open_weights`."""
    opened = open_weights(
        settings.weights,
        device,
        half=settings.half,
        augment=settings.augment,
        download=settings.download,
        runs=runs,
        dnn=settings.dnn,
    )
    if getattr(settings, "end_to_end", False):
        use_end_to_end(opened.runner)
    if settings.compile:
        for network in networks_of(opened.runner, "--compile"):
            network.compile()  # in place, at the first call
    return opened


def use_end_to_end(runner: Runner) -> None:
    """Let a runner use the duplicate filter of its network (`--end-to-end`).

    Raises:
        UserError: It has none, or it merges the boxes of several runs.
    """
    if isinstance(runner, NetworkRunner):
        runner.network.use_end_to_end()
        runner.specs = runner.network.specs
    elif isinstance(runner, (Ensemble, MultiViewRunner)):
        raise UserError("--end-to-end: ensembles and --augment merge boxes by NMS; leave one of the options out")
    elif not any(spec.end_to_end for spec in runner.specs.values()):
        raise UserError("--end-to-end: this file was exported without its duplicate filter; export it again with it")


def open_weights(
    weights: Sequence[str],
    device: torch.device,
    half: bool = False,
    augment: bool = False,
    download: bool = False,
    runs: Path = DEFAULT_RUNS,
    dnn: bool = False,
) -> OpenedModel:
    """Open checkpoints or exported files, several as an ensemble.

    Args:
        weights: The files; empty: the newest best.pt below `runs`.
        device: Where to run them.
        half: Compute in half precision, where the format leaves the choice open.
        augment: Apply test-time augmentation.
        download: Fetch official checkpoints that are missing.
        runs: Folder of the training runs.
        dnn: Run .onnx files with OpenCV instead of onnxruntime.

    Returns:
        The runner and its files.

    Raises:
        UserError: A file is missing, damaged or of an unknown format, or the formats differ.
    """
    paths = find_weights(weights, download, runs)
    if dnn:
        runner, meta = open_with_opencv(paths, device, half=half, augment=augment)
    else:
        backends = [backend_for(path) for path in paths]
        if len(set(backends)) > 1:
            raise UserError(f"--weights: {paths[0]} and {paths[-1]} differ in format; an ensemble needs one format")
        runner, meta = backends[0].open(paths, device, half=half, augment=augment)
    return OpenedModel(runner, paths[0].stem, meta, tuple(paths))


def find_weights(weights: Sequence[str], download: bool = False, runs: Path = DEFAULT_RUNS) -> list[Path]:
    """Find the files of `--weights`.

    Args:
        weights: The files; empty: the newest best.pt below `runs`.
        download: Fetch official checkpoints that are missing.
        runs: Folder of the training runs.

    Returns:
        Paths of existing files.

    Raises:
        UserError: A file or a training run is missing.
    """
    given = [text.strip() for text in weights if text.strip()]
    if given:
        return [resolve_weights(text, download) for text in given]
    found = newest_file(runs, "weights/best.pt")
    if found is None:
        how = "train a model with `python train.py`" if runs == DEFAULT_RUNS else "train a model"
        raise UserError(
            f"--weights: not given, and there is no {runs}/*/weights/best.pt; {how}, or name a "
            "checkpoint (official ones: --weights yolov5s.pt --download)"
        )
    LOGGER.info(f"--weights: not given, using the newest best.pt: {found}")
    return [found]


def backend_for(path: Path) -> type[Backend]:
    """Find the backend whose suffix the name of a file or folder has; the longest matching suffix decides."""
    known = {suffix: BACKENDS.get(name) for name in BACKENDS.names() for suffix in BACKENDS.get(name).suffixes}
    matching = [suffix for suffix in known if path.name.endswith(suffix)]
    if not matching:
        fault = f"unknown format {path.suffix!r}" if path.suffix else "no suffix"
        raise UserError(f"{path}: {fault}; expected a checkpoint (.pt) or a file written by export.py")
    return known[max(matching, key=len)]


def strip_weights(paths: Sequence[Path]) -> None:
    """Rewrite checkpoints in place in half precision and without optimizer state (`--update`)."""
    for path in paths:
        if backend_for(path) is not BACKENDS.get("pytorch"):
            raise UserError(f"--update: {path} is an exported file; only checkpoints can be rewritten")
        before = path.stat().st_size
        checkpoint = load_checkpoint(path)
        save_checkpoint(path, checkpoint.network, checkpoint.meta, half=True)
        LOGGER.info(f"{path}: rewritten, {before / 1e6:.1f} MB -> {path.stat().st_size / 1e6:.1f} MB")
