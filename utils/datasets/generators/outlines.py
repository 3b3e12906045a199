"""Outlines of the shapes as polygons around the origin, and their transforms and clipping."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Polygon = np.ndarray  # (P, 2) x, y
_CURVE_POINTS = 40  # per curve; the error of a circle of 190 px is 0.3 px


def _on_circle(degrees: np.ndarray, radius: float | np.ndarray = 1.0) -> Polygon:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians) * radius, np.sin(radians) * radius], axis=1)


def _circle() -> Polygon:
    return _on_circle(np.arange(_CURVE_POINTS) * 360 / _CURVE_POINTS, 0.9)


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
    # The unit circle minus a circle of radius 0.8 centred at (0.5, 0); they intersect at angles +-`meet`.
    reach, shift = 0.8, 0.5
    x = (1 + shift**2 - reach**2) / (2 * shift)
    meet = np.rad2deg(np.arccos(x))
    inner = np.rad2deg(np.arctan2(np.sqrt(1 - x**2), x - shift))
    outside = _on_circle(np.linspace(meet, 360 - meet, _CURVE_POINTS))
    inside = _on_circle(np.linspace(360 - inner, inner, _CURVE_POINTS)[1:-1], reach) + np.array([shift, 0])
    return np.concatenate([outside, inside]) + np.array([0.2, 0])


OUTLINES: dict[str, Callable[[], Polygon]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _circle,  # outer edge; its label includes the hole
    "crescent": _crescent,
}
HOLES = {"ring": 0.58}  # radius of the hole, as a fraction of the outer edge's


def transform_outline(
    outline: Polygon, size_px: float, stretch: float, degrees: float, centre_xy: tuple[float, float]
) -> Polygon:
    """Scale, stretch, rotate and translate an outline.

    Args:
        outline: (P, 2) points around the origin, about 2 across.
        size_px: Diameter of the result in pixels.
        stretch: Ratio of width to height; the area is unchanged.
        degrees: Rotation.
        centre_xy: Centre of the result in pixels.

    Returns:
        (P, 2) points in pixels.
    """
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    scaled = outline * [np.sqrt(stretch), 1 / np.sqrt(stretch)] * (size_px / 2)
    return scaled @ np.array([[cos, sin], [-sin, cos]]) + centre_xy


def polygon_area(polygon: Polygon) -> float:
    """Compute the area of a simple polygon (shoelace formula)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def clip_polygon(polygon: Polygon, width: float, height: float) -> Polygon:
    """Clip a polygon to the rectangle (0, 0, width, height), after Sutherland and Hodgman (1974).

    Parts separated by the border stay joined along it, so that the result is one polygon with the right box.

    Returns:
        (Q, 2) points; Q is 0 if nothing of the polygon is inside.
    """
    for axis, sign, limit in ((0, 1, 0.0), (1, 1, 0.0), (0, -1, -width), (1, -1, -height)):
        if not len(polygon):
            break
        inside = polygon[:, axis] * sign - limit  # signed distance, >= 0 inside
        points = []
        for start, end, inside_start, inside_end in zip(
            polygon, np.roll(polygon, -1, axis=0), inside, np.roll(inside, -1), strict=True
        ):
            if inside_start >= 0:
                points.append(start)
            if (inside_start >= 0) != (inside_end >= 0):
                points.append(start + (end - start) * (inside_start / (inside_start - inside_end)))
        polygon = np.array(points).reshape(-1, 2)
    return polygon
