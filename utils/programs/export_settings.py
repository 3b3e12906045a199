"""Options of export.py: the parser, and the typed record that the parsed options become."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from utils.core.cli import Options, add_device, add_download, add_flag, add_image_size, new_parser
from utils.core.errors import UserError


@dataclass(frozen=True)
class ExportSettings:
    """Options of export.py. The names are those of the options."""

    weights: tuple[str, ...] = ()
    include: tuple[str, ...] = ("torchscript",)
    deploy: tuple[str, ...] = ()
    output: str = ""
    data: str = ""
    source: str = ""
    imgsz: tuple[int, ...] = ()
    batch_size: int = 0
    device: str = "cpu"
    half: bool = False
    int8: bool = False
    max_drop: float = 0.02
    per_tensor: bool = False
    dynamic: bool = False
    static: bool = False
    with_preprocess: str = ""
    end_to_end: bool = False
    nms: bool = False
    agnostic_nms: bool = False
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    topk_per_class: int = 300
    topk_all: int = 300
    opset: int | None = None
    simplify: bool = False
    optimize: bool = False
    workspace: int = 4
    cache: str = ""
    mlmodel: bool = False
    keras: bool = False
    train: bool = False
    inplace: bool = False
    grid: bool = False
    verbose: bool = False
    allow_mismatch: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        for option, value in (("--conf-thres", self.conf_thres), ("--iou-thres", self.iou_thres)):
            if not 0 <= value <= 1:
                raise UserError(f"{option} expects a number from 0 to 1, got {value}")
        for option, number, minimum in (
            ("--batch-size", self.batch_size, 0),
            ("--topk-per-class", self.topk_per_class, 1),
            ("--topk-all", self.topk_all, 1),
            ("--workspace", self.workspace, 1),
        ):
            if number < minimum:
                raise UserError(f"{option} expects a number of at least 1, got {number}")
        conflicts = (
            (self.dynamic and self.static, "--dynamic and --static: input sizes are either dynamic or fixed; give one"),
            (self.half and self.int8, "--half and --int8: a file has one precision; give one"),
            (self.keras, "--keras: Keras files are not supported; the nearest format is --include tflite"),
            (self.train, "--train: exported files always have decoded outputs; train from a checkpoint with train.py"),
            (self.agnostic_nms and not self.nms, "--agnostic-nms: the file contains no NMS; give --nms too"),
        )
        for is_conflict, message in conflicts:
            if is_conflict:
                raise UserError(message)

    @property
    def precision(self) -> str:
        """Precision of the files: fp32, fp16 or int8."""
        return "int8" if self.int8 else "fp16" if self.half else "fp32"


def export_parser(description: str | None) -> argparse.ArgumentParser:
    """Create the parser of export.py."""
    parser = new_parser(description)
    _add_model_and_format(parser.add_argument_group("model and format"))
    _add_input(parser.add_argument_group("input"))
    _add_precision(parser.add_argument_group("precision"))
    _add_nms(parser.add_argument_group("non-maximum suppression"))
    _add_formats(parser.add_argument_group("single formats"))
    group = parser.add_argument_group("YOLOv5 compatibility")
    add_flag(group, "--keras", "not supported: Keras files are not written")
    add_flag(group, "--train", "not supported: exported files always have decoded outputs")
    add_flag(group, "--inplace", "no effect: boxes are decoded in the same way with and without it")
    add_flag(group, "--grid", "no effect: exported files always have decoded outputs")
    group = parser.add_argument_group("hardware and output")
    add_device(group)
    parser.set_defaults(device="cpu")
    add_flag(group, "--verbose", "show the messages of exporters (ONNX, TensorRT)")
    add_flag(group, "--allow-mismatch", "write files even if their outputs differ from PyTorch by more than the limits")
    return parser


def _add_model_and_format(group: Options) -> None:
    add = group.add_argument
    text = "checkpoints, each exported separately (default: the newest best.pt)"
    add("--weights", nargs="+", default=[], metavar="FILE", help=text)
    text = "formats to export to, see docs/export.md"
    add("--include", nargs="+", default=["torchscript"], metavar="FORMAT", help=text)
    text = "also write folders for other servers and the Hub: triton, ovms, deepstream, model-card, see docs/deploy.md"
    add("--deploy", nargs="+", default=[], metavar="TARGET", help=text)
    add("--output", default="", metavar="FOLDER", help="folder of the files (default: that of the checkpoint)")
    text = "data-set YAML for INT8 calibration, accuracy and the comparison with PyTorch (default: from the checkpoint)"
    add("--data", default="", metavar="FILE", help=text)
    text = "images for the comparison with PyTorch (default: from --data, else generated ones)"
    add("--source", default="", help=text)
    add_download(group)


def _add_input(group: Options) -> None:
    text = "input size, or height and width, in pixels (default: from the checkpoint, else 640)"
    add_image_size(group, [], text)
    text = "fixed number of images per call; 0: one, or any number where the format supports it"
    group.add_argument("--batch-size", type=int, default=0, metavar="N", help=text)
    text = "dynamic batch and image size, the default of ONNX, OpenVINO, TorchScript and .pt2 without --imgsz"
    add_flag(group, "--dynamic", text)
    add_flag(group, "--static", "fixed batch and image size")
    text = "input of (B, H, W, 3) bytes in this channel order (default: (B, 3, H, W) floats)"
    group.add_argument("--with-preprocess", nargs="?", const="rgb", default="", choices=["rgb", "bgr"], help=text)


def _add_precision(group: Options) -> None:
    add_flag(group, "--half", "store weights in half precision")
    add_flag(group, "--int8", "quantize convolutions to 8-bit integers, calibrated on training images of --data")
    text = "largest allowed loss of mAP50-95 (or top-1 accuracy) with --int8"
    group.add_argument("--max-drop", type=float, default=0.02, metavar="X", help=text)
    add_flag(group, "--per-tensor", "use one INT8 scale per tensor instead of one per channel")


def _add_nms(group: Options) -> None:
    add = group.add_argument
    add_flag(group, "--end-to-end", "export with the duplicate filter: (B, 300, 6) boxes, scores, classes without NMS")
    add_flag(group, "--nms", "include non-maximum suppression in the file; the options below need it")
    add_flag(group, "--agnostic-nms", "apply NMS across classes")
    add("--conf-thres", type=float, default=0.25, metavar="P", help="confidence threshold")
    add("--iou-thres", type=float, default=0.45, metavar="IOU", help="IoU threshold of NMS")
    text = "maximum number of detections per class and image"
    add("--topk-per-class", type=int, default=300, metavar="N", help=text)
    add("--topk-all", type=int, default=300, metavar="N", help="maximum number of detections per image")


def _add_formats(group: Options) -> None:
    add = group.add_argument
    add("--opset", type=int, default=None, metavar="N", help="ONNX operator set (default: 17)")
    add_flag(group, "--simplify", "simplify the ONNX graph with onnxslim")
    add_flag(group, "--optimize", "optimize TorchScript for mobile devices")
    add("--workspace", type=int, default=4, metavar="GB", help="workspace memory of the TensorRT builder in GB")
    add("--cache", default="", metavar="FILE", help="TensorRT timing cache, read and updated (default: none)")
    add_flag(group, "--mlmodel", "write CoreML's older .mlmodel format instead of .mlpackage")
