"""What was found in one image, drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.core.contracts import Results
from utils.ops.masks import mask_in_original
from utils.plots.semantic_overlay import SemanticStyle, draw_legend, overlay_semantic_map
from utils.plots.text_rendering import Colour, class_name, put_text, text_mask

# behaviour.md 5.3, as 0xRRGGBB; the colour of a class is its index modulo 20
# fmt: off
_PALETTE = (
    0xFF3838, 0xFF9D97, 0xFF701F, 0xFFB21D, 0xCFD231, 0x48F90A, 0x92CC17, 0x3DDB86, 0x1A9334, 0x00D4BB,
    0x2C99A8, 0x00C2FF, 0x344593, 0x6473FF, 0x0018EC, 0x8438FF, 0x520085, 0xCB38FF, 0xFF95C8, 0xFF37C7,
)
# fmt: on
PALETTE_BGR = np.array([[value & 255, value >> 8 & 255, value >> 16] for value in _PALETTE], np.uint8)  # (20, 3)

CLASSES_AT_XY = (32, 32)  # behaviour.md 5.4


@dataclass(frozen=True)
class DrawStyle:
    """How annotations look. `line_px` None takes the width from the size of the image."""

    line_px: int | None = None
    labels: bool = True
    scores: bool = True
    outline_masks: bool = False
    opacity: float = 0.5  # of objects' masks
    semantic: SemanticStyle = field(default_factory=SemanticStyle)


def palette_colour(index: int) -> Colour:
    """Return the colour of class `index`."""
    blue, green, red = (int(value) for value in PALETTE_BGR[index % len(PALETTE_BGR)])
    return blue, green, red


def text_colour_on(colour: Colour) -> Colour:
    """Return black or white, whichever reads better on `colour` (Rec. 601 luma)."""
    blue, green, red = colour
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 140 else (255, 255, 255)


def line_width_px(image_hw: tuple[int, int]) -> int:
    """Return a line width that suits an image of this size."""
    return max(2, round(sum(image_hw) * 0.0015))


def font_height_px(image_hw: tuple[int, int]) -> int:
    """Return a text size that suits an image of this size."""
    return max(11, min(72, round(sum(image_hw) * 0.0078)))


def label_text(names: Sequence[str], index: int, score: float | None, style: DrawStyle) -> str:
    """Return what stands at a box: `name 0.87`, `name` or nothing."""
    if not style.labels:
        return ""
    name = class_name(names, index)
    return f"{name} {score:.2f}" if style.scores and score is not None else name


def draw_box(canvas: np.ndarray, box_xyxy: Sequence[float], colour: Colour, line_px: int) -> None:
    """Draw one box into `canvas` (H, W, 3) uint8, in place; what lies outside is drawn along the border."""
    height, width = canvas.shape[:2]
    x1, x2 = (min(max(round(float(box_xyxy[i])), 0), width - 1) for i in (0, 2))
    y1, y2 = (min(max(round(float(box_xyxy[i])), 0), height - 1) for i in (1, 3))
    before = line_px // 2  # cv2.rectangle makes lines of three pixels five wide, so the four strips are filled here
    after = line_px - before
    left, right, top, bottom = max(0, x1 - before), x2 + after, max(0, y1 - before), y2 + after
    for x in (x1, x2):
        canvas[top:bottom, max(0, x - before) : x + after] = colour
    for y in (y1, y2):
        canvas[max(0, y - before) : y + after, left:right] = colour


def draw_label(
    canvas: np.ndarray, text: str, corner_xy: tuple[float, float], colour: Colour, size_px: int, line_px: int = 2
) -> None:
    """Write `text` on a filled plate above the box corner `corner_xy`, or below it where the image ends."""
    if not text:
        return
    height, width = canvas.shape[:2]
    mask = text_mask(text, size_px)
    pad = max(2, size_px // 5)
    plate_w, plate_h = mask.shape[1] + 2 * pad, mask.shape[0] + 2
    edge = line_px // 2
    left = max(0, min(round(corner_xy[0]) - edge, width - plate_w))
    top = round(corner_xy[1]) - plate_h + edge
    if top < 0:
        top = max(0, min(round(corner_xy[1]) - edge, height - plate_h))
    canvas[top : top + plate_h, left : left + plate_w] = colour
    put_text(canvas, text, (left + pad, top + 1), size_px, text_colour_on(colour))


def draw_masks(
    canvas: np.ndarray, masks: np.ndarray, colours: Sequence[Colour], opacity: float = 0.5, outline: bool = False
) -> None:
    """Tint the pixels of (n, h, w) bool `masks` in place; `outline` adds their contours."""
    height, width = canvas.shape[:2]
    for mask, colour in zip(masks, colours, strict=True):
        shape = mask.astype(np.uint8)
        if shape.shape != (height, width):
            shape = cv2.resize(shape, (width, height), interpolation=cv2.INTER_NEAREST)
        inside = shape.astype(bool)
        tint = np.array(colour, np.float32) * opacity
        canvas[inside] = np.rint(canvas[inside] * (1 - opacity) + tint).astype(np.uint8)
        if outline:
            contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(canvas, contours, -1, colour, line_width_px((height, width)), cv2.LINE_AA)


def draw_top_classes(canvas: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> None:
    """Write the five surest classes of (C,) `probabilities` below each other from (32, 32) on, in place."""
    height, width = canvas.shape[:2]
    size_px = max(round(1.5 * font_height_px((height, width))), 14)
    left, top = (min(CLASSES_AT_XY[0], width // 8), min(CLASSES_AT_XY[1], height // 8))
    for text in class_lines(probabilities, names):
        mask = text_mask(text, size_px)
        region = canvas[top : top + mask.shape[0] + 2, max(0, left - 4) : left + mask.shape[1] + 6]
        region[:] = np.rint(region * 0.4).astype(np.uint8)  # darker, so that white reads on anything
        put_text(canvas, text, (left, top + 1), size_px, (255, 255, 255))
        top += mask.shape[0] + 2


def class_lines(probabilities: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return `0.87 name` of the five surest classes, the surest first (behaviour.md 5.4)."""
    order = np.argsort(-probabilities, kind="stable")[:5]
    return [f"{probabilities[index]:.2f} {class_name(names, int(index))}" for index in order]


def draw_boxes(
    canvas: np.ndarray, boxes_xyxy: np.ndarray, colours: Sequence[Colour], texts: Sequence[str], line_px: int | None
) -> None:
    """Draw (n, 4) pixel boxes with their texts, in place. The first box ends up on top, labels above all boxes."""
    image_hw = canvas.shape[:2]
    line = line_px or line_width_px(image_hw)
    size_px = font_height_px(image_hw)
    for i in reversed(range(len(boxes_xyxy))):
        draw_box(canvas, boxes_xyxy[i], colours[i], line)
    for i in reversed(range(len(boxes_xyxy))):
        corner = (float(boxes_xyxy[i][0]), float(boxes_xyxy[i][1]))
        draw_label(canvas, texts[i], corner, colours[i], size_px, line)


def annotate(
    image_bgr: np.ndarray, results: Results, names: Sequence[str], style: DrawStyle | None = None
) -> np.ndarray:
    """Return a copy of `image_bgr` (H, W, 3 uint8) with everything in `results` drawn on it.

    From below: the class of each pixel, the masks of objects, the legend, boxes with their texts. `names` are those of
    the objects.
    """
    style = style or DrawStyle()
    canvas = np.ascontiguousarray(image_bgr).copy()
    found = results.cpu()
    boxes = None if found.boxes is None or found.classes is None else found.boxes.float().numpy()
    classes = [] if boxes is None or found.classes is None else [int(index) for index in found.classes]
    colours = [palette_colour(index) for index in classes]
    if found.semantic is not None:
        overlay_semantic_map(canvas, found.semantic.numpy(), style.semantic)
    _draw_found_masks(canvas, found, colours, style)
    if found.semantic is not None and style.semantic.legend:
        draw_legend(canvas, found.semantic.numpy(), style.semantic, font_height_px(canvas.shape[:2]), boxes)
    if found.probabilities is not None:
        draw_top_classes(canvas, found.probabilities.numpy(), names)
    if boxes is not None:
        scores = [None] * len(classes) if found.scores is None else [float(score) for score in found.scores]
        texts = [label_text(names, index, score, style) for index, score in zip(classes, scores, strict=True)]
        draw_boxes(canvas, boxes, colours, texts, style.line_px)
    return canvas


def _draw_found_masks(canvas: np.ndarray, found: Results, colours: Sequence[Colour], style: DrawStyle) -> None:
    if found.fine_masks is not None:
        for row in reversed(range(len(colours))):  # one at a time; the surest object ends up on top
            draw_masks(canvas, found.fine_masks.original(row)[None], [colours[row]], style.opacity, style.outline_masks)
    elif found.masks is not None and len(colours):
        placed = [mask_in_original(mask.float().numpy(), found.info.geometry) for mask in found.masks]
        draw_masks(canvas, np.array(placed), colours, style.opacity, style.outline_masks)
