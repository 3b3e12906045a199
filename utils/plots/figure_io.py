"""Writing of images and matplotlib figures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from utils.core.errors import UserError
from utils.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JPEG_QUALITY = 95
_FIGURE_DPI = 150
_PNG_COMPRESSION = 2  # of zlib, at most 9: a third of the time of the default, files a tenth larger
MAX_NAME_CHARACTERS = 40  # of a class in figures


def write_image(path: Path, image_bgr: np.ndarray) -> None:
    """Write an image atomically, in the format of the file suffix.

    Args:
        path: File to write.
        image_bgr: (H, W, 3) BGR or (H, W) grey, uint8.

    Raises:
        UserError: If the format is not supported or the image cannot be encoded.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix.lower() in {".jpg", ".jpeg"} else []
    try:
        success, encoded = cv2.imencode(path.suffix, image_bgr, options)
    except cv2.error as error:
        raise UserError(f"{path}: cannot be written ({error.err or error})") from error
    if not success:
        raise UserError(f"{path}: cannot be written as {path.suffix}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def new_figure(width_inch: float, height_inch: float) -> Figure:
    """Create an empty figure for files, without a window system or pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = _FIGURE_DPI) -> Path:
    """Write a figure atomically and return its path."""
    options = {"compress_level": _PNG_COMPRESSION} if path.suffix.lower() == ".png" else {}
    with atomic_path(path) as temporary, _without_glyph_warnings():
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # too many class names
        figure.savefig(temporary, dpi=dpi, pil_kwargs=options)
    return path


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """Ignore warnings about class names in scripts without a font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def short_name(name: str) -> str:
    """Shorten a long name of a class."""
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[: MAX_NAME_CHARACTERS - 1]}…"


def escape_mathtext(name: str) -> str:
    """Prepare a name for matplotlib: shorten long names, and escape dollar signs, which would start formulae."""
    return short_name(name).replace("$", r"\$")
