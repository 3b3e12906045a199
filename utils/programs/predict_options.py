"""Options of the prediction programs: their parsers, and the typed record that the parsed options become."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.core.cli import (
    Options,
    add_device,
    add_download,
    add_flag,
    add_image_size,
    add_run_folder,
    add_runtime,
    new_parser,
)
from utils.core.errors import UserError
from utils.programs.panoptic_options import add_merge_constants

if TYPE_CHECKING:  # needs torch
    from utils.engine.predict import PredictSettings


@dataclass(frozen=True)
class PredictionKind:
    """Differences between the prediction programs."""

    requires: str  # output that the network must have: masks, classes, or empty for any
    data: str  # data set to predict on if neither the user nor the checkpoint names one
    runs: str  # folder of the training runs whose newest best.pt is the default for --weights

    @property
    def whole_images(self) -> bool:
        """Whether the program classifies whole images and lacks the options for objects and semantic maps."""
        return self.requires == "classes"


DETECTION = PredictionKind("", "data/shapes.yaml", "runs/train")
SEGMENTATION = PredictionKind("masks", "data/shapes.yaml", "runs/train-seg")
CLASSIFICATION = PredictionKind("classes", "data/shapes-cls.yaml", "runs/train-cls")


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction program. The names are those of the options; programs lack some of them."""

    weights: tuple[str, ...] = ()
    source: str = ""
    data: str = ""
    imgsz: tuple[int, ...] = ()
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: tuple[int, ...] = ()
    agnostic_nms: bool = False
    augment: bool = False
    end_to_end: bool = False
    half: bool = False
    dnn: bool = False
    compile: bool = False
    no_tf32: bool = False
    device: str = ""
    vid_stride: int = 1
    view_img: bool = False
    nosave: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_format: int = 0
    save_csv: bool = False
    save_crop: bool = False
    save_json: bool = False
    save_mask: bool = False
    save_panoptic: bool = False
    panoptic_conf: float = 0.5
    panoptic_overlap: float = 0.5
    min_stuff_area: int = 4096
    submit: bool = False
    save_as_video: bool = False
    retina_masks: bool = False
    mask_opacity: float | None = None
    no_legend: bool = False
    line_thickness: int = 3
    hide_labels: bool = False
    hide_conf: bool = False
    visualize: bool = False
    update: bool = False
    project: str = "runs/detect"
    name: str = "exp"
    exist_ok: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        if self.mask_opacity is not None and not 0 <= self.mask_opacity <= 1:
            raise UserError(f"--mask-opacity expects a number from 0 to 1, got {self.mask_opacity}")
        for option, value in (("conf", self.panoptic_conf), ("overlap", self.panoptic_overlap)):
            if not 0 <= value <= 1:
                raise UserError(f"--panoptic-{option} expects a number from 0 to 1, got {value}")
        if self.min_stuff_area < 0:
            raise UserError(f"--min-stuff-area expects a number of pixels, got {self.min_stuff_area}")
        if self.visualize and self.compile:
            raise UserError("--visualize and --compile: a compiled network has no separate layers; give one of them")

    def predict_settings(self) -> PredictSettings:
        """Create the settings of the prediction loop, all but the size of the input."""
        from utils.engine.predict import PredictSettings

        return PredictSettings(
            confidence=self.conf_thres,
            iou=self.iou_thres,
            max_detections=self.max_det,
            classes=self.classes or None,
            agnostic=self.agnostic_nms,
            native_masks=self.retina_masks,
        )


def prediction_parser(description: str | None, masks: bool = False, **defaults: Any) -> argparse.ArgumentParser:
    """Create the parser of a program that predicts boxes or masks.

    Args:
        description: Of the program.
        masks: Add the options for instance masks.
        **defaults: Replace the defaults of options.

    Returns:
        The parser.
    """
    parser = new_parser(description)
    _add_model_and_source(parser.add_argument_group("model and source"), default_size=640)
    group = parser.add_argument_group("inference")
    add = group.add_argument
    add("--conf-thres", type=float, default=0.25, metavar="P", help="confidence threshold")
    add("--iou-thres", type=float, default=0.45, metavar="IOU", help="IoU threshold of NMS")
    add("--max-det", type=int, default=1000, metavar="N", help="maximum number of detections per image")
    text = "class indices to detect (default: all classes)"
    add("--classes", nargs="+", type=int, default=[], metavar="N", help=text)
    add_flag(group, "--agnostic-nms", "apply NMS across classes")
    add_flag(group, "--augment", "apply test-time augmentation: three scales, the middle one mirrored")
    add_flag(group, "--end-to-end", "use the duplicate filter of an anchor-free model instead of NMS")
    if masks:
        add_flag(group, "--retina-masks", "compute masks at the resolution of the image instead of the network input")
    add("--vid-stride", type=int, default=1, metavar="N", help="use every n-th frame of videos")
    group = parser.add_argument_group("output")
    add = group.add_argument
    _add_output(group, save_txt="write a label file per image")
    add_flag(group, "--save-conf", "append the confidence to the lines of label files")
    if masks:
        add_flag(group, "--save-json", "write all masks to predictions.json as COCO RLE")
    else:
        text = "box format in label files: 0 = cx cy w h, 1 = x1 y1 x2 y2"
        add("--save-format", type=int, choices=[0, 1], default=0, help=text)
    add_flag(group, "--save-csv", "write all boxes to predictions.csv")
    add_flag(group, "--save-crop", "write a cropped image of every box")
    add_flag(group, "--save-as-video", "join the annotated still images, which must have equal sizes, to out.mp4")
    group = parser.add_argument_group("semantic segmentation")
    add_flag(group, "--save-mask", "write semantic maps: class indices to masks, colours to masks_colour")
    add_flag(group, "--submit", "write semantic maps in the format of the Cityscapes evaluation server")
    add_flag(group, "--no-legend", "draw no legend of the semantic classes")
    if masks:
        _add_panoptic(parser.add_argument_group("panoptic segmentation (networks with masks and semantic maps)"))
    _add_drawing(parser.add_argument_group("drawing"))
    _add_hardware(parser)
    parser.set_defaults(**{"project": "runs/detect", **defaults})
    return parser


def class_prediction_parser(description: str | None) -> argparse.ArgumentParser:
    """Create the parser of a program that classifies whole images."""
    parser = new_parser(description)
    _add_model_and_source(parser.add_argument_group("model and source"), default_size=224)
    group = parser.add_argument_group("inference")
    add_flag(group, "--augment", "average over the image and its mirror image")
    group.add_argument("--vid-stride", type=int, default=1, metavar="N", help="use every n-th frame of videos")
    _add_output(parser.add_argument_group("output"), save_txt="write the five most probable classes of each image")
    _add_hardware(parser)
    parser.set_defaults(project="runs/predict-cls")
    return parser


def _add_model_and_source(group: Options, default_size: int) -> None:
    add = group.add_argument
    text = "checkpoints or exported files; several form an ensemble (default: the newest best.pt)"
    add("--weights", nargs="+", default=[], metavar="FILE", help=text)
    text = "file, folder, glob pattern, list file, URL, camera index or screen (default: images of --data)"
    add("--source", default="", help=text)
    text = "data-set YAML whose validation images are the default source (default: from the checkpoint)"
    add("--data", default="", metavar="FILE", help=text)
    text = f"inference size, or height and width, in pixels (default: from the checkpoint, else {default_size})"
    add_image_size(group, [], text)
    add_download(group)


def _add_output(group: Options, save_txt: str) -> None:
    add_run_folder(group, "runs/detect")
    add_flag(group, "--view-img", "show the annotated images in a window; q stops")
    add_flag(group, "--nosave --no-save", "write no annotated images and videos")
    add_flag(group, "--save-txt", save_txt)
    add_flag(group, "--visualize", "write the feature maps of every layer")
    add_flag(group, "--update", "rewrite the weights afterwards, in the native format and without optimizer state")


def _add_panoptic(group: Options) -> None:
    add_flag(group, "--save-panoptic", "write panoptic maps in COCO's format, and drawn to panoptic_colour")
    add_merge_constants(group)


def _add_drawing(group: Options) -> None:
    add = group.add_argument
    text = "line width of boxes in pixels; 0: depends on the image size"
    add("--line-thickness", type=int, default=3, metavar="PX", help=text)
    add_flag(group, "--hide-labels", "draw boxes without labels")
    add_flag(group, "--hide-conf", "draw labels without the confidence")
    text = "opacity of masks, 0 to 1 (default: 0.4 for semantic maps, 0.5 for instance masks)"
    add("--mask-opacity", type=float, default=None, metavar="A", help=text)


def _add_hardware(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("hardware and precision")
    add_device(group)
    add_runtime(group, "compute in half precision")
