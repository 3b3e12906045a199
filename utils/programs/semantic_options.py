"""What the prediction scripts share about classes of pixels: their options, checks, looks and destinations."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.errors import UserError
from utils.core.files import is_url
from utils.core.log import LOGGER

if TYPE_CHECKING:  # what needs torch is loaded by the functions that use it
    from utils.core.contracts import FrameSource, Runner, Sink
    from utils.plots.draw import DrawStyle
    from utils.plots.semantic_overlay import SemanticStyle


def add_pixels(add: Any) -> None:
    """Add what is for classes of pixels."""
    add("--save-mask", action="store_true", help="write classes of pixels: numbers to masks, colours to masks_colour")
    add("--submit", action="store_true", help="write classes of pixels as Cityscapes' server takes them")
    add("--save-as-video", action="store_true", help="join the pictures of equally large images to out.mp4")
    add(
        "--mask-opacity",
        type=float,
        default=None,
        help="of colours over the image, 0 to 1; empty: 0.4 for classes of pixels, 0.5 for masks of objects",
    )
    add("--no-legend", action="store_true", help="do not say which colours the classes of pixels have")


def check_wishes(options: argparse.Namespace, runner: Runner, path: Path) -> None:
    """Refuse options for classes of pixels where the network finds none; warn of others that cannot do anything."""
    specs = runner.specs.values()
    pixels, boxes = "semantic" in runner.specs, any(spec.strides for spec in specs)
    heads = ", ".join(runner.specs)
    for name in ("save_mask", "submit"):
        if getattr(options, name) and not pixels:
            raise UserError(f"--{name.replace('_', '-')}: {path} finds no classes of pixels (its heads: {heads})")
    idle = ["no_legend"] if options.no_legend and not pixels else []
    if options.mask_opacity is not None and not pixels and not any(spec.num_masks for spec in specs):
        idle.append("mask_opacity")
    if not boxes:
        idle += [name for name in ("save_txt", "save_crop", "save_csv") if getattr(options, name)]
    for name in idle:
        what = "boxes" if name.startswith("save") else "classes of pixels" if name == "no_legend" else "masks"
        hint = "; --save-mask writes the classes of pixels" if what == "boxes" and pixels else ""
        LOGGER.warning(f"--{name.replace('_', '-')} does nothing: {path} finds no {what} (its heads: {heads}){hint}")


def style(options: argparse.Namespace, runner: Runner, meta: dict[str, Any]) -> DrawStyle:
    """Return how things are drawn; the colours of pixels are those of the data set, if it is there and has its own."""
    from utils.plots.draw import DrawStyle
    from utils.plots.semantic_overlay import SemanticStyle

    semantic = SemanticStyle(legend=not options.no_legend)
    if "semantic" in runner.specs:
        given = _given_colours(options.data, str(meta.get("data") or ""), runner.specs["semantic"].num_classes)
        semantic = replace(semantic, names=runner.specs["semantic"].names, colours=given)
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
    from utils.core.data_config import load_data

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
    from utils.datasets.image_files import IMAGE_SUFFIXES, ImageFault, probe_image
    from utils.plots.prediction_sinks import other_size

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


def semantic_sinks(options: argparse.Namespace, runner: Runner, look: SemanticStyle) -> list[Callable[[Path], Sink]]:
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
