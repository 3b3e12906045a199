"""Builder of networks from descriptions; no text of a description is evaluated as code."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.architecture import IMAGENET, read_architecture
from models.channel_widths import apply_widths, remove_rows
from models.class_names import head_classes, is_head, resolve_class_names
from models.layer_plan import Plan, Row, find_class
from models.layers.activations import parse_activation
from models.layers.common import set_activation
from models.network import INPUT, Network, Route
from utils.core.errors import UserError

__all__ = [
    "build_network", "classification_network", "classifier_description", "measure_strides", "read_architecture",
    "round_up",
]  # fmt: skip

PROBE_PX = 256  # side of the empty image that measures strides
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.03  # of batch normalisation, as in the checkpoints of YOLOv5
MAX_REPEATS, MAX_CHANNELS = 1000, 1_000_000  # bound what a damaged file can ask for
_BUILD_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, ZeroDivisionError, OverflowError)


def round_up(value: float, multiple: int) -> int:
    """Round `value` up to a multiple of `multiple`."""
    return math.ceil(value / multiple) * multiple


@dataclass(frozen=True)
class _Words:
    """Values of the words in rows, and the scaling of widths and repeats."""

    known: dict[str, Any]
    depth: float
    width: float
    multiple: int
    exempt: int | None  # width that is not scaled: the outputs of a level, which YOLOv3's files write out

    def value(self, argument: Any) -> Any:
        """Resolve an argument: words are looked up, unknown ones stay strings."""
        if not isinstance(argument, str):
            return argument
        if argument.startswith("nn."):
            return parse_activation(argument)(0)
        return self.known.get(argument, argument)

    def channels(self, written: int) -> int:
        """Scale a number of channels."""
        if not isinstance(written, (int, float)) or not 1 <= written <= MAX_CHANNELS:
            raise ValueError(f"expected a number of channels, got {written!r}")
        return int(written) if written == self.exempt else round_up(written * self.width, self.multiple)

    def repeats(self, written: Any) -> int:
        """Scale a number of repeats; one stays one."""
        if isinstance(written, bool) or not isinstance(written, int) or not 1 <= written <= MAX_REPEATS:
            raise ValueError(f"the second entry must be the number of repeats, got {written!r}")
        return max(round(written * self.depth), 1) if written > 1 else written


def build_network(
    architecture: dict[str, Any],
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    anchors_per_level: int | None = None,
    channels: int | None = None,
    head_names: Mapping[str, Sequence[str]] | None = None,
) -> Network:
    """Build a network with random weights from a description.

    Args:
        architecture: see `read_architecture`.
        num_classes: of the main head (the one with boxes, else the first); None for the description's.
        names: class names of the main head.
        anchors_per_level: replaces the anchors by that many placeholders, which AutoAnchor fills in.
        channels: replaces the image channels, `ch`.
        head_names: class names of any head by the head's name.

    Returns:
        The network in training mode.

    Raises:
        UserError: The description cannot be built; the text names file and row.
    """
    description = read_architecture(architecture)
    source = description["source"]
    description.pop("fused", None)  # a property of stored weights, not of the network
    rows = [*description["backbone"], *description["head"]]
    if not rows:
        raise UserError(f"{source}: there are no rows to build")
    for key, value in (("anchors", anchors_per_level), ("ch", channels)):
        if value is not None:
            description[key] = value
    classes = resolve_class_names(description, head_classes(rows), num_classes, names, head_names)
    layers, routes = _build_rows(description, rows, source)
    _initialize(nn.ModuleList(layers), description, source)
    strides = measure_strides(layers, routes, rows, description["ch"], source)
    stride = _configure_heads(layers, routes, strides, rows, source)
    return Network(layers, routes, classes, {**description, "source": source.replace("\\", "/").split("/")[-1]}, stride)


def _row_error(source: str, index: int, rows: list[Any], text: object) -> UserError:
    row = rows[index]
    word = f" ({row[2]})" if isinstance(row, list) and len(row) > 2 else ""
    return UserError(f"{source}: row {index}{word}: " + " ".join(str(text).split())[:300])


def _words(description: dict[str, Any]) -> _Words:
    anchors = description.get("anchors")
    known = {key: value for key, value in description.items() if key not in ("backbone", "head")}
    known |= {"None": None, "True": True, "False": False}
    per_level = anchors if isinstance(anchors, int) else len(anchors[0]) // 2 if anchors else 0
    exempt = per_level * (description["nc"] + 5) if description.get("exempt_output_width", True) else None
    return _Words(
        known, description["depth_multiple"], description["width_multiple"], description["channel_multiple"], exempt
    )


def _build_rows(description: dict[str, Any], rows: list[Any], source: str) -> tuple[list[nn.Module], list[Route]]:
    words = _words(description)
    layers: list[nn.Module] = []
    routes: list[Route] = []
    widths: list[int] = []  # output channels per row, 0 for heads
    for index, written in enumerate(rows):
        try:
            layer, route, width = _build_row(index, written, widths, words, description["ch"])
            if narrower := description.get("widths", {}).get(str(index)):
                apply_widths(layer, narrower)
                width = int(narrower.get("out", width))
        except UserError as error:
            raise _row_error(source, index, rows, error) from error
        except _BUILD_ERRORS as error:
            raise _row_error(source, index, rows, error) from error
        layers.append(layer)
        routes.append(route)
        widths.append(width)
    heads = [str(layer.name) for layer, width in zip(layers, widths, strict=True) if width == 0]
    if not heads:
        raise UserError(f"{source}: none of the rows is a head (Detect, Segment, Classify, SegMask…)")
    if repeated := {name for name in heads if heads.count(name) > 1}:
        raise UserError(f"{source}: there are two heads named {sorted(repeated)[0]!r}")
    return layers, routes


def _build_row(
    index: int, written: Any, widths: list[int], words: _Words, image_channels: int
) -> tuple[nn.Module, Route, int]:
    if not isinstance(written, list) or len(written) != 4 or not isinstance(written[3], list):
        raise ValueError("a row must be [from, number, module, [arguments]]")
    origin, repeats, word, arguments = written
    sources = _sources(origin, index, widths)
    kind = find_class(word)
    channels = tuple(image_channels if source == INPUT else widths[source] for source in sources)
    values = tuple(words.value(argument) for argument in arguments)
    if is_head(kind):
        if missing := {"nc", "anchors", "n_segcls"} & {value for value in values if isinstance(value, str)}:
            raise ValueError(f"needs the key `{sorted(missing)[0]}:`, which is missing")
        values = tuple(_expanded(value, len(sources)) if given == "anchors" else value
                       for given, value in zip(arguments, values, strict=True))  # fmt: skip
    plan: Plan = kind.plan(Row(channels, values, words.repeats(repeats), words.channels, words.repeats))
    if not is_head(kind) and plan.out_channels < 1:
        raise ValueError("there would be no output channels")
    copies = [kind(*plan.arguments) for _ in range(plan.copies)]
    layer = copies[0] if len(copies) == 1 else nn.Sequential(*copies)
    takes_list = bool(getattr(kind, "takes_list", False))
    return layer, Route(sources, takes_list), 0 if is_head(kind) else plan.out_channels


def _expanded(anchors: Any, levels: int) -> Any:
    """Replace a number of anchors by placeholders 0, 1, 2, … for each level."""
    return [list(range(2 * anchors))] * levels if isinstance(anchors, int) else anchors


def _sources(origin: Any, index: int, widths: list[int]) -> tuple[int, ...]:
    entries = origin if isinstance(origin, list) else [origin]
    if not entries or any(isinstance(entry, bool) or not isinstance(entry, int) for entry in entries):
        raise ValueError(f"the first entry must be a row number or a list of them, got {origin!r}")
    sources = []
    for entry in entries:
        source = index + entry if entry < 0 else entry
        if source == INPUT and index == 0:
            sources.append(INPUT)
            continue
        if not 0 <= source < index:
            raise ValueError(f"takes its input from row {entry}, which does not exist before it")
        if widths[source] == 0:
            raise ValueError(f"takes its input from row {entry}, which is a head")
        sources.append(source)
    return tuple(sources)


def _initialize(layers: nn.ModuleList, description: dict[str, Any], source: str) -> None:
    """Set the normalisation constants, dropout and activations."""
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = NORM_EPS, NORM_MOMENTUM
        elif isinstance(module, nn.Dropout) and "dropout" in description:
            module.p = float(description["dropout"])
    for key in ("activation", "csp_activation"):
        try:
            factory = parse_activation(description.get(key) or "nn.SiLU")
        except ValueError as error:
            raise UserError(f"{source}: {key}: {error}") from error
        set_activation(layers, factory) if key == "activation" else _set_csp_activation(layers, factory)


def _set_csp_activation(layers: nn.ModuleList, factory: Any) -> None:
    """Replace the activation of blocks with their own normalisation, LeakyReLU in YOLOv5 up to v6.0."""
    for module in layers.modules():
        normalisation = getattr(module, "bn", None)
        own = hasattr(module, "act") and not hasattr(module, "has_default_activation")
        if own and isinstance(normalisation, nn.BatchNorm2d):
            module.act = factory(normalisation.num_features)


def measure_strides(
    layers: Iterable[nn.Module], routes: Sequence[Route], rows: list[Any], channels: int, source: str
) -> list[tuple[float, ...]]:
    """Measure the strides of each row's output by running an empty image in evaluation mode.

    The image is on the device of the weights: torch's meta kernels take longer to import than most networks to run.

    Args:
        layers: one per row.
        routes: one per row.
        rows: as written, for error messages.
        channels: of the image.
        source: name of the description, for error messages.

    Returns:
        Vertical and horizontal stride of each row, an empty tuple for heads.

    Raises:
        UserError: A layer cannot process its input.
    """
    layers, sizes = list(layers), list[Tensor | None]()
    device = next((p.device for layer in layers for p in layer.parameters()), torch.device("cpu"))
    image = torch.zeros(1, channels, PROBE_PX, PROBE_PX, device=device)
    for index, (layer, route) in enumerate(zip(layers, routes, strict=True)):
        px = getattr(layer, "fixed_px", 0)
        seen = image.new_zeros(1, channels, px, px) if px else image
        inputs: list[Any] = [seen if s == INPUT else sizes[s] for s in route.sources]
        training = layer.training
        try:
            with torch.no_grad():
                output = layer.eval()(inputs if route.takes_list else inputs[0])
        except _BUILD_ERRORS as error:
            raise _row_error(source, index, rows, error) from error
        finally:
            layer.train(training)
        sizes.append(output if isinstance(output, Tensor) else None)
        if isinstance(output, Tensor) and output.ndim != 4:
            raise _row_error(source, index, rows, f"its output must have 4 dimensions, not {output.ndim}")
    return [() if size is None else (PROBE_PX / size.shape[2], PROBE_PX / size.shape[3]) for size in sizes]


def _configure_heads(
    layers: list[nn.Module], routes: list[Route], strides: list[tuple[float, ...]], rows: list[Any], source: str
) -> int:
    """Set the strides of every head and return the largest stride of any row."""
    whole = [int(row[0]) for row in strides if row and row[0] == row[1] == int(row[0])]
    largest = max(whole, default=1)
    for index, (layer, route) in enumerate(zip(layers, routes, strict=True)):
        if strides[index]:
            continue
        levels = []
        for origin in route.sources:
            down, across = strides[origin] if origin != INPUT else (1.0, 1.0)
            if down != across or down != int(down):
                raise _row_error(
                    source, index, rows, f"row {origin} has a stride that is not a whole number ({down:g} x {across:g})"
                )
            levels.append(int(down))
        head: Any = layer
        try:
            head.configure(tuple(levels))
        except ValueError as error:
            raise _row_error(source, index, rows, error) from error
        largest = max(largest, *levels, getattr(head, "stride", 1))
    return largest


def classifier_description(description: dict[str, Any], cutoff: int = 10) -> dict[str, Any]:
    """Describe a classifier made of the first rows of a detector.

    Args:
        description: of the detector.
        cutoff: rows 0 to cutoff - 2 stay; a class head on the input of row cutoff - 1 replaces that one.
    """
    description = copy.deepcopy(description)
    rows = [*description["backbone"], *description["head"]]
    if not 2 <= cutoff < len(rows):
        raise UserError(f"{description['source']}: cannot cut a network of {len(rows)} rows after row {cutoff}")
    head = [rows[cutoff - 1][0], 1, "Classify", ["nc"]]
    description = remove_rows(description, range(cutoff - 1, len(rows)))
    description |= {"backbone": rows[: cutoff - 1], "head": [head], "normalise": IMAGENET}
    return description | {"name": f"{description['name']}-cls"}


def classification_network(
    network: Network, num_classes: int, names: Sequence[str] | None = None, cutoff: int = 10
) -> Network:
    """Build a classifier from the first layers of a detector, with copies of their weights."""
    classifier = build_network(classifier_description(network.architecture, cutoff), num_classes, names)
    own = classifier.state_dict()
    copied = {k: v for k, v in network.state_dict().items() if k in own and int(k.split(".")[1]) < cutoff - 1}
    classifier.load_state_dict({**own, **copied})
    return classifier
