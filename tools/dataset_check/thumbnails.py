"""Thumbnails of findings, as data URLs for the HTML report."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np

from tools.dataset_check.findings import Finding
from tools.dataset_check.records import LabelRecord
from utils.datasets.image_files import ImageFault, read_image

_SIDE = 240  # pixels of the longer side
_QUALITY = 78
_RED, _BLUE, _WHITE = (
    (48, 48, 235),
    (225, 140, 30),
    (255, 255, 255),
)  # BGR
_MIN_BOX = 5  # pixels; smaller boxes get a ring around them


def render_thumbnail(path: str, finding: Finding, labelled: LabelRecord | None) -> str:
    """Render a thumbnail with the image's labels in thin blue and the finding's boxes in red.

    Returns:
        The data URL of a JPEG, empty if the image cannot be read.
    """
    try:
        image = read_image(Path(path))
    except ImageFault:
        return ""
    scale = _SIDE / max(image.shape[:2])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    own = finding.boxes if path == finding.image else ()
    if labelled is not None and path == labelled.image.path and not labelled.labels.faults:
        for box in labelled.labels.boxes[:, 1:]:
            _draw(image, tuple(box), _BLUE, 1)
    for box in own:
        _draw(image, box, _RED, 2)
    good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode() if good else ""


def _draw(image: np.ndarray, box: tuple[float, ...], colour: tuple[int, int, int], width: int) -> None:
    size = np.array(image.shape[1::-1])
    centre, half = np.array(box[:2]) * size, np.array(box[2:]) * size / 2
    low, high = (
        np.clip(np.round(corner), -2, size + 1).astype(int).tolist() for corner in (centre - half, centre + half)
    )
    cv2.rectangle(image, low, high, colour, width)
    if width > 1 and max(high[0] - low[0], high[1] - low[1]) < _MIN_BOX:
        middle = np.clip(np.round(centre), 0, size - 1).astype(int).tolist()
        cv2.circle(image, middle, 12, _WHITE, 4, cv2.LINE_AA)
        cv2.circle(image, middle, 12, colour, 2, cv2.LINE_AA)
