"""Profile of a training run (`--profile`): a table of its phases and a trace of a few steps.

Phases synchronise the GPU at both ends, so that work is attributed to the right phase; this slows training a little.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from utils.core.files import atomic_path, write_text
from utils.core.log import LOGGER
from utils.core.timing import Stopwatch

PHASES = ("data", "transfer", "forward", "loss", "backward", "optimizer", "ema", "validation", "checkpoint", "trace")
SKIPPED_STEPS, TRACED_STEPS = 2, 5  # the first steps are slower and not representative
TRACE, TABLE = "profile_trace.json.gz", "profile"

Phase = Callable[[str], AbstractContextManager[Any]]
_NO_PHASE: AbstractContextManager[Any] = nullcontext()


def untimed(name: str) -> AbstractContextManager[Any]:
    """Return a null context: the phases of a run that is not profiled."""
    return _NO_PHASE


class Profile:
    """Timer of the phases of the training loop; also a logger, to learn the folder and the end of the run.

    A step begins with the phase `data`. The trace is closed before the first validation, to keep it small.
    """

    def __init__(self, device: torch.device) -> None:
        self._watches = {name: Stopwatch(device) for name in PHASES}
        self._seconds: dict[str, list[float]] = {name: [] for name in PHASES}
        self._total = Stopwatch(device)
        self._device, self._folder, self._steps = device, Path(), 0
        self._trace: torch.profiler.profile | None = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Set the folder of the results."""
        self._folder = run_dir

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the enclosed block as the phase `name`, one of `PHASES`."""
        if name == "data":
            self._next_step()
        if name == "validation":
            self._close_trace()
        with torch.profiler.record_function(name), self._timed(name):
            yield

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        with self._watches[name]:
            yield
        self._seconds[name].append(self._watches[name].last)

    def _next_step(self) -> None:
        if self._steps == 0:
            self._total.__enter__()
        if self._steps == SKIPPED_STEPS:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            with self._timed("trace"):
                self._trace = torch.profiler.profile(activities=activities)
                self._trace.start()
        elif self._steps == SKIPPED_STEPS + TRACED_STEPS:
            self._close_trace()
        self._steps += 1

    def _close_trace(self) -> None:
        if self._trace is None:
            return
        trace, self._trace = self._trace, None
        path = self._folder / TRACE
        with self._timed("trace"), atomic_path(path) as temporary:
            trace.stop()
            trace.export_chrome_trace(str(temporary))
        LOGGER.info(f"trace of {TRACED_STEPS} steps: {path} (open it with ui.perfetto.dev or chrome://tracing)")

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the table of the run so far."""
        self._write()

    def image(self, path: Path, epoch: int) -> None:
        """Ignore plots."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Write and log the table."""
        self._close_trace()
        LOGGER.info(self._write())

    def _write(self) -> str:
        rows = self.rows()
        text = format_profile(rows)
        write_text(self._folder / f"{TABLE}.txt", text + "\n")
        write_text(
            self._folder / f"{TABLE}.json",
            json.dumps({"steps": len(self._seconds["forward"]), "phases": rows}, indent=1) + "\n",
        )
        return text

    def rows(self) -> list[dict[str, Any]]:
        """Compute a row per phase; the last row, `other`, is the time between phases."""
        self._total.__exit__()
        self._total.__enter__()
        total = self._total.seconds
        rows = [_row(name, seconds, total) for name, seconds in self._seconds.items() if seconds]
        other = max(total - sum(sum(seconds) for seconds in self._seconds.values()), 0.0)
        return [*rows, _row("other", [other], total)]


def _row(name: str, seconds: Sequence[float], total: float) -> dict[str, Any]:
    return {
        "phase": name,
        "calls": len(seconds),
        "median_ms": round(1000 * statistics.median(seconds), 3),
        "seconds": round(sum(seconds), 4),
        "share": round(sum(seconds) / max(total, 1e-9), 4),
    }


def format_profile(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of a profile as a text table."""
    lines = [f"{'phase':<12}{'calls':>8}{'median ms':>12}{'seconds':>10}{'share':>8}"]
    for row in rows:
        lines.append(
            f"{row['phase']:<12}{row['calls']:>8}{row['median_ms']:>12.2f}{row['seconds']:>10.2f}{row['share']:>8.1%}"
        )
    return "\n".join(lines)
