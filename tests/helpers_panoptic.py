"""Small panoptic data sets for tests."""

import json

import cv2
import numpy as np
from helpers_labels import write_image

from utils.core.data_config import load_data
from utils.core.yaml_file import write_yaml
from utils.ops.panoptic import encode_ids

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 90, "name": "grass", "isthing": 0},
]


def id_map(height=60, width=80):
    """Grass with a cat of 10 x 20 pixels, a dog of 20 x 10 pixels, a crowd of dogs and a void border on the left."""
    ids = np.full((height, width), 70_000, np.int32)
    ids[10:20, 30:50] = 1
    ids[30:50, 60:70] = 300
    ids[50:60, 20:40] = 5
    ids[:, :10] = 0
    return ids


SEGMENTS = [
    {"id": 70_000, "category_id": 90, "iscrowd": 0, "area": 60 * 70 - 600, "bbox": [10, 0, 70, 60]},
    {"id": 1, "category_id": 3, "iscrowd": 0, "area": 200, "bbox": [30, 10, 20, 10]},
    {"id": 300, "category_id": 7, "iscrowd": 0, "area": 200, "bbox": [60, 30, 10, 20]},
    {"id": 5, "category_id": 7, "iscrowd": 1, "area": 200, "bbox": [20, 50, 20, 10]},
]


def write_panoptic(root, count=1, segments=SEGMENTS, ids=None, categories=CATEGORIES, **yaml):
    """Write a panoptic data set of `count` images and return its YAML."""
    (root / "panoptic" / "train").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_image(root / "images" / f"{number}.jpg", number)  # 80 x 60
        cv2.imwrite(str(root / "panoptic" / "train" / f"{number}.png"), encode_ids(id_map() if ids is None else ids))
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 60, "width": 80} for n in range(count)],
        "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in range(count)],
        "categories": categories,
    }
    (root / "panoptic" / "train.json").write_text(json.dumps(content))
    values = {
        "format": "coco-panoptic",
        "train": "images",
        "val": "images",
        "annotations": {"train": "panoptic/train.json", "val": "panoptic/train.json"},
        "names": ["cat", "dog"],
        "stuff": ["grass"],
    }
    write_yaml(root / "data.yaml", values | yaml)
    return root / "data.yaml"


def panoptic_data(root, **options):
    """Write and load a panoptic data set."""
    return load_data(str(write_panoptic(root, **options)))
