"""ClearML: offline unless the environment variable CLEARML_OFFLINE_MODE is 0."""

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
    """Let ClearML write below `folder`, unless the user has named a place."""
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
    """One ClearML task per run folder. Offline sessions lie in `<run>/clearml/offline`, one per start of the run.

    `Task.import_offline_session` of the package sends them later.
    """

    def __init__(self) -> None:
        self._task: Any = None
        self._numbers: Any = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Open the task; of a resumed run the same one when online, else another session."""
        try:
            from clearml import Task
            from clearml.utilities import check_updates
        except ImportError as error:
            raise UserError("--log clearml needs a package: pip install clearml") from error
        online = os.environ.get("CLEARML_OFFLINE_MODE", "1") == "0"
        known = load_run_id(run_dir, "clearml") if online else None
        Task.set_offline(not online)
        # its reporting process can keep close() waiting for ever when offline (2.1.12); a thread of it reports as well
        internals: Any = Task
        internals._report_subprocess_enabled = False
        news: Any = check_updates.CheckPackageUpdates
        news._package_version_checked = True  # else it asks updates.clear.ml for a newer version, offline too (2.1.12)
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
        """Add a point to every curve; a chart holds the numbers before the same slash."""
        for name, value in numbers.items():
            title, _, series = name.rpartition("/")
            self._numbers.report_scalar(title or series, series, float(value), epoch)

    def image(self, path: Path, epoch: int) -> None:
        """Add the picture under its file's name."""
        self._numbers.report_image(path.stem, path.stem, epoch, local_path=str(path))

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Report the final numbers, keep the checkpoints as artifacts, and close the task."""
        for name, value in numbers.items():
            self._numbers.report_single_value(name, float(value))
        for path in checkpoints:
            self._task.upload_artifact(path.stem, artifact_object=str(path))
        self._task.close()
