"""Weights & Biases: offline unless the environment variable WANDB_MODE says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.loggers import LOGGERS

_ID_FILE = "wandb_id.txt"  # so that a resumed run goes on in the same W&B run


@LOGGERS.register("wandb")
class Wandb:
    """One W&B run per run folder. Offline files lie in `<run>/wandb`; `wandb sync` uploads them later."""

    def __init__(self) -> None:
        self.errors: tuple[type[Exception], ...] = ()
        self._package: Any = None
        self._run: Any = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Open the W&B run."""
        try:
            import wandb
        except ImportError as error:
            raise UserError("--log wandb needs a package: pip install wandb") from error
        self._package, self.errors = wandb, (wandb.Error,)
        id_file = run_dir / _ID_FILE
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self._run = wandb.init(
            project=Path(str(settings.get("project") or "polyolo")).name,
            entity=settings.get("entity") or None,
            name=run_dir.name,
            id=id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else None,
            resume="allow",
            dir=str(run_dir),
            config=dict(settings),
            mode=mode,
        )
        id_file.write_text(f"{self._run.id}\n", encoding="utf-8")

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the epoch's numbers as one step."""
        self._run.log({name: float(value) for name, value in numbers.items()}, step=epoch)

    def picture(self, path: Path, epoch: int) -> None:
        """Log the picture with the numbers of its epoch."""
        self._run.log({path.stem: self._package.Image(str(path))}, step=epoch)

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Put the final numbers into the summary and close the run; checkpoints stay where they are."""
        for name, value in numbers.items():
            self._run.summary[name] = float(value)
        self._run.finish()
