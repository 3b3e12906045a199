"""Draw docs/images/hero.jpg from the labels of a generated scene: `python docs/draw_hero.py`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HERO = ROOT / "docs" / "images" / "hero.jpg"
PANEL_PX = 440
SEED = 1
FONT_PX = 15
GAP_PX = 8
LARGE_PX = 900  # area of a segment that is easy to see


def generate_scene(folder: Path, side: int) -> tuple[np.ndarray, np.ndarray, list[int], tuple[str, ...], int]:
    """Generate scenes with panoptic labels and choose the one with the most objects.

    Args:
        folder: Folder for the data set.
        side: Size of the scene in pixels.

    Returns:
        (H, W, 3) BGR image, (H, W) position of the segment of each pixel plus 1 (0: void), the class of each segment,
        the class names, and the number of classes that are things.
    """
    from utils.core.data_config import load_data
    from utils.core.yaml_file import read_yaml, write_yaml
    from utils.datasets.generators import ensure_generated
    from utils.ops.panoptic import decode_ids

    values = read_yaml(ROOT / "data" / "shapes-panoptic.yaml") | {"path": "scenes"}
    values["generate"] |= {"train": 1, "val": 24, "size": side, "seed": SEED}
    write_yaml(folder / "hero.yaml", values)
    data = load_data(str(folder / "hero.yaml"))
    ensure_generated(data)
    annotations = json.loads(data.annotations["val"].read_text(encoding="utf-8"))
    things = {category["id"]: category["isthing"] for category in annotations["categories"]}
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    every = (*data.names, *data.semantic.names[len(data.names) :])
    wide = {image["id"] for image in annotations["images"] if image["width"] > image["height"]}
    scenes = [one for one in annotations["annotations"] if one["image_id"] in wide]
    chosen = max(scenes, key=lambda one: _variety(one["segments_info"], things))
    stem = Path(chosen["file_name"]).stem
    ids = decode_ids(cv2.imread(str(data.annotations["val"].with_suffix("") / chosen["file_name"])))
    segments = sorted(chosen["segments_info"], key=lambda one: -things[one["category_id"]])
    numbers = np.zeros(ids.shape, np.int32)
    for number, segment in enumerate(segments, 1):
        numbers[ids == segment["id"]] = number
    image = next((data.root / "images" / "val").glob(f"{stem}.*"))
    classes = [every.index(names[segment["category_id"]]) for segment in segments]
    return cv2.imread(str(image)), numbers, classes, every, len(data.names)


def _variety(segments: list[dict[str, int]], things: dict[int, int]) -> tuple[int, int]:
    """Count the large segments of stuff, up to two, and those of things."""
    large = [things[one["category_id"]] for one in segments if one["area"] >= LARGE_PX]
    return min(large.count(0), 2), large.count(1)


def place_label(
    taken: list[tuple[int, int, int, int]], box: tuple[int, int, int, int], size: tuple[int, int], width: int
) -> tuple[int, int]:
    """Find a place for a label at the upper or lower edge of a box or beside it, where it covers no other label.

    Args:
        taken: x, y, width, height of earlier labels; the new one is added.
        box: x1, y1, x2, y2.
        size: Width and height of the label.
        width: Width of the image.

    Returns:
        x, y of the upper left corner.
    """
    x1, y1, x2, y2 = box
    wide, high = size
    candidates = [
        (max(0, min(x, width - wide)), y)
        for y in (y1 - high, y1, y2 - high, y2)
        for x in (x1, x2 - wide, x2 + 1, x1 - wide)
        if y >= 0
    ]
    free = [
        (x, y)
        for x, y in candidates
        if not any(x < left + w and left < x + wide and y < top + h and top < y + high for left, top, w, h in taken)
    ]
    corner = (free or candidates)[0]
    taken.append((*corner, wide, high))
    return corner


def draw_hero(path: Path = HERO, side: int = PANEL_PX) -> Path:
    """Draw boxes, instance masks, semantic and panoptic map of one scene in a square of four panels.

    Args:
        path: JPEG to write.
        side: Size of the scene in pixels.

    Returns:
        The path.
    """
    from utils.core.segment_types import PanopticMap, Segment
    from utils.plots.draw import draw_box, draw_masks, palette_colour, text_colour_on
    from utils.plots.panoptic_sink import draw_panoptic
    from utils.plots.semantic_overlay import colourize
    from utils.plots.semantic_style import SemanticStyle
    from utils.plots.text_rendering import put_text, text_mask

    with tempfile.TemporaryDirectory() as folder:
        image, numbers, classes, names, things = generate_scene(Path(folder), side)
    style = SemanticStyle(names=names, opacity=0.6, legend=False)
    boxes, taken = image.copy(), []
    objects = [number for number, label in enumerate(classes, 1) if label < things]
    extents = {number: cv2.boundingRect((numbers == number).astype(np.uint8)) for number in objects}
    corners = {number: (x, y, x + w - 1, y + h - 1) for number, (x, y, w, h) in extents.items()}
    for number in objects:
        draw_box(boxes, corners[number], palette_colour(classes[number - 1]), 2)
    for number in objects:
        text, colour = names[classes[number - 1]], palette_colour(classes[number - 1])
        high, wide = (value + pad for value, pad in zip(text_mask(text, FONT_PX).shape, (4, 8), strict=True))
        x, y = place_label(taken, corners[number], (wide, high), image.shape[1])
        boxes[y : y + high, x : x + wide] = colour
        put_text(boxes, text, (x + 4, y + 2), FONT_PX, text_colour_on(colour))
    masks = image.copy()
    draw_masks(
        masks, np.array([numbers == number for number in objects]), [palette_colour(number) for number in objects],
        0.6, outline=True,
    )  # fmt: skip
    semantic = colourize(np.array([255, *classes], np.uint8)[numbers], style)
    segments = [
        Segment(number, label, label < things, int((numbers == number).sum()))
        for number, label in enumerate(classes, 1)
    ]
    panoptic = draw_panoptic(image, PanopticMap(numbers, tuple(segments)), style)
    titled = []
    for title, panel in (
        ("detection", boxes), ("instance segmentation", masks), ("semantic segmentation", semantic),
        ("panoptic segmentation", panoptic),
    ):  # fmt: skip
        strip = np.full((FONT_PX + 10, panel.shape[1], 3), 255, np.uint8)
        put_text(strip, title, (2, 4), FONT_PX, (60, 60, 60))
        titled.append(np.vstack([panel, strip]))
    gap = np.full((titled[0].shape[0], GAP_PX, 3), 255, np.uint8)
    rows = [np.hstack([titled[i], gap, titled[i + 1]]) for i in (0, 2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return path


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    draw_hero()
