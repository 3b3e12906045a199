"""Settings of check.py as a record; imports nothing heavy, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckSettings:
    """Settings of a data-set check."""

    data: str
    imgsz: int = 640  # longer side in pixels at which object sizes are measured
    anchors: int = 0  # number of anchors to fit, 0: none
    anchor_t: float = 4.0
    fix: Path | None = None  # folder for a cleaned copy
    fast: bool = False  # headers and labels only
    strict: bool = False  # warnings count as errors
    download: bool = False
    project: Path = Path("runs/check")
    name: str = "exp"
    exist_ok: bool = False
