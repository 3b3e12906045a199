"""ClearML logger, offline unless the environment variable CLEARML_OFFLINE_MODE is 0."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.loggers import LOGGERS
from utils.loggers.run_id import load_run_id, project_name, save_run_id

_CACHE = "CLEARML_CACHE_DIR"


@contextmanager
def _cache_below(folder: Path) -> Iterator[None]:
    """Set the cache folder of ClearML to `folder` unless the user has chosen one."""
    if os.environ.get(_CACHE):
        yield
        return
    os.environ[_CACHE] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ[_CACHE]


@LOGGERS.register("clearml")
class ClearMl:
    """Logger with one ClearML task per run folder. Offline sessions are in `<run>/clearml/offline`, one per start.

    Upload them later with `Task.import_offline_session` of the package.
    """

    def __init__(self) -> None:
        self._task: Any = None
        self._numbers: Any = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Open the task: for a resumed run the same one if online, else a new session."""
        try:
            from clearml import Task
            from clearml.utilities import check_updates
        except ImportError as error:
            raise UserError("--log clearml needs a package: pip install clearml") from error
        online = os.environ.get("CLEARML_OFFLINE_MODE", "1") == "0"
        known = load_run_id(run_dir, "clearml") if online else None
        Task.set_offline(not online)
        # report from a thread: offline, close() can wait forever for the reporting process (ClearML 2.1.12)
        internals: Any = Task
        internals._report_subprocess_enabled = False
        news: Any = check_updates.CheckPackageUpdates
        news._package_version_checked = True  # no request for updates, which is sent even offline (ClearML 2.1.12)
        with _cache_below(run_dir / "clearml"):
            self._task = Task.init(
                project_name=project_name(settings),
                task_name=run_dir.name,
                continue_last_task=known or False,
                reuse_last_task_id=False,
                auto_connect_arg_parser=False,
                auto_connect_frameworks=False,
                auto_connect_streams=False,
                auto_resource_monitoring=False,
            )
        save_run_id(run_dir, "clearml", self._task.id)
        self._task.connect(dict(settings))
        self._numbers = self._task.get_logger()

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers; those with the same prefix before the slash share a chart."""
        for name, value in numbers.items():
            title, _, series = name.rpartition("/")
            self._numbers.report_scalar(title or series, series, float(value), epoch)

    def image(self, path: Path, epoch: int) -> None:
        """Log an image under its file name."""
        self._numbers.report_image(path.stem, path.stem, epoch, local_path=str(path))

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Log the final numbers, upload the checkpoints as artifacts, and close the task."""
        for name, value in numbers.items():
            self._numbers.report_single_value(name, float(value))
        for path in checkpoints:
            self._task.upload_artifact(path.stem, artifact_object=str(path))
        self._task.close()
