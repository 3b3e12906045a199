"""From `--weights` to a runner: find the files, choose the backend by suffix, open them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from models.checkpoint import load_checkpoint, save_checkpoint
from models.weight_download import resolve_weights
from utils.backends import BACKENDS
from utils.backends.opencv_dnn import open_with_opencv
from utils.core.contracts import Runner
from utils.core.errors import UserError
from utils.core.files import newest_file
from utils.core.log import LOGGER

RUNS = Path("runs/train")


@dataclass(frozen=True)
class Opened:
    """A runner and where it came from."""

    runner: Runner
    name: str  # stem of the first file
    meta: dict[str, Any]  # what its checkpoint says about its training
    paths: tuple[Path, ...]


class Asked(Protocol):
    """The settings of a script that say what to run."""

    weights: tuple[str, ...]
    half: bool
    augment: bool
    download: bool
    dnn: bool


def open_subject(settings: Asked, device: torch.device, runs: Path = RUNS) -> Opened:
    """Return what the settings of a script name, without weights the best of the newest training below `runs`."""
    return open_weights(
        settings.weights,
        device,
        half=settings.half,
        augment=settings.augment,
        download=settings.download,
        runs=runs,
        dnn=settings.dnn,
    )


def open_weights(
    weights: Sequence[str],
    device: torch.device,
    half: bool = False,
    augment: bool = False,
    download: bool = False,
    runs: Path = RUNS,
    dnn: bool = False,
) -> Opened:
    """Open the files `weights` on `device`; without any the best of the newest training run below `runs`.

    Several files form an ensemble. `download` may fetch official files that are not there. With `dnn` OpenCV runs them.
    """
    paths = find_weights(weights, download, runs)
    opener = open_with_opencv if dnn else _backend_of(paths).open
    runner, meta = opener(paths, device, half=half, augment=augment)
    return Opened(runner, paths[0].stem, meta, tuple(paths))


def find_weights(weights: Sequence[str], download: bool = False, runs: Path = RUNS) -> list[Path]:
    """Return the files that `--weights` names; empty means the newest best.pt under `runs`."""
    given = [text.strip() for text in weights if text.strip()]
    if given:
        return [resolve_weights(text, download) for text in given]
    found = newest_file(runs, "weights/best.pt")
    if found is None:
        how = "train one with `python train.py`" if runs == RUNS else "train one"
        raise UserError(
            f"no --weights given and no {runs}/*/weights/best.pt here; {how}, or name a "
            "checkpoint (official ones: --weights yolov5s.pt --download)"
        )
    LOGGER.info(f"no --weights: the newest run's best, {found}")
    return [found]


def _backend_of(paths: Sequence[Path]) -> Any:
    """Return the backend that runs all of the files."""
    backends = [backend_for(path) for path in paths]
    if len(set(backends)) > 1:
        raise UserError(f"{paths[0]} and {paths[-1]} are of different formats; an ensemble takes one")
    return backends[0]


def backend_for(path: Path) -> Any:
    """Return the backend whose ending the name of a file or folder has; the longest that fits decides."""
    known = {suffix: BACKENDS.get(name) for name in BACKENDS.names() for suffix in BACKENDS.get(name).suffixes}
    fitting = [suffix for suffix in known if path.name.endswith(suffix)]
    if not fitting:
        raise UserError(f"{path}: {path.suffix or 'no suffix'} is no format that runs here ({' '.join(sorted(known))})")
    return known[max(fitting, key=len)]


def strip_weights(paths: Sequence[Path]) -> None:
    """Rewrite checkpoints in place without what only a resumed training needs (`--update`)."""
    for path in paths:
        if backend_for(path) is not BACKENDS.get("pytorch"):
            raise UserError(f"--update rewrites checkpoints; {path} is an exported file")
        before = path.stat().st_size
        checkpoint = load_checkpoint(path)
        save_checkpoint(path, checkpoint.network, checkpoint.meta, half=True)
        LOGGER.info(f"{path}: rewritten, {before / 1e6:.1f} MB before, {path.stat().st_size / 1e6:.1f} MB now")
