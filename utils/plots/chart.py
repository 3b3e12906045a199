"""Charts of curves and matrices, drawn with OpenCV in hundredths of a second, without matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from utils.plots.text_rendering import Colour, put_mask, text_mask

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
FONT, TITLE_FONT = 21, 25  # pixels
_GRID = (235, 235, 235)
_FRAME_WIDTH, _TICK_LENGTH = 1, 8  # pixels
_MARGIN, _GAP, _SAMPLE = 10, 12, 46  # pixels: border of the figure, space beside texts, line of a legend entry
_SUBPIXEL_BITS = 4  # coordinates of lines are in units of 1/16 pixel
_SIMPLIFICATION = 0.25  # pixels by which a simplified line may deviate
_DASH, _PAUSE = 12.0, 7.0  # pixels
_CELL, _MIN_MATRIX, _MAX_MATRIX = 68, 800, 1950  # pixels: a cell, the side of a matrix
_RESIZE = {False: cv2.INTER_NEAREST, True: cv2.INTER_AREA}  # cells smaller than a pixel are averaged
# ColorBrewer's sequential scheme "Blues", as RGB
_BLUES = ("f7fbff", "deebf7", "c6dbef", "9ecae1", "6baed6", "4292c6", "2171b5", "08519c", "08306b")


class Series(NamedTuple):
    """A curve, with a text for the legend (empty: not in the legend)."""

    text: str
    values: np.ndarray  # (S,)
    colour: Colour
    width: int  # pixels
    dashed: bool = False


@dataclass(frozen=True)
class Area:
    """Rectangle of a chart in pixels; the right and lower ends are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def blank_canvas(width: int, height: int) -> np.ndarray:
    """Create a white (height, width, 3) image."""
    return np.full((height, width, 3), 255, np.uint8)


def rgb_to_bgr(hexadecimal: str) -> Colour:
    """Convert a colour such as "1f77b4"."""
    red, green, blue = bytes.fromhex(hexadecimal)
    return blue, green, red


def blues(fractions: np.ndarray) -> np.ndarray:
    """Map fractions from 0 to 1 to a scale from white to dark blue; NaN is white.

    Args:
        fractions: Array of any shape.

    Returns:
        BGR colours with an additional last dimension, uint8.
    """
    anchors = np.array([rgb_to_bgr(text) for text in _BLUES], np.float64)
    positions = np.linspace(0, 1, len(anchors))
    known = np.nan_to_num(fractions)
    colours = np.stack([np.interp(known, positions, anchors[:, channel]) for channel in range(3)], axis=-1)
    colours[np.isnan(fractions)] = 255
    return np.rint(colours).astype(np.uint8)


def text_width(text: str, size_px: int) -> int:
    """Return the width of a text in pixels."""
    return text_mask(text, size_px).shape[1]


def put_anchored(
    canvas: np.ndarray,
    text: str,
    xy: tuple[float, float],
    size_px: int,
    anchor: tuple[float, float] = (0.5, 0.5),
    colour: Colour = BLACK,
    vertical: bool = False,
) -> None:
    """Write text at a point.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        text: Text.
        xy: The point.
        size_px: Font size.
        anchor: Position of the point inside the text: 0 is its left or upper end, 1 its right or lower end.
        colour: Text colour.
        vertical: Write upwards.
    """
    mask = text_mask(text, size_px)
    mask = np.rot90(mask) if vertical else mask
    left, top = (round(xy[axis] - anchor[axis] * mask.shape[1 - axis]) for axis in (0, 1))
    put_mask(canvas, mask, (left, top), colour)


def draw_line(canvas: np.ndarray, xy: np.ndarray, colour: Colour, width: int, dashed: bool = False) -> None:
    """Draw an antialiased line through points.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        xy: (N, 2) points in pixels.
        colour: Line colour.
        width: Width in pixels.
        dashed: Draw dashes.
    """
    scale = 1 << _SUBPIXEL_BITS
    points = np.rint(xy * scale).astype(np.int32)
    if len(points) > 2:
        points = cv2.approxPolyDP(points[:, None], _SIMPLIFICATION * scale, closed=False)[:, 0]
    lines = _dashes(points, _DASH * scale, _PAUSE * scale) if dashed else [points]
    cv2.polylines(canvas, lines, False, colour, width, cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _dashes(points: np.ndarray, dash: float, pause: float) -> list[np.ndarray]:
    """Cut a line through (N, 2) points into dashes."""
    lengths = np.concatenate(([0.0], np.hypot(*np.diff(points, axis=0).T).cumsum()))
    dashes = []
    for start in np.arange(0, lengths[-1], dash + pause):
        end = min(start + dash, lengths[-1])
        inner = lengths[(lengths > start) & (lengths < end)]
        at = np.concatenate(([start], inner, [end]))
        dash_xy = np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)
        dashes.append(np.rint(dash_xy).astype(np.int32))
    return dashes


def legend_width(series: Sequence[Series]) -> int:
    """Return the width of a legend in pixels."""
    return _SAMPLE + _GAP + max((text_width(one.text, FONT) for one in series if one.text), default=0)


def draw_legend(canvas: np.ndarray, series: Sequence[Series], left: int, top: int) -> None:
    """Draw a legend whose upper left corner is at a point."""
    for index, one in enumerate(entry for entry in series if entry.text):
        middle = top + round((index + 0.5) * 1.45 * FONT)
        sample = np.array([[left, middle], [left + _SAMPLE, middle]], float)
        draw_line(canvas, sample, one.colour, one.width, one.dashed)
        put_anchored(canvas, one.text, (left + _SAMPLE + _GAP, middle), FONT, (0, 0.5))


def draw_curves(
    x: np.ndarray, series: Sequence[Series], labels: tuple[str, str, str], size_wh: tuple[int, int]
) -> np.ndarray:
    """Draw curves with values from 0 to 1 over an axis from 0 to 1, with a legend on the right.

    Args:
        x: (S,) positions.
        series: Curves, the last one on top.
        labels: Title and labels of the horizontal and the vertical axis.
        size_wh: Width and height of the figure in pixels.

    Returns:
        (height, width, 3) BGR, uint8.
    """
    canvas = blank_canvas(*size_wh)
    title, x_label, y_label = labels
    left = _MARGIN + 2 * FONT + text_width("0.0", FONT) + _GAP + _TICK_LENGTH
    legend = size_wh[0] - _MARGIN - legend_width(series)
    area = Area(left, 2 * TITLE_FONT, legend - 2 * FONT, size_wh[1] - _MARGIN - 3 * FONT - _TICK_LENGTH)
    width, height = area.right - area.left, area.bottom - area.top
    highest = 1.005  # a curve at 1 stays visible
    for tick in np.linspace(0, 1, 6):
        at_x, at_y = round(area.left + tick * (width - 1)), round(area.bottom - 1 - tick / highest * (height - 1))
        cv2.line(canvas, (at_x, area.top), (at_x, area.bottom + _TICK_LENGTH), _GRID, _FRAME_WIDTH)
        cv2.line(canvas, (area.left - _TICK_LENGTH, at_y), (area.right, at_y), _GRID, _FRAME_WIDTH)
        cv2.line(canvas, (at_x, area.bottom), (at_x, area.bottom + _TICK_LENGTH), BLACK, _FRAME_WIDTH)
        cv2.line(canvas, (area.left - _TICK_LENGTH, at_y), (area.left, at_y), BLACK, _FRAME_WIDTH)
        put_anchored(canvas, f"{tick:.1f}", (at_x, area.bottom + _TICK_LENGTH + 4), FONT, (0.5, 0))
        put_anchored(canvas, f"{tick:.1f}", (area.left - _TICK_LENGTH - 6, at_y), FONT, (1, 0.5))
    inside = canvas[area.top : area.bottom, area.left : area.right]
    for one in series:
        known = np.isfinite(one.values)
        xy = np.stack((x[known] * (width - 1), (1 - one.values[known] / highest) * (height - 1)), axis=1)
        if len(xy):
            draw_line(inside, xy, one.colour, one.width, one.dashed)
    draw_frame(canvas, area)
    put_anchored(canvas, title, ((area.left + area.right) / 2, area.top - _GAP), TITLE_FONT, (0.5, 1))
    put_anchored(canvas, x_label, ((area.left + area.right) / 2, size_wh[1] - _MARGIN), FONT, (0.5, 1))
    put_anchored(canvas, y_label, (_MARGIN, (area.top + area.bottom) / 2), FONT, (0, 0.5), vertical=True)
    draw_legend(canvas, series, legend, area.top)
    return canvas


def draw_frame(canvas: np.ndarray, area: Area) -> None:
    """Draw a black frame around an area."""
    cv2.rectangle(canvas, (area.left - 1, area.top - 1), (area.right, area.bottom), BLACK, _FRAME_WIDTH)


def draw_colour_bar(canvas: np.ndarray, area: Area) -> None:
    """Draw the scale of `blues` with its values on the right."""
    height = area.bottom - area.top
    fractions = np.broadcast_to(np.linspace(1, 0, height)[:, None], (height, area.right - area.left))
    canvas[area.top : area.bottom, area.left : area.right] = blues(fractions)
    draw_frame(canvas, area)
    for tick in np.linspace(0, 1, 6):
        at_y = round(area.bottom - 1 - tick * (height - 1))
        cv2.line(canvas, (area.right, at_y), (area.right + _TICK_LENGTH, at_y), BLACK, _FRAME_WIDTH)
        put_anchored(canvas, f"{tick:.1f}", (area.right + _TICK_LENGTH + 6, at_y), FONT, (0, 0.5))


def draw_matrix(
    cells: np.ndarray, names: Sequence[str], texts: Sequence[tuple[int, int, str, Colour]], labels: tuple[str, str, str]
) -> np.ndarray:
    """Draw a square matrix of fractions with a colour bar.

    Args:
        cells: (N, N) fractions from 0 to 1; NaN is white.
        names: Names of the rows and columns; empty: none are written.
        texts: Row, column, text and colour of what is written into cells.
        labels: Title and labels of the horizontal and the vertical axis.

    Returns:
        BGR image, uint8.
    """
    count = len(cells)
    side = min(_MAX_MATRIX, max(_MIN_MATRIX, _CELL * count))
    side = side // count * count or side  # whole pixels per cell, if cells are that large
    cell = side / count
    name_font = round(max(10.0, min(23.0, 625 / count)))
    names_width = max((text_width(name, name_font) for name in names), default=0) + _GAP
    title, x_label, y_label = labels
    left, top = _MARGIN + 2 * FONT + names_width, 2 * TITLE_FONT
    area = Area(left, top, left + side, top + side)
    bar = Area(area.right + 2 * FONT, top, area.right + 4 * FONT, area.bottom)
    width = bar.right + _TICK_LENGTH + 6 + text_width("0.0", FONT) + _MARGIN
    canvas = blank_canvas(width, area.bottom + names_width + 2 * FONT + _MARGIN)
    enlarged = cv2.resize(blues(cells), (side, side), interpolation=_RESIZE[cell < 1])
    canvas[top : area.bottom, left : area.right] = enlarged
    cell_font = round(max(12.0, min(23.0, 333 / count)))
    for row, column, text, colour in texts:
        put_anchored(canvas, text, (left + (column + 0.5) * cell, top + (row + 0.5) * cell), cell_font, colour=colour)
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell
        put_anchored(canvas, name, (left - _GAP / 2, top + middle), name_font, (1, 0.5))
        put_anchored(canvas, name, (left + middle, area.bottom + _GAP / 2), name_font, (0.5, 0), vertical=True)
    draw_frame(canvas, area)
    draw_colour_bar(canvas, bar)
    put_anchored(canvas, title, (left + side / 2, top - _GAP), TITLE_FONT, (0.5, 1))
    put_anchored(canvas, x_label, (left + side / 2, canvas.shape[0] - _MARGIN), FONT, (0.5, 1))
    put_anchored(canvas, y_label, (_MARGIN, top + side / 2), FONT, (0, 0.5), vertical=True)
    return canvas
