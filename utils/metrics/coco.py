"""COCO's twelve numbers for boxes or masks, by hotcoco, with the truth from a COCO JSON or from the labels.

Equal to pycocotools on the same files. A number is -1 where nothing of its kind is labelled, as pycocotools has it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.coco_categories import match_categories
from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.core.log import LOGGER
from utils.ops.boxes import xyxy_to_xywh

ImageRles = dict[int, list[dict[str, Any]]]  # image index -> run lengths of its objects, in the order of the boxes
COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # size ranges in COCO's arrays
_AT_1, _AT_10, _AT_100 = range(3)  # detections per image


@dataclass(frozen=True)
class CocoGroundTruth:
    """Labels in COCO's form and how this project's indices translate to its ids."""

    data: Any  # hotcoco.COCO
    image_ids: dict[int, int]  # image index -> id; an image that is missing here is not evaluated
    category_ids: tuple[int, ...]  # of each class
    json_ids: dict[int, int | str]  # image index -> what a predictions file calls it


def _coco_class() -> Any:
    try:
        from hotcoco import COCO
    except ImportError as error:
        raise UserError("COCO's numbers need hotcoco; install it with: pip install hotcoco") from error
    return COCO


def coco_image_id(path: str) -> int | str:
    """Return how COCO-format predictions call an image: its stem, as a number if it is one (behaviour.md 6.4)."""
    stem = Path(path).stem
    return int(stem) if stem.isascii() and stem.isdecimal() else stem


def ground_truth_from_labels(
    names: Sequence[str],
    images: dict[int, tuple[str, tuple[int, int]]],
    labels: dict[int, tuple[np.ndarray, np.ndarray]],
    shapes: ImageRles | None = None,
) -> CocoGroundTruth:
    """Return the truth of `labels`, (n, 4) xyxy in original pixels and (n,) classes per image index.

    `images` maps indices to path and (height, width). Areas are those of the masks `shapes`, without them of the boxes;
    nothing is a crowd.
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
        **_segmentation([shape for index in images for shape in shapes[index]] if shapes is not None else None),
    )
    json_ids = {index: coco_image_id(path) for index, (path, _) in images.items()}
    return CocoGroundTruth(data, {index: index for index in images}, tuple(range(len(names))), json_ids)


def _segmentation(shapes: list[dict[str, Any]] | None) -> dict[str, Any]:
    if shapes is None:
        return {}
    from pycocotools.mask import area

    return {"segmentation": shapes, "area": np.array([float(area(shape)) for shape in shapes])}


def ground_truth_from_file(path: Path, names: Sequence[str], images: dict[int, str]) -> CocoGroundTruth:
    """Return the truth of a COCO JSON for `images`, index -> path; crowds count as COCO has it.

    Classes are matched by name, in whole or, with as many categories as classes, by order; images by file name. A
    file that cannot be read, or that matches neither, raises UserError; images it does not know are left out with a
    warning.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such COCO annotations file")
    try:
        data = _coco_class()(str(path))
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as COCO annotations ({_one_line(error)})") from error
    category_ids = match_categories(path, names, [data.cats[key] for key in sorted(data.cats)])
    by_stem = {Path(image.get("file_name") or str(key)).stem: key for key, image in data.imgs.items()}
    image_ids = {}
    for index, image_path in images.items():
        called = coco_image_id(image_path)
        found = by_stem.get(Path(image_path).stem, called if isinstance(called, int) and called in data.imgs else None)
        if found is not None:
            image_ids[index] = found
    if images and not image_ids:
        first = Path(next(iter(images.values()))).name
        raise UserError(f"{path}: describes none of the {len(images)} images, such as {first}; is it of another split?")
    if len(image_ids) < len(images):
        LOGGER.warning(
            f"{path}: {len(images) - len(image_ids)} of {len(images)} images are not in it, leaving them out"
        )
    # The file's own ids in predictions, too: what is saved can then be evaluated against this file.
    json_ids = {index: image_ids.get(index, coco_image_id(image_path)) for index, image_path in images.items()}
    return CocoGroundTruth(data, image_ids, category_ids, json_ids)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def prediction_rows(
    truth: CocoGroundTruth, found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]], shapes: ImageRles | None = None
) -> list[dict[str, Any]]:
    """Return COCO-format predictions of `found`: per image index (n, 4) xyxy, (n,) scores, (n,) classes (6.4)."""
    rows: list[dict[str, Any]] = []
    for index, (boxes_xyxy, scores, classes) in found.items():
        boxes, rounded = _rounded(boxes_xyxy, scores)
        name = truth.json_ids[index]
        rows.extend(
            {"image_id": name, "category_id": truth.category_ids[int(label)], "bbox": box, "score": score}
            for label, box, score in zip(classes.tolist(), boxes.tolist(), rounded.tolist(), strict=True)
        )
        if shapes is not None:
            for row, shape in zip(rows[len(rows) - len(classes) :], shapes[index], strict=True):
                row["segmentation"] = shape
    return rows


def _rounded(boxes_xyxy: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes = xyxy_to_xywh(boxes_xyxy.astype(np.float64))
    return np.round(boxes, 3), np.round(scores.astype(np.float64), 5)


def write_predictions(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write COCO-format predictions in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(rows, separators=(",", ":")), encoding="utf-8")


def coco_metrics(
    truth: CocoGroundTruth, found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]], shapes: ImageRles | None = None
) -> dict[str, float]:
    """Return COCO's twelve numbers of `found`: per image index (n, 4) xyxy, (n,) scores, (n,) classes.

    With `shapes`, the masks of the same objects, masks are compared; the truth must have some, too.

    Values are rounded as in a predictions file first, so that evaluating the saved file gives the same numbers.
    """
    from hotcoco import COCOeval

    kept = [index for index in found if index in truth.image_ids]
    ids = [truth.image_ids[index] for index in kept]
    if not ids:
        return dict.fromkeys(COCO_NAMES, -1.0)
    tables = [np.zeros((0, 7))]
    categories = np.asarray(truth.category_ids, dtype=np.float64)
    for index, image_id in zip(kept, ids, strict=True):
        boxes_xyxy, scores, classes = found[index]
        if len(scores):
            boxes, rounded = _rounded(boxes_xyxy, scores)
            image = np.full((len(scores), 1), float(image_id))
            tables.append(np.hstack((image, boxes, rounded[:, None], categories[classes.astype(np.int64), None])))
    if shapes is None:
        evaluation = COCOeval(truth.data, truth.data.load_res(np.concatenate(tables)), "bbox")
    else:
        masks = [shape for index in kept for shape in shapes[index]]
        evaluation = COCOeval(truth.data, truth.data.load_res(np.concatenate(tables), segmentation=masks), "segm")
    evaluation.params.img_ids = sorted(ids)
    evaluation.params.cat_ids = sorted(set(truth.category_ids))
    evaluation.evaluate()
    evaluation.accumulate()
    curves: Any = evaluation.eval  # typed as if it could be missing after `accumulate`
    return _twelve(curves["precision"], curves["recall"])


def _twelve(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Return the numbers from COCO's arrays: precision (T, R, K, areas, counts) and recall (T, K, areas, counts)."""
    values = [precision[..., _ALL, _AT_100], precision[0, ..., _ALL, _AT_100], precision[5, ..., _ALL, _AT_100]]
    values += [precision[..., area, _AT_100] for area in (_SMALL, _MEDIUM, _LARGE)]
    values += [recall[..., _ALL, count] for count in (_AT_1, _AT_10, _AT_100)]
    values += [recall[..., area, _AT_100] for area in (_SMALL, _MEDIUM, _LARGE)]
    known = [part[part > -1] for part in values]
    return {name: float(part.mean()) if part.size else -1.0 for name, part in zip(COCO_NAMES, known, strict=True)}
