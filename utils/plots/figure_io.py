"""Pictures to files, in one step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from utils.core.errors import UserError
from utils.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JPEG_QUALITY = 95


def write_image(path: Path, image_bgr: np.ndarray) -> None:
    """Write uint8 `image_bgr`, (H, W, 3) or grey (H, W), in the format of the suffix; a failure is a UserError."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix.lower() in {".jpg", ".jpeg"} else []
    try:
        good, encoded = cv2.imencode(path.suffix, image_bgr, options)
    except cv2.error as error:
        raise UserError(f"{path}: cannot be written ({error.err or error})") from error
    if not good:
        raise UserError(f"{path}: cannot be written as {path.suffix}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def new_figure(width_inch: float, height_inch: float) -> Figure:
    """Return an empty figure that draws to files only; no window system and no global state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 200) -> Path:
    """Write `figure` and return `path`."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # class names in scripts without a font
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # a hundred class names
        figure.savefig(temporary, dpi=dpi)
    return path


def escape_mathtext(name: str) -> str:
    """Return a class name so that matplotlib does not take dollar signs for formulas."""
    return name.replace("$", r"\$")
