"""Rendering of one image of shapes together with its labels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from utils.datasets.generators.backgrounds import Canvas, Random, add_clutter, background, degrade, random_colour
from utils.datasets.generators.outlines import HOLES, OUTLINES, Polygon, clip_polygon, polygon_area, transform_outline

MAX_OBJECTS = 7
MIN_VISIBLE = 0.7  # visible fraction that every object must keep; placements that leave less are rejected
_TRIES = 8  # positions tried per object
_BITS = 4  # fractional bits of OpenCV's coordinates: 1/16 pixel
_SUPERSAMPLING = 4  # factor at which edges are drawn
_MIN_CONTRAST = 150  # sum of absolute RGB differences between an object and what is behind it


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: its class and its outline in pixels, clipped to the image."""

    kind: str
    polygon: Polygon


@dataclass(frozen=True)
class Scene:
    """A rendered image and its labels."""

    image: Canvas  # (H, W, 3) uint8 RGB
    objects: list[SceneObject]
    instance_map: np.ndarray  # (H, W) int16 index into `objects` of the visible object, -1: background
    bars: np.ndarray  # (H, W) bool, unlabelled bars in front of everything, background in the map


@dataclass(frozen=True)
class _ObjectSpec:
    """Appearance of an object; its position is sampled when it is drawn."""

    kind: str
    size_px: float
    stretch: float
    degrees: float


def object_sizes(random: Random, count: int, long_side_px: int) -> np.ndarray:
    """Sample `count` diameters in pixels: 5 to 60 % of the image's long side, a tenth of them below 14 %."""
    low, middle, high = 0.05 * long_side_px, 0.14 * long_side_px, 0.6 * long_side_px
    small = np.exp(random.uniform(np.log(low), np.log(middle), count))
    large = np.exp(random.uniform(np.log(middle), np.log(high), count))
    return np.where(random.random(count) < 0.1, small, large)


def draw_scene(
    random: Random,
    width: int,
    height: int,
    kinds: list[str],
    sizes_px: np.ndarray,
    clutter: bool = True,
    canvas: Canvas | None = None,
) -> Scene:
    """Draw objects at random positions over a random background.

    Objects are drawn from large to small, so that small ones are in front, as when instance masks are merged by area.
    The first object always fits; others are dropped if none of a few positions leaves enough visible.

    Args:
        random: Random stream; it determines the whole scene.
        width: Image width in pixels.
        height: Image height in pixels.
        kinds: Class names of the objects, keys of OUTLINES.
        sizes_px: (len(kinds),) diameters in pixels.
        clutter: Whether to add unlabelled objects behind and in front.
        canvas: (height, width, 3) uint8 background, drawn on in place; None: a random one.

    Returns:
        The image and its labels.
    """
    if canvas is None:
        canvas = background(random, height, width)
    if clutter:
        add_clutter(random, canvas)
    instance_map = np.full((height, width), -1, np.int16)
    objects: list[SceneObject] = []
    full_px: list[float] = []  # area of each object without occlusion
    for position in np.argsort(-sizes_px, kind="stable"):
        spec = _ObjectSpec(
            kind=kinds[position],
            size_px=float(sizes_px[position]),
            stretch=float(np.exp(random.uniform(-0.3, 0.3))),
            degrees=float(random.uniform(0, 360)),
        )
        for _ in range(_TRIES):
            outline = _sample_outline(random, spec, width, height)
            coverage = _coverage(outline, height, width)
            if _fits(outline, coverage >= 128, instance_map, full_px):
                _paint(random, canvas, spec, outline, coverage)
                instance_map[coverage >= 128] = len(objects)
                full_px.append(polygon_area(outline))
                objects.append(SceneObject(spec.kind, clip_polygon(outline, width, height)))
                break
    bars = np.zeros((height, width), bool)
    if clutter:
        _draw_occluding_bars(random, canvas, instance_map, full_px, bars)
    return Scene(degrade(random, canvas), objects, instance_map, bars)


def _sample_outline(random: Random, spec: _ObjectSpec, width: int, height: int) -> Polygon:
    """Place the outline at a random position; one in six may extend beyond the border."""
    size = np.array([width, height])
    margin = spec.size_px * (0.25 if random.random() < 1 / 6 else 0.55)
    span = np.maximum(size - 2 * margin, 0)
    centre = (size - span) / 2 + random.random(2) * span
    return transform_outline(OUTLINES[spec.kind](), spec.size_px, spec.stretch, spec.degrees, (centre[0], centre[1]))


def _coverage(outline: Polygon, height: int, width: int) -> np.ndarray:
    """Render the (H, W) uint8 coverage of an outline with anti-aliased edges.

    Supersampled, because OpenCV's anti-aliasing makes a shape half a pixel wider on every side, which is too much for
    a box of ten pixels.
    """
    coverage = np.zeros((height, width), np.uint8)
    low = np.clip(np.floor(outline.min(axis=0)).astype(int), 0, (width, height))
    high = np.clip(np.ceil(outline.max(axis=0)).astype(int), 0, (width, height))
    w, h = (high - low).tolist()
    if w and h:
        fine = np.zeros((h * _SUPERSAMPLING, w * _SUPERSAMPLING), np.uint8)
        cv2.fillPoly(fine, [_to_fixed_point((outline - low) * _SUPERSAMPLING)], 255, cv2.LINE_8, _BITS)
        shrunk = cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA)
        coverage[low[1] : high[1], low[0] : high[0]] = shrunk
    return coverage


def _to_fixed_point(points: Polygon) -> np.ndarray:
    """Convert points to OpenCV's fixed point, with pixel centres at integers instead of at +0.5."""
    return np.round((points - 0.5) * (1 << _BITS)).astype(np.int32)


def _fits(outline: Polygon, mask: np.ndarray, instance_map: np.ndarray, full_px: list[float]) -> bool:
    """Check that the object and all objects behind it stay visible enough."""
    if mask.sum() < MIN_VISIBLE * polygon_area(outline):
        return False
    return _keeps_visible(mask, instance_map, full_px)


def _keeps_visible(mask: np.ndarray, instance_map: np.ndarray, full_px: list[float]) -> bool:
    visible = np.bincount(instance_map[~mask] + 1, minlength=len(full_px) + 1)[1:]
    return bool((visible >= MIN_VISIBLE * np.array(full_px)).all())


def _contrasting_colour(random: Random, behind: np.ndarray) -> np.ndarray:
    """Sample a colour far from the mean colour `behind`, or the farthest of a few if none is far enough."""
    colours = [random_colour(random) for _ in range(6)]
    distances = [float(np.abs(colour - behind).sum()) for colour in colours]
    return next(
        (c for c, d in zip(colours, distances, strict=True) if d > _MIN_CONTRAST), colours[int(np.argmax(distances))]
    )


def _paint(random: Random, canvas: Canvas, spec: _ObjectSpec, outline: Polygon, coverage: np.ndarray) -> None:
    """Paint one object: shaded fill, sometimes an edge line, sometimes slightly transparent."""
    if hole := HOLES.get(spec.kind):
        centre = outline.mean(axis=0)
        coverage = coverage - _coverage((outline - centre) * hole + centre, *coverage.shape)
    x0, y0, w, h = cv2.boundingRect(coverage)
    if w == 0 or h == 0:
        return
    part = canvas[y0 : y0 + h, x0 : x0 + w]
    alpha = coverage[y0 : y0 + h, x0 : x0 + w, None].astype(np.float32) / 255
    behind = (part * alpha).sum(axis=(0, 1)) / max(float(alpha.sum()), 1)
    colour = _contrasting_colour(random, behind)
    slope = random.uniform(-0.35, 0.35, 2)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    shade = 1 + slope[0] * (x / max(w, 1) - 0.5) + slope[1] * (y / max(h, 1) - 0.5)
    fill = colour * shade[..., None].astype(np.float32)
    opacity = alpha * (random.uniform(0.8, 1.0) if random.random() < 0.3 else 1.0)
    part[:] = np.clip(part * (1 - opacity) + fill * opacity, 0, 255).astype(np.uint8)
    if random.random() < 0.4:
        line = np.zeros(coverage.shape, np.uint8)
        thick = 1 if spec.size_px < 60 else int(random.integers(2, 5))
        cv2.polylines(line, [_to_fixed_point(outline)], True, 255, thick, cv2.LINE_AA, _BITS)
        rim = opacity * (line[y0 : y0 + h, x0 : x0 + w, None].astype(np.float32) / 255)  # inside the outline only
        dark_or_bright = (colour * (0.55 if colour.mean() > 110 else 1.6)).clip(0, 255)
        part[:] = np.clip(part * (1 - rim) + dark_or_bright * rim, 0, 255).astype(np.uint8)


def _draw_occluding_bars(
    random: Random, canvas: Canvas, instance_map: np.ndarray, full_px: list[float], bars: np.ndarray
) -> None:
    """Draw up to two bars, like poles or twigs, in front of everything where enough of each object stays visible."""
    height, width = instance_map.shape
    for _ in range(int(random.integers(0, 3)) if random.random() < 0.4 else 0):
        ends = (random.uniform(0, 1, (2, 2)) * [width, height]).astype(int)
        thick = int(random.uniform(0.008, 0.025) * max(height, width)) + 1
        coverage = cv2.line(np.zeros((height, width), np.uint8), ends[0].tolist(), ends[1].tolist(), 255, thick)
        if _keeps_visible(coverage > 0, instance_map, full_px):
            cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), random_colour(random).tolist(), thick, cv2.LINE_AA)
            instance_map[coverage > 0] = -1
            bars |= coverage > 0
