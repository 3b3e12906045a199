"""Draw docs/images/hero.jpg from the labels of a generated scene: `python docs/draw_hero.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HERO = ROOT / "docs" / "images" / "hero.jpg"
PANEL_PX = 400
SEED = 11


def draw_hero(path: Path = HERO, side: int = PANEL_PX) -> Path:
    """Draw boxes, instance masks and the semantic map of one scene side by side.

    Args:
        path: JPEG to write.
        side: Size of the scene in pixels.

    Returns:
        The path.
    """
    from utils.core.data_config import load_data
    from utils.core.yaml_file import write_yaml
    from utils.datasets.generators import ensure_generated
    from utils.plots.palette import palette
    from utils.plots.semantic_overlay import colourize
    from utils.plots.semantic_style import SemanticStyle

    with tempfile.TemporaryDirectory() as folder:
        names = list(load_data("shapes").names)
        splits = {"train": "images/train", "val": "images/val"}
        generate = {"kind": "shapes", "train": 1, "val": 12, "size": side, "seed": SEED}
        source = Path(folder) / "hero.yaml"
        write_yaml(source, {"path": "scenes", **splits, "names": names, "generate": generate})
        data = load_data(str(source))
        ensure_generated(data)
        labels = max(
            sorted((data.root / "labels" / "val").glob("*.txt")), key=lambda file: file.read_text().count("\n")
        )
        image = cv2.imread(str(data.root / "images" / "val" / f"{labels.stem}.jpg"))
        semantic = cv2.imread(str(data.root / "masks" / "val" / f"{labels.stem}.png"), cv2.IMREAD_GRAYSCALE)
        objects = [line.split() for line in labels.read_text().splitlines()]
    height, width = image.shape[:2]
    boxes, masks = image.copy(), image.copy()
    for number, (label, *points) in enumerate(objects):
        outline = (np.array(points, float).reshape(-1, 2) * (width, height)).round().astype(np.int32)
        colour = tuple(int(value) for value in palette(names)[int(label)][::-1])
        left, top, wide, high = cv2.boundingRect(outline)
        cv2.rectangle(boxes, (left, top), (left + wide, top + high), colour, 2, cv2.LINE_AA)
        text = names[int(label)]
        (text_wide, text_high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        baseline = max(top, text_high + 6)
        cv2.rectangle(boxes, (left - 1, baseline - text_high - 6), (left + text_wide + 5, baseline), colour, -1)
        cv2.putText(boxes, text, (left + 2, baseline - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        instance = tuple(int(value) for value in palette([str(i) for i in range(len(objects))])[number][::-1])
        layer = masks.copy()
        cv2.fillPoly(layer, [outline], instance, cv2.LINE_AA)
        masks = cv2.addWeighted(layer, 0.55, masks, 0.45, 0)
        cv2.polylines(masks, [outline], True, instance, 2, cv2.LINE_AA)
    coloured = colourize(semantic, SemanticStyle(names=(*names, "background")))
    gap = np.full((height, 8, 3), 255, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.hstack([boxes, gap, masks, gap, coloured]), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    draw_hero()
