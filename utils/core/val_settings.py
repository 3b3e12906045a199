"""Options of a validation run as a validated, frozen record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.core.segment_types import MergeSettings
from utils.core.train_settings import MAX_IMAGE_PX, check_semantic_size, known_fields, option_error


@dataclass(frozen=True)
class ValSettings:
    """Options of a validation script; field names are option names with underscores for dashes."""

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
    end_to_end: bool = False
    verbose: bool | None = None  # print a row per class; None: if there are few
    save_txt: bool = False
    save_hybrid: bool = False
    save_conf: bool = False
    save_json: bool = False
    annotations: str = ""
    half: bool = False
    dnn: bool = False
    compile: bool = False
    no_tf32: bool = False
    workers: int = 8
    noplots: bool = False
    segdata: str = ""
    base_size: int = 0
    seg_mode: str = "whole"
    seg_scales: tuple[float, ...] = ()
    seg_flip: bool = False
    seg_window: int = 0
    absent_as_zero: bool = False
    panoptic_conf: float = MergeSettings.confidence
    panoptic_overlap: float = MergeSettings.overlap
    min_stuff_area: int = MergeSettings.min_stuff_area
    allow_label_faults: bool = False
    device: str = ""
    project: str = "runs/val"
    name: str = "exp"
    exist_ok: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        for name in ("conf_thres", "iou_thres", "panoptic_conf", "panoptic_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise option_error(name, getattr(self, name), "from 0 to 1")
        for name, low in (("batch_size", 1), ("max_det", 1), ("workers", 0), ("min_stuff_area", 0)):
            if getattr(self, name) < low:
                raise option_error(name, getattr(self, name), f"at least {low}")
        if len(self.imgsz) > 1 or (self.imgsz and not 32 <= self.imgsz[0] <= MAX_IMAGE_PX):
            raise option_error("imgsz", self.imgsz, f"one size from 32 to {MAX_IMAGE_PX}")
        check_semantic_size(self.base_size, self.seg_mode)
        if any(not 0.1 <= scale <= 4 for scale in self.seg_scales):
            raise option_error("seg_scales", self.seg_scales, "factors from 0.1 to 4")
        if self.seg_window and not 64 <= self.seg_window <= MAX_IMAGE_PX:
            raise option_error("seg_window", self.seg_window, f"from 64 to {MAX_IMAGE_PX} pixels")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ValSettings":
        """Build the record from `values`; unknown keys are ignored, lists become tuples."""
        return cls(**known_fields(cls, values))
