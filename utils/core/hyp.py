"""Hyperparameters of a run as a validated, frozen record."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.core.errors import UserError, did_you_mean
from utils.core.files import ROOT
from utils.core.yaml_file import read_yaml

_PROBABILITIES = ("autobalance", "flipud", "fliplr", "mosaic", "mosaic9", "mixup", "copy_paste")
_NOT_NEGATIVE = (
    "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "box", "cls", "obj",
    "fl_gamma", "hsv_h", "hsv_s", "hsv_v", "degrees", "shear", "perspective", "label_smoothing", "seg", "det",
    "seg_dice", "seg_lovasz", "dense_box", "dense_cls", "dense_dfl", "dense_mask", "dense_semantic", "dense_seg",
    "distill", "warmup_min_steps", "close_mosaic",
)  # fmt: skip
SEMANTIC_LOSSES = ("ce", "ohem", "prob_ohem", "focal")
_MAY_BE_UNSET = ("anchors", "seg_threshold", "seg_aux", "seg_class_weights", "dense_class_weights")
_NOT_NUMBERS = ("seg_loss", "seg_aux", "seg_class_weights", "dense_class_weights")

SPACE_KEY = "search"  # block of hyperparameter files with the ranges of a search (tune.py)
_ABOVE_ZERO = ("lr0", "cls_pw", "obj_pw", "ema_ramp", "seg_lr")
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("scale", "translate", "warmup_momentum", "hsv_h", "hsv_s", "hsv_v"), (0, 1)),
    **dict.fromkeys(("momentum", "ema_decay"), (0, 0.9999)),
    **dict.fromkeys(("anchor_t", "seg_min_kept", "seg_gamma"), (1, math.inf)),
    "nominal_batch": (0, math.inf),
    "crop": (0.001, 1),
    "jitter": (0, 1),
    "degrees": (0, 180),
    "shear": (0, 89),
    **dict.fromkeys(("label_smoothing", "seg_label_smoothing"), (0, 0.999)),
}


def _check_signs(hyp: "Hyp") -> None:
    for name in _NOT_NEGATIVE:
        if getattr(hyp, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(hyp, name)}")
    for name in _ABOVE_ZERO:
        if getattr(hyp, name) <= 0:
            raise ValueError(f"{name} must be above 0, got {getattr(hyp, name)}")


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def _are_weights(values: object) -> bool:
    return isinstance(values, tuple) and bool(values) and all(_is_number(value) and value >= 0 for value in values)


def _check_dense(hyp: "Hyp") -> None:
    """Check the class weights of anchor-free heads."""
    weights = hyp.dense_class_weights
    if weights is not None and not (_are_weights(weights) and min(weights) > 0):
        raise ValueError(f"dense_class_weights must be a list of weights above 0, got {weights!r}")


def _check_semantic(hyp: "Hyp") -> None:
    """Check the hyperparameters of the semantic loss."""
    if hyp.seg_loss not in SEMANTIC_LOSSES:
        raise ValueError(f"seg_loss must be one of {', '.join(SEMANTIC_LOSSES)}, got {hyp.seg_loss!r}")
    if hyp.seg_loss == "focal" and hyp.seg_label_smoothing:
        raise ValueError("seg_label_smoothing is not supported by seg_loss: focal")
    if hyp.seg_threshold is not None and not 0 < hyp.seg_threshold < 1:
        raise ValueError(f"seg_threshold is a probability between 0 and 1, got {hyp.seg_threshold}")
    for name, wanted in (("seg_aux", "a number or a list"), ("seg_class_weights", "a name or a list")):
        value = getattr(hyp, name)
        if value is None or (isinstance(value, str) and name == "seg_class_weights"):
            continue
        weights = value if isinstance(value, tuple) else (value,) if name == "seg_aux" else ()
        if not _are_weights(weights):
            raise ValueError(f"{name} must be {wanted} of weights from 0, got {value!r}")
    if isinstance(hyp.seg_class_weights, tuple) and not any(hyp.seg_class_weights):
        raise ValueError("seg_class_weights: all weights are 0")


@dataclass(frozen=True)
class Hyp:
    """Keys of YOLOv5 hyperparameter files, with the defaults of `hyp.scratch-low.yaml`.

    Those from `seg` on are used by networks with a semantic head only.
    """

    lr0: float = 0.01  # initial learning rate
    lrf: float = 0.01  # final learning rate as a fraction of lr0
    momentum: float = 0.937  # SGD momentum, Adam beta1
    weight_decay: float = 0.0005
    nominal_batch: float = 64.0  # images per optimizer step, reached by gradient accumulation; 0: the batch size
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    warmup_min_steps: float = 100.0  # lower limit of the warmup in batches (rounded)
    ema_decay: float = 0.9999  # final weight of the old average of the weights
    ema_ramp: float = 2000.0  # optimizer steps in which it rises to 63 % of that
    close_mosaic: float = 0.0  # last epochs without mosaic and mixup (rounded)
    box: float = 0.05  # gains of the losses of heads with anchors
    cls: float = 0.5
    cls_pw: float = 1.0  # weights of positives in the cross-entropies
    obj: float = 1.0
    obj_pw: float = 1.0
    iou_t: float = 0.2  # unused, part of YOLOv5 files
    anchor_t: float = 4.0  # largest ratio of sides between a box and a matching anchor
    anchors: float | None = None  # number of anchors per level to fit (rounded); None: those of the model
    fl_gamma: float = 0.0  # focal loss
    label_smoothing: float = 0.0
    dense_box: float = 7.5  # gains of the losses of anchor-free heads
    dense_cls: float = 0.5
    dense_dfl: float = 1.5
    dense_class_weights: tuple[float, ...] | None = None  # weights of the classes in these losses
    dense_mask: float = 5.0  # of those with instance masks
    dense_semantic: float = 1.0
    dense_seg: float = 40.0  # factor of `seg` in networks with such heads, whose losses are larger by about as much
    distill: float = 1.0  # initial weight of the teacher's outputs with --distill
    autobalance: float = 0.0  # 1: balance the objectness losses of the levels during training
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mosaic9: float = 0.0  # fraction of mosaics with nine tiles
    mixup: float = 0.0
    copy_paste: float = 0.0
    crop: float = 0.08  # classification: minimum fraction of the area of a random crop
    jitter: float = 0.4  # classification: strength of brightness, contrast and saturation jitter
    seg: float = 0.35  # gain of the semantic loss
    det: float = 0.6  # gain of the box losses of networks that also have a semantic head
    seg_lr: float = 1.0  # learning rate of the semantic head, relative to that of the other layers
    seg_loss: str = "ce"  # ce, ohem, prob_ohem or focal
    seg_aux: float | tuple[float, ...] | None = None  # weights of auxiliary outputs; None: as published for seg_loss
    seg_class_weights: str | tuple[float, ...] | None = None  # name of a published set (deeplab), or one per class
    seg_label_smoothing: float = 0.0  # label_smoothing applies to boxes only
    seg_threshold: float | None = None  # probability below which ohem (None: 0.7) and prob_ohem (0.5) count pixels
    seg_min_kept: float = 256.0  # prob_ohem: minimum number of pixels that count (rounded)
    seg_gamma: float = 2.0  # of focal
    seg_dice: float = 0.0  # weights of additional overlap losses, 0: off
    seg_lovasz: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _NOT_NUMBERS or (value is None and field.name in _MAY_BE_UNSET):
                continue
            if not _is_number(value):
                raise ValueError(f"{field.name} must be a number, got {value!r}")
        _check_semantic(self)
        _check_dense(self)
        _check_signs(self)
        if self.anchors is not None and not 1 <= round(self.anchors) <= 100:
            raise ValueError(f"anchors is the number of anchors per level, 1 to 100, got {self.anchors}")
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, got {getattr(self, name)}")
        if 0 < self.nominal_batch < 1:
            raise ValueError(f"nominal_batch must be 0 or at least 1, got {self.nominal_batch}")
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1, got {getattr(self, name)}")
        if self.perspective > 0.01:
            raise ValueError(f"perspective must be at most 0.01, got {self.perspective}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> "Hyp":
        """Build the record from the values of a file.

        Raises:
            UserError: If a key is unknown or a value invalid; the message starts with `source`.
        """
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"{source}: unknown key {key!r}{did_you_mean(str(key), known)}")
        frozen: dict[str, Any] = dict(values)
        for key in _NOT_NUMBERS:
            if isinstance(frozen.get(key), list):
                frozen[key] = tuple(frozen[key])
        try:
            return cls(**frozen)
        except (ValueError, TypeError) as error:
            raise UserError(f"{source}: {error}") from error

    @classmethod
    def from_file(cls, path: Path) -> "Hyp":
        """Read a hyperparameter YAML; its block of search ranges is ignored."""
        values = read_yaml(path, "hyperparameter file")
        return cls.from_dict({key: value for key, value in values.items() if key != SPACE_KEY}, str(path))

    def to_dict(self) -> dict[str, Any]:
        """Convert the values that are set to plain values for files."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def scaled(self, num_levels: int, num_classes: int, image_size: int) -> "Hyp":
        """Scale the loss gains to the network and the data.

        The reference is three levels, 80 classes and 640 pixels: all gains are divided by the number of levels, the
        class gain is proportional to the number of classes, the objectness gain to the area of the images.
        """
        per_level = 3 / num_levels
        return replace(
            self,
            box=self.box * per_level,
            cls=self.cls * num_classes / 80 * per_level,
            obj=self.obj * (image_size / 640) ** 2 * per_level,
        )


def find_hyp(text: str) -> Path:
    """Find the file of `--hyp`: a path, or a name in data/hyps with or without prefix and suffix.

    Raises:
        UserError: If there is no such file.
    """
    names = (Path(text).name, f"{text}.yaml", f"hyp.{text}.yaml")
    for path in (Path(text), ROOT / text, *(ROOT / "data" / "hyps" / name for name in names)):
        if path.is_file():
            return path
    known = [path.name for path in (ROOT / "data" / "hyps").glob("*.yaml")]
    hint = did_you_mean(f"hyp.{text.removeprefix('hyp.').removesuffix('.yaml')}.yaml", known)
    raise UserError(f"{text}: no such hyperparameter file{hint or '; those of the project are in data/hyps/'}")
