"""One picture of shapes with everything there is to know about it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from utils.datasets.generators.backdrops import Canvas, Random, add_clutter, background, random_colour, weathered
from utils.datasets.generators.outlines import HOLES, OUTLINES, Polygon, clipped, placed, polygon_area

MOST_OBJECTS = 7
SMALLEST_VISIBLE = 0.7  # an object that would show less of itself is not drawn, nor is one that would hide another so
_TRIES = 8  # places tried before an object is given up
_BITS = 4  # OpenCV draws with 1/16 pixel
_FINER = 4  # edges are drawn this many times as large


@dataclass(frozen=True)
class Thing:
    """An object in a scene: its class and its outline in pixels, clipped to the image."""

    kind: str
    polygon: Polygon


@dataclass(frozen=True)
class Scene:
    """A picture, (H, W, 3) uint8 RGB; its things; and per pixel the thing that shows, (H, W) int16, -1 = none."""

    picture: Canvas
    things: list[Thing]
    owner: np.ndarray


@dataclass(frozen=True)
class _Plan:
    """What one object should be; where is decided when it is drawn."""

    kind: str
    size_px: float
    stretch: float
    degrees: float


def object_sizes(random: Random, count: int, long_side_px: int) -> np.ndarray:
    """Return `count` sizes across in pixels: 5 to 60 % of the long side, one in ten of them small."""
    low, middle, high = 0.05 * long_side_px, 0.14 * long_side_px, 0.6 * long_side_px
    small = np.exp(random.uniform(np.log(low), np.log(middle), count))
    large = np.exp(random.uniform(np.log(middle), np.log(high), count))
    return np.where(random.random(count) < 0.1, small, large)


def draw_scene(
    random: Random, width: int, height: int, kinds: list[str], sizes_px: np.ndarray, clutter: bool = True
) -> Scene:
    """Draw things of `kinds`, `sizes_px` across, at random places; the first always finds one, others may not.

    Large ones are drawn first, so that small ones stand in front, as when instance masks are merged by area. `clutter`
    adds what belongs to no class, behind and in front.
    """
    canvas = background(random, height, width)
    if clutter:
        add_clutter(random, canvas)
    owner = np.full((height, width), -1, np.int16)
    things: list[Thing] = []
    full_px: list[float] = []  # pixels each thing would show if nothing were in the way
    for place in np.argsort(-sizes_px, kind="stable"):
        plan = _Plan(
            kind=kinds[place],
            size_px=float(sizes_px[place]),
            stretch=float(np.exp(random.uniform(-0.3, 0.3))),
            degrees=float(random.uniform(0, 360)),
        )
        for _ in range(_TRIES):
            outline = _somewhere(random, plan, width, height)
            covered = _filled(outline, height, width)
            if _fits(outline, covered >= 128, owner, full_px):
                _paint(random, canvas, plan, outline, covered)
                owner[covered >= 128] = len(things)
                full_px.append(polygon_area(outline))
                things.append(Thing(plan.kind, clipped(outline, width, height)))
                break
    if clutter:
        _put_bars_in_front(random, canvas, owner, full_px)
    return Scene(weathered(random, canvas), things, owner)


def _somewhere(random: Random, plan: _Plan, width: int, height: int) -> Polygon:
    """Return the outline at a random place; one in six reaches over the border."""
    size = np.array([width, height])
    margin = plan.size_px * (0.25 if random.random() < 1 / 6 else 0.55)
    room = np.maximum(size - 2 * margin, 0)
    centre = (size - room) / 2 + random.random(2) * room
    return placed(OUTLINES[plan.kind](), plan.size_px, plan.stretch, plan.degrees, (centre[0], centre[1]))


def _filled(outline: Polygon, height: int, width: int) -> np.ndarray:
    """Return (H, W) uint8 coverage of the outline, smooth at its edge.

    Drawn four times as large and shrunk: OpenCV's own smooth edges make a shape half a pixel wider on every side,
    which is much for a box of ten pixels.
    """
    covered = np.zeros((height, width), np.uint8)
    low = np.clip(np.floor(outline.min(axis=0)).astype(int), 0, (width, height))
    high = np.clip(np.ceil(outline.max(axis=0)).astype(int), 0, (width, height))
    w, h = (high - low).tolist()
    if w and h:
        fine = np.zeros((h * _FINER, w * _FINER), np.uint8)
        cv2.fillPoly(fine, [_drawable((outline - low) * _FINER)], 255, cv2.LINE_8, _BITS)
        shrunk = cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA)
        covered[low[1] : high[1], low[0] : high[0]] = shrunk
    return covered


def _drawable(points: Polygon) -> np.ndarray:
    """Return points for OpenCV: in 1/16 pixel, and with pixel centres at whole numbers instead of at +0.5."""
    return np.round((points - 0.5) * (1 << _BITS)).astype(np.int32)


def _fits(outline: Polygon, mask: np.ndarray, owner: np.ndarray, full_px: list[float]) -> bool:
    """Tell whether the thing shows enough of itself and leaves enough of those behind it."""
    if mask.sum() < SMALLEST_VISIBLE * polygon_area(outline):
        return False
    return _leaves_enough(mask, owner, full_px)


def _leaves_enough(mask: np.ndarray, owner: np.ndarray, full_px: list[float]) -> bool:
    left = np.bincount(owner[~mask] + 1, minlength=len(full_px) + 1)[1:]
    return bool((left >= SMALLEST_VISIBLE * np.array(full_px)).all())


def _contrasting(random: Random, behind: np.ndarray) -> np.ndarray:
    """Return a colour that can be told from the mean colour `behind`, the best of a few if none is far enough."""
    colours = [random_colour(random) for _ in range(6)]
    distances = [float(np.abs(colour - behind).sum()) for colour in colours]
    return next((c for c, d in zip(colours, distances, strict=True) if d > 150), colours[int(np.argmax(distances))])


def _paint(random: Random, canvas: Canvas, plan: _Plan, outline: Polygon, covered: np.ndarray) -> None:
    """Paint one thing: shaded fill, sometimes a rim, sometimes a little see-through."""
    if hole := HOLES.get(plan.kind):
        centre = outline.mean(axis=0)
        covered = covered - _filled((outline - centre) * hole + centre, *covered.shape)
    x0, y0, w, h = cv2.boundingRect(covered)
    if w == 0 or h == 0:
        return
    part = canvas[y0 : y0 + h, x0 : x0 + w]
    alpha = covered[y0 : y0 + h, x0 : x0 + w, None].astype(np.float32) / 255
    behind = (part * alpha).sum(axis=(0, 1)) / max(float(alpha.sum()), 1)
    colour = _contrasting(random, behind)
    slope = random.uniform(-0.35, 0.35, 2)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    shade = 1 + slope[0] * (x / max(w, 1) - 0.5) + slope[1] * (y / max(h, 1) - 0.5)
    fill = colour * shade[..., None].astype(np.float32)
    opacity = alpha * (random.uniform(0.8, 1.0) if random.random() < 0.3 else 1.0)
    part[:] = np.clip(part * (1 - opacity) + fill * opacity, 0, 255).astype(np.uint8)
    if random.random() < 0.4:
        line = np.zeros(covered.shape, np.uint8)
        thick = 1 if plan.size_px < 60 else int(random.integers(2, 5))
        cv2.polylines(line, [_drawable(outline)], True, 255, thick, cv2.LINE_AA, _BITS)
        rim = opacity * (line[y0 : y0 + h, x0 : x0 + w, None].astype(np.float32) / 255)  # inside the outline only
        dark_or_bright = (colour * (0.55 if colour.mean() > 110 else 1.6)).clip(0, 255)
        part[:] = np.clip(part * (1 - rim) + dark_or_bright * rim, 0, 255).astype(np.uint8)


def _put_bars_in_front(random: Random, canvas: Canvas, owner: np.ndarray, full_px: list[float]) -> None:
    """Lay up to two bars, like poles or twigs, over everything, where they leave enough of each thing to see."""
    height, width = owner.shape
    for _ in range(int(random.integers(0, 3)) if random.random() < 0.4 else 0):
        ends = (random.uniform(0, 1, (2, 2)) * [width, height]).astype(int)
        thick = int(random.uniform(0.008, 0.025) * max(height, width)) + 1
        covered = cv2.line(np.zeros((height, width), np.uint8), ends[0].tolist(), ends[1].tolist(), 255, thick)
        if _leaves_enough(covered > 0, owner, full_px):
            cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), random_colour(random).tolist(), thick, cv2.LINE_AA)
            owner[covered > 0] = -1
