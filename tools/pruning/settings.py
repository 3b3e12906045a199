"""Options of prune.py."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from utils.core.cli import add_device, add_download, add_image_size, add_run_folder, new_parser
from utils.core.errors import UserError
from utils.core.train_settings import MAX_IMAGE_PX

CRITERIA = ("taylor", "l1", "l2", "bn")


@dataclass(frozen=True)
class PruneSettings:
    """Options of prune.py. The names are those of the options."""

    weights: tuple[str, ...] = ()
    data: str = ""
    target_flops: float | None = None
    target_latency: str = ""
    sparsity: float | None = None
    importance: str = "taylor"
    uniform: bool = False
    max_cut: float = 0.5
    round_to: int = 8
    samples: int = 128
    epochs: int = 0
    hyp: str = ""
    lr0: float | None = None
    batch_size: int = 16
    imgsz: tuple[int, ...] = ()
    workers: int = 8
    seed: int = 0
    noval: bool = False
    noplots: bool = False
    device: str = ""
    project: str = "runs/prune"
    name: str = "exp"
    exist_ok: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        targets = (self.target_flops is not None, bool(self.target_latency), self.sparsity is not None)
        if sum(targets) != 1:
            raise UserError("expected one of --target-flops 0.7, --target-latency 0.8 (or 25ms) and --sparsity 0.3")
        for name in ("target_flops", "sparsity"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value:g}: must be between 0 and 1")
        if self.target_latency:
            parse_latency(self.target_latency)
        if self.sparsity is not None and self.epochs:
            raise UserError("--sparsity: cannot be combined with --epochs, because training would change the zeros")
        if not 0 < self.max_cut < 1:
            raise UserError(f"--max-cut {self.max_cut:g}: must be between 0 and 1")
        for name, low in (("round_to", 1), ("samples", 1), ("epochs", 0), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < low:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {low}")
        if len(self.imgsz) > 1 or (self.imgsz and not 32 <= self.imgsz[0] <= MAX_IMAGE_PX):
            raise UserError(f"--imgsz {' '.join(map(str, self.imgsz))}: expected one size from 32 to {MAX_IMAGE_PX}")


def parse_latency(text: str) -> tuple[float, bool]:
    """Parse --target-latency.

    Returns:
        The number, and whether it is in milliseconds instead of relative to the original network.
    """
    absolute = text.strip().lower().endswith("ms")
    try:
        value = float(text.strip().lower().removesuffix("ms"))
    except ValueError:
        value = math.nan
    if not 0 < value < (math.inf if absolute else 1):
        raise UserError(f"--target-latency {text}: expected a fraction between 0 and 1, or milliseconds such as 25ms")
    return value, absolute


def prune_parser(description: str | None) -> argparse.ArgumentParser:
    """Create the parser of prune.py."""
    parser = new_parser(description)
    add = parser.add_argument
    add("--weights", nargs="+", default=[], help="checkpoint (default: the newest best.pt)")
    add("--data", default="", help="data-set YAML for importance and scores (default: from the checkpoint)")
    aim = parser.add_argument_group("target (one of these)").add_argument
    aim(
        "--target-flops",
        type=float,
        default=None,
        metavar="RATIO",
        help="remaining fraction of the operations, such as 0.7",
    )
    latency_help = "remaining fraction of the time per image (0.8) or milliseconds (25ms), measured on --device"
    aim("--target-latency", default="", metavar="TIME", help=latency_help)
    aim(
        "--sparsity",
        type=float,
        default=None,
        metavar="RATIO",
        help="fraction of the weights to set to zero instead of removing channels",
    )
    how = parser.add_argument_group("channel selection").add_argument
    how(
        "--importance",
        choices=CRITERIA,
        default="taylor",
        help="importance of channels: gradients on --data, norm of the weights, or BatchNorm scales",
    )
    how("--uniform", action="store_true", help="remove the same fraction of every layer")
    how("--max-cut", type=float, default=0.5, metavar="RATIO", help="largest fraction of channels removed from a layer")
    how("--round-to", type=int, default=8, metavar="N", help="number of channels of which layers keep a multiple")
    how("--samples", type=int, default=128, metavar="N", help="number of training images for importance and statistics")
    tune = parser.add_argument_group("fine-tuning").add_argument
    tune("--epochs", type=int, default=0, metavar="N", help="training epochs after pruning; 0: none")
    tune("--hyp", default="", metavar="FILE", help="hyperparameter YAML (default: depends on the task)")
    tune("--lr0", type=float, default=None, metavar="LR", help="initial learning rate (default: from --hyp)")
    add("--batch-size", type=int, default=16, help="images per step")
    add_image_size(parser, [], "image size in pixels (default: from the checkpoint, else 640)")
    add("--workers", type=int, default=8, help="data-loading processes, at most one per core")
    add("--seed", type=int, default=0, help="seed of the fine-tuning")
    add("--noval", action="store_true", help="do not compute scores")
    add("--noplots", action="store_true", help="draw no plot")
    add_device(parser)
    add_run_folder(parser, "runs/prune")
    add_download(parser, "official weights, and data with addresses in the YAML,")
    return parser
