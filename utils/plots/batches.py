"""A batch as one picture: what the network saw, with labels or predictions on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from utils.core.contracts import IGNORED_PIXEL, Batch, Geometry, ImageInfo, Results
from utils.ops.class_fractions import class_fractions
from utils.plots.draw import DrawStyle, draw_boxes, draw_label, draw_masks, label_text, palette_colour
from utils.plots.figure_io import write_image
from utils.plots.semantic_overlay import SemanticStyle, legend_strip, overlay_semantic_map

MAX_IMAGES = 16
MAX_SIDE_PX = 1920
SHOWN_CONFIDENCE = 0.25  # validation keeps boxes of hardly any confidence, which would hide the image
_GREY = (114, 114, 114)


def draw_batch(
    batch: Batch,
    path: Path,
    names: Sequence[str],
    results: Sequence[Results] | None = None,
    look: SemanticStyle | None = None,
) -> None:
    """Write up to 16 images of `batch` as a mosaic to `path`, with `results` drawn on them, else with the labels.

    `names` are those of the boxes; `look` has names and colours of the classes of pixels, without it they are numbered.
    Where there are such classes, a legend stands below the mosaic.
    """
    look = look or SemanticStyle()
    network_hw = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    shown: set[int] = set()  # classes of pixels

    def decorate(tile: np.ndarray, i: int) -> None:
        classes = _classes_of_pixels(batch, i, results, (tile.shape[0], tile.shape[1]))
        if classes is not None:
            overlay_semantic_map(tile, classes, look)
            shown.update(class_fractions(classes))
        labels = _predicted(results[i], network_hw) if results is not None else _labelled(batch, i)
        masks = _found_masks(results[i]) if results is not None else _labelled_masks(batch, i)
        draw_masks(tile, masks, [palette_colour(index) for index in labels[1][: len(masks)]])
        _draw_on_tile(tile, labels, names, Path(batch.info[i].path).stem)

    def below(width: int) -> np.ndarray | None:
        return legend_strip(sorted(shown), look, width) if shown and look.legend else None

    draw_grid(batch, path, decorate, below)


def draw_grid(
    batch: Batch,
    path: Path,
    decorate: Callable[[np.ndarray, int], None],
    below: Callable[[int], np.ndarray | None] = lambda width: None,
    least_px: int = 1,
) -> None:
    """Write up to 16 images of `batch` as a mosaic to `path`; `decorate(tile, i)` draws on image i's BGR tile.

    `below(width)` may make a strip that is put below. Images smaller than `least_px` are enlarged.
    """
    count = min(len(batch), MAX_IMAGES)
    columns = int(np.ceil(count**0.5))
    rows = -(-count // columns)
    network_hw = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    shrink = min(1.0, MAX_SIDE_PX / max(rows * network_hw[0], columns * network_hw[1]))
    factor = max(shrink, least_px / min(network_hw)) if least_px > min(network_hw) else shrink
    tile_hw = (round(network_hw[0] * factor), round(network_hw[1] * factor))
    mosaic = np.full((rows * tile_hw[0], columns * tile_hw[1], 3), 255, np.uint8)
    for i in range(count):
        tile = _tile(batch.images[i], tile_hw)
        decorate(tile, i)
        cv2.rectangle(tile, (0, 0), (tile_hw[1] - 1, tile_hw[0] - 1), (255, 255, 255), 1)
        row, column = divmod(i, columns)
        top, left = row * tile_hw[0], column * tile_hw[1]
        mosaic[top : top + tile_hw[0], left : left + tile_hw[1]] = tile
    if (strip := below(mosaic.shape[1])) is not None:
        mosaic = np.concatenate([mosaic, strip])
    write_image(Path(path), mosaic)


def _classes_of_pixels(
    batch: Batch, index: int, results: Sequence[Results] | None, tile_hw: tuple[int, int]
) -> np.ndarray | None:
    """Return the labelled, or with `results` the predicted, map of an image at the tile's size; None if there is none.

    Maps come at the size of the network's input (training) or of the original (scoring, predictions).
    """
    if results is not None:
        found = results[index].semantic
    else:
        found = None if batch.semantic is None else batch.semantic[index]
    if found is None:
        return None
    classes = found.detach().cpu().numpy()
    network_hw = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    if classes.shape == network_hw or classes.shape != batch.info[index].geometry.original_hw:
        return cv2.resize(classes, tile_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return map_in_network(classes, batch.info[index].geometry, tile_hw)


def map_in_network(classes: np.ndarray, geometry: Geometry, shown_hw: tuple[int, int]) -> np.ndarray:
    """Return an (H, W) uint8 map of the original as the network's input shows it, enlarged or shrunk to `shown_hw`.

    The pixel nearest to each centre is taken; borders that are no part of the original are `IGNORED_PIXEL`.
    """
    matrix = np.zeros((2, 3))  # from a pixel shown to the pixel of the original
    for axis in (0, 1):  # x, y
        step = geometry.network_hw[1 - axis] / shown_hw[1 - axis]
        matrix[axis, axis] = step / geometry.scale_xy[axis]
        matrix[axis, 2] = (0.5 * step - geometry.pad_xy[axis]) / geometry.scale_xy[axis] - 0.5
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    outside = cv2.BORDER_CONSTANT
    size_xy = shown_hw[::-1]
    return cv2.warpAffine(classes, matrix, size_xy, flags=flags, borderMode=outside, borderValue=IGNORED_PIXEL)


def _tile(image: torch.Tensor, tile_hw: tuple[int, int]) -> np.ndarray:
    """Return a (3, H, W) RGB image, uint8 or float in [0, 1], as a BGR tile."""
    pixels = image.detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    bgr = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[:, :, ::-1])
    if bgr.shape[:2] != tile_hw:
        bgr = cv2.resize(bgr, tile_hw[::-1], interpolation=cv2.INTER_AREA)
    return bgr


Drawable = tuple[np.ndarray, list[int], list[float | None]]  # (n, 4) xyxy divided by the tile's size, classes, scores


def _labelled(batch: Batch, index: int) -> Drawable:
    rows = batch.boxes[batch.boxes[:, 0] == index].detach().cpu().float().numpy()
    centre, size = rows[:, 2:4], rows[:, 4:6]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return boxes, rows[:, 1].astype(int).tolist(), [None] * len(rows)


def _predicted(results: Results, network_hw: tuple[int, int]) -> Drawable:
    if results.boxes is None or results.classes is None or results.scores is None:
        return np.zeros((0, 4), np.float32), [], []
    shown = (results.scores > SHOWN_CONFIDENCE).cpu()
    boxes = boxes_to_network(results.boxes.detach().cpu().float()[shown].numpy(), results.info)
    size = np.array([network_hw[1], network_hw[0]] * 2, np.float32)
    return boxes / size, results.classes.cpu()[shown].tolist(), results.scores.cpu()[shown].tolist()


def boxes_to_network(boxes_xyxy: np.ndarray, info: ImageInfo) -> np.ndarray:
    """Return (n, 4) boxes in pixels of the original image as pixels of the network's input."""
    geometry = info.geometry
    return boxes_xyxy * np.array(geometry.scale_xy * 2, np.float32) + np.array(geometry.pad_xy * 2, np.float32)


def _labelled_masks(batch: Batch, index: int) -> np.ndarray:
    """Return the (n, h, w) bool masks of an image's labels, none if the batch has none."""
    mine = (batch.boxes[:, 0] == index).cpu()
    if batch.masks is None:
        return np.zeros((0, 1, 1), bool)
    masks = batch.masks.detach().cpu().numpy()
    if masks.dtype == bool:
        return masks[mine.numpy()]
    return masks[index] == np.arange(1, int(mine.sum()) + 1)[:, None, None]


def _found_masks(results: Results) -> np.ndarray:
    if results.masks is None or results.scores is None:
        return np.zeros((0, 1, 1), bool)
    return results.masks[results.scores > SHOWN_CONFIDENCE].cpu().numpy()


def _draw_on_tile(tile: np.ndarray, found: Drawable, names: Sequence[str], title: str) -> None:
    boxes, classes, scores = found
    height, width = tile.shape[:2]
    texts = [label_text(names, index, score, DrawStyle()) for index, score in zip(classes, scores, strict=True)]
    pixels = boxes * np.array([width, height] * 2, np.float32)
    draw_boxes(tile, pixels, [palette_colour(index) for index in classes], texts, line_px=2)
    draw_label(tile, title[:40], (4, 4), _GREY, max(10, min(18, height // 24)), line_px=0)
