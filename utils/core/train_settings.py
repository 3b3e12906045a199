"""Options of a training run as a validated, frozen record."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from utils.core.errors import UserError

MINDSPORE_SCHEDULES = {  # MindSpore name -> name of the schedule
    "exponential": "multi-step",
    "step": "multi-step",
    "multi_step": "multi-step",
    "cosine_annealing": "cosine",
    "cosine_annealing_V2": "cosine_annealing_V2",
    "cosine_annealing_sample": "cosine_annealing_sample",
}
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MAX_IMAGE_PX = 16384  # feature maps of larger images do not fit into memory
SEG_MODES = ("whole", "native", "crop")  # see SemanticRequest.mode
_MINIMUM = {
    "epochs": 1, "workers": 0, "patience": 0, "save_steps": 0, "mosaic_window": 0, "mask_ratio": 1, "seg_interval": 1,
    "resize_rate": 1, "val_start": 1, "val_interval": 1, "save_keep": 0,
}  # fmt: skip
MAX_SEED = 2**32 - 1  # seeds are 32-bit keys of the random generators


def known_fields(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the `values` that are fields of the dataclass `record`, with lists converted to tuples."""
    known = {field.name for field in fields(record)}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in known}


def option_error(name: str, value: object, expected: str) -> UserError:
    """Create the error for a wrong value of the option that belongs to the field `name`."""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return UserError(f"--{name.replace('_', '-')} {text}: must be {expected}")


def check_semantic_size(base_size: int, mode: str) -> None:
    """Check `--base-size` and `--seg-mode`.

    Raises:
        UserError: If a value is out of range.
    """
    if base_size and not 32 <= base_size <= MAX_IMAGE_PX:
        raise option_error("base_size", base_size, f"from 32 to {MAX_IMAGE_PX} pixels")
    if mode not in SEG_MODES:
        raise option_error("seg_mode", mode, f"one of {', '.join(SEG_MODES)}")


@dataclass(frozen=True)
class TrainSettings:
    """Options of a training script; field names are option names with underscores for dashes."""

    weights: str = ""
    cfg: str = ""
    data: str = "data/shapes.yaml"
    hyp: str = "hyp.scratch-low.yaml"
    recipe: str = ""  # auto: fit optimizer, rates and augmentation to the data
    epochs: int = 100
    batch_size: float = 16  # -1 or a fraction of the free memory: chosen when the network is known
    imgsz: tuple[int, ...] = (640,)
    rect: bool = False
    resume: str = ""
    nosave: bool = False
    noval: bool = False
    val_start: int = 1
    val_interval: int = 1
    noautoanchor: bool = False
    end_to_end: bool = False  # add a duplicate filter
    distill: str = ""  # checkpoint of a teacher
    noplots: bool = False
    cache: str | None = None
    image_weights: bool = False
    device: str = ""
    multi_scale: bool | tuple[int, ...] = False  # True: 0.5 to 1.5 times the image size; or a list of sizes
    resize_rate: int = 1
    single_cls: bool = False
    optimizer: str = "SGD"
    sync_bn: bool = False
    workers: int = 8
    project: str = "runs/train"
    name: str = "exp"
    exist_ok: bool = False
    quad: bool = False
    mask_ratio: int = 4
    no_overlap: bool = False
    schedule: str = ""
    cos_lr: bool = False
    lr_epochs: tuple[int, ...] = ()
    lr_gamma: float = 0.1
    lr_cycles: int = 3
    lr_power: float = 0.9
    layer_decay: float = 1.0
    backbone_warmup: float = 0.0
    slimming: float = 0.0
    checkpointing: bool = False
    label_smoothing: float | None = None
    lr0: float | None = None
    decay: float | None = None
    dropout: float | None = None
    cutoff: int | None = None
    pretrained: bool = True
    verbose: bool = True
    patience: int = 100
    freeze: tuple[int, ...] = (0,)
    freeze_bn: bool = False
    save_period: int = -1
    save_keep: int = 0
    save_steps: int = 1000
    seed: int = 0
    amp: str = "auto"
    compile: bool = False
    deterministic: bool = False
    no_tf32: bool = False
    autobalance: bool = False
    mosaic_window: int = 64
    semantic: str = ""
    base_size: int = 0
    seg_mode: str = "whole"
    seg_share: float = 0.5
    seg_mosaic: bool = False
    seg_interval: int = 10
    fitness: tuple[float, ...] = ()
    allow_label_faults: bool = False
    profile: bool = False
    log: tuple[str, ...] = ()
    entity: str | None = None
    picture_interval: int = -1
    download: bool = False
    explicit: tuple[str, ...] = ()  # names of the options that the user gave, which a recipe leaves alone

    def __post_init__(self) -> None:
        if not self.auto_batch and (self.batch_size < 1 or self.batch_size % 1):
            raise option_error("batch_size", f"{self.batch_size:g}", "a number of images, -1, or a fraction of memory")
        for name, low in _MINIMUM.items():
            if getattr(self, name) < low:
                raise option_error(name, getattr(self, name), f"at least {low}")
        self._check_images()
        if abs(self.seed) > MAX_SEED:
            raise option_error("seed", self.seed, f"from {-MAX_SEED} to {MAX_SEED}")
        if min(self.freeze, default=0) < 0:
            raise option_error("freeze", self.freeze, "layer indices from 0")
        choices = {"recipe": ("", "auto"), "amp": PRECISIONS, "cache": (None, "ram", "disk", "val")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise option_error(name, getattr(self, name), f"one of {', '.join(filter(None, allowed))}")
        if self.quad and not self.auto_batch and self.batch_size % 4:
            raise UserError(f"--batch-size {self.batch_size}: must be a multiple of 4 with --quad, which joins images")
        self._check_schedule()
        self._check_semantic()
        self._check_overrides()

    @property
    def auto_batch(self) -> bool:
        """Whether the batch size is chosen by the device."""
        return self.batch_size == -1 or 0 < self.batch_size < 1

    @property
    def schedule_name(self) -> str:
        """Name of the learning-rate schedule."""
        return self.schedule or ("cosine" if self.cos_lr else "linear")

    def _check_images(self) -> None:
        if not 1 <= len(self.imgsz) <= 2 or min(self.imgsz) < 32 or max(self.imgsz) > MAX_IMAGE_PX:
            raise option_error("imgsz", self.imgsz, f"one size, or two (train, val), from 32 to {MAX_IMAGE_PX}")
        if not isinstance(self.multi_scale, bool) and not all(32 <= size <= MAX_IMAGE_PX for size in self.multi_scale):
            raise option_error("multi_scale", self.multi_scale, f"sizes from 32 to {MAX_IMAGE_PX}")

    def _check_schedule(self) -> None:
        if self.cos_lr and self.schedule not in ("", "cosine"):
            raise UserError(f"--cos-lr and --schedule {self.schedule}: exclude each other; give one of them")
        if any(later <= earlier for earlier, later in pairwise((0, *self.lr_epochs))):
            raise option_error("lr_epochs", self.lr_epochs, "ascending numbers from 1")
        for name, valid, expected in (
            ("lr_gamma", 0 < self.lr_gamma <= 1, "above 0 and at most 1"),
            ("lr_cycles", self.lr_cycles >= 1, "at least 1"),
            ("lr_power", 0 < self.lr_power <= 10, "above 0 and at most 10"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            ("backbone_warmup", 0 <= self.backbone_warmup < math.inf, "at least 0"),
            ("slimming", 0 <= self.slimming < math.inf, "at least 0"),
        ):
            if not valid:
                raise option_error(name, getattr(self, name), expected)

    def _check_semantic(self) -> None:
        check_semantic_size(self.base_size, self.seg_mode)
        if not 0 < self.seg_share < 1:
            raise option_error("seg_share", self.seg_share, "a fraction of the batch between 0 and 1")
        if self.fitness and (min(self.fitness) < 0 or sum(self.fitness) <= 0):
            raise option_error("fitness", self.fitness, "weights from 0, at least one above 0")

    def _check_overrides(self) -> None:
        """Check options that replace a hyperparameter or a part of the model."""
        checks = {
            "lr0": ("above 0", lambda value: 0 < value < math.inf),
            "decay": ("at least 0", lambda value: 0 <= value < math.inf),
            "dropout": ("at least 0 and below 1", lambda value: 0 <= value < 1),
            "label_smoothing": ("at least 0 and below 1", lambda value: 0 <= value < 1),
            "cutoff": ("at least 2 layers", lambda value: value >= 2),
        }
        for name, (expected, valid) in checks.items():
            value = getattr(self, name)
            if value is not None and not valid(value):
                raise option_error(name, value, expected)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainSettings":
        """Build the record from `values`; unknown keys are ignored, lists become tuples."""
        return cls(**known_fields(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for files; tuples become lists."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
