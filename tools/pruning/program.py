"""Program of prune.py: pruning a checkpoint, fine-tuning it, and the report."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.cli import add_device, add_download, add_image_size, add_run_folder, new_parser
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, run_folder, write_text
from utils.core.log import LOGGER
from utils.core.train_settings import MAX_IMAGE_PX, TrainSettings

if TYPE_CHECKING:  # torch is imported after parsing, which keeps --help fast
    from models.checkpoint import Checkpoint
    from models.network import Network
    from tools.pruning.evaluation import PruningEvaluator

CRITERIA = ("taylor", "l1", "l2", "bn")
TRAINING = {  # hyperparameter file and optimizer by task; "" for all others
    "": ("hyp.prune.yaml", "Adam"),
    "classify": ("hyp.classify.yaml", "Adam"),
    "semantic": ("hyp.semantic-finetune.yaml", "SGD"),
}
TRIES = 7  # bisection steps of --target-latency


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


@dataclass
class Row:
    """Measurements of one network; None: not measured."""

    network: str  # before, pruned, fine-tuned
    weights: str
    parameters: int
    gflops: float
    megabytes: float
    milliseconds: float | None = None  # median per image of the fused network
    zeros: float = 0.0  # fraction of the weights of convolutions
    scores: dict[str, float] | None = None


def prune_task(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prune a checkpoint.

    Args:
        options: Options of prune.py.

    Returns:
        A row per network: before, pruned (or sparse), fine-tuned.
    """
    validate_options(options)
    from models.checkpoint import load_checkpoint
    from tools.pruning.evaluation import PruningEvaluator
    from utils.backends import BACKENDS
    from utils.backends.open_weights import backend_for, find_weights
    from utils.core.device import select_device

    device = select_device(options.device)
    paths = find_weights(options.weights, options.download)
    if len(paths) > 1:
        raise UserError(f"--weights: expected one checkpoint, got {len(paths)}")
    if backend_for(paths[0]) is not BACKENDS.get("pytorch"):
        raise UserError(f"{paths[0]}: an exported file cannot be pruned; prune the checkpoint and export the result")
    checkpoint = load_checkpoint(paths[0])
    if checkpoint.network.architecture.get("fused"):
        raise UserError(f"{paths[0]}: BatchNorm is fused into its weights; prune the original checkpoint")
    evaluator = PruningEvaluator.of(options, checkpoint, paths[0], device)
    folder = run_folder(Path(options.project), options.name, options.exist_ok)
    try:
        return _Pruning(options, checkpoint, paths[0], evaluator, folder).run()
    finally:
        remove_if_empty(folder)


def validate_options(options: argparse.Namespace) -> None:
    """Validate the options.

    Raises:
        UserError: If an option is out of range or contradicts another.
    """
    targets = (options.target_flops is not None, bool(options.target_latency), options.sparsity is not None)
    if sum(targets) != 1:
        raise UserError("expected one of --target-flops 0.7, --target-latency 0.8 (or 25ms) and --sparsity 0.3")
    for name in ("target_flops", "sparsity"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be between 0 and 1")
    if options.target_latency:
        parse_latency(options.target_latency)
    if options.sparsity is not None and options.epochs:
        raise UserError("--sparsity: cannot be combined with --epochs, because training would change the zeros")
    if not 0 < options.max_cut < 1:
        raise UserError(f"--max-cut {options.max_cut:g}: must be between 0 and 1")
    for name, low in (("round_to", 1), ("samples", 1), ("epochs", 0), ("batch_size", 1), ("workers", 0)):
        if getattr(options, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {low}")
    if len(options.imgsz) > 1 or (options.imgsz and not 32 <= options.imgsz[0] <= MAX_IMAGE_PX):
        raise UserError(f"--imgsz {' '.join(map(str, options.imgsz))}: expected one size from 32 to {MAX_IMAGE_PX}")


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


class _Pruning:
    """Pruning of one checkpoint; the report of `rows` is rewritten after every step."""

    def __init__(
        self, options: argparse.Namespace, checkpoint: Checkpoint, path: Path, evaluator: PruningEvaluator, folder: Path
    ) -> None:
        self.options, self.checkpoint, self.path, self.evaluator, self.folder = (
            options,
            checkpoint,
            path,
            evaluator,
            folder,
        )
        self.rows: list[Row] = []

    def run(self) -> list[dict[str, Any]]:
        network = self.checkpoint.network
        self._add("before", network, self.path)
        if self.options.sparsity is not None:
            self._store("sparse", self._sparse(network))
        else:
            pruned = self._pruned(network)
            self.evaluator.recalibrate(pruned)
            self._store("pruned", pruned)
            if self.options.epochs:
                self._fine_tune()
        return [asdict(row) for row in self.rows]

    def _sparse(self, network: Network) -> Network:
        from tools.pruning.weight_sparsity import sparsify

        LOGGER.info(
            "sparsity reduces the size of compressed files; it does not speed up runtimes without sparse kernels"
        )
        return sparsify(network, self.options.sparsity)

    def _pruned(self, network: Network) -> Network:
        """Remove the least important channels until the target is reached."""
        from tools.pruning.apply import without_channels
        from tools.pruning.channel_groups import find_coupling
        from tools.pruning.channel_selection import Costs, Limits, choose, removed_channels

        options, size_hw = self.options, (self.evaluator.size, self.evaluator.size)
        coupling = find_coupling(network)
        scores = self.evaluator.importance(network, coupling.groups)
        limits = Limits(options.round_to, options.max_cut, options.importance == "taylor", options.uniform)

        def cut_to(ratio: float) -> Network:
            costs = Costs(network, size_hw)
            chosen = choose(costs, coupling.groups, scores, limits, lambda remaining: remaining <= ratio)
            return without_channels(network, removed_channels(coupling.groups, chosen), coupling.fixed)

        if options.target_flops is not None:
            return cut_to(options.target_flops)
        return self._fast_enough(network, cut_to)

    def _fast_enough(self, network: Network, cut_to: Any) -> Network:
        """Find the largest network that is fast enough, by bisection of the remaining operations."""
        value, absolute = parse_latency(self.options.target_latency)
        low, high = 0.0, 1.0
        best: Network | None = None
        for _ in range(TRIES):
            ratio = (low + high) / 2
            try:
                candidate = cut_to(ratio)
            except UserError:  # not reachable within the limits
                low = ratio
                continue
            before, after = self.evaluator.milliseconds(network, candidate)
            fast_enough = after <= (value if absolute else value * before)
            LOGGER.info(f"{ratio:.0%} of the operations: {after:.2f} ms per image, {before:.2f} ms before")
            low, high = (ratio, high) if fast_enough else (low, ratio)
            best = candidate if fast_enough else best
        if best is None:
            raise UserError(
                f"--target-latency {self.options.target_latency}: not reached within --max-cut {self.options.max_cut:g}"
            )
        return best

    def _store(self, name: str, network: Network) -> None:
        from models.checkpoint import save_checkpoint

        path = self.folder / f"{name}.pt"
        about = {"from": self.path.name, "options": _plain(self.options)}
        inherited = {
            key: value for key, value in self.checkpoint.meta.items() if key in ("task", "data", "imgsz", "torch")
        }
        meta = {**inherited, "imgsz": self.evaluator.size, "pruning": about}
        if self.evaluator.data is not None:
            meta["data"] = self.evaluator.data_text
        save_checkpoint(path, network, meta, half=True)
        self._add(name, network, path)

    def _add(self, name: str, network: Network, path: Path) -> None:
        """Measure a network and update the report."""
        from models.summary import count_operations
        from tools.pruning.weight_sparsity import zero_fraction

        size = self.evaluator.size
        row = Row(
            name, str(path), sum(parameter.numel() for parameter in network.parameters()),
            round(count_operations(network, (size, size)) / 1e9, 6), round(path.stat().st_size / 1e6, 2),
            zeros=round(zero_fraction(network), 4),
        )  # fmt: skip
        row.scores = self.evaluator.scores(network)
        before = network if not self.rows else self.checkpoint.network
        times = self.evaluator.milliseconds(before, network)
        row.milliseconds = round(times[-1], 3)
        if self.rows:
            self.rows[0].milliseconds = round(times[0], 3)  # measured in alternation with this network
        self.rows.append(row)
        self._report()

    def _fine_tune(self) -> None:
        from models.checkpoint import load_checkpoint
        from utils.engine.fit import fit
        from utils.tasks.task_selection import select_training_task

        options, name = self.options, self.checkpoint.task
        hyp, optimizer = TRAINING.get(name, TRAINING[""])
        settings = TrainSettings(
            weights=str(self.folder / "pruned.pt"), data=self.evaluator.data_text, epochs=options.epochs,
            hyp=options.hyp or hyp, imgsz=(self.evaluator.size,), lr0=options.lr0,
            batch_size=options.batch_size, workers=options.workers, seed=options.seed, device=options.device,
            noplots=options.noplots, noautoanchor=True, project=str(self.folder), name="finetune", exist_ok=True,
            optimizer=optimizer, cos_lr=True, allow_label_faults=True,
        )  # fmt: skip
        fit(partial(select_training_task, name, settings.fitness), settings, ())
        best = self.folder / "finetune" / "weights" / "best.pt"
        self._add("fine-tuned", load_checkpoint(best).network, best)

    def _report(self) -> None:
        from tools.pruning.plots import draw_pruning
        from utils.core.device import describe

        rows = [asdict(row) for row in self.rows]
        about = {
            "weights": str(self.path), "data": self.evaluator.data_text, "imgsz": self.evaluator.size,
            "device": describe(self.evaluator.device), "options": _plain(self.options),
        }  # fmt: skip
        if len(rows) < 2:
            return
        write_text(self.folder / "prune.json", json.dumps({**about, "networks": rows}, indent=1) + "\n")
        LOGGER.info(table(self.rows))
        if not self.options.noplots:
            draw_pruning(rows, self.folder / "prune.png")
        LOGGER.info(f"{rows[-1]['weights']}, with {self.folder / 'prune.json'}")


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def table(rows: list[Row]) -> str:
    """Format the rows as a table, with the ratio to the first row in parentheses."""
    names = list(next((row.scores for row in rows if row.scores), {}))
    head = ("network", "parameters", "GFLOPs", "MB", "ms/image", *names)
    lines = [(f"{head[0]:<12}" + "".join(f"{name:>22}" for name in head[1:])).rstrip()]
    first = _numbers(rows[0], names)
    for row in rows:
        cells = []
        for value, start, digits in zip(_numbers(row, names), first, (0, 2, 2, 2, *[3] * len(names)), strict=True):
            ratio = f" ({value / start:.0%})" if value is not None and start and row is not rows[0] else ""
            cells.append(f"{'-' if value is None else f'{value:.{digits}f}' + ratio:>22}")
        zeros = f"  {row.zeros:.0%} zeros" if row.zeros > 0.005 else ""
        lines.append(f"{row.network:<12}" + "".join(cells) + zeros)
    return "\n".join(lines)


def _numbers(row: Row, names: list[str]) -> list[float | None]:
    scores = row.scores or {}
    return [row.parameters, row.gflops, row.megabytes, row.milliseconds, *(scores.get(name) for name in names)]
