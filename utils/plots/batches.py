"""Mosaic of the images of a batch, with labels or predictions drawn on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from utils.core.contracts import IGNORED_PIXEL, Batch, Geometry, ImageInfo, Results
from utils.plots.draw import DrawStyle, draw_boxes, draw_label, draw_masks, font_height_px, label_text, palette_colour
from utils.plots.figure_io import write_image
from utils.plots.semantic_style import SemanticStyle
from utils.plots.text_rendering import text_mask

MAX_IMAGES = 16
MAX_SIDE_PX = 1920
MIN_TILE_PX = 320  # smaller images are enlarged, for text that leaves most of the image visible
MAX_LABEL_RATIO = 2  # a label wider than this many widths of its box is left out: the colour names the class
MIN_CONFIDENCE = 0.25  # of drawn boxes; validation keeps boxes down to 0.001, which would hide the image
_TITLE_COLOUR = (114, 114, 114)
_MAX_TITLE = 40  # characters

Drawable = tuple[np.ndarray, list[int], list[float | None]]
"""(n, 4) xyxy boxes normalised by the tile size, classes, and scores or None."""


def draw_batch(
    batch: Batch,
    path: Path,
    names: Sequence[str],
    results: Sequence[Results] | None = None,
    style: SemanticStyle | None = None,
) -> None:
    """Draw up to 16 images of a batch with boxes, instance masks and semantic maps, and a legend of the latter.

    Args:
        batch: Images and labels.
        path: File to write.
        names: Names of the box classes.
        results: Predictions to draw instead of the labels.
        style: Names and colours of the semantic classes (default: numbers instead of names).
    """
    style = style or SemanticStyle()
    network_hw = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    present: set[int] = set()  # semantic classes

    def decorate(tile: np.ndarray, i: int) -> None:
        semantic_map = _semantic_map(batch, i, results, (tile.shape[0], tile.shape[1]))
        if semantic_map is not None:
            present.update(_overlay(tile, semantic_map, style))
        drawable = _predicted_boxes(results[i], network_hw) if results is not None else _labelled_boxes(batch, i)
        masks = _predicted_masks(results[i]) if results is not None else _labelled_masks(batch, i)
        draw_masks(tile, masks, [palette_colour(index) for index in drawable[1][: len(masks)]])
        _draw_boxes_and_title(tile, drawable, names, Path(batch.info[i].path).stem)

    def footer(width: int) -> np.ndarray | None:
        return _legend(sorted(present), style, width) if present and style.legend else None

    draw_grid(batch, path, decorate, footer, min_tile_px=MIN_TILE_PX)


def _overlay(tile: np.ndarray, semantic_map: np.ndarray, style: SemanticStyle) -> list[int]:
    """Blend a semantic map into a tile; return its classes that are visible."""
    from utils.ops.class_fractions import class_fractions  # batches of detectors do not need these
    from utils.plots.semantic_overlay import overlay_semantic_map, visible_classes

    overlay_semantic_map(tile, semantic_map, style)
    return visible_classes(class_fractions(semantic_map), style)


def _legend(classes: Sequence[int], style: SemanticStyle, width: int) -> np.ndarray:
    from utils.plots.semantic_overlay import legend_strip

    return legend_strip(classes, style, width)


def draw_grid(
    batch: Batch,
    path: Path,
    decorate: Callable[[np.ndarray, int], None],
    footer: Callable[[int], np.ndarray | None] = lambda width: None,
    min_tile_px: int = 1,
) -> None:
    """Draw up to 16 images of a batch in a grid.

    Args:
        batch: Images.
        path: File to write.
        decorate: Called with the BGR tile and the index of each image, to draw on the tile.
        footer: Called with the width of the grid; returns an image to append below it, or None.
        min_tile_px: Smaller images are enlarged.
    """
    count = min(len(batch), MAX_IMAGES)
    columns = int(np.ceil(count**0.5))
    rows = -(-count // columns)
    network_hw = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    shrink = min(1.0, MAX_SIDE_PX / max(rows * network_hw[0], columns * network_hw[1]))
    factor = max(shrink, min_tile_px / min(network_hw)) if min_tile_px > min(network_hw) else shrink
    tile_hw = (round(network_hw[0] * factor), round(network_hw[1] * factor))
    mosaic = np.full((rows * tile_hw[0], columns * tile_hw[1], 3), 255, np.uint8)
    for i in range(count):
        tile = _tile(batch.images[i], tile_hw)
        decorate(tile, i)
        cv2.rectangle(tile, (0, 0), (tile_hw[1] - 1, tile_hw[0] - 1), (255, 255, 255), 1)
        row, column = divmod(i, columns)
        top, left = row * tile_hw[0], column * tile_hw[1]
        mosaic[top : top + tile_hw[0], left : left + tile_hw[1]] = tile
    if (strip := footer(mosaic.shape[1])) is not None:
        mosaic = np.concatenate([mosaic, strip])
    write_image(Path(path), mosaic)


def _semantic_map(
    batch: Batch, index: int, results: Sequence[Results] | None, tile_hw: tuple[int, int]
) -> np.ndarray | None:
    """Return the labelled or predicted semantic map of an image at the size of its tile, None without a map.

    Maps have the size of the network input (in training) or of the original image (in evaluation).
    """
    if results is not None:
        tensor = results[index].semantic
    else:
        tensor = None if batch.semantic is None else batch.semantic[index]
    if tensor is None:
        return None
    semantic_map = tensor.detach().cpu().numpy()
    network_hw = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    if semantic_map.shape == network_hw or semantic_map.shape != batch.info[index].geometry.original_hw:
        return cv2.resize(semantic_map, tile_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return map_in_network(semantic_map, batch.info[index].geometry, tile_hw)


def map_in_network(semantic_map: np.ndarray, geometry: Geometry, size_hw: tuple[int, int]) -> np.ndarray:
    """Resample a semantic map of the original image to the network input, by nearest neighbour.

    Args:
        semantic_map: (H, W) uint8 map at the original size.
        geometry: Letterbox transform of the image.
        size_hw: Size at which the network input is shown.

    Returns:
        uint8 map of size `size_hw`, `IGNORED_PIXEL` in the padding.
    """
    matrix = np.zeros((2, 3))  # from pixel indices of the result to those of the original
    for axis in (0, 1):  # x, y
        step = geometry.network_hw[1 - axis] / size_hw[1 - axis]
        matrix[axis, axis] = step / geometry.scale_xy[axis]
        matrix[axis, 2] = (0.5 * step - geometry.pad_xy[axis]) / geometry.scale_xy[axis] - 0.5
    return cv2.warpAffine(
        semantic_map,
        matrix,
        size_hw[::-1],
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=IGNORED_PIXEL,
    )


def _tile(image: torch.Tensor, tile_hw: tuple[int, int]) -> np.ndarray:
    """Convert a (3, H, W) RGB image, uint8 or float in [0, 1], to a BGR tile."""
    pixels = image.detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    bgr = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[:, :, ::-1])
    if bgr.shape[:2] != tile_hw:
        shrinks = bgr.shape[0] > tile_hw[0]
        bgr = cv2.resize(bgr, tile_hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return bgr


def _labelled_boxes(batch: Batch, index: int) -> Drawable:
    rows = batch.boxes[batch.boxes[:, 0] == index].detach().cpu().float().numpy()
    centre, size = rows[:, 2:4], rows[:, 4:6]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return boxes, rows[:, 1].astype(int).tolist(), [None] * len(rows)


def _predicted_boxes(results: Results, network_hw: tuple[int, int]) -> Drawable:
    if results.boxes is None or results.classes is None or results.scores is None:
        return np.zeros((0, 4), np.float32), [], []
    confident = (results.scores > MIN_CONFIDENCE).cpu()
    boxes = boxes_to_network(results.boxes.detach().cpu().float()[confident].numpy(), results.info)
    size = np.array([network_hw[1], network_hw[0]] * 2, np.float32)
    return boxes / size, results.classes.cpu()[confident].tolist(), results.scores.cpu()[confident].tolist()


def boxes_to_network(boxes_xyxy: np.ndarray, info: ImageInfo) -> np.ndarray:
    """Map (n, 4) float32 boxes from the original image to the network input."""
    geometry = info.geometry
    return boxes_xyxy * np.array(geometry.scale_xy * 2, np.float32) + np.array(geometry.pad_xy * 2, np.float32)


def _labelled_masks(batch: Batch, index: int) -> np.ndarray:
    """Return the (n, h, w) bool masks of the labels of an image, (0, 1, 1) if the batch has no masks."""
    in_image = (batch.boxes[:, 0] == index).cpu()
    if batch.masks is None:
        return np.zeros((0, 1, 1), bool)
    masks = batch.masks.detach().cpu().numpy()
    if masks.dtype == bool:
        return masks[in_image.numpy()]
    return masks[index] == np.arange(1, int(in_image.sum()) + 1)[:, None, None]


def _predicted_masks(results: Results) -> np.ndarray:
    if results.masks is None or results.scores is None:
        return np.zeros((0, 1, 1), bool)
    return results.masks[results.scores > MIN_CONFIDENCE].cpu().numpy()


def _draw_boxes_and_title(tile: np.ndarray, drawable: Drawable, names: Sequence[str], title: str) -> None:
    boxes, classes, scores = drawable
    height, width = tile.shape[:2]
    texts = [label_text(names, index, score, DrawStyle()) for index, score in zip(classes, scores, strict=True)]
    pixels = boxes * np.array([width, height] * 2, np.float32)
    limits = MAX_LABEL_RATIO * (pixels[:, 2] - pixels[:, 0])
    size_px = font_height_px((height, width))
    texts = [
        text if text_mask(text, size_px).shape[1] <= limit else "" for text, limit in zip(texts, limits, strict=True)
    ]
    draw_boxes(tile, pixels, [palette_colour(index) for index in classes], texts, line_px=2)
    draw_label(tile, title[:_MAX_TITLE], (4, 4), _TITLE_COLOUR, max(10, min(18, height // 24)), line_px=0)
