"""What the options of check.py say, as a record; light, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GateSettings:
    """One run of the gate."""

    data: str
    imgsz: int = 640  # pixels of the longer side at which sizes of objects are judged
    anchors: int = 0  # fit so many; 0: none
    anchor_t: float = 4.0
    fix: Path | None = None  # where a cleaned copy goes
    fast: bool = False  # headers and labels only
    strict: bool = False  # warnings count as errors
    download: bool = False
    project: Path = Path("runs/check")
    name: str = "exp"
    exist_ok: bool = False
