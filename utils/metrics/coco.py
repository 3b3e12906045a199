"""COCO's twelve metrics of boxes or masks, computed by hotcoco.

The ground truth is a COCO JSON file or the labels of the data set. Values equal those of pycocotools on the same files;
a metric without any label of its kind is -1, as in pycocotools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.coco_categories import match_categories
from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.core.log import LOGGER
from utils.ops.boxes import xyxy_to_xywh

Detections = Mapping[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Image index -> (n, 4) xyxy boxes in original pixels, (n,) scores and (n,) classes."""
ImageRles = Mapping[int, list[dict[str, Any]]]
"""Image index -> run-length encoded masks, in the order of the boxes."""

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # area ranges in COCO's arrays
_AT_1, _AT_10, _AT_100 = range(3)  # limits of detections per image in COCO's arrays
_IOU_50, _IOU_75 = 0, 5  # thresholds in COCO's arrays
_BOX_DECIMALS, _SCORE_DECIMALS = 3, 5  # of predictions files


@dataclass(frozen=True)
class CocoGroundTruth:
    """Labels in COCO's form, and the mapping from indices of this project to COCO's ids."""

    data: Any  # hotcoco.COCO
    image_ids: dict[int, int]  # image index -> id; other images are not evaluated
    category_ids: tuple[int, ...]  # of each class
    json_ids: dict[int, int | str]  # image index -> `image_id` in a predictions file


def _coco_class() -> Any:
    try:
        from hotcoco import COCO
    except ImportError as error:
        raise UserError("COCO metrics need the package hotcoco; install it with: pip install hotcoco") from error
    return COCO


def coco_image_id(path: str) -> int | str:
    """Return the `image_id` of an image in COCO-format predictions: its file stem, as an integer if it is decimal."""
    stem = Path(path).stem
    return int(stem) if stem.isascii() and stem.isdecimal() else stem


def ground_truth_from_labels(
    names: Sequence[str],
    images: Mapping[int, tuple[str, tuple[int, int]]],
    labels: Mapping[int, tuple[np.ndarray, np.ndarray]],
    rles: ImageRles | None = None,
) -> CocoGroundTruth:
    """Build the ground truth from labels; no object is a crowd.

    Args:
        names: Class names.
        images: Image index -> path and (height, width).
        labels: Image index -> (n, 4) xyxy boxes in original pixels and (n,) classes.
        rles: Masks of the labels; they also define the areas of objects, which otherwise are those of the boxes.
    """
    rows = [
        {"id": index, "file_name": Path(path).name, "height": int(hw[0]), "width": int(hw[1])}
        for index, (path, hw) in images.items()
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    counts = [len(labels[index][1]) for index in images]
    boxes = [xyxy_to_xywh(labels[index][0].astype(np.float64)) for index in images]
    data = _coco_class().from_arrays(
        rows,
        categories,
        np.repeat(np.fromiter(images, dtype=np.int64, count=len(images)), counts),
        np.concatenate([labels[index][1].astype(np.int64) for index in images] or [np.zeros(0, np.int64)]),
        np.concatenate(boxes or [np.zeros((0, 4))]),
        **_segmentation([rle for index in images for rle in rles[index]] if rles is not None else None),
    )
    json_ids = {index: coco_image_id(path) for index, (path, _) in images.items()}
    return CocoGroundTruth(data, {index: index for index in images}, tuple(range(len(names))), json_ids)


def _segmentation(rles: list[dict[str, Any]] | None) -> dict[str, Any]:
    if rles is None:
        return {}
    from pycocotools.mask import area

    return {"segmentation": rles, "area": np.array([float(area(rle)) for rle in rles])}


def ground_truth_from_file(path: Path, names: Sequence[str], images: Mapping[int, str]) -> CocoGroundTruth:
    """Read the ground truth from a COCO JSON file.

    Categories are matched with classes by name, or by order if there are as many categories as classes; images by file
    name. Images that are not in the file are ignored with a warning. Crowds are treated as in COCO.

    Args:
        path: COCO JSON file.
        names: Class names.
        images: Image index -> path.

    Raises:
        UserError: If the file is missing or unreadable, or matches neither the classes nor any image.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: COCO annotations file not found")
    try:
        data = _coco_class()(str(path))
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{path}: invalid COCO annotations ({' '.join(str(error).split())})") from error
    category_ids = match_categories(path, names, [data.cats[key] for key in sorted(data.cats)])
    by_stem = {Path(image.get("file_name") or str(key)).stem: key for key, image in data.imgs.items()}
    image_ids = {}
    for index, image_path in images.items():
        name = coco_image_id(image_path)
        image_id = by_stem.get(Path(image_path).stem, name if isinstance(name, int) and name in data.imgs else None)
        if image_id is not None:
            image_ids[index] = image_id
    if images and not image_ids:
        first = Path(next(iter(images.values()))).name
        raise UserError(
            f"{path}: contains none of the {len(images)} images, such as {first}; use the annotations of this split"
        )
    if len(image_ids) < len(images):
        LOGGER.warning(f"{path}: ignoring {len(images) - len(image_ids)} of {len(images)} images that are not in it")
    # Predictions use the ids of the file, too, so that they can be evaluated against it.
    json_ids = {index: image_ids.get(index, coco_image_id(image_path)) for index, image_path in images.items()}
    return CocoGroundTruth(data, image_ids, category_ids, json_ids)


def prediction_rows(
    ground_truth: CocoGroundTruth, detections: Detections, rles: ImageRles | None = None
) -> list[dict[str, Any]]:
    """Convert detections to the rows of a COCO predictions file.

    Args:
        ground_truth: Mapping to COCO's ids.
        detections: Detections per image.
        rles: Their masks.

    Returns:
        Dictionaries with `image_id`, `category_id`, `bbox`, `score` and, with `rles`, `segmentation`.
    """
    rows: list[dict[str, Any]] = []
    for index, (boxes_xyxy, scores, classes) in detections.items():
        boxes, rounded = _round(boxes_xyxy, scores)
        name = ground_truth.json_ids[index]
        rows.extend(
            {"image_id": name, "category_id": ground_truth.category_ids[int(label)], "bbox": box, "score": score}
            for label, box, score in zip(classes.tolist(), boxes.tolist(), rounded.tolist(), strict=True)
        )
        if rles is not None:
            for row, rle in zip(rows[len(rows) - len(classes) :], rles[index], strict=True):
                row["segmentation"] = rle
    return rows


def _round(boxes_xyxy: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes as xywh and scores with the precision of a predictions file."""
    boxes = xyxy_to_xywh(boxes_xyxy.astype(np.float64))
    return np.round(boxes, _BOX_DECIMALS), np.round(scores.astype(np.float64), _SCORE_DECIMALS)


def write_predictions(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a COCO predictions file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(rows, separators=(",", ":")), encoding="utf-8")


def coco_metrics(
    ground_truth: CocoGroundTruth, detections: Detections, rles: ImageRles | None = None
) -> dict[str, float]:
    """Compute COCO's twelve metrics of boxes or masks.

    Boxes and scores are rounded as in a predictions file, so that evaluating a saved file gives the same values.

    Args:
        ground_truth: Labels; they need masks if `rles` are given.
        detections: Detections per image.
        rles: Their masks, which are compared instead of the boxes.

    Returns:
        The metrics named in `COCO_NAMES`.
    """
    from hotcoco import COCOeval

    indices = [index for index in detections if index in ground_truth.image_ids]
    ids = [ground_truth.image_ids[index] for index in indices]
    if not ids:
        return dict.fromkeys(COCO_NAMES, -1.0)
    tables = [np.zeros((0, 7))]
    categories = np.asarray(ground_truth.category_ids, dtype=np.float64)
    for index, image_id in zip(indices, ids, strict=True):
        boxes_xyxy, scores, classes = detections[index]
        if len(scores):
            boxes, rounded = _round(boxes_xyxy, scores)
            image = np.full((len(scores), 1), float(image_id))
            tables.append(np.hstack((image, boxes, rounded[:, None], categories[classes.astype(np.int64), None])))
    table, data = np.concatenate(tables), ground_truth.data
    if rles is None:
        evaluation = COCOeval(data, data.load_res(table), "bbox")
    else:
        masks = [rle for index in indices for rle in rles[index]]
        evaluation = COCOeval(data, data.load_res(table, segmentation=masks), "segm")
    evaluation.params.img_ids = sorted(ids)
    evaluation.params.cat_ids = sorted(set(ground_truth.category_ids))
    evaluation.evaluate()
    evaluation.accumulate()
    curves: Any = evaluation.eval  # annotated as optional, but always set by `accumulate`
    return _summarise(curves["precision"], curves["recall"])


def _summarise(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Average COCO's arrays to the twelve metrics.

    Args:
        precision: (T, R, K, areas, limits), -1 where nothing is labelled.
        recall: (T, K, areas, limits).
    """
    values = [
        precision[..., _ALL, _AT_100],
        precision[_IOU_50, ..., _ALL, _AT_100],
        precision[_IOU_75, ..., _ALL, _AT_100],
    ]
    values += [precision[..., area, _AT_100] for area in (_SMALL, _MEDIUM, _LARGE)]
    values += [recall[..., _ALL, limit] for limit in (_AT_1, _AT_10, _AT_100)]
    values += [recall[..., area, _AT_100] for area in (_SMALL, _MEDIUM, _LARGE)]
    known = [part[part > -1] for part in values]
    return {name: float(part.mean()) if part.size else -1.0 for name, part in zip(COCO_NAMES, known, strict=True)}
