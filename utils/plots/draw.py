"""Drawing of predictions on images: boxes, labels, masks, semantic maps and image classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.core.contracts import Results
from utils.ops.masks import mask_in_original
from utils.plots.semantic_style import SemanticStyle
from utils.plots.text_rendering import Colour, class_name, put_text, text_mask

# 0xRRGGBB; class i has the colour i modulo 20. The colours of YOLOv5, so that images of both can be compared.
# fmt: off
_PALETTE = (
    0xFF3838, 0xFF9D97, 0xFF701F, 0xFFB21D, 0xCFD231, 0x48F90A, 0x92CC17, 0x3DDB86, 0x1A9334, 0x00D4BB,
    0x2C99A8, 0x00C2FF, 0x344593, 0x6473FF, 0x0018EC, 0x8438FF, 0x520085, 0xCB38FF, 0xFF95C8, 0xFF37C7,
)
# fmt: on
PALETTE_BGR = np.array([[value & 255, value >> 8 & 255, value >> 16] for value in _PALETTE], np.uint8)  # (20, 3)

TOP_CLASSES = 5
TOP_CLASSES_XY = (32, 32)  # upper left corner of the list of image classes
_BRIGHT_LUMA = 140  # text on brighter colours is black
_DARKENED = 0.4  # brightness of the background of white text


@dataclass(frozen=True)
class DrawStyle:
    """Appearance of annotations."""

    line_px: int | None = None  # line width; None: from the size of the image
    labels: bool = True
    scores: bool = True
    outline_masks: bool = False
    opacity: float = 0.5  # of instance masks
    semantic: SemanticStyle = field(default_factory=SemanticStyle)


def palette_colour(index: int) -> Colour:
    """Return the BGR colour of a class."""
    blue, green, red = (int(value) for value in PALETTE_BGR[index % len(PALETTE_BGR)])
    return blue, green, red


def text_colour_on(colour: Colour) -> Colour:
    """Return black or white, whichever is easier to read on a colour (Rec. 601 luma)."""
    blue, green, red = colour
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > _BRIGHT_LUMA else (255, 255, 255)


def line_width_px(image_hw: tuple[int, int]) -> int:
    """Return the default line width for an image of this size."""
    return max(2, round(sum(image_hw) * 0.0015))


def font_height_px(image_hw: tuple[int, int]) -> int:
    """Return the default font size for an image of this size."""
    return max(11, min(72, round(sum(image_hw) * 0.0078)))


def label_text(names: Sequence[str], index: int, score: float | None, style: DrawStyle) -> str:
    """Format the label of a box: `name 0.87`, `name` or an empty string."""
    if not style.labels:
        return ""
    name = class_name(names, index)
    return f"{name} {score:.2f}" if style.scores and score is not None else name


def draw_box(canvas: np.ndarray, box_xyxy: Sequence[float], colour: Colour, line_px: int) -> None:
    """Draw a box on a (H, W, 3) uint8 canvas, in place; sides outside the image are drawn along its border."""
    height, width = canvas.shape[:2]
    x1, x2 = (min(max(round(float(box_xyxy[i])), 0), width - 1) for i in (0, 2))
    y1, y2 = (min(max(round(float(box_xyxy[i])), 0), height - 1) for i in (1, 3))
    before = line_px // 2  # not cv2.rectangle, which draws lines of three pixels five pixels wide
    after = line_px - before
    left, right, top, bottom = max(0, x1 - before), x2 + after, max(0, y1 - before), y2 + after
    for x in (x1, x2):
        canvas[top:bottom, max(0, x - before) : x + after] = colour
    for y in (y1, y2):
        canvas[max(0, y - before) : y + after, left:right] = colour


def draw_label(
    canvas: np.ndarray, text: str, corner_xy: tuple[float, float], colour: Colour, size_px: int, line_px: int = 2
) -> None:
    """Draw text on a filled background above the upper left corner of a box, or below it at the image border.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        text: Text; nothing is drawn if it is empty.
        corner_xy: Upper left corner of the box.
        colour: Background colour.
        size_px: Font size.
        line_px: Line width of the box.
    """
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
    """Blend instance masks into an image.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        masks: (n, h, w) bool, resized to the canvas if necessary.
        colours: Colour of each mask.
        opacity: Weight of the colours.
        outline: Draw the contours, too.
    """
    height, width = canvas.shape[:2]
    for mask, colour in zip(masks, colours, strict=True):
        pixels = mask.astype(np.uint8)
        if pixels.shape != (height, width):
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST)
        inside = pixels.astype(bool)
        tint = np.array(colour, np.float32) * opacity
        canvas[inside] = np.rint(canvas[inside] * (1 - opacity) + tint).astype(np.uint8)
        if outline:
            contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(canvas, contours, -1, colour, line_width_px((height, width)), cv2.LINE_AA)


def draw_top_classes(canvas: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> None:
    """List the five most probable image classes in the upper left part of an image.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        probabilities: (C,).
        names: Class names.
    """
    height, width = canvas.shape[:2]
    size_px = max(round(1.5 * font_height_px((height, width))), 14)
    left, top = (min(TOP_CLASSES_XY[0], width // 8), min(TOP_CLASSES_XY[1], height // 8))
    for text in class_lines(probabilities, names):
        mask = text_mask(text, size_px)
        background = canvas[top : top + mask.shape[0] + 2, max(0, left - 4) : left + mask.shape[1] + 6]
        background[:] = np.rint(background * _DARKENED).astype(np.uint8)
        put_text(canvas, text, (left, top + 1), size_px, (255, 255, 255))
        top += mask.shape[0] + 2


def class_lines(probabilities: np.ndarray, names: Sequence[str]) -> list[str]:
    """Format the five most probable classes of (C,) probabilities as `0.87 name`, in descending order."""
    order = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
    return [f"{probabilities[index]:.2f} {class_name(names, int(index))}" for index in order]


def draw_boxes(
    canvas: np.ndarray, boxes_xyxy: np.ndarray, colours: Sequence[Colour], texts: Sequence[str], line_px: int | None
) -> None:
    """Draw boxes with labels; the first box is on top, and labels are above all boxes.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        boxes_xyxy: (n, 4) boxes in pixels.
        colours: Colour of each box.
        texts: Label of each box.
        line_px: Line width (None: from the size of the image).
    """
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
    """Draw the predictions for an image on a copy of it.

    From bottom to top: semantic map, instance masks, legend, image classes, boxes with labels.

    Args:
        image_bgr: (H, W, 3) uint8.
        results: Predictions.
        names: Class names of boxes or image classes.
        style: Appearance.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    style = style or DrawStyle()
    canvas = np.ascontiguousarray(image_bgr).copy()
    results = results.cpu()
    boxes = None if results.boxes is None or results.classes is None else results.boxes.float().numpy()
    classes = [] if boxes is None or results.classes is None else [int(index) for index in results.classes]
    colours = [palette_colour(index) for index in classes]
    if results.semantic is not None:
        from utils.plots.semantic_overlay import draw_legend, overlay_semantic_map  # detectors do not need them

        overlay_semantic_map(canvas, results.semantic.numpy(), style.semantic)
    _draw_result_masks(canvas, results, colours, style)
    if results.semantic is not None and style.semantic.legend:
        draw_legend(canvas, results.semantic.numpy(), style.semantic, font_height_px(canvas.shape[:2]), boxes)
    if results.probabilities is not None:
        draw_top_classes(canvas, results.probabilities.numpy(), names)
    if boxes is not None:
        scores = [None] * len(classes) if results.scores is None else [float(score) for score in results.scores]
        texts = [label_text(names, index, score, style) for index, score in zip(classes, scores, strict=True)]
        draw_boxes(canvas, boxes, colours, texts, style.line_px)
    return canvas


def _draw_result_masks(canvas: np.ndarray, results: Results, colours: Sequence[Colour], style: DrawStyle) -> None:
    if results.fine_masks is not None:
        for row in reversed(range(len(colours))):  # one at a time to save memory, the highest score on top
            mask = results.fine_masks.original(row)
            draw_masks(canvas, mask[None], [colours[row]], style.opacity, style.outline_masks)
    elif results.masks is not None and len(colours):
        masks = [mask_in_original(mask.float().numpy(), results.info.geometry) for mask in results.masks]
        draw_masks(canvas, np.array(masks), colours, style.opacity, style.outline_masks)
