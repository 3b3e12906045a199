"""Weights & Biases logger, offline unless the environment variable WANDB_MODE is set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.loggers import LOGGERS
from utils.loggers.run_id import load_run_id, project_name, save_run_id


@LOGGERS.register("wandb")
class Wandb:
    """Logger with one W&B run per run folder; `wandb sync` uploads the offline files in `<run>/wandb`."""

    def __init__(self) -> None:
        self._package: Any = None
        self._run: Any = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Open the W&B run, the same one for a resumed run."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError as error:
            raise UserError("--log wandb needs a package: pip install wandb") from error
        self._package = wandb
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self._run = wandb.init(
            project=project_name(settings),
            entity=settings.get("entity") or None,
            name=run_dir.name,
            id=load_run_id(run_dir, "wandb"),
            resume="allow",
            dir=str(run_dir),
            config=dict(settings),
            mode=mode,
        )
        save_run_id(run_dir, "wandb", self._run.id)

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an epoch as one step."""
        self._run.log({name: float(value) for name, value in numbers.items()}, step=epoch)

    def image(self, path: Path, epoch: int) -> None:
        """Log an image with the numbers of its epoch."""
        self._run.log({path.stem: self._package.Image(str(path))}, step=epoch)

    def checkpoint(self, path: Path, epoch: int, best: bool) -> None:
        """Log a checkpoint of --save-period as a version of the artifact that `finish` completes."""
        if path.name.startswith("epoch"):
            self._keep([path], [path.stem, *(["best"] if best else [])])

    def _keep(self, paths: Sequence[Path], aliases: list[str]) -> None:
        model = self._package.Artifact(f"run_{self._run.id}_model", type="model")
        for path in paths:
            model.add_file(str(path), name=path.name)
        self._run.log_artifact(model, aliases=aliases)

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Log the final numbers as summary and the checkpoints as artifact, and close the run."""
        for name, value in numbers.items():
            self._run.summary[name] = float(value)
        if checkpoints:
            self._keep(checkpoints, ["latest", "best"])
        self._run.finish()
