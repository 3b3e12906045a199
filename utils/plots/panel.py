"""Panels with linear axes, drawn with OpenCV: lines, bars and two-dimensional histograms."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from utils.plots.chart import BLACK, FONT, TITLE_FONT, Area, draw_frame, draw_line, put_anchored, text_width
from utils.plots.text_rendering import Colour

_MARKER_RADIUS = 4  # pixels
_GRID = (235, 235, 235)
_TICK_LENGTH, _TICK_GAP, _LABEL_GAP = 6, 5, 8  # pixels
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # of ticks, times a power of ten
_TICK_SPACING = 64  # pixels


class Panel:
    """A framed area of a canvas with linear axes.

    Args:
        canvas: (H, W, 3) uint8 BGR, changed in place.
        area: Inside of the frame.
        x: Values at the left and right border.
        y: Values at the lower and upper border; (1, 0) runs downwards, as in images.
    """

    def __init__(self, canvas: np.ndarray, area: Area, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.canvas, self.area, self.x, self.y = canvas, area, x, y
        self.inside = canvas[area.top : area.bottom, area.left : area.right]

    def to_pixels(self, xy: np.ndarray) -> np.ndarray:
        """Convert (N, 2) values to pixels relative to the upper left corner of the area."""
        height, width = self.inside.shape[:2]
        columns = (xy[:, 0] - self.x[0]) / (self.x[1] - self.x[0]) * (width - 1)
        rows = (1 - (xy[:, 1] - self.y[0]) / (self.y[1] - self.y[0])) * (height - 1)
        return np.stack((columns, rows), axis=1)

    def draw_axes(
        self,
        title: str = "",
        x_label: str = "",
        y_label: str = "",
        integers: bool = False,
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
    ) -> None:
        """Draw grid, ticks with values, and texts; call it before the contents.

        Args:
            title: Text above the panel.
            x_label: Text below it.
            y_label: Text on its left side.
            integers: Put the ticks of the horizontal axis on integers only.
            x_ticks: Values of the horizontal axis (default: round values).
            y_ticks: Values of the vertical axis (default: round values).
        """
        height, width = self.inside.shape[:2]
        self._draw_x_ticks(ticks(*self.x, width // _TICK_SPACING, integers) if x_ticks is None else x_ticks)
        values_width = self._draw_y_ticks(ticks(*self.y, height // _TICK_SPACING) if y_ticks is None else y_ticks)
        area, middle_x = self.area, (self.area.left + self.area.right) / 2
        put_anchored(self.canvas, title, (middle_x, area.top - _LABEL_GAP), TITLE_FONT - 3, (0.5, 1))
        below = area.bottom + _TICK_LENGTH + FONT + 2 * _LABEL_GAP
        put_anchored(self.canvas, x_label, (middle_x, below), FONT, (0.5, 0))
        left = area.left - _TICK_LENGTH - _TICK_GAP - values_width - _LABEL_GAP
        put_anchored(self.canvas, y_label, (left, (area.top + area.bottom) / 2), FONT, (1, 0.5), vertical=True)

    def _draw_x_ticks(self, values: Sequence[float]) -> None:
        """Draw vertical grid lines with their values below."""
        columns = self.to_pixels(np.array([[value, self.y[0]] for value in values]).reshape(-1, 2))[:, 0]
        for column, text in zip(columns, tick_texts(values), strict=True):
            at = self.area.left + round(column)
            cv2.line(self.canvas, (at, self.area.top), (at, self.area.bottom - 1), _GRID, 1)
            cv2.line(self.canvas, (at, self.area.bottom), (at, self.area.bottom + _TICK_LENGTH), BLACK, 1)
            put_anchored(self.canvas, text, (at, self.area.bottom + _TICK_LENGTH + 2), FONT - 3, (0.5, 0))

    def _draw_y_ticks(self, values: Sequence[float]) -> int:
        """Draw horizontal grid lines with their values on the left; return the width of the widest value in pixels."""
        rows = self.to_pixels(np.array([[self.x[0], value] for value in values]).reshape(-1, 2))[:, 1]
        texts = tick_texts(values)
        for row, text in zip(rows, texts, strict=True):
            at = self.area.top + round(row)
            cv2.line(self.canvas, (self.area.left, at), (self.area.right - 1, at), _GRID, 1)
            cv2.line(self.canvas, (self.area.left - _TICK_LENGTH, at), (self.area.left, at), BLACK, 1)
            put_anchored(self.canvas, text, (self.area.left - _TICK_LENGTH - _TICK_GAP, at), FONT - 3, (1, 0.5))
        return max((text_width(text, FONT - 3) for text in texts), default=0)

    def draw_frame(self) -> None:
        """Draw the frame; call it after the contents."""
        draw_frame(self.canvas, self.area)

    def draw_line(
        self, xy: np.ndarray, colour: Colour, width: int, dashed: bool = False, markers: bool = False
    ) -> None:
        """Draw a line through (N, 2) values, optionally with a dot at each of them."""
        points = self.to_pixels(xy)
        if len(points):
            draw_line(self.inside, points, colour, width, dashed)
        for column, row in points.round().astype(int).tolist() if markers else ():
            cv2.circle(self.inside, (column, row), _MARKER_RADIUS, colour, cv2.FILLED, cv2.LINE_AA)

    def draw_bars(self, middles: np.ndarray, heights: np.ndarray, colours: np.ndarray, width: float) -> None:
        """Draw vertical bars.

        Args:
            middles: (N,) positions of their middles.
            heights: (N,) values.
            colours: (N, 3) BGR.
            width: Width of a bar.
        """
        for middle, height, colour in zip(middles.tolist(), heights.tolist(), colours.tolist(), strict=True):
            corners = self.to_pixels(np.array([[middle - width / 2, 0.0], [middle + width / 2, height]]))
            (left, bottom), (right, top) = corners.round().astype(int).tolist()
            if height:
                cv2.rectangle(self.inside, (left, top), (max(left, right - 1), bottom), colour, cv2.FILLED)

    def draw_histogram(self, x: np.ndarray, y: np.ndarray, bins: int) -> None:
        """Draw a two-dimensional histogram of (N,) values, with empty bins left as they are."""
        limits = (sorted(self.x), sorted(self.y))
        counts = np.histogram2d(y, x, bins=bins, range=(limits[1], limits[0]))[0]
        counts = counts if self.y[0] > self.y[1] else counts[::-1]  # the first row is the upper one
        shades = np.rint(255 * counts / max(1.0, counts.max())).astype(np.uint8)
        coloured = cv2.applyColorMap(shades, cv2.COLORMAP_VIRIDIS)
        size = self.inside.shape[1], self.inside.shape[0]
        filled = cv2.resize((counts > 0).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        self.inside[filled] = cv2.resize(coloured, size, interpolation=cv2.INTER_NEAREST)[filled]


def ticks(first: float, last: float, count: int, integers: bool = False) -> list[float]:
    """Choose about `count` round values between two limits.

    Args:
        first: One limit.
        last: The other.
        count: Largest number of intervals.
        integers: Choose integers only.

    Returns:
        Rising values.
    """
    low, high = min(first, last), max(first, last)
    raw = max((high - low) / max(count, 1), 1.0 if integers else 1e-12)
    power = 10.0 ** np.floor(np.log10(raw))
    choices = [power * step for step in _STEPS if not integers or float(power * step).is_integer()]
    step = next(value for value in choices if value >= raw * (1 - 1e-9))
    numbers = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1)
    return (numbers * step).tolist()


def tick_texts(values: Sequence[float]) -> list[str]:
    """Write values with the decimals that their smallest step needs."""
    step = min(np.diff(values), default=1.0)
    decimals = next((number for number in range(9) if abs(round(step, number) - step) < 1e-3 * step), 9)
    return [f"{value + 0.0:.{decimals}f}" for value in values]


def padded_range(values: np.ndarray, share: float = 0.05) -> tuple[float, float]:
    """Return the limits of an axis that shows all finite values with a margin on both sides."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    margin = share * (high - low) or max(abs(high), 1e-6) * share
    return low - margin, high + margin
