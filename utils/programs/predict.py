"""What the scripts share that show what they find: their options, and how they become a prediction run."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.cli import add_device, add_download, add_image_size, add_run_folder, add_runtime, new_parser
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, run_folder
from utils.core.log import LOGGER
from utils.programs.semantic_options import (
    add_pixels,
    check_wishes,
    require_one_size,
    semantic_sinks,
    style,
)

if TYPE_CHECKING:  # what needs torch is imported after parsing, so that --help answers at once
    import numpy as np

    from utils.core.contracts import FrameSource, Results, Runner, Sink
    from utils.engine.predict import PredictReport, PredictSettings
    from utils.plots.semantic_overlay import SemanticStyle


def prediction_parser(description: str | None, masks: bool = False, **defaults: Any) -> argparse.ArgumentParser:
    """Return the options of a script that shows boxes or `masks`; `defaults` replaces their defaults."""
    parser = new_parser(description)
    add = parser.add_argument
    _add_what(parser, "else 640")
    add("--conf-thres", type=float, default=0.25, help="keep boxes with more confidence than this")
    add("--iou-thres", type=float, default=0.45, help="of boxes that overlap more than this, keep the best")
    add("--max-det", type=int, default=1000, help="keep at most this many boxes per image")
    add("--classes", nargs="+", type=int, default=None, help="keep only these class numbers")
    add("--agnostic-nms", action="store_true", help="suppress overlapping boxes of different classes too")
    _add_how(parser, augment="average over three scales and a flip", text="write a label file per image")
    add("--save-conf", action="store_true", help="put the confidence into label files")
    if masks:
        add("--retina-masks", action="store_true", help="make masks at the resolution of the image, with finer edges")
        add("--save-json", action="store_true", help="write all masks to predictions.json, as COCO run lengths")
    else:
        add("--save-format", type=int, choices=[0, 1], default=0, help="of label files: 0 = cx cy w h, 1 = x1 y1 x2 y2")
    add("--save-csv", action="store_true", help="write all boxes to predictions.csv")
    add("--save-crop", action="store_true", help="write every box as an image of its own")
    add_pixels(add)
    add("--line-thickness", type=int, default=3, help="width of box lines in pixels; 0: by image size")
    add("--hide-labels", action="store_true", help="draw boxes without text")
    add("--hide-conf", action="store_true", help="write no confidence at boxes")
    _add_where(parser, "runs/detect")
    parser.set_defaults(**defaults)
    return parser


def class_prediction_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a script that shows the classes of whole images (cli.md 2.12)."""
    parser = new_parser(description)
    _add_what(parser, "else 224")
    _add_how(parser, "average over the image and its mirror image", "write the five surest classes of each image")
    _add_where(parser, "runs/predict-cls")
    return parser


def _add_what(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add what looks at what, and how large."""
    add = parser.add_argument
    add("--weights", nargs="+", default=[], help="checkpoint; several form an ensemble; default: newest best.pt")
    add(
        "--source",
        default="",
        help="file, folder, pattern, list, URL, camera number, screen; default: images of --data",
    )
    add("--data", default="", help="data-set YAML whose validation images are taken; empty: the checkpoint's own")
    size = f"size of the input, or height and width; empty: the size it was trained at, {otherwise}"
    add_image_size(parser, [], size)


def _add_how(parser: argparse.ArgumentParser, augment: str, text: str) -> None:
    """Add how is computed, and what all scripts can show and write."""
    add = parser.add_argument
    add("--augment", action="store_true", help=augment)
    add_runtime(parser, "compute in half precision")
    add_device(parser)
    add("--vid-stride", type=int, default=1, help="take every n-th frame of videos")
    add("--view-img", action="store_true", help="show a window; q ends the run")
    add("--nosave", action="store_true", help="write no images and videos")
    add("--save-txt", action="store_true", help=text)
    add("--visualize", action="store_true", help="write the feature maps of every layer")


def _add_where(parser: argparse.ArgumentParser, project: str) -> None:
    """Add what becomes of the weights, and where results go."""
    parser.add_argument(
        "--update",
        action="store_true",
        help="afterwards rewrite the weights, in the native format, without optimizer state",
    )
    add_run_folder(parser, project)
    add_download(parser)


def predict_task(options: argparse.Namespace, runs: str, masks: bool = False) -> PredictReport:
    """Predict as `options` say; return what was done.

    Without weights it is the newest training below `runs` that predicts. With `masks` its network must find some, and
    what is written are masks.
    """
    from utils.engine.predict import PredictSettings

    for name in ("save_conf", "save_format"):
        if getattr(options, name, None) and not options.save_txt:
            LOGGER.warning(f"--{name.replace('_', '-')} changes label files, and there are none without --save-txt")
    settings = PredictSettings(
        confidence=options.conf_thres,
        iou=options.iou_thres,
        max_detections=options.max_det,
        classes=tuple(options.classes) if options.classes else None,
        agnostic=options.agnostic_nms,
        native_masks=masks and options.retina_masks,
    )
    if options.mask_opacity is not None and not 0 <= options.mask_opacity <= 1:
        raise UserError(f"--mask-opacity {options.mask_opacity}: from 0 to 1")
    return _predict(options, runs, settings, _Kind("masks" if masks else "", "data/shapes.yaml"))


def predict_classes(options: argparse.Namespace, runs: str) -> PredictReport:
    """Name the classes of whole images as `options` say; without weights the newest training below `runs` does."""
    from utils.engine.predict import PredictSettings

    return _predict(options, runs, PredictSettings(), _Kind("classes", "data/shapes-cls.yaml"))


@dataclass(frozen=True)
class _Kind:
    """What a script is for."""

    needs: str  # what its network must find: masks, classes, or "" for whatever it finds
    data: str  # images to look at when nobody says which

    @property
    def whole(self) -> bool:
        """Tell whether it is about whole images, and has only the options for these."""
        return self.needs == "classes"


def _predict(options: argparse.Namespace, runs: str, settings: PredictSettings, kind: _Kind) -> PredictReport:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its complaints about files are ours to make, in words
    import torch

    from models.class_names import in_words
    from utils.backends.open_weights import open_subject, strip_weights
    from utils.core.device import describe, select_device
    from utils.engine.predict import network_size, predict
    from utils.plots.draw import DrawStyle, annotate

    device = select_device(options.device)
    if device.type == "cuda" and not kind.whole and (options.submit or options.save_as_video):
        torch.backends.cudnn.benchmark = True  # all images have one size (behaviour.md 12.9)
    opened = open_subject(options, device, Path(runs))
    runner = opened.runner
    _check_heads(runner, opened.paths[0], kind.needs)
    if not kind.whole:
        check_wishes(options, runner, opened.paths[0])
    usual = opened.meta.get("imgsz") or max(spec.usual_px for spec in runner.specs.values())
    settings = replace(settings, image_hw=network_size(options.imgsz or [usual], runner))
    source = _source(options, str(options.data or opened.meta.get("data") or kind.data))
    if not kind.whole and options.save_as_video:
        require_one_size(source)
    LOGGER.info(f"{opened.name} on {describe(device)}, {in_words(runner.specs)}")
    look = DrawStyle() if kind.whole else style(options, runner, opened.meta)
    folder, sinks = _sinks(options, runner, kind.needs, look.semantic)

    def draw(image: np.ndarray, found: Results) -> np.ndarray:
        return annotate(image, found, runner.names, look)

    try:
        report = predict(runner, source, settings, sinks, draw, device)
    finally:
        if folder is not None:
            remove_if_empty(folder)  # nothing could be read
    _tell(report)
    if options.update:
        strip_weights(opened.paths)
    if report.interrupted:
        raise KeyboardInterrupt
    return report


def _check_heads(runner: Runner, path: Path, needs: str) -> None:
    from utils.postprocess import POSTPROCESS

    for head in runner.specs:
        if head not in POSTPROCESS:
            known = ", ".join(POSTPROCESS.names())
            raise UserError(f"{path}: what its head {head!r} finds cannot be shown here (known: {known})")
    finds = {"masks": any(spec.num_masks for spec in runner.specs.values()), "classes": "classify" in runner.specs}
    if needs and not finds[needs]:
        what = {"masks": "masks", "classes": "classes of whole images"}[needs]
        raise UserError(f"{path}: finds no {what} (its heads: {', '.join(runner.specs)}); use detect.py")


def _source(options: argparse.Namespace, data_yaml: str) -> FrameSource:
    """Return what --source names; without it the validation images of a data set, made first if generated."""
    from utils.datasets.sources.frame_sources import open_source

    if options.source:
        return open_source(options.source, options.vid_stride)
    from utils.core.data_config import load_data
    from utils.datasets.generators import ensure_generated

    data = load_data(data_yaml)
    ensure_generated(data)
    place = data.split("val")[0]
    LOGGER.info(f"no --source: validation images of {data.source}, {place}")
    return open_source(str(place / "*" / "*") if data.format == "folders" else str(place), options.vid_stride)


def _sinks(
    options: argparse.Namespace, runner: Runner, needs: str, look: SemanticStyle
) -> tuple[Path | None, list[Sink]]:
    """Return the run folder, if anything is written, and where predictions go."""
    if needs == "classes" or set(runner.specs) == {"classify"}:
        return _class_sinks(options, runner)
    masks = needs == "masks"
    from functools import partial

    from utils.plots.prediction_sinks import JoinSink, PictureSink, VideoSink, WindowSink
    from utils.plots.semantic_overlay import colourize

    pixels = "semantic" in runner.specs
    sinks: list[Sink] = []
    if options.view_img:
        sinks.append(WindowSink(partial(colourize, style=look) if pixels else None))
    boxes = any(spec.strides for spec in runner.specs.values())
    wanted = [not options.nosave, options.visualize, options.save_mask, options.submit, options.save_as_video]
    wanted += [boxes and wish for wish in (options.save_txt, options.save_crop, options.save_csv)]
    if not any((*wanted, masks and options.save_json)):
        return None, sinks
    writers = semantic_sinks(options, runner, look) if pixels else []  # refuses before there is a folder
    folder = run_folder(Path(options.project), options.name, options.exist_ok)
    if not options.nosave:
        sinks += [PictureSink(folder), VideoSink(folder)]
    if options.save_as_video:
        sinks.append(JoinSink(folder / "out.mp4"))
    sinks += [make(folder) for make in writers]
    if boxes:
        sinks += _box_sinks(options, runner, masks, folder)
    if options.visualize:
        from utils.backends.pytorch import watch_layers
        from utils.plots.features import FeatureSink

        sinks.append(FeatureSink(folder / "features", watch_layers(runner)))
    return folder, sinks


def _box_sinks(options: argparse.Namespace, runner: Runner, masks: bool, folder: Path) -> list[Sink]:
    from utils.plots.mask_sinks import CutoutSink, OutlineSink, RunLengthSink
    from utils.plots.prediction_sinks import CropSink, CsvSink, TextSink

    sinks: list[Sink] = []
    if options.save_txt:
        place = folder / "labels"
        text = OutlineSink(place, options.save_conf) if masks else None
        sinks.append(text or TextSink(place, options.save_conf, corners=options.save_format == 1))
    if options.save_crop:
        sinks.append((CutoutSink if masks else CropSink)(folder / "crops", runner.names))
    if masks and options.save_json:
        sinks.append(RunLengthSink(folder / "predictions.json", runner.names))
    if options.save_csv:
        sinks.append(CsvSink(folder / "predictions.csv", runner.names))
    return sinks


def _class_sinks(options: argparse.Namespace, runner: Runner) -> tuple[Path | None, list[Sink]]:
    """Return the same for networks that name the classes of whole images and nothing else."""
    from utils.backends.pytorch import watch_layers
    from utils.plots.classification_sinks import ClassTextSink
    from utils.plots.features import FeatureSink
    from utils.plots.prediction_sinks import PictureSink, VideoSink, WindowSink

    for name in ("save_crop", "save_csv"):
        if getattr(options, name, False):
            raise UserError(f"--{name.replace('_', '-')}: this network finds no boxes, only classes of whole images")
    sinks: list[Sink] = [WindowSink()] if options.view_img else []
    if options.nosave and not options.save_txt and not options.visualize:
        return None, sinks
    folder = run_folder(Path(options.project), options.name, options.exist_ok)
    if not options.nosave:
        sinks += [PictureSink(folder), VideoSink(folder)]
    if options.save_txt:
        sinks.append(ClassTextSink(folder / "labels", runner.names))
    if options.visualize:
        sinks.append(FeatureSink(folder / "features", watch_layers(runner)))
    return folder, sinks


def _tell(report: PredictReport) -> None:
    LOGGER.info(report.speed())
    for text in report.saved:
        LOGGER.info(f"saved {text}")
    if report.faults:
        LOGGER.warning(f"{report.faults} file(s) could not be read")
