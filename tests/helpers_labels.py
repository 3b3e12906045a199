"""Small labelled data sets in several formats, for tests of readers and converters."""

import json
from pathlib import Path

import cv2
import numpy as np

NAMES = ("cat", "dog")


def write_image(path: Path, seed: int = 0, size_hw: tuple[int, int] = (60, 80)) -> Path:
    """Write a noise image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), dtype=np.uint8))
    return path


def coco_file(path: Path, annotations: list[dict], images: int = 3, **more: object) -> Path:
    """Write a COCO JSON of images 0.png, 1.png, … (80 x 60, ids 10, 20, …) with the categories cat = 3, dog = 7."""
    rows = [{"id": 10 * (i + 1), "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(images)]
    full = [
        {"id": 100 + n, "image_id": 10, "category_id": 3, "bbox": [8, 6, 16, 12], "iscrowd": 0, **row}
        for n, row in enumerate(annotations)
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"annotations": full, "images": rows, "categories": categories, **more}))
    return path


def voc_file(path: Path, objects: list[tuple], size: tuple[int, int] = (80, 60), extra: str = "") -> Path:
    """Write a VOC file of (name, xmin, ymin, xmax, ymax, difficult)."""
    text = "".join(
        f"<object>\n<name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for name, x1, y1, x2, y2, difficult in objects
    )
    size_text = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{extra}<annotation><filename>x.jpg</filename>{size_text}\n{text}</annotation>\n")
    return path


def labelme_file(path: Path, shapes: list[dict], size_hw: tuple[int, int] = (60, 80)) -> Path:
    """Write a LabelMe file."""
    content = {"version": "5", "shapes": shapes, "imagePath": "..\\x\\y.jpg"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"imageHeight": size_hw[0], "imageWidth": size_hw[1], "imageData": None}))
    return path
