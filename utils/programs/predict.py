"""What the scripts share that show what they find: their options, and how they become a prediction run."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.cli import add_device, add_download, add_image_size, add_run_folder, new_parser
from utils.core.errors import UserError
from utils.core.files import drop_if_empty, is_url, run_folder
from utils.core.log import LOGGER

if TYPE_CHECKING:  # what needs torch is imported after parsing, so that --help answers at once
    from collections.abc import Callable

    import numpy as np

    from utils.core.contracts import FrameSource, Results, Runner
    from utils.engine.predict import PredictReport, Sink
    from utils.plots.draw import DrawStyle
    from utils.plots.semantic import SemanticLook


def prediction_parser(description: str | None, masks: bool = False, **defaults: Any) -> argparse.ArgumentParser:
    """Return the options of a script that shows boxes or `masks`; `defaults` replaces their defaults."""
    parser = new_parser(description)
    add = parser.add_argument
    add("--weights", nargs="+", default=[], help="checkpoint; several form an ensemble; default: newest best.pt")
    add(
        "--source",
        default="",
        help="file, folder, pattern, list, URL, camera number, screen; default: images of --data",
    )
    add("--data", default="", help="data-set YAML whose validation images are taken; empty: the checkpoint's own")
    add_image_size(parser, [], "size of the input, or height and width; empty: the size it was trained at, else 640")
    add("--conf-thres", type=float, default=0.25, help="keep boxes with more confidence than this")
    add("--iou-thres", type=float, default=0.45, help="of boxes that overlap more than this, keep the best")
    add("--max-det", type=int, default=1000, help="keep at most this many boxes per image")
    add("--classes", nargs="+", type=int, default=None, help="keep only these class numbers")
    add("--agnostic-nms", action="store_true", help="suppress overlapping boxes of different classes too")
    add("--augment", action="store_true", help="average over three scales and a flip")
    add("--half", action="store_true", help="compute in half precision")
    add_device(parser)
    add("--vid-stride", type=int, default=1, help="take every n-th frame of videos")
    add("--view-img", action="store_true", help="show a window; q ends the run")
    add("--nosave", action="store_true", help="write no images and videos")
    add("--save-txt", action="store_true", help="write a label file per image")
    add("--save-conf", action="store_true", help="put the confidence into label files")
    if masks:
        add("--retina-masks", action="store_true", help="make masks at the resolution of the image, with finer edges")
        add("--save-json", action="store_true", help="write all masks to predictions.json, as COCO run lengths")
    else:
        add("--save-format", type=int, choices=[0, 1], default=0, help="of label files: 0 = cx cy w h, 1 = x1 y1 x2 y2")
    add("--save-csv", action="store_true", help="write all boxes to predictions.csv")
    add("--save-crop", action="store_true", help="write every box as an image of its own")
    add(
        "--save-mask",
        action="store_true",
        help="write classes of pixels: numbers to masks, colours to masks_colour",
    )
    add("--submit", action="store_true", help="write classes of pixels as Cityscapes' server takes them")
    add("--save-as-video", action="store_true", help="join the pictures of equally large images to out.mp4")
    add("--visualize", action="store_true", help="write the feature maps of every layer")
    add("--line-thickness", type=int, default=3, help="width of box lines in pixels; 0: by image size")
    add("--hide-labels", action="store_true", help="draw boxes without text")
    add("--hide-conf", action="store_true", help="write no confidence at boxes")
    add(
        "--mask-opacity",
        type=float,
        default=None,
        help="of colours over the image, 0 to 1; empty: 0.4 for classes of pixels, 0.5 for masks of objects",
    )
    add("--no-legend", action="store_true", help="do not say which colours the classes of pixels have")
    add(
        "--update",
        action="store_true",
        help="afterwards rewrite the weights, in the native format, without optimizer state",
    )
    add_run_folder(parser, "runs/detect")
    add_download(parser)
    parser.set_defaults(**defaults)
    return parser


def predict_task(options: argparse.Namespace, runs: str, masks: bool = False) -> PredictReport:
    """Predict as `options` say; return what was done.

    Without weights it is the newest training below `runs` that predicts. With `masks` its network must find some, and
    what is written are masks.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its complaints about files are ours to make, in words
    import torch

    from utils.backends.opening import open_subject, strip_weights
    from utils.core.device import describe, select_device
    from utils.engine.predict import PredictSettings, network_size, predict
    from utils.plots.draw import annotate

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
    device = select_device(options.device)
    if device.type == "cuda" and (options.submit or options.save_as_video):
        torch.backends.cudnn.benchmark = True  # all images have one size (behaviour.md 12.9)
    opened = open_subject(options, device, Path(runs))
    runner = opened.runner
    _check_heads(runner, opened.paths[0], masks)
    _check_wishes(options, runner, opened.paths[0])
    trained_at = opened.meta.get("imgsz") or 640
    settings = replace(settings, image_hw=network_size(options.imgsz or [trained_at], runner))
    source = _source(options, str(options.data or opened.meta.get("data") or "data/shapes.yaml"))
    if options.save_as_video:
        require_one_size(source)
    LOGGER.info(f"{opened.name} on {describe(device)}, {_classes_in_words(runner)}")
    style = _style(options, runner, opened.meta)
    folder, sinks = _sinks(options, runner, masks, style.semantic)

    def draw(image: np.ndarray, found: Results) -> np.ndarray:
        return annotate(image, found, runner.names, style)

    try:
        report = predict(runner, source, settings, sinks, draw, device)
    finally:
        if folder is not None:
            drop_if_empty(folder)  # nothing could be read
    _tell(report)
    if options.update:
        strip_weights(opened.paths)
    if report.interrupted:
        raise KeyboardInterrupt
    return report


def _check_heads(runner: Runner, path: Path, masks: bool) -> None:
    from utils.postprocess import POSTPROCESS

    for head in runner.specs:
        if head not in POSTPROCESS:
            known = ", ".join(POSTPROCESS.names())
            raise UserError(f"{path}: what its head {head!r} finds cannot be shown here (known: {known})")
    if masks and not any(spec.num_masks for spec in runner.specs.values()):
        raise UserError(f"{path}: finds no masks (its heads: {', '.join(runner.specs)}); use detect.py")


def _check_wishes(options: argparse.Namespace, runner: Runner, path: Path) -> None:
    """Refuse options for classes of pixels where the network finds none; warn of others that cannot do anything."""
    specs = runner.specs.values()
    pixels, boxes = "semantic" in runner.specs, any(spec.strides for spec in specs)
    heads = ", ".join(runner.specs)
    for name in ("save_mask", "submit"):
        if getattr(options, name) and not pixels:
            raise UserError(f"--{name.replace('_', '-')}: {path} finds no classes of pixels (its heads: {heads})")
    if options.mask_opacity is not None and not 0 <= options.mask_opacity <= 1:
        raise UserError(f"--mask-opacity {options.mask_opacity}: from 0 to 1")
    idle = ["no_legend"] if options.no_legend and not pixels else []
    if options.mask_opacity is not None and not pixels and not any(spec.num_masks for spec in specs):
        idle.append("mask_opacity")
    if not boxes:
        idle += [name for name in ("save_txt", "save_crop", "save_csv") if getattr(options, name)]
    for name in idle:
        what = "boxes" if name.startswith("save") else "classes of pixels" if name == "no_legend" else "masks"
        hint = "; --save-mask writes the classes of pixels" if what == "boxes" and pixels else ""
        LOGGER.warning(f"--{name.replace('_', '-')} does nothing: {path} finds no {what} (its heads: {heads}){hint}")


def _classes_in_words(runner: Runner) -> str:
    """Return `80 classes`, or of several heads `80 classes of detect, 19 classes of semantic`."""
    if len(runner.specs) == 1:
        return f"{len(runner.names)} classes"
    return ", ".join(f"{spec.num_classes} classes of {name}" for name, spec in runner.specs.items())


def _style(options: argparse.Namespace, runner: Runner, meta: dict[str, Any]) -> DrawStyle:
    """Return how things are drawn; the colours of pixels are those of the data set, if it is there and has its own."""
    from utils.plots.draw import DrawStyle
    from utils.plots.semantic import SemanticLook

    semantic = SemanticLook(legend=not options.no_legend)
    if "semantic" in runner.specs:
        given = _given_colours(options.data, str(meta.get("data") or ""), runner.specs["semantic"].num_classes)
        semantic = replace(semantic, names=runner.specs["semantic"].names, given=given)
    style = DrawStyle(
        options.line_thickness or None,
        labels=not options.hide_labels,
        scores=not options.hide_conf,
        outline_masks=True,
        semantic=semantic,
    )
    if options.mask_opacity is None:
        return style
    return replace(style, opacity=options.mask_opacity, semantic=replace(semantic, opacity=options.mask_opacity))


def _given_colours(chosen: str, trained_on: str, num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return the colours of --data, or of the data set of the training if that is still there."""
    from utils.core.config import load_data

    try:
        semantic = load_data(chosen or trained_on).semantic
    except UserError:
        if chosen:
            raise
        return ()  # what it was trained on is no longer there, and not needed
    return semantic.palette if semantic is not None and len(semantic.names) == num_classes else ()


def require_one_size(source: FrameSource) -> None:
    """Raise UserError unless `source` has still images that all have one size; only their headers are read."""
    from utils.core.log import progress
    from utils.datasets.images import IMAGE_SUFFIXES, ImageFault, probe_image
    from utils.plots.sinks import other_size

    files = [Path(file) for file in getattr(source, "files", []) if not is_url(file)]
    stills = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not stills:
        raise UserError("--save-as-video joins the images of a folder or list; videos become videos without it")
    first: tuple[Path, tuple[int, int]] | None = None
    for file in progress(stills, text="sizes of the images"):
        try:
            image_hw = probe_image(file)
        except ImageFault:
            continue  # prediction says so and leaves it out
        first = first or (file, image_hw)
        if image_hw != first[1]:
            raise UserError(other_size(file, image_hw, *first))


def _source(options: argparse.Namespace, data_yaml: str) -> FrameSource:
    """Return what --source names; without it the validation images of a data set, made first if generated."""
    from utils.datasets.sources import open_source

    if options.source:
        return open_source(options.source, options.vid_stride)
    from utils.core.config import load_data
    from utils.datasets.generators import ensure

    data = load_data(data_yaml)
    ensure(data)
    place = data.split("val")[0]
    LOGGER.info(f"no --source: validation images of {data.source}, {place}")
    return open_source(str(place), options.vid_stride)


def _sinks(
    options: argparse.Namespace, runner: Runner, masks: bool, look: SemanticLook
) -> tuple[Path | None, list[Sink]]:
    """Return the run folder, if anything is written, and where predictions go."""
    from functools import partial

    from utils.plots.semantic import coloured
    from utils.plots.sinks import JoinSink, PictureSink, VideoSink, WindowSink

    pixels = "semantic" in runner.specs
    sinks: list[Sink] = []
    if options.view_img:
        sinks.append(WindowSink(partial(coloured, look=look) if pixels else None))
    boxes = any(spec.strides for spec in runner.specs.values())
    wanted = [not options.nosave, options.visualize, options.save_mask, options.submit, options.save_as_video]
    wanted += [boxes and wish for wish in (options.save_txt, options.save_crop, options.save_csv)]
    if not any((*wanted, masks and options.save_json)):
        return None, sinks
    writers = _semantic_sinks(options, runner, look) if pixels else []  # refuses before there is a folder
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


def _semantic_sinks(options: argparse.Namespace, runner: Runner, look: SemanticLook) -> list[Callable[[Path], Sink]]:
    """Return what makes, in a run folder, the destinations of classes of pixels."""
    from utils.plots.semantic_sinks import ClassMapSink, SubmitSink, cityscapes_ids

    makers: list[Callable[[Path], Sink]] = []
    if options.save_mask:
        makers.append(lambda folder: ClassMapSink(folder, look))
    if options.submit:
        spec = runner.specs["semantic"]
        ids = cityscapes_ids(spec.names, spec.num_classes)
        makers.append(lambda folder: SubmitSink(folder / "results", ids))
    return makers


def _box_sinks(options: argparse.Namespace, runner: Runner, masks: bool, folder: Path) -> list[Sink]:
    from utils.plots.mask_sinks import CutoutSink, OutlineSink, RunLengthSink
    from utils.plots.sinks import CropSink, CsvSink, TextSink

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


def _tell(report: PredictReport) -> None:
    LOGGER.info(report.speed())
    for text in report.saved:
        LOGGER.info(f"saved {text}")
    if report.faults:
        LOGGER.warning(f"{report.faults} file(s) could not be read")
