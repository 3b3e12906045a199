"""What a check finds, and the kinds of findings: how bad each is, what it is called, what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """What findings of one kind have in common."""

    severity: str
    title: str
    advice: str


KINDS = {
    "split": Kind("error", "Splits that cannot be read", "Correct the YAML, or fetch the data (--download)."),
    "no-test": Kind("warning", "A test split that is not there", "Fetch it, or remove the key from the YAML."),
    "unmapped": Kind("note", "Images left out of the class maps", "Expected where only some images have a map."),
    "annotations": Kind("warning", "Oddities of annotation files", "Look at what was left out, and whether it should."),
    "unreadable": Kind("error", "Images that cannot be read", "Replace or remove them; training leaves them out."),
    "truncated": Kind("error", "Images that are cut short", "Fetch them again: part of the picture is missing."),
    "flat-end": Kind(
        "warning", "Images whose lower part is one colour", "A download that broke off, closed properly afterwards?"
    ),
    "too-small": Kind("error", "Images with a side below 10 pixels", "Remove them; training leaves them out."),
    "blank": Kind("warning", "Images of a single colour", "A fault of the camera or of a conversion? Remove them."),
    "turned": Kind(
        "warning",
        "Images turned by EXIF",
        "Training turns them as EXIF says; if the labels were drawn on the unturned picture, they are wrong. Save "
        "such images upright (--fix does).",
    ),
    "suffix": Kind("note", "Images of another format than their suffix says", "Rename them; other tools may refuse."),
    "label-fault": Kind("error", "Labels that cannot be read", "Correct the line; training leaves the image out."),
    "size-differs": Kind(
        "error", "Labels for an image of another shape", "The image was turned or cut after it was labelled."
    ),
    "unknown-class": Kind("error", "Classes that the YAML does not name", "Add the name, or correct the label."),
    "degenerate": Kind("error", "Objects without area, or outside the image", "Remove these labels."),
    "over-edge": Kind("warning", "Boxes that reach over the edge of the image", "Cut them at the edge (--fix does)."),
    "duplicate-label": Kind("warning", "Labels that stand twice", "Remove one; training does."),
    "twin-box": Kind("warning", "Two boxes on one object", "Same class and nearly the same place: remove one."),
    "tiny": Kind("note", "Objects below 3 pixels at the training size", "Train at a larger size, or leave them out."),
    "odd-shape": Kind("note", "Boxes far longer than wide", "A slip of the mouse, or a thin object? Look at them."),
    "outline": Kind("warning", "Outlines that disagree with their boxes", "One of the two is wrong."),
    "flat-outline": Kind("warning", "Outlines that enclose nothing", "Draw the outline again."),
    "missing-label": Kind(
        "note", "Images without a label file", "Fine for pictures without objects; an empty file says so on purpose."
    ),
    "many-unlabelled": Kind("warning", "Many images without labels", "Are the labels where they are looked for?"),
    "orphan-label": Kind("warning", "Labels without an image", "Is an image missing, or called otherwise?"),
    "duplicate-image": Kind("warning", "The same image file twice in a split", "Remove one (--fix does)."),
    "near-duplicate": Kind("warning", "Nearly equal images in a split", "Frames of a video? They count several times."),
    "conflict": Kind("error", "Equal images with different labels", "Decide which labels are right."),
    "leak": Kind(
        "error", "The same image in two splits", "It makes scores too good: remove it from train (--fix does)."
    ),
    "near-leak": Kind(
        "error", "Nearly equal images in two splits", "They make scores too good: keep such images in one split."
    ),
    "same-split": Kind("note", "Splits that are the same images", "Fine for trying things out; scores mean nothing."),
    "mask": Kind("error", "Class maps that cannot be used", "Training leaves these images out."),
    "mask-lacks-box": Kind("warning", "Boxes that the class map does not show", "One of the two is wrong."),
    "box-lacks-mask": Kind("note", "Regions of the class map without a box", "Was an object forgotten, or a crowd?"),
    "orphan-mask": Kind("warning", "Class maps without an image", "Is an image missing, or called otherwise?"),
    "never-trained": Kind("warning", "Classes that only validation shows", "The network cannot learn them."),
    "empty-class": Kind("note", "Classes without any object", "The network cannot learn them."),
    "imbalance": Kind("note", "Classes of very different frequency", "Look at each class's score, not only the mean."),
    "rare-class": Kind("note", "Classes with fewer than ten training objects", "Too few to learn or to judge."),
}


@dataclass(frozen=True)
class Finding:
    """One thing found. `boxes` are the objects it is about, (cx, cy, w, h) divided by the size of the image."""

    kind: str
    text: str
    split: str = ""
    image: str = ""  # path of the image it is about, "" if it is about none
    others: tuple[str, ...] = ()  # images that belong to it as well
    boxes: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def severity(self) -> str:
        """Return error, warning or note."""
        return KINDS[self.kind].severity
