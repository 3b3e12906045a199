"""Findings of checks, and their kinds: severity, title and advice."""

from __future__ import annotations

from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """Severity and texts that all findings of one kind share."""

    severity: str
    title: str
    advice: str


KINDS = {
    "split": Kind("error", "Unreadable splits", "Correct the data YAML, or download the data with --download."),
    "no-test": Kind("warning", "Missing test split", "Download it, or remove the key from the data YAML."),
    "unmapped": Kind("note", "Images without a semantic map", "Expected if only some images have a map."),
    "annotations": Kind("warning", "Annotation files with omissions", "Check whether the omitted entries matter."),
    "unreadable": Kind("error", "Unreadable images", "Replace or remove them; training skips them."),
    "truncated": Kind("error", "Truncated images", "Download them again; part of the image is missing."),
    "flat-end": Kind(
        "warning", "Images with a uniform lower part", "Often an interrupted download that was closed properly."
    ),
    "too-small": Kind("error", "Images with a side below 10 pixels", "Remove them; training skips them."),
    "blank": Kind("warning", "Images of a single colour", "Often a camera or conversion fault; remove them."),
    "turned": Kind(
        "warning",
        "Images rotated by EXIF",
        "Training applies the EXIF orientation; labels drawn on the unrotated image are wrong. Save such images "
        "upright (--fix does).",
    ),
    "suffix": Kind("note", "Image formats that differ from the suffix", "Rename them; other tools may reject them."),
    "label-fault": Kind("error", "Unreadable labels", "Correct the line; training skips the image."),
    "size-differs": Kind(
        "error", "Labels for another aspect ratio", "The image was rotated or cropped after it was labelled."
    ),
    "unknown-class": Kind("error", "Classes missing in the data YAML", "Add the name, or correct the label."),
    "degenerate": Kind(
        "warning", "Objects without area or outside the image", "They train nothing; remove these labels."
    ),
    "over-edge": Kind("warning", "Boxes that extend beyond the image", "Clip them to the image (--fix does)."),
    "duplicate-label": Kind("warning", "Repeated labels", "Remove the repetition; training ignores it."),
    "duplicate-box": Kind("warning", "Duplicate boxes on one object", "Same class, nearly the same box: remove one."),
    "tiny": Kind("note", "Objects below 3 pixels at the training size", "Train at a larger size, or remove them."),
    "odd-shape": Kind("note", "Boxes with an extreme aspect ratio", "A labelling slip or a thin object; review them."),
    "outline": Kind("warning", "Polygons that disagree with their boxes", "Correct the polygon or the box."),
    "flat-outline": Kind("warning", "Polygons without area", "Draw the polygon again."),
    "missing-label": Kind(
        "note", "Images without a label file", "Fine for background images; an empty file states it explicitly."
    ),
    "many-unlabelled": Kind("warning", "Many images without labels", "Check that the label folder is the right one."),
    "orphan-label": Kind("warning", "Labels without an image", "An image is missing or has another name."),
    "duplicate-image": Kind("warning", "Duplicate images in a split", "Remove the copies (--fix does)."),
    "near-duplicate": Kind("warning", "Near-duplicate images in a split", "Often video frames; they count repeatedly."),
    "conflict": Kind("error", "Identical images with different labels", "Decide which labels are right."),
    "leak": Kind(
        "error", "Identical images in two splits", "They inflate the scores; remove them from train (--fix does)."
    ),
    "near-leak": Kind(
        "warning", "Near-duplicate images in two splits", "They inflate the scores; keep such images in one split."
    ),
    "same-split": Kind("note", "Identical splits", "Fine for a test run; the scores are meaningless."),
    "mask": Kind("error", "Unusable semantic maps", "Correct them; training skips these images."),
    "mask-lacks-box": Kind("warning", "Boxes without pixels of their class", "Correct the box or the semantic map."),
    "box-lacks-mask": Kind("note", "Semantic regions without a box", "A missing box, or a crowd region."),
    "panoptic-ids": Kind(
        "error", "Panoptic maps with segments that the JSON does not list", "Add them, or remove the image."
    ),
    "panoptic-empty": Kind("warning", "Listed segments without pixels", "Remove them from the JSON."),
    "panoptic-area": Kind(
        "warning", "Segments whose stated area differs", "The map was changed after the JSON was written."
    ),
    "panoptic-void": Kind("warning", "Images that are mostly void", "Little of them can be learned; label or remove."),
    "panoptic-labelled": Kind("note", "Unlabelled pixels of panoptic maps", "They are neither learned nor evaluated."),
    "orphan-mask": Kind("warning", "Semantic maps without an image", "An image is missing or has another name."),
    "never-trained": Kind("warning", "Classes absent from train", "The network cannot learn them."),
    "empty-class": Kind("note", "Classes absent from the data set", "The network cannot learn them."),
    "imbalance": Kind("note", "Class imbalance", "Compare the scores per class, not only their mean."),
    "rare-class": Kind("note", "Classes with fewer than ten training objects", "Too few to learn or to evaluate."),
}


def counted(number: int, noun: str) -> str:
    """Format a number with its noun: `1 error`, `2 errors`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Finding:
    """One fault or remark about a data set."""

    kind: str  # a key of KINDS
    text: str
    split: str = ""
    image: str = ""  # path of the image concerned, empty if there is none
    others: tuple[str, ...] = ()  # further images concerned, such as duplicates
    boxes: tuple[tuple[float, float, float, float], ...] = ()  # objects concerned: cx, cy, w, h, normalised

    @property
    def severity(self) -> str:
        """Severity of the finding's kind."""
        return KINDS[self.kind].severity
