"""Textured backgrounds, unlabelled clutter and camera effects of generated images."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Random = np.random.Generator
Canvas = np.ndarray  # (H, W, 3) uint8 or float32 RGB
_LETTERS = list("abdefghkmnprstwz0123456789")


def random_colour(random: Random) -> np.ndarray:
    """Sample an RGB colour, (3,) float32 in [0, 255], mostly neither near black nor near white."""
    hue, saturation, value = random.uniform(0, 6), random.uniform(0.15, 0.95), random.uniform(0.25, 0.97)
    channels = [value * (1 - saturation * np.clip(abs((hue + k) % 6 - 3) - 1, 0, 1)) for k in (3, 1, 5)]
    return np.array(channels, np.float32) * 255


def _ramp(random: Random, height: int, width: int) -> np.ndarray:
    """Create an (H, W) ramp from 0 to 1 along a random direction."""
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    return (along - along.min()) / max(float(np.ptp(along)), 1e-6)


def _gradient(random: Random, height: int, width: int) -> Canvas:
    ramp = _ramp(random, height, width)[..., None]
    return random_colour(random) * ramp + random_colour(random) * (1 - ramp)


def _clouds(random: Random, height: int, width: int) -> Canvas:
    value = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 0.5), (9, 0.3), (24, 0.2)):
        grid = random.random((cells, cells), dtype=np.float32)
        value += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    value = value[..., None]
    return random_colour(random) * value + random_colour(random) * (1 - value)


def _stripes(random: Random, height: int, width: int) -> Canvas:
    periods = random.uniform(4, 14)
    wave = np.sin(_ramp(random, height, width) * 2 * np.pi * periods)
    wave = (np.clip(wave * random.uniform(1, 6), -1, 1) * random.uniform(0.1, 0.35) + 0.5)[..., None]
    return random_colour(random) * wave + random_colour(random) * (1 - wave)


def _blotches(random: Random, height: int, width: int) -> Canvas:
    canvas = np.empty((height, width, 3), np.float32)
    base = random_colour(random)
    canvas[:] = base
    for _ in range(int(random.integers(6, 16))):
        centre = (int(random.integers(0, width)), int(random.integers(0, height)))
        axes = tuple(int(a) for a in random.uniform(0.05, 0.35, 2) * max(height, width))
        colour = np.clip(base + random.normal(0, 28, 3), 0, 255)
        cv2.ellipse(canvas, centre, axes, float(random.uniform(0, 180)), 0, 360, colour.tolist(), -1)
    blur = 0.02 * max(height, width)
    return cv2.GaussianBlur(canvas, (0, 0), blur)


def _checks(random: Random, height: int, width: int) -> Canvas:
    return _cells(random, height, width, lambda u, v: np.sin(u) * np.sin(v) > 0)


def _dots(random: Random, height: int, width: int) -> Canvas:
    return _cells(random, height, width, lambda u, v: np.sin(u) + np.sin(v) > 1)


def _cells(
    random: Random, height: int, width: int, is_marked: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Canvas:
    """Create a rotated lattice in two colours; its phases run over 10 to 18 cells across the image."""
    angle, cells = random.uniform(0, np.pi / 2), random.uniform(10, 18)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) * (2 * np.pi * cells / max(height, width))
    marked = is_marked(x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle))
    colour = random_colour(random)
    return np.where(marked[..., None], colour, np.clip(colour * random.uniform(0.45, 0.7), 0, 255)).astype(np.float32)


TEXTURES: dict[str, Callable[[Random, int, int], Canvas]] = {
    "gradient": _gradient,
    "clouds": _clouds,
    "stripes": _stripes,
    "blotches": _blotches,
    "checks": _checks,
    "dots": _dots,
}
_BACKGROUNDS = ("gradient", "clouds", "stripes", "blotches")  # of images without labelled stuff


def background(random: Random, height: int, width: int) -> Canvas:
    """Create an (H, W, 3) uint8 RGB texture of a random kind with a little grain."""
    return texture(random, _BACKGROUNDS[int(random.integers(len(_BACKGROUNDS)))], height, width)


def texture(random: Random, kind: str, height: int, width: int) -> Canvas:
    """Create an (H, W, 3) uint8 RGB texture with a little grain.

    Args:
        random: Random stream.
        kind: Key of `TEXTURES`.
        height: Height in pixels.
        width: Width in pixels.
    """
    canvas = TEXTURES[kind](random, height, width)
    coarse = random.normal(0, random.uniform(1, 8), (height // 2 + 1, width // 2 + 1)).astype(np.float32)
    grain = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(canvas + grain[..., None], 0, 255).astype(np.uint8)


def wavy_half(random: Random, height: int, width: int) -> np.ndarray:
    """Create an (H, W) bool mask of one side of a wavy line across the image; 35 to 65 % of its diagonal."""
    along, across = _ramp(random, height, width), _ramp(random, height, width)
    wave = np.sin(across * 2 * np.pi * random.uniform(0.5, 2) + random.uniform(0, 2 * np.pi))
    return np.asarray(along + random.uniform(0.02, 0.08) * wave > random.uniform(0.35, 0.65))


def _strokes(random: Random, canvas: Canvas) -> None:
    """Draw a few straight or bent lines."""
    height, width = canvas.shape[:2]
    for _ in range(int(random.integers(1, 5))):
        points = random.uniform(-0.1, 1.1, (int(random.integers(2, 5)), 2)) * [width, height]
        colour = random_colour(random).tolist()
        cv2.polylines(canvas, [points.astype(np.int32)], False, colour, int(random.integers(1, 4)), cv2.LINE_AA)


def _letters(random: Random, canvas: Canvas) -> None:
    """Write random letters."""
    height, width = canvas.shape[:2]
    scale = max(height, width) / 320
    for _ in range(int(random.integers(1, 4))):
        word = "".join(random.choice(_LETTERS, int(random.integers(2, 8))))
        origin = (int(random.uniform(0, 0.8) * width), int(random.uniform(0.05, 1) * height))
        colour = random_colour(random).tolist()
        cv2.putText(canvas, word, origin, 0, float(random.uniform(0.3, 0.8)) * scale, colour, 1, cv2.LINE_AA)


def blob(random: Random, size_px: float, centre_xy: np.ndarray) -> np.ndarray:
    """Create the (48, 2) outline of an irregular, elongated blob that resembles no class."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angle)
    for wave in (2, 3, 5):
        radius += random.uniform(0.12, 0.28) * np.cos(wave * angle + random.uniform(0, 2 * np.pi))
    rotated = angle + random.uniform(0, 2 * np.pi)
    flat = np.stack([np.cos(rotated), np.sin(rotated) * random.uniform(0.3, 0.6)], axis=1) * radius[:, None]
    return flat * size_px / 2 + centre_xy


def _blobs(random: Random, canvas: Canvas) -> None:
    height, width = canvas.shape[:2]
    for _ in range(int(random.integers(1, 4))):
        size = float(random.uniform(0.06, 0.22)) * max(height, width)
        outline = blob(random, size, random.uniform(0, 1, 2) * [width, height])
        cv2.fillPoly(canvas, [np.round(outline * 16).astype(np.int32)], random_colour(random).tolist(), cv2.LINE_AA, 4)


def add_clutter(random: Random, canvas: Canvas) -> None:
    """Draw lines, letters and blobs onto `canvas` in place, some of each or none."""
    for draw, chance in ((_strokes, 0.6), (_letters, 0.35), (_blobs, 0.5)):
        if random.random() < chance:
            draw(random, canvas)


def degrade(random: Random, canvas: Canvas) -> Canvas:
    """Degrade an image like a simple camera: slight blur, noise and uneven lighting; returns (H, W, 3) uint8."""
    height, width = canvas.shape[:2]
    light = 1 + random.uniform(0, 0.3) * (_ramp(random, height, width) - 0.5)
    image: np.ndarray = canvas * light[..., None]
    if random.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), float(random.uniform(0.4, 1.0)))
    image += random.standard_normal((height, width, 3), dtype=np.float32) * random.uniform(0, 7)
    return np.clip(image, 0, 255).astype(np.uint8)
