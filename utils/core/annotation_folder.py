"""Detection of folders with Pascal VOC or LabelMe annotations, which name the classes in every file.

In `core` because `core.data_folder` explains what to do with such a folder.
"""

from __future__ import annotations

from pathlib import Path

NAMED_FORMATS = {"voc": "Pascal VOC", "labelme": "LabelMe"}
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_SPLITS = ("", "train", "val", "images", "images/train", "JPEGImages")  # where images are looked for


def find_named_format(root: Path) -> str:
    """Detect the format of the annotations in a folder.

    Args:
        root: The folder.

    Returns:
        `voc` for XML in `Annotations` or beside images, `labelme` for JSON beside images, "" for anything else.
    """
    if next((root / "Annotations").glob("*.xml"), None):
        return "voc"
    for folder in (root / name for name in _SPLITS):
        for suffix, found in ((".xml", "voc"), (".json", "labelme")):
            if any(_has_image(file) for file in folder.glob(f"*{suffix}")):
                return found
    return ""


def _has_image(file: Path) -> bool:
    return any(file.with_suffix(suffix).is_file() for suffix in _IMAGES)
