"""Settings of a training run as one frozen, checked record."""

import dataclasses
import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from utils.core.errors import UserError

OPTIMIZERS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSProp")  # what the help lists; files may add others
SCHEDULES = (
    "linear", "cosine", "exponential", "multi-step", "cosine-restarts", "polynomial", "one-cycle", "constant",
)  # fmt: skip
MINDSPORE_SCHEDULES = {  # its names to ours (behaviour.md 13.7)
    "exponential": "multi-step",
    "step": "multi-step",
    "multi_step": "multi-step",
    "cosine_annealing": "cosine",
    "cosine_annealing_V2": "cosine_annealing_V2",
    "cosine_annealing_sample": "cosine_annealing_sample",
}
SERVICES = ("tensorboard", "wandb", "mlflow", "clearml", "comet")  # what the help of --log lists
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MAX_IMAGE_PX = 16384  # no memory holds the feature maps of more
DESIGNS = ("psp", "bise", "lab", "base")  # of semantic heads
SEG_MODES = ("whole", "native", "crop")
MAX_SEED = 2**32 - 1  # what keys the random numbers of samples


def _fields_of(record: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return those of `values` that `record` has, with lists as tuples."""
    known = {field.name for field in fields(record)}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in known}


def check_semantic(design: str, base_size: int, mode: str) -> None:
    """Raise UserError if an option about classes of pixels has a value it does not take."""
    if design and design not in DESIGNS:
        raise UserError(f"--semantic {design}: one of {', '.join(DESIGNS)}")
    if base_size and not 32 <= base_size <= MAX_IMAGE_PX:
        raise UserError(f"--base-size {base_size}: from 32 to {MAX_IMAGE_PX} pixels")
    if mode not in SEG_MODES:
        raise UserError(f"--seg-mode {mode}: one of {', '.join(SEG_MODES)}")


@dataclass(frozen=True)
class TrainSettings:
    """What the options of a training script say; names are the options' (dashes become underscores)."""

    weights: str = ""
    cfg: str = ""
    data: str = "data/shapes.yaml"
    hyp: str = "hyp.scratch-low.yaml"
    epochs: int = 100
    batch_size: float = 16  # -1, or a share of the free memory below 1: chosen when the network is known
    imgsz: tuple[int, ...] = (640,)
    rect: bool = False
    resume: str = ""
    nosave: bool = False
    noval: bool = False
    val_start: int = 1
    val_interval: int = 1
    noautoanchor: bool = False
    noplots: bool = False
    cache: str | None = None
    image_weights: bool = False
    device: str = ""
    multi_scale: bool | tuple[int, ...] = False  # True: from half to one and a half times the size; or these sizes
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

    def __post_init__(self) -> None:
        if not self.auto_batch and (self.batch_size < 1 or self.batch_size % 1):
            raise UserError(f"--batch-size {self.batch_size:g}: a number of images, -1, or a share of memory like 0.8")
        for name, low in (("epochs", 1), ("workers", 0), ("patience", 0), ("save_steps", 0),
                          ("mosaic_window", 0), ("mask_ratio", 1), ("seg_interval", 1), ("resize_rate", 1),
                          ("val_start", 1), ("val_interval", 1), ("save_keep", 0)):  # fmt: skip
            if getattr(self, name) < low:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {low}")
        if not 1 <= len(self.imgsz) <= 2 or min(self.imgsz) < 32 or max(self.imgsz) > MAX_IMAGE_PX:
            sizes = " ".join(map(str, self.imgsz))
            raise UserError(f"--imgsz {sizes}: one size, or two (train, val), from 32 to {MAX_IMAGE_PX}")
        if not isinstance(self.multi_scale, bool) and not all(32 <= size <= MAX_IMAGE_PX for size in self.multi_scale):
            raise UserError(f"--multi-scale {' '.join(map(str, self.multi_scale))}: sizes from 32 to {MAX_IMAGE_PX}")
        if abs(self.seed) > MAX_SEED:
            raise UserError(f"--seed {self.seed}: from {-MAX_SEED} to {MAX_SEED}")
        if min(self.freeze, default=0) < 0:
            raise UserError(f"--freeze {' '.join(map(str, self.freeze))}: numbers of layers, from 0 up")
        choices = {"amp": PRECISIONS, "cache": (None, "ram", "disk", "val")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)}: one of {', '.join(filter(None, allowed))}")
        if self.quad and not self.auto_batch and self.batch_size % 4:
            raise UserError(f"--quad joins four images into one: --batch-size {self.batch_size} must divide by 4")
        self._check_schedule()
        self._check_pixels()
        self._check_overrides()

    @property
    def auto_batch(self) -> bool:
        """Tell whether the batch size is to be chosen by the device."""
        return self.batch_size == -1 or 0 < self.batch_size < 1

    @property
    def curve(self) -> str:
        """Return the name of the learning-rate curve."""
        return self.schedule or ("cosine" if self.cos_lr else "linear")

    def _check_schedule(self) -> None:
        if self.cos_lr and self.schedule not in ("", "cosine"):
            raise UserError(f"--cos-lr and --schedule {self.schedule}: give one of them")
        if any(later <= earlier for earlier, later in pairwise((0, *self.lr_epochs))):
            raise UserError(f"--lr-epochs {' '.join(map(str, self.lr_epochs))}: rising numbers from 1")
        for name, fits, allowed in (
            ("lr_gamma", 0 < self.lr_gamma <= 1, "above 0, at most 1"),
            ("lr_cycles", self.lr_cycles >= 1, "at least 1"),
            ("lr_power", 0 < self.lr_power <= 10, "above 0, at most 10"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, at most 1"),
            ("backbone_warmup", 0 <= self.backbone_warmup < math.inf, "at least 0"),
            ("slimming", 0 <= self.slimming < math.inf, "at least 0"),
        ):
            if not fits:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {allowed}")

    def _check_pixels(self) -> None:
        check_semantic(self.semantic, self.base_size, self.seg_mode)
        if not 0 < self.seg_share < 1:
            raise UserError(f"--seg-share {self.seg_share}: between 0 and 1, the share of a batch")
        if self.fitness and (min(self.fitness) < 0 or sum(self.fitness) <= 0):
            raise UserError(f"--fitness {' '.join(map(str, self.fitness))}: weights from 0 up, one of them above 0")

    def _check_overrides(self) -> None:
        """Check what replaces a hyper-parameter or a part of the model."""
        wanted = {
            "lr0": ("above 0", lambda value: 0 < value < math.inf),
            "decay": ("at least 0", lambda value: 0 <= value < math.inf),
            "dropout": ("from 0 to below 1", lambda value: 0 <= value < 1),
            "label_smoothing": ("from 0 to below 1", lambda value: 0 <= value < 1),
            "cutoff": ("at least 2 rows of the network", lambda value: value >= 2),
        }
        for name, (words, right) in wanted.items():
            value = getattr(self, name)
            if value is not None and not right(value):
                raise UserError(f"--{name.replace('_', '-')} {value}: {words}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainSettings":
        """Return the record of `values`; keys it does not have are left out, lists become tuples."""
        return cls(**_fields_of(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for files."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class ScoreSettings:
    """What the options of a validation script say."""

    weights: tuple[str, ...] = ()
    data: str = ""
    batch_size: int = 32
    imgsz: tuple[int, ...] = ()
    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    task: str = "val"
    single_cls: bool = False
    augment: bool = False
    verbose: bool | None = None  # print every class; None: when there are few
    save_txt: bool = False
    save_hybrid: bool = False
    save_conf: bool = False
    save_json: bool = False
    annotations: str = ""
    half: bool = False
    dnn: bool = False
    workers: int = 8
    noplots: bool = False
    segdata: str = ""
    base_size: int = 0
    seg_mode: str = "whole"
    seg_scales: tuple[float, ...] = ()
    seg_flip: bool = False
    seg_window: int = 0
    absent_as_zero: bool = False
    allow_label_faults: bool = False
    device: str = ""
    project: str = "runs/val"
    name: str = "exp"
    exist_ok: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: from 0 to 1")
        for name, low in (("batch_size", 1), ("max_det", 1), ("workers", 0)):
            if getattr(self, name) < low:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {low}")
        if len(self.imgsz) > 1 or (self.imgsz and not 32 <= self.imgsz[0] <= MAX_IMAGE_PX):
            raise UserError(f"--imgsz {' '.join(map(str, self.imgsz))}: one size from 32 to {MAX_IMAGE_PX}")
        check_semantic("", self.base_size, self.seg_mode)
        if any(not 0.1 <= scale <= 4 for scale in self.seg_scales):
            raise UserError(f"--seg-scales {' '.join(map(str, self.seg_scales))}: factors from 0.1 to 4")
        if self.seg_window and not 64 <= self.seg_window <= MAX_IMAGE_PX:
            raise UserError(f"--seg-window {self.seg_window}: from 64 to {MAX_IMAGE_PX} pixels")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ScoreSettings":
        """Return the record of `values`; keys it does not have are left out, lists become tuples."""
        return cls(**_fields_of(cls, values))
