"""Outlines of the shapes, as polygons around the origin, and how they are clipped to an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Polygon = np.ndarray  # (P, 2) x, y
_ROUND = 40  # corners of a curve; a circle of 190 px is then off by 0.3 px


def _on_circle(degrees: np.ndarray, radius: float | np.ndarray = 1.0) -> Polygon:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians) * radius, np.sin(radians) * radius], axis=1)


def _circle() -> Polygon:
    return _on_circle(np.arange(_ROUND) * 360 / _ROUND, 0.9)


def _square() -> Polygon:
    return _on_circle(np.arange(4) * 90.0 + 45, 1.1)


def _triangle() -> Polygon:
    return _on_circle(np.arange(3) * 120.0 - 90, 1.1)


def _star() -> Polygon:
    return _on_circle(np.arange(10) * 36.0 - 90, np.where(np.arange(10) % 2 == 0, 1.1, 0.46))


def _cross() -> Polygon:
    arm, half = 1.0, 0.34
    quarter = np.array([[arm, -half], [arm, half], [half, half]])
    turns = [np.array([[0, -1], [1, 0]])]
    turns += [turns[0] @ turns[0], turns[0] @ turns[0] @ turns[0]]
    return np.concatenate([quarter, *(quarter @ turn.T for turn in turns)])


def _crescent() -> Polygon:
    # The unit circle less one of radius 0.8 whose centre is 0.5 to the right; they cross at +-`meet`.
    reach, shift = 0.8, 0.5
    x = (1 + shift**2 - reach**2) / (2 * shift)
    meet = np.rad2deg(np.arccos(x))
    inner = np.rad2deg(np.arctan2(np.sqrt(1 - x**2), x - shift))
    outside = _on_circle(np.linspace(meet, 360 - meet, _ROUND))
    inside = _on_circle(np.linspace(360 - inner, inner, _ROUND)[1:-1], reach) + np.array([shift, 0])
    return np.concatenate([outside, inside]) + np.array([0.2, 0])


OUTLINES: dict[str, Callable[[], Polygon]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _circle,  # its outer edge; the hole belongs to it
    "crescent": _crescent,
}
HOLES = {"ring": 0.58}  # radius of the hole, as a share of the outer edge's


def placed(outline: Polygon, size_px: float, stretch: float, degrees: float, centre_xy: tuple[float, float]) -> Polygon:
    """Return `outline` made wider by `stretch` and flatter by as much, `size_px` across, turned and moved."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    scaled = outline * [np.sqrt(stretch), 1 / np.sqrt(stretch)] * (size_px / 2)
    return scaled @ np.array([[cos, sin], [-sin, cos]]) + centre_xy


def polygon_area(polygon: Polygon) -> float:
    """Return the area inside a polygon that does not cross itself (shoelace formula)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def clipped(polygon: Polygon, width: float, height: float) -> Polygon:
    """Return the part of `polygon` inside the rectangle from 0, 0 (Sutherland and Hodgman 1974); may be empty.

    Parts that the border separates stay joined along it, so that the result is one polygon with the right box.
    """
    for axis, sign, limit in ((0, 1, 0.0), (1, 1, 0.0), (0, -1, -width), (1, -1, -height)):
        if not len(polygon):
            break
        room = polygon[:, axis] * sign - limit  # >= 0 inside
        kept = []
        for here, there, room_here, room_there in zip(
            polygon, np.roll(polygon, -1, axis=0), room, np.roll(room, -1), strict=True
        ):
            if room_here >= 0:
                kept.append(here)
            if (room_here >= 0) != (room_there >= 0):
                kept.append(here + (there - here) * (room_here / (room_here - room_there)))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon
