"""Run a prediction program: open the network and the source, create the sinks, and start the prediction loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.errors import UserError
from utils.core.files import remove_if_empty, run_folder
from utils.core.log import LOGGER
from utils.programs.predict_options import PredictionKind, PredictOptions

if TYPE_CHECKING:  # modules that load torch are imported after parsing, so that --help is fast
    import numpy as np

    from utils.core.contracts import FrameSource, Results, Runner, Sink
    from utils.engine.predict import PredictReport
    from utils.plots.folder_guard import FolderGuard
    from utils.plots.semantic_style import SemanticStyle


def run_prediction(options: PredictOptions, kind: PredictionKind) -> PredictReport:
    """Run a prediction program.

    Args:
        options: Of the program.
        kind: Which program it is.

    Returns:
        Counts and times.

    Raises:
        UserError: The network, the source or an option is not usable.
        KeyboardInterrupt: The user stopped the prediction with Ctrl-C; files are complete.
    """
    _warn_ignored(options)
    settings = options.predict_settings()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # unreadable videos are reported by the source instead
    from models.class_names import count_text
    from utils.backends.open_weights import open_model, strip_weights
    from utils.core.device import configure_gpu, describe, select_device
    from utils.engine.predict import network_size, predict
    from utils.plots.draw import DrawStyle, annotate
    from utils.programs.semantic_prediction import check_outputs, draw_style, require_equal_sizes

    device = select_device(options.device)
    opened = open_model(options, device, Path(kind.runs))
    runner = opened.runner
    fixed = options.submit or options.save_as_video or runner.fixed_hw is not None
    configure_gpu(device, fixed_sizes=fixed, tf32=not options.no_tf32)
    _check_heads(runner, opened.paths[0], kind.requires)
    if not kind.whole_images:
        check_outputs(options, runner, opened.paths[0])
    default_px = opened.meta.get("imgsz") or max(spec.usual_px for spec in runner.specs.values())
    settings = replace(settings, image_hw=network_size(options.imgsz or [default_px], runner))
    trained_on = str(opened.meta.get("data") or "")
    source = _open_source(options, options.data or trained_on or kind.data)
    if options.save_as_video:
        require_equal_sizes(source)
    LOGGER.info(f"{opened.name} on {describe(device)}, {count_text(runner.specs)}")
    style = DrawStyle() if kind.whole_images else draw_style(options, runner, trained_on)
    folder, sinks = _create_sinks(options, runner, kind.requires, style.semantic)

    def draw(image: np.ndarray, results: Results) -> np.ndarray:
        return annotate(image, results, runner.names, style)

    with _watched(folder) as guards:
        report = predict(runner, source, settings, [*guards, *sinks], draw, device)
    _log_report(report)
    if options.update:
        strip_weights(opened.paths)
    if report.interrupted:
        raise KeyboardInterrupt
    if report.incomplete:
        raise UserError("; ".join(report.incomplete[:3]))
    return report


@contextmanager
def _watched(folder: Path | None) -> Iterator[list[FolderGuard]]:
    """Watch the output folder during a prediction and remove it if it remains empty.

    Raises:
        UserError: The folder vanished, so results are lost.
    """
    from utils.plots.folder_guard import FolderGuard

    if folder is None:
        yield []
        return
    guard = FolderGuard(folder)
    try:
        yield [guard]
        guard.check()
    finally:
        guard.release()
        remove_if_empty(folder)  # no image could be read


def _warn_ignored(options: PredictOptions) -> None:
    """Warn of options that only change files which are not written."""
    for option, given in (("--save-conf", options.save_conf), ("--save-format", options.save_format)):
        if given and not options.save_txt:
            LOGGER.warning(f"{option} is ignored: label files are only written with --save-txt")
    if not options.save_panoptic:
        for name in ("panoptic_conf", "panoptic_overlap", "min_stuff_area"):
            if getattr(options, name) != getattr(PredictOptions, name):
                LOGGER.warning(f"--{name.replace('_', '-')} is ignored: panoptic maps need --save-panoptic")


def _check_heads(runner: Runner, path: Path, requires: str) -> None:
    from utils.postprocess import POSTPROCESS

    for head in runner.specs:
        if head not in POSTPROCESS:
            raise UserError(f"{path}: predictions of the head {head!r} are not supported; add its post-processing")
    outputs = {"masks": any(spec.num_masks for spec in runner.specs.values()), "classes": "classify" in runner.specs}
    if requires and not outputs[requires]:
        what = {"masks": "mask head", "classes": "classification head"}[requires]
        raise UserError(f"{path}: has no {what} (its heads: {', '.join(runner.specs)}); use detect.py")


def _open_source(options: PredictOptions, data_yaml: str) -> FrameSource:
    """Open --source, or the validation images of a data set, which is generated first if necessary."""
    from utils.datasets import READERS
    from utils.datasets.sources.frame_sources import FileSource, open_source

    if options.source:
        return open_source(options.source, options.vid_stride)
    from utils.core.data_config import load_data
    from utils.datasets.generators import ensure_generated

    data = load_data(data_yaml)
    ensure_generated(data)
    paths = data.split("val")
    LOGGER.info(f"--source: not given, using the validation images of {data.source}: {paths[0]}")
    if paths[0].is_dir() or paths[0].suffix == ".tar":
        first = paths[0]  # the first folder or tar file
        return open_source(str(first / "*" / "*") if data.format == "folders" else str(first), options.vid_stride)
    return FileSource(READERS.get(data.format)(data, "val").images, options.vid_stride)  # list files have many forms


def _create_sinks(
    options: PredictOptions, runner: Runner, requires: str, style: SemanticStyle
) -> tuple[Path | None, list[Sink]]:
    """Create the sinks and, if any of them writes files, the run folder."""
    if requires == "classes" or set(runner.specs) == {"classify"}:
        return _class_sinks(options, runner)
    from utils.plots.prediction_sinks import JoinedVideoSink, WindowSink
    from utils.plots.semantic_overlay import colourize
    from utils.programs.semantic_prediction import semantic_sinks

    masks = requires == "masks"
    semantic = "semantic" in runner.specs
    boxes = any(spec.strides for spec in runner.specs.values())
    sinks: list[Sink] = []
    if options.view_img:
        sinks.append(WindowSink((lambda classes: colourize(classes, style)) if semantic else None))
    box_files = options.save_txt or options.save_crop or options.save_csv
    semantic_files = options.save_mask or options.submit or options.save_panoptic
    other_files = options.visualize or options.save_as_video or (masks and options.save_json)
    if options.nosave and not (semantic_files or other_files or (boxes and box_files)):
        return None, sinks
    factories = semantic_sinks(options, runner, style) if semantic else []  # may raise, so before the folder exists
    folder = run_folder(Path(options.project), options.name, options.exist_ok)
    sinks += _image_sinks(options, folder)
    if options.save_as_video:
        sinks.append(JoinedVideoSink(folder / "out.mp4"))
    sinks += [create(folder) for create in factories]
    if boxes:
        sinks += _box_sinks(options, runner, masks, folder)
    sinks += _feature_sinks(options, runner, folder)
    return folder, sinks


def _image_sinks(options: PredictOptions, folder: Path) -> list[Sink]:
    from utils.plots.prediction_sinks import ImageSink, VideoSink

    return [] if options.nosave else [ImageSink(folder), VideoSink(folder)]


def _feature_sinks(options: PredictOptions, runner: Runner, folder: Path) -> list[Sink]:
    from utils.backends.pytorch import record_feature_maps
    from utils.plots.features import FeatureSink

    return [FeatureSink(folder / "features", record_feature_maps(runner))] if options.visualize else []


def _box_sinks(options: PredictOptions, runner: Runner, masks: bool, folder: Path) -> list[Sink]:
    from utils.plots.mask_sinks import MaskCropSink, PolygonSink, RleSink
    from utils.plots.prediction_sinks import CropSink, CsvSink, TextSink

    sinks: list[Sink] = []
    if options.save_txt:
        labels = folder / "labels"
        polygons = PolygonSink(labels, options.save_conf) if masks else None
        sinks.append(polygons or TextSink(labels, options.save_conf, corners=options.save_format == 1))
    if options.save_crop:
        sinks.append((MaskCropSink if masks else CropSink)(folder / "crops", runner.names))
    if masks and options.save_json:
        sinks.append(RleSink(folder / "predictions.json", runner.names))
    if options.save_csv:
        sinks.append(CsvSink(folder / "predictions.csv", runner.names))
    return sinks


def _class_sinks(options: PredictOptions, runner: Runner) -> tuple[Path | None, list[Sink]]:
    """Create the sinks for networks that only classify whole images."""
    from utils.plots.classification_sinks import ClassTextSink
    from utils.plots.prediction_sinks import WindowSink

    for option, given in (("--save-crop", options.save_crop), ("--save-csv", options.save_csv)):
        if given:
            raise UserError(f"{option}: the network classifies whole images and has no boxes; leave {option} out")
    sinks: list[Sink] = [WindowSink()] if options.view_img else []
    if options.nosave and not options.save_txt and not options.visualize:
        return None, sinks
    folder = run_folder(Path(options.project), options.name, options.exist_ok)
    sinks += _image_sinks(options, folder)
    if options.save_txt:
        sinks.append(ClassTextSink(folder / "labels", runner.names))
    sinks += _feature_sinks(options, runner, folder)
    return folder, sinks


def _log_report(report: PredictReport) -> None:
    LOGGER.info(report.speed())
    for text in report.saved:
        LOGGER.info(f"saved {text}")
    if report.unreadable_files:
        LOGGER.warning(f"{report.unreadable_files} file(s) could not be read")
