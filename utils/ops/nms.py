"""Non-maximum suppression (NMS) of batches of predictions, with or without torchvision."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import EvalSettings
from utils.core.log import LOGGER
from utils.ops.boxes import cxcywh_to_xyxy

if TYPE_CHECKING:  # needed on GPUs only
    from utils.ops.padded_nms import PaddedDetections

# Boxes of class c are shifted by c times this offset, so that boxes of different classes never overlap.
CLASS_OFFSET_PX = 7680.0
MAX_FLOAT32_OFFSET = 2.0**20  # float32 resolves coordinates beyond it to less than 1/16 pixel
MAX_CANDIDATE_VALUES = 2**26  # numbers that are copied at once to find candidates
# Boxes per block of `non_maximum_suppression`, the fastest sizes measured with and without torchvision
_BLOCK_TORCHVISION, _BLOCK_TORCH = 512, 256


class NmsResult(NamedTuple):
    """Detections that remain after NMS."""

    rows: list[Tensor]  # per image (n, 6 + M): x1, y1, x2, y2, score, class, mask coefficients; descending scores
    truncated: list[bool]  # per image: candidates beyond `max_candidates`, the lowest scores, were ignored


def batched_nms(predictions: Tensor, num_classes: int, settings: EvalSettings) -> NmsResult:
    """Select detections from decoded predictions by confidence and class-wise NMS.

    The score of a class is objectness times class probability. All comparisons with thresholds are strict, and equal
    scores keep the order of the predictions. There is no time limit.

    Args:
        predictions: (B, N, 5 + C + M) cx, cy, w, h in pixels, objectness, C classes, M mask coefficients.
        num_classes: C.
        settings: Reads `confidence`, `iou`, `max_detections`, `multi_label`, `agnostic`, `classes` and
            `max_candidates`.

    Returns:
        The detections of each image. Mask coefficients are multiplied by the objectness.

    Raises:
        ValueError: If predictions have another shape.
    """
    _check_shape(predictions, num_classes)
    if predictions.device.type == "mps":  # unreliable sorting, no float64
        result = batched_nms(predictions.cpu(), num_classes, settings)
        return NmsResult([rows.to(predictions.device) for rows in result.rows], result.truncated)
    images, rows = _candidates(predictions, num_classes, settings)
    counts = torch.bincount(images, minlength=len(predictions)).tolist()
    detections, truncated = [], []
    for candidates in rows.split(counts):
        truncated.append(len(candidates) > settings.max_candidates)
        detections.append(_nms_one_image(candidates, num_classes, settings))
    return NmsResult(detections, truncated)


def padded_nms(predictions: Tensor, num_classes: int, settings: EvalSettings) -> PaddedDetections:
    """Select the detections of `batched_nms` for all images at once, for devices whose launches and waits are costly.

    Args:
        predictions: As in `batched_nms`.
        num_classes: C.
        settings: As in `batched_nms`.

    Returns:
        The detections of all images, padded, and the same per image on the CPU.

    Raises:
        ValueError: If predictions have another shape.
    """
    from utils.ops.padded_nms import NmsLimits, select_padded

    _check_shape(predictions, num_classes)
    images, rows = _candidates(predictions, num_classes, settings)
    boxes = _separate_classes(rows, num_classes, settings)
    limits = NmsLimits(_largest_not_above(settings.iou, boxes.dtype), settings.max_detections, settings.max_candidates)
    return select_padded(images, rows, boxes, len(predictions), limits)


def _check_shape(predictions: Tensor, num_classes: int) -> None:
    if predictions.ndim != 3 or predictions.shape[2] < 5 + num_classes:
        raise ValueError(
            f"predictions must have shape (B, N, {5 + num_classes} or more), got {tuple(predictions.shape)}"
        )


def _candidates(predictions: Tensor, num_classes: int, settings: EvalSettings) -> tuple[Tensor, Tensor]:
    """Return (K,) ascending image indices and the (K, 6 + M) candidates of the whole batch."""
    images, positions = (predictions[..., 4] > settings.confidence).nonzero(as_tuple=True)
    if len(images) * predictions.shape[2] <= MAX_CANDIDATE_VALUES:
        return _candidates_at(predictions, images, positions, num_classes, settings)
    size = max(1, MAX_CANDIDATE_VALUES // predictions.shape[2])  # thousands of classes
    parts = [
        _candidates_at(predictions, some, at, num_classes, settings)
        for some, at in zip(images.split(size), positions.split(size), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _candidates_at(
    predictions: Tensor, images: Tensor, positions: Tensor, num_classes: int, settings: EvalSettings
) -> tuple[Tensor, Tensor]:
    """Return the candidates of `_candidates` among the predictions at some positions."""
    confidence = settings.confidence
    found = predictions[images, positions].float()  # (n, 5 + C + M), a copy
    found[:, 5:] *= found[:, 4:5]
    boxes, scores, masks = cxcywh_to_xyxy(found[:, :4]), found[:, 5 : 5 + num_classes], found[:, 5 + num_classes :]
    selected = None
    if settings.classes is not None:
        chosen = [index in settings.classes for index in range(num_classes)]
        selected = torch.tensor(chosen).to(found.device, non_blocking=True)
    if settings.multi_label and num_classes > 1:
        mask = scores > confidence
        rows, classes = (mask if selected is None else mask & selected).nonzero(as_tuple=True)
        best = scores[rows, classes]
    else:
        best, classes = scores.max(dim=1) if num_classes > 1 else (scores[:, 0], torch.zeros_like(images))
        mask = best > confidence
        rows = (mask if selected is None else mask & selected[classes]).nonzero()[:, 0]
        best, classes = best[rows], classes[rows]
    joined = torch.cat((boxes[rows], best[:, None], classes[:, None].to(best.dtype), masks[rows]), dim=1)
    return images[rows], joined


def _nms_one_image(candidates: Tensor, num_classes: int, settings: EvalSettings) -> Tensor:
    """Return the remaining rows of (K, 6 + M) candidates in descending order of score."""
    if not len(candidates):
        return candidates
    order = candidates[:, 4].argsort(descending=True, stable=True)[: settings.max_candidates]
    candidates = candidates[order]
    boxes = _separate_classes(candidates, num_classes, settings)
    keep = non_maximum_suppression(boxes, candidates[:, 4], settings.iou, settings.max_detections)
    return candidates[keep]


def _separate_classes(candidates: Tensor, num_classes: int, settings: EvalSettings) -> Tensor:
    """Return the (K, 4) boxes of candidates, shifted by their class unless all classes compete."""
    boxes = candidates[:, :4]
    if settings.agnostic:
        return boxes
    float32_suffices = num_classes * CLASS_OFFSET_PX <= MAX_FLOAT32_OFFSET
    return (boxes if float32_suffices else boxes.double()) + candidates[:, 5:6] * CLASS_OFFSET_PX


def non_maximum_suppression(boxes_xyxy: Tensor, scores: Tensor, iou: float, limit: int | None = None) -> Tensor:
    """Apply greedy NMS: a box is removed if a remaining box with a higher score overlaps it by more than `iou`.

    Boxes are processed in blocks of descending score. A block is first compared with the boxes kept so far, then with
    itself, by torchvision if available and by torch otherwise, with equal results. Processing stops as soon as `limit`
    boxes are kept, since later ones cannot change them. For 30,000 scattered boxes and a limit of 300 this takes
    2.5 ms, where torchvision on all boxes takes 900 ms.

    Args:
        boxes_xyxy: (n, 4) boxes.
        scores: (n,) scores; of equal scores the earlier box ranks higher.
        iou: IoU threshold.
        limit: Maximum number of boxes to keep.

    Returns:
        int64 indices of the remaining boxes in descending order of score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes_xyxy[order], scores[order].to(boxes_xyxy.dtype)  # torchvision requires equal dtypes
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    threshold = _largest_not_above(iou, boxes.dtype)
    torchvision_nms = _torchvision_nms()
    block = (_BLOCK_TORCHVISION if limit is not None else len(boxes)) if torchvision_nms else _BLOCK_TORCH
    kept = boxes.new_zeros(0, dtype=torch.int64)
    for start in range(0, len(boxes), max(1, block)):
        current = torch.arange(start, min(start + block, len(boxes)), device=boxes.device)
        if len(kept):
            current = current[~(_iou_matrix(boxes, areas, kept, current) > threshold).any(dim=0)]
        if torchvision_nms:
            current = current[torchvision_nms(boxes[current], scores[current], iou)]
        else:
            current = current[_greedy_keep((_iou_matrix(boxes, areas, current, current) > threshold).triu(1))]
        kept = torch.cat((kept, current))
        if limit is not None and len(kept) >= limit:
            break
    return order[kept[:limit]]


@functools.cache
def _torchvision_nms() -> Callable[[Tensor, Tensor, float], Tensor] | None:
    """Return torchvision's NMS operator, None if torchvision is missing or does not match the installed torch.

    Only the library with torchvision's operators is loaded, in milliseconds: importing torchvision imports its models
    and torch's compiler as well, which takes two seconds.
    """
    try:
        spec = importlib.util.find_spec("torchvision")
        folders = list(spec.submodule_search_locations or ()) if spec else []
        libraries = sorted(library for folder in folders for library in Path(folder).glob("_C*"))
        for library in libraries:
            if library.suffix in (".so", ".pyd", ".dylib"):
                torch.ops.load_library(library)
        return cast("Callable[[Tensor, Tensor, float], Tensor]", torch.ops.torchvision.nms)
    except (ImportError, RuntimeError, OSError, AttributeError, ValueError) as error:
        # A torchvision built for another torch version causes any of these.
        LOGGER.debug(f"NMS without torchvision: {error}")
        return None


def _iou_matrix(boxes: Tensor, areas: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return (F, S) IoU without an epsilon, as torchvision computes it; NaN or zero for boxes without area."""
    # One coordinate at a time: broadcasting over a last dimension of size two is several times slower.
    a, b = boxes[first].t().contiguous()[:, :, None], boxes[second].t().contiguous()[:, None]
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0)
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).clamp_(min=0)
    intersection = width.mul_(height)
    return intersection / (areas[first][:, None] + areas[second][None] - intersection)


def _greedy_keep(suppresses: Tensor) -> Tensor:
    """Return the (n,) mask of boxes that greedy NMS keeps, without a loop over boxes.

    Box i is kept if no kept box before it suppresses it. Applying this rule to all boxes at once fixes at least one
    more box per iteration, so the iteration converges to the result of the sequential algorithm.

    Args:
        suppresses: (n, n) bool, strictly upper triangular: whether box i overlaps the later box j too much.
    """
    keep = torch.ones(len(suppresses), dtype=torch.bool, device=suppresses.device)
    for _ in range(len(suppresses)):
        updated = ~(suppresses & keep[:, None]).any(dim=0)
        if torch.equal(updated, keep):
            break
        keep = updated
    return keep


def _largest_not_above(value: float, dtype: torch.dtype) -> float:
    """Return the largest number of `dtype` that does not exceed `value`.

    Comparing float32 numbers with it equals comparing them with `value` in double precision, as torchvision does.
    """
    kind = np.float64 if dtype == torch.float64 else np.float32
    rounded = kind(value)
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, kind(-math.inf)))
