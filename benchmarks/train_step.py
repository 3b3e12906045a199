"""Cost of one training step, compared with plain fp32 PyTorch.

python benchmarks/train_step.py
python benchmarks/train_step.py --cfg yolov5s --size 640 --batch-size 16 --device 0 --steps 50 --write

Both sides train the same network with the same loss on the same images, alternately, with an update per step. Ours:
channels-last, the mixed precision of train.py, fused optimizer, multi-tensor EMA. Plain: fp32, NCHW, optimizer and EMA
that loop over tensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.machine import Spread, alternate, command_arguments, new_parser, publish, ratios, report, spread
from benchmarks.plain import PlainEma, plain_sgd
from models.builder import build_network, read_architecture
from models.network import Network
from models.network_runner import to_input
from utils.core.cli import run_script
from utils.core.contracts import Batch, Geometry, ImageInfo, Loss
from utils.core.device import autocast_dtype, select_device
from utils.core.hyp import Hyp
from utils.core.seed import seed_everything
from utils.core.timing import Stopwatch
from utils.engine.ema import ModelEma
from utils.engine.parameter_groups import build_optimizer, clip_gradients
from utils.engine.run_setup import build_losses

NAME = "train_step"
PARTS = ("forward", "loss and backward", "optimizer and EMA")


def random_batch(count: int, size: int, boxes_per_image: int, classes: int) -> Batch:
    """Draw a batch of noise images with labels; times depend on shapes and counts only."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=rng)
    total = count * boxes_per_image
    numbers = torch.arange(count).repeat_interleave(boxes_per_image)[:, None]
    labels = torch.randint(0, classes, (total, 1), generator=rng)
    centres, sizes = torch.rand(total, 2, generator=rng), torch.rand(total, 2, generator=rng) * 0.45 + 0.05
    boxes = torch.cat((numbers.float(), labels.float(), centres, sizes), 1)
    info = [ImageInfo(i, "", Geometry((size, size), (size, size))) for i in range(count)]
    return Batch(images.contiguous(memory_format=torch.channels_last), boxes, info)


@dataclass
class Side:
    """One implementation of the training step."""

    network: Network
    losses: dict[str, Loss]
    optimizer: torch.optim.Optimizer
    ema: Any
    enter: Callable[[Tensor], Tensor]  # uint8 images to the network's input
    clip: Callable[[Any], object]
    mixed: torch.dtype | None
    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def step(self, batch: Batch) -> float:
        """Train on a batch; record the seconds of each part and return their sum."""
        watches = {part: Stopwatch(self.device) for part in PARTS}
        with watches["forward"], torch.autocast(self.device.type, dtype=self.mixed, enabled=self.mixed is not None):
            raw = self.network(self.enter(batch.images))
        with watches["loss and backward"]:
            terms = [term for head, loss in self.losses.items() for term in loss(raw[head], batch).values()]
            (torch.stack(terms).sum() * len(batch)).backward()
        with watches["optimizer and EMA"]:
            self.clip([p for group in self.optimizer.param_groups for p in group["params"]])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.ema.update()
        for part, watch in watches.items():
            self.seconds[part].append(watch.seconds)
        return sum(watch.seconds for watch in watches.values())


def our_side(cfg: str, options: argparse.Namespace, device: torch.device) -> Side:
    """Build the training step of utils/engine."""
    seed_everything(0)
    hyp, network = Hyp(), build_network(read_architecture(cfg)).to(device, memory_format=torch.channels_last)
    return Side(
        network=network.train(),
        losses=build_losses(network, hyp, options.size, device),
        optimizer=build_optimizer(network, "SGD", hyp, options.batch_size, device),
        ema=ModelEma(network),
        enter=lambda images: to_input(images, device),
        clip=clip_gradients,
        mixed=autocast_dtype(device, options.amp),
        device=device,
    )


def plain_side(cfg: str, options: argparse.Namespace, device: torch.device) -> Side:
    """Build the same step with plain PyTorch."""
    seed_everything(0)
    hyp, network = Hyp(), build_network(read_architecture(cfg)).to(device)
    return Side(
        network=network.train(),
        losses=build_losses(network, hyp, options.size, device),
        optimizer=plain_sgd(network, hyp),
        ema=PlainEma(network),
        enter=lambda images: images.to(device).contiguous().float() / 255,
        clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 10.0, foreach=False),
        mixed=None,
        device=device,
    )


def compare(cfg: str, options: argparse.Namespace, device: torch.device) -> tuple[list[str], Spread]:
    """Measure one network; return its table rows (whole step, then parts) and our speedup."""
    batch = random_batch(options.batch_size, options.size, options.boxes, read_architecture(cfg)["nc"]).to(device)
    sides = {"ours": our_side(cfg, options, device), "plain": plain_side(cfg, options, device)}
    actions = {name: (lambda side=side: side.step(batch)) for name, side in sides.items()}
    found = alternate(actions, options.steps, options.warm_up)
    faster = ratios(found["plain"], found["ours"])
    ours, plain = (spread(found[name]).scaled(1000) for name in ("ours", "plain"))
    rows = [f"| {cfg} | step | {ours.text(1)} | {plain.text(1)} | **{faster.text()}** |"]
    for part in PARTS:
        times = {name: side.seconds[part][options.warm_up :] for name, side in sides.items()}
        mine, theirs = (1000 * spread(times[name]).median for name in ("ours", "plain"))
        rows.append(f"| | {part} | {mine:.1f} | {theirs:.1f} | {ratios(times['plain'], times['ours']).median:.2f} |")
    return rows, faster


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--cfg", nargs="+", default=["yolov5n"], help="networks")
    parser.add_argument("--size", type=int, default=320, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--boxes", type=int, default=7, help="labels per image")
    parser.add_argument("--steps", type=int, default=15, help="paired steps, whose median is reported")
    parser.add_argument("--warm-up", type=int, default=3, help="paired warm-up steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="auto", help="our precision: auto, fp32, fp16, bf16")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the speedup for each network."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    precision = autocast_dtype(device, options.amp)
    table, medians = [], {}
    for cfg in options.cfg:
        rows, faster = compare(cfg, options, device)
        table += rows
        medians[cfg] = faster.median
    body = [
        f"{options.batch_size} images of {options.size}x{options.size} with {options.boxes} labels each; ours computes "
        f"in {str(precision or torch.float32).removeprefix('torch.')}. Milliseconds: median and range of "
        f"{options.steps} alternating steps, after {options.warm_up} for warm-up.",
        "",
        "| network | part | ours | plain | speedup |",
        "|---|---|---|---|---|",
        *table,
    ]
    publish(report("One training step", NAME, line, body, device), NAME, options.write)
    return medians


if __name__ == "__main__":
    run_script(main)
