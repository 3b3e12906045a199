"""Polyolo from Python: `model = polyolo.load("best.pt")`, then `predict`, `val`, `train` and `export`.

In a clone this package stands beside `train.py`, `models/` and `utils/`; the installed package contains them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.core.version import VERSION as __version__  # noqa: N811 - the name by which Python expects it

if TYPE_CHECKING:
    from polyolo.api import YOLO, TrainingResult, load
    from polyolo.callbacks import Callbacks, StopTraining
    from utils.core.errors import UserError
    from utils.hub.detections import Detections

__all__ = ["YOLO", "Callbacks", "Detections", "StopTraining", "TrainingResult", "UserError", "__version__", "load"]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, since most of them load torch, which the command line does not need."""
    if name in ("YOLO", "TrainingResult", "load"):
        from polyolo import api

        return getattr(api, name)
    if name in ("Callbacks", "StopTraining"):
        from polyolo import callbacks

        return getattr(callbacks, name)
    if name == "UserError":
        from utils.core.errors import UserError

        return UserError
    if name == "Detections":
        from utils.hub.detections import Detections

        return Detections
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
