"""Print a network's layers, parameters and operations.

python -m models.summary --cfg yolov5s.yaml
python -m models.summary --weights yolov5n.pt --img 1280
python -m models.summary --weights yolov5n.pt --line-profile
python -m models.summary --test
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.architecture import known_names
from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint
from models.layers.common import plain_operations
from models.network import INPUT, Network
from models.operation_count import OperationCounter
from utils.core.cli import add_device, add_image_size, new_parser, run_script
from utils.core.device import describe, select_device
from utils.core.errors import UserError
from utils.core.log import LOGGER

OPERATIONS_PER_NORMALISED = 8  # per element of a batch normalisation, as the published tables count it


@dataclass(frozen=True)
class Summary:
    """Counts of a network; `gflops` are 1e9 multiplications and additions for one image of `size_hw`."""

    name: str
    layers: int
    parameters: int
    gradients: int  # trainable parameters
    gflops: float
    size_hw: tuple[int, int]
    rows: tuple[tuple[str, ...], ...]  # index, from, number, parameters, module, arguments

    @property
    def line(self) -> str:
        """One-line summary, as logged at the start of a training."""
        return (
            f"{self.name} summary: {self.layers} layers, {self.parameters} parameters, {self.gradients} gradients, "
            f"{self.gflops:.1f} GFLOPs"
        )

    def __str__(self) -> str:
        header = ("", "from", "n", "params", "module", "arguments")
        lines = [f"{i:>4}{origin:>20}{n:>4}{params:>11}  {kind:<18}{arguments}".rstrip()
                 for i, origin, n, params, kind, arguments in (header, *self.rows)]  # fmt: skip
        return "\n".join([*lines, self.line])


def summarize(network: Network, image_size: int | Sequence[int] = 640) -> Summary:
    """Summarize a network for images of `image_size` (one number or height, width), rounded up to the stride."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[-1])
    step = network.stride
    size_hw = (-(-height // step) * step, -(-width // step) * step)
    name = str(network.architecture.get("name", "network"))
    return Summary(
        name="YOLO" + name[4:] if name.startswith("yolo") else name[:1].upper() + name[1:],
        layers=sum(1 for _ in network.modules()),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gradients=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        gflops=count_operations(network, size_hw) / 1e9,
        size_hw=size_hw,
        rows=_rows(network),
    )


def count_operations(network: Network, size_hw: tuple[int, int]) -> int:
    """Count the additions and multiplications of matrix products and normalisation for one image."""
    weight = next(network.parameters())
    image = weight.new_zeros(1, int(network.architecture.get("ch", 3)), *size_hw)
    training = network.training
    with torch.no_grad(), plain_operations(), sdpa_kernel(SDPBackend.MATH), OperationCounter() as counter:
        try:
            network.eval()(image)
        finally:
            network.train(training)
    return counter.products + OPERATIONS_PER_NORMALISED * counter.normalised


def _rows(network: Network) -> tuple[tuple[str, ...], ...]:
    written = [*network.architecture["backbone"], *network.architecture["head"]]
    rows = []
    for index, (layer, route) in enumerate(zip(network.model, network.routes, strict=True)):
        origins = ["image" if source == INPUT else str(source) for source in route.sources]
        blocks = getattr(layer, "m", None)
        number = (
            len(layer) if isinstance(layer, nn.Sequential) else len(blocks) if isinstance(blocks, nn.Sequential) else 1
        )
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        arguments = ", ".join(str(argument) for argument in written[index][3])
        rows.append((str(index), ",".join(origins), str(number), str(parameters), str(written[index][2]), arguments))
    return tuple(rows)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this program."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--cfg", default="yolov5n", help="model YAML or name")
    add("--weights", default="", help="checkpoint to use instead of --cfg")
    add_image_size(parser, [640], "image size (height, width) in pixels")
    add("--profile", action="store_true", help="time the fused network")
    add("--line-profile", action="store_true", help="time every layer")
    add("--batch-size", type=int, default=1, help="images per timed run")
    add("--runs", type=int, default=20, help="timed runs, of which the median counts")
    add("--test", action="store_true", help="build every named network; exit status 2 if one fails")
    add_device(parser)
    return parser


def main() -> None:
    """Print the table of a model YAML or a checkpoint, and optionally its times."""
    options = build_parser().parse_args()
    for name in ("batch_size", "runs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if options.test:
        build_all()
        return
    timed = options.profile or options.line_profile
    if options.weights:
        network = load_checkpoint(options.weights).network
    else:
        with torch.device("cpu" if timed else "meta"):
            network = build_network(read_architecture(options.cfg))
    summary = summarize(network, options.imgsz)
    LOGGER.info(f"{summary} at {summary.size_hw[0]}x{summary.size_hw[1]}")
    if timed:
        _time(network, summary.size_hw, options)


def _time(network: Network, size_hw: tuple[int, int], options: argparse.Namespace) -> None:
    from models.layer_times import layer_table, time_layers, time_network  # training needs the counts alone

    device = select_device(options.device)
    how = (size_hw, options.batch_size, device, options.runs)
    if options.line_profile:
        LOGGER.info(layer_table(time_layers(network, *how)))
    milliseconds = time_network(network, *how)
    per_image = milliseconds / options.batch_size
    LOGGER.info(
        f"{milliseconds:.2f} ms for {options.batch_size} image(s), {per_image:.2f} ms each, fused; "
        f"{describe(device)}, {torch.get_num_threads()} thread(s)"
    )


def build_all() -> None:
    """Build every named network on the meta device; raise UserError if one fails."""
    failed = []
    for name in known_names():
        try:
            with torch.device("meta"):
                network = build_network(read_architecture(name))
            LOGGER.info(f"{name:<28}{sum(p.numel() for p in network.parameters()):>12} parameters, {network.task}")
        except UserError as error:
            failed.append(name)
            LOGGER.error(f"{name}: {error}")
    if failed:
        raise UserError(f"--test: building failed for {', '.join(failed)}; see the errors above")


if __name__ == "__main__":
    run_script(main)
