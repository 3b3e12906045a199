"""Semantic segmentation in the prediction programs: checks of options, drawing style and sinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from utils.core.contracts import FrameSource, Runner, Sink
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.files import is_url
from utils.core.log import LOGGER, progress
from utils.core.segment_types import MergeSettings
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.ops.panoptic import PanopticMerger
from utils.plots.draw import DrawStyle
from utils.plots.panoptic_sink import PanopticSink
from utils.plots.prediction_sinks import size_mismatch
from utils.plots.semantic_sinks import CityscapesSink, SemanticMapSink, cityscapes_ids
from utils.plots.semantic_style import SemanticStyle
from utils.programs.predict_options import PredictOptions

SinkFactory = Callable[[Path], Sink]  # creates a sink in a run folder


def check_outputs(options: PredictOptions, runner: Runner, path: Path) -> None:
    """Check that the network has the outputs that options refer to.

    Args:
        options: Of the program.
        runner: The network.
        path: Its file, for messages.

    Raises:
        UserError: --save-mask or --submit without a semantic head. Other options without effect cause a warning.
    """
    specs = runner.specs.values()
    semantic, boxes = "semantic" in runner.specs, any(spec.strides for spec in specs)
    heads = ", ".join(runner.specs)
    if options.save_panoptic and not (semantic and any(spec.num_masks for spec in specs)):
        raise UserError(f"--save-panoptic: {path} needs a mask head and a semantic head (its heads: {heads})")
    for option, given in (("--save-mask", options.save_mask), ("--submit", options.submit)):
        if given and not semantic:
            raise UserError(f"{option}: {path} has no semantic head (its heads: {heads})")
    hint = "; --save-mask writes semantic maps" if semantic else ""
    ignored = [("--no-legend", "semantic head", "")] if options.no_legend and not semantic else []
    if options.mask_opacity is not None and not semantic and not any(spec.num_masks for spec in specs):
        ignored.append(("--mask-opacity", "masks", ""))
    if not boxes:
        box_options = {
            "--save-txt": options.save_txt,
            "--save-crop": options.save_crop,
            "--save-csv": options.save_csv,
        }
        ignored += [(option, "boxes", hint) for option, given in box_options.items() if given]
    for option, missing, more in ignored:
        LOGGER.warning(f"{option} is ignored: {path} has no {missing} (its heads: {heads}){more}")


def draw_style(options: PredictOptions, runner: Runner, trained_on: str) -> DrawStyle:
    """Create the drawing style of annotated images.

    Args:
        options: Of the program.
        runner: Its semantic classes are drawn.
        trained_on: Data-set YAML of the training, whose palette is used if --data is not given.

    Returns:
        The style; a palette of the data set is used if its file exists.
    """
    semantic = SemanticStyle(legend=not options.no_legend)
    if "semantic" in runner.specs:
        spec = runner.specs["semantic"]
        semantic = replace(semantic, names=spec.names, colours=_palette(options.data, trained_on, spec.num_classes))
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


def _palette(chosen: str, trained_on: str, num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Load the RGB palette of --data or of the training's data set; empty if there is none."""
    try:
        semantic = load_data(chosen or trained_on).semantic
    except UserError:
        if chosen:
            raise
        return ()  # the data set of the training is optional
    return semantic.palette if semantic is not None and len(semantic.names) == num_classes else ()


def require_equal_sizes(source: FrameSource) -> None:
    """Raise UserError unless all still images of a source have the same size; only file headers are read."""
    files = [Path(file) for file in getattr(source, "files", []) if not is_url(file)]
    stills = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not stills:
        raise UserError("--save-as-video: the source has no still images; videos are written without this option")
    first: tuple[Path, tuple[int, int]] | None = None
    for file in progress(stills, text="checking image sizes"):
        try:
            image_hw = probe_image(file)
        except ImageFault:
            continue  # the prediction loop reports and skips it
        first = first or (file, image_hw)
        if image_hw != first[1]:
            raise UserError(size_mismatch(file, image_hw, *first))


def semantic_sinks(options: PredictOptions, runner: Runner, style: SemanticStyle) -> list[SinkFactory]:
    """Create factories of the sinks for semantic maps; raise UserError for classes that --submit does not support."""
    factories: list[SinkFactory] = []
    if options.save_mask:
        factories.append(lambda folder: SemanticMapSink(folder, style))
    if options.submit:
        spec = runner.specs["semantic"]
        ids = cityscapes_ids(spec.names, spec.num_classes)
        factories.append(lambda folder: CityscapesSink(folder / "results", ids))
    if options.save_panoptic:
        names = next(spec.names for spec in runner.specs.values() if spec.num_masks) or runner.names
        settings = MergeSettings(options.panoptic_conf, options.panoptic_overlap, options.min_stuff_area)
        merger = PanopticMerger(names, style.names, settings)
        factories.append(lambda folder: PanopticSink(folder, merger, style))
    return factories
