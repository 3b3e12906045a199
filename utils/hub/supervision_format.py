"""Conversion of predictions to records of the `supervision` package."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from utils.core.contracts import Results
from utils.core.errors import UserError
from utils.ops.class_fractions import class_fractions
from utils.plots.draw import class_name


def import_optional(module: str, feature: str) -> ModuleType:
    """Import a package that only `feature` needs, or raise UserError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{feature} needs the package {module}; pip install {module}") from error


def to_supervision(
    results: Sequence[Results], boxes: Sequence[Tensor], names: Sequence[str], semantic_names: Sequence[str]
) -> list[Any]:
    """Convert predictions to a `supervision.Detections` or `Classifications` per image.

    Args:
        results: Records of the images.
        boxes: Their (n, 6) boxes.
        names: Class names.
        semantic_names: Class names of the semantic head.
    """
    package = import_optional("supervision", "Detections.supervision()")
    converted = []
    for result, rows in zip(results, boxes, strict=True):
        if result.probabilities is not None:
            scores = result.probabilities.float().numpy()
            converted.append(package.Classifications(class_id=np.arange(len(scores)), confidence=scores))
        elif result.boxes is None and result.semantic is not None:
            converted.append(_semantic_entries(package, result.semantic.numpy(), semantic_names))
        else:
            converted.append(_box_entries(package, result, rows, names))
    return converted


def _box_entries(package: ModuleType, result: Results, rows: Tensor, names: Sequence[str]) -> Any:
    masks = None
    if result.fine_masks is not None and len(rows):
        masks = np.stack([result.fine_masks.original(index) for index in range(len(rows))])
    classes = rows[:, 5].long().numpy()
    return package.Detections(
        xyxy=rows[:, :4].numpy(),
        confidence=rows[:, 4].numpy(),
        class_id=classes,
        mask=masks,
        data={"class_name": np.array([class_name(names, int(i)) for i in classes], dtype=str)},
    )


def _semantic_entries(package: ModuleType, semantic: np.ndarray, names: Sequence[str]) -> Any:
    """Convert an (H, W) semantic map to a mask and its bounding box per class, the largest first."""
    classes = np.array(list(class_fractions(semantic)), int)
    if not len(classes):
        return package.Detections.empty()
    masks = np.stack([semantic == index for index in classes])
    return package.Detections(
        xyxy=package.mask_to_xyxy(masks).astype(np.float32),
        class_id=classes,
        mask=masks,
        data={"class_name": np.array([class_name(names, int(index)) for index in classes], dtype=str)},
    )
