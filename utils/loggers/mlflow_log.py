"""MLflow logger with a database beside the run folders, unless MLFLOW_TRACKING_URI names a server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.loggers import LOGGERS
from utils.loggers.run_id import load_run_id, project_name, save_run_id

_LONGEST = 500  # most characters of a parameter


@LOGGERS.register("mlflow")
class Mlflow:
    """Logger with one MLflow run per run folder, in `<project>/mlflow.db` and `<project>/mlflow-files`."""

    def __init__(self) -> None:
        self._entities: Any = None
        self._client: Any = None
        self._run_id = ""

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Open the MLflow run, the same one for a resumed run."""
        for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            os.environ.setdefault(name, "true")
        try:
            import mlflow.entities
            import sqlalchemy  # noqa: F401 - the slim package mlflow-skinny comes without it
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UserError("--log mlflow needs a package: pip install mlflow") from error
        self._entities = mlflow.entities
        own = f"sqlite:///{(run_dir.parent / 'mlflow.db').resolve().as_posix()}"
        address = os.environ.get("MLFLOW_TRACKING_URI") or own
        self._client = MlflowClient(tracking_uri=address)
        known = load_run_id(run_dir, "mlflow")
        if known is None:
            self._run_id = self._new_run(project_name(settings), run_dir, local=address == own)
            save_run_id(run_dir, "mlflow", self._run_id)
            values = {name: str(value)[:_LONGEST] for name, value in settings.items()}
            params = [self._entities.Param(name, value) for name, value in values.items()]
            for first in range(0, len(params), 100):  # most parameters per call
                self._client.log_batch(self._run_id, params=params[first : first + 100])
        else:
            self._run_id = known
            self._client.update_run(known, status="RUNNING")

    def _new_run(self, project: str, run_dir: Path, local: bool) -> str:
        found = self._client.get_experiment_by_name(project)
        files = (run_dir.parent / "mlflow-files").resolve().as_uri() if local else None
        experiment = found.experiment_id if found else self._client.create_experiment(project, artifact_location=files)
        return str(self._client.create_run(experiment, run_name=run_dir.name).info.run_id)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, float(value), now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an epoch as one step, without NaN."""
        self._log({name: value for name, value in numbers.items() if value == value}, epoch)

    def image(self, path: Path, epoch: int) -> None:
        """Copy an image to the artifacts of the run."""
        self._client.log_artifact(self._run_id, str(path), "pictures")

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Log the final numbers as `final/...` and the checkpoints, and close the run."""
        self._log({f"final/{name}": value for name, value in numbers.items() if value == value}, 0)
        for path in checkpoints:
            self._client.log_artifact(self._run_id, str(path), "weights")
        self._client.set_terminated(self._run_id, status="FINISHED" if checkpoints else "KILLED")
