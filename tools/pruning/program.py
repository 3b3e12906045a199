"""From options to a pruned checkpoint: what channels matter, which go, how well the rest does."""

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

if TYPE_CHECKING:  # what needs torch is imported after parsing, so that --help answers at once
    from models.checkpoint import Checkpoint
    from models.network import Network
    from tools.pruning.evaluation import Judge

CRITERIA = ("taylor", "l1", "l2", "bn")
TRAINING = {  # hyper-parameters and optimizer by the main head; the others have the first
    "": ("hyp.prune.yaml", "Adam"),
    "classify": ("hyp.classify.yaml", "Adam"),
    "semantic": ("hyp.semantic-finetune.yaml", "SGD"),
}
TRIES = 7  # halvings on the way to a latency


def prune_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of prune.py."""
    parser = new_parser(description)
    add = parser.add_argument
    add("--weights", nargs="+", default=[], help="checkpoint; default: newest best.pt")
    add("--data", default="", help="data-set YAML to judge channels and networks on; empty: the checkpoint's own")
    aim = parser.add_argument_group("what to reach: one of these").add_argument
    aim("--target-flops", type=float, default=None, metavar="SHARE", help="keep this share of the operations (0.7)")
    latency_help = "share of the time per image to keep (0.8), or milliseconds (25ms), measured on --device"
    aim("--target-latency", default="", metavar="TIME", help=latency_help)
    aim("--sparsity", type=float, default=None, metavar="SHARE", help="set the smallest weights to zero instead")
    how = parser.add_argument_group("which channels go").add_argument
    how("--importance", choices=CRITERIA, default="taylor", help="by gradients on --data, or by weights alone")
    how("--uniform", action="store_true", help="the same share of every layer")
    how("--max-cut", type=float, default=0.5, help="no layer loses a larger share of its channels")
    how("--round-to", type=int, default=8, help="channels go in steps of so many")
    how("--samples", type=int, default=128, help="training images of --data that are looked at")
    tune = parser.add_argument_group("fine-tuning").add_argument
    tune("--epochs", type=int, default=0, help="epochs of training after pruning; 0: none")
    tune("--hyp", default="", help="hyper-parameter YAML; empty: the task's")
    tune("--lr0", type=float, default=None, help="learning rate at the start; empty: the hyp file's")
    add("--batch-size", type=int, default=16, help="images per step")
    add_image_size(parser, [], "image size in pixels; empty: the one the checkpoint was trained with, else 640")
    add("--workers", type=int, default=8, help="data-loading processes, at most one a core")
    add("--seed", type=int, default=0, help="seed of the fine-tuning")
    add("--noval", action="store_true", help="do not score before and after")
    add("--noplots", action="store_true", help="draw no pictures")
    add_device(parser)
    add_run_folder(parser, "runs/prune")
    add_download(parser, "official weights, and data that the YAML has addresses of,")
    return parser


@dataclass
class Row:
    """What one network comes to; None where nobody measured."""

    network: str  # before, pruned, fine-tuned
    weights: str
    parameters: int
    gflops: float
    megabytes: float
    milliseconds: float | None = None  # per image, BatchNorm folded, median
    zeros: float = 0.0  # share of the convolutions' weights
    scores: dict[str, float] | None = None


def prune_task(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prune as `options` say; return a row per network."""
    check(options)
    from models.checkpoint import load_checkpoint
    from tools.pruning.evaluation import Judge
    from utils.backends import BACKENDS
    from utils.backends.open_weights import backend_for, find_weights
    from utils.core.device import select_device

    device = select_device(options.device)
    paths = find_weights(options.weights, options.download)
    if len(paths) > 1:
        raise UserError("--weights: one checkpoint is pruned at a time")
    if backend_for(paths[0]) is not BACKENDS.get("pytorch"):
        raise UserError(f"{paths[0]}: an exported file; prune the checkpoint it was made from, then export that")
    checkpoint = load_checkpoint(paths[0])
    if checkpoint.network.architecture.get("fused"):
        raise UserError(f"{paths[0]}: BatchNorm is folded into its weights; prune the checkpoint as training wrote it")
    judge = Judge.of(options, checkpoint, paths[0], device)
    folder = run_folder(Path(options.project), options.name, options.exist_ok)
    try:
        return _Pruning(options, checkpoint, paths[0], judge, folder).run()
    finally:
        remove_if_empty(folder)


def check(options: argparse.Namespace) -> None:
    """Raise UserError if the options ask for what cannot be."""
    aims = (options.target_flops is not None, bool(options.target_latency), options.sparsity is not None)
    if sum(aims) != 1:
        raise UserError("give one of --target-flops 0.7, --target-latency 0.8 (or 25ms) and --sparsity 0.3")
    for name in ("target_flops", "sparsity"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: a share between 0 and 1")
    if options.target_latency:
        latency(options.target_latency)
    if options.sparsity is not None and options.epochs:
        raise UserError("--sparsity with --epochs: training would fill the zeros again")
    if not 0 < options.max_cut < 1:
        raise UserError(f"--max-cut {options.max_cut:g}: a share between 0 and 1")
    for name, low in (("round_to", 1), ("samples", 1), ("epochs", 0), ("batch_size", 1), ("workers", 0)):
        if getattr(options, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {low}")
    if len(options.imgsz) > 1 or (options.imgsz and not 32 <= options.imgsz[0] <= MAX_IMAGE_PX):
        raise UserError(f"--imgsz {' '.join(map(str, options.imgsz))}: one size from 32 to {MAX_IMAGE_PX}")


def latency(text: str) -> tuple[float, bool]:
    """Return what --target-latency says: a number, and whether it is milliseconds rather than a share."""
    absolute = text.strip().lower().endswith("ms")
    try:
        value = float(text.strip().lower().removesuffix("ms"))
    except ValueError:
        value = math.nan
    if not 0 < value < (math.inf if absolute else 1):
        raise UserError(f"--target-latency {text}: a share between 0 and 1, or milliseconds like 25ms")
    return value, absolute


class _Pruning:
    """One checkpoint on its way; `rows` is what is known so far, and is written after every step."""

    def __init__(
        self, options: argparse.Namespace, checkpoint: Checkpoint, path: Path, judge: Judge, folder: Path
    ) -> None:
        self.options, self.checkpoint, self.path, self.judge, self.folder = options, checkpoint, path, judge, folder
        self.rows: list[Row] = []

    def run(self) -> list[dict[str, Any]]:
        network = self.checkpoint.network
        self._add("before", network, self.path)
        if self.options.sparsity is not None:
            self._store("sparse", self._sparse(network))
        else:
            pruned = self._pruned(network)
            self.judge.renew(pruned)
            self._store("pruned", pruned)
            if self.options.epochs:
                self._fine_tune()
        return [asdict(row) for row in self.rows]

    def _sparse(self, network: Network) -> Network:
        from tools.pruning.weight_sparsity import made_sparse

        LOGGER.info("zeros make a file smaller once it is compressed; runtimes that do not look for them take as long")
        return made_sparse(network, self.options.sparsity)

    def _pruned(self, network: Network) -> Network:
        """Return the network without the channels that matter least."""
        from tools.pruning.apply import without_channels
        from tools.pruning.channel_groups import find_coupling
        from tools.pruning.channel_selection import Costs, Limits, choose, removed_places

        options, size_hw = self.options, (self.judge.size, self.judge.size)
        coupling = find_coupling(network)
        scores = self.judge.importance(network, coupling.groups)
        limits = Limits(options.round_to, options.max_cut, options.importance == "taylor", options.uniform)

        def cut_to(share: float) -> Network:
            costs = Costs(network, size_hw)
            chosen = choose(costs, coupling.groups, scores, limits, lambda left: left <= share)
            return without_channels(network, removed_places(coupling.groups, chosen), coupling.fixed)

        if options.target_flops is not None:
            return cut_to(options.target_flops)
        return self._fast_enough(network, cut_to)

    def _fast_enough(self, network: Network, cut_to: Any) -> Network:
        """Return the largest network that is fast enough, found by halving the range of operations that are left."""
        value, absolute = latency(self.options.target_latency)
        low, high = 0.0, 1.0
        best: Network | None = None
        for _ in range(TRIES):
            share = (low + high) / 2
            try:
                candidate = cut_to(share)
            except UserError:  # the limits forbid it
                low = share
                continue
            before, after = self.judge.milliseconds(network, candidate)
            good = after <= (value if absolute else value * before)
            LOGGER.info(f"{share:.0%} of the operations: {after:.2f} ms per image, {before:.2f} ms before")
            low, high = (share, high) if good else (low, share)
            best = candidate if good else best
        if best is None:
            raise UserError(
                f"--target-latency {self.options.target_latency}: not reached within --max-cut {self.options.max_cut:g}"
            )
        return best

    def _store(self, name: str, network: Network) -> None:
        from models.checkpoint import save_checkpoint

        path = self.folder / f"{name}.pt"
        about = {"from": self.path.name, "options": _plain(self.options)}
        kept = {key: value for key, value in self.checkpoint.meta.items() if key in ("task", "data", "imgsz", "torch")}
        meta = {**kept, "imgsz": self.judge.size, "pruning": about}
        if self.judge.data is not None:
            meta["data"] = self.judge.data_text
        save_checkpoint(path, network, meta, half=True)
        self._add(name, network, path)

    def _add(self, name: str, network: Network, path: Path) -> None:
        """Measure a network and write down what is known."""
        from models.summary import count_operations
        from tools.pruning.weight_sparsity import zero_share

        size = self.judge.size
        row = Row(
            name, str(path), sum(parameter.numel() for parameter in network.parameters()),
            round(count_operations(network, (size, size)) / 1e9, 6), round(path.stat().st_size / 1e6, 2),
            zeros=round(zero_share(network), 4),
        )  # fmt: skip
        row.scores = self.judge.scores(network)
        before = network if not self.rows else self.checkpoint.network
        times = self.judge.milliseconds(before, network)
        row.milliseconds = round(times[-1], 3)
        if self.rows:
            self.rows[0].milliseconds = round(times[0], 3)  # of the same turns
        self.rows.append(row)
        self._report()

    def _fine_tune(self) -> None:
        from models.checkpoint import load_checkpoint
        from utils.engine.fit import fit
        from utils.tasks.task_selection import task_for

        options, name = self.options, self.checkpoint.task
        hyp, optimizer = TRAINING.get(name, TRAINING[""])
        settings = TrainSettings(
            weights=str(self.folder / "pruned.pt"), data=self.judge.data_text, epochs=options.epochs,
            hyp=options.hyp or hyp, imgsz=(self.judge.size,), lr0=options.lr0,
            batch_size=options.batch_size, workers=options.workers, seed=options.seed, device=options.device,
            noplots=options.noplots, noautoanchor=True, project=str(self.folder), name="finetune", exist_ok=True,
            optimizer=optimizer, cos_lr=True, allow_label_faults=True,
        )  # fmt: skip
        fit(partial(task_for, name, settings), settings, ())
        best = self.folder / "finetune" / "weights" / "best.pt"
        self._add("fine-tuned", load_checkpoint(best).network, best)

    def _report(self) -> None:
        from tools.pruning.plots import draw_pruning
        from utils.core.device import describe

        rows = [asdict(row) for row in self.rows]
        about = {
            "weights": str(self.path), "data": self.judge.data_text, "imgsz": self.judge.size,
            "device": describe(self.judge.device), "options": _plain(self.options),
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
    """Return the rows as text, with what is left of each number of the first one."""
    names = list(next((row.scores for row in rows if row.scores), {}))
    head = ("network", "parameters", "GFLOPs", "MB", "ms/image", *names)
    lines = [(f"{head[0]:<12}" + "".join(f"{name:>22}" for name in head[1:])).rstrip()]
    first = _numbers(rows[0], names)
    for row in rows:
        cells = []
        for value, start, digits in zip(_numbers(row, names), first, (0, 2, 2, 2, *[3] * len(names)), strict=True):
            share = f" ({value / start:.0%})" if value is not None and start and row is not rows[0] else ""
            cells.append(f"{'-' if value is None else f'{value:.{digits}f}' + share:>22}")
        zeros = f"  {row.zeros:.0%} zeros" if row.zeros > 0.005 else ""
        lines.append(f"{row.network:<12}" + "".join(cells) + zeros)
    return "\n".join(lines)


def _numbers(row: Row, names: list[str]) -> list[float | None]:
    scores = row.scores or {}
    return [row.parameters, row.gflops, row.megabytes, row.milliseconds, *(scores.get(name) for name in names)]
