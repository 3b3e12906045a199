"""Comet logger, offline unless the environment variable COMET_MODE is `online`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.loggers import LOGGERS
from utils.loggers.run_id import load_run_id, project_name, save_run_id

_QUIET = {  # no automatic records and no error reports
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_INTERNAL_REPORTING": "false",
    "COMET_INTERNAL_SENTRY_DSN": "",
}


@LOGGERS.register("comet")
class Comet:
    """Logger with one Comet experiment per run folder; `comet upload` uploads the offline archives in `<run>/comet`."""

    def __init__(self) -> None:
        self._experiment: Any = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Open the experiment, the same one for a resumed run."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import comet_ml
        except ImportError as error:
            raise UserError("--log comet needs a package: pip install comet_ml") from error
        online = os.environ.get("COMET_MODE", "offline").lower() == "online"
        options: dict[str, Any] = {
            "project_name": os.environ.get("COMET_PROJECT_NAME") or project_name(settings),
            "log_code": False,
            "log_graph": False,
            "log_git_metadata": False,
            "log_git_patch": False,
            "log_env_details": False,
            "auto_param_logging": False,
            "auto_metric_logging": False,
            "auto_output_logging": False,
            "parse_args": False,
            "display_summary_level": 0,
        }
        known = load_run_id(run_dir, "comet")
        names = {(True, False): "Experiment", (True, True): "ExistingExperiment"} | {
            (False, False): "OfflineExperiment",
            (False, True): "ExistingOfflineExperiment",
        }
        if not online:
            options["offline_directory"] = str(run_dir / "comet")
        if known is not None:
            options["previous_experiment"] = known
            del options["project_name"]
        self._experiment = getattr(comet_ml, names[online, known is not None])(**options)
        if known is None:
            self._experiment.set_name(run_dir.name)
            self._experiment.log_parameters(dict(settings))
            save_run_id(run_dir, "comet", self._experiment.get_key())

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an epoch."""
        self._experiment.log_metrics({name: float(value) for name, value in numbers.items()}, step=epoch, epoch=epoch)

    def image(self, path: Path, epoch: int) -> None:
        """Log an image under its file name."""
        self._experiment.log_image(str(path), name=path.stem, step=epoch)

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Log the final numbers as `final/...`, the checkpoints as a model, and close the experiment."""
        for name, value in numbers.items():
            self._experiment.log_metric(f"final/{name}", float(value))
        for path in checkpoints:
            self._experiment.log_model(self._experiment.get_name() or "polyolo", str(path))
        self._experiment.end()
