"""Run ids of logging services, stored in the run folder so that a resumed run continues the same record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.core.files import write_text


def load_run_id(run_dir: Path, service: str) -> str | None:
    """Read the service's id of the run in `run_dir`; None for a new run."""
    path = run_dir / f"{service}_id.txt"
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def save_run_id(run_dir: Path, service: str, name: str) -> None:
    """Store the service's id of the run."""
    write_text(run_dir / f"{service}_id.txt", f"{name}\n")


def project_name(settings: Mapping[str, Any]) -> str:
    """Get the project name for a service: the last folder of --project."""
    return Path(str(settings.get("project") or "polyolo")).name or "polyolo"
