"""Program of prune.py: pruning a checkpoint, fine-tuning it, and the report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.pruning.settings import PruneSettings, parse_latency
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, run_folder, write_text
from utils.core.log import LOGGER
from utils.core.train_settings import TrainSettings

if TYPE_CHECKING:  # torch is imported after parsing, which keeps --help fast
    from models.checkpoint import Checkpoint
    from models.network import Network
    from tools.pruning.evaluation import PruningEvaluator

TRAINING = {  # hyperparameter file and optimizer by task; "" for all others
    "": ("hyp.prune.yaml", "Adam"),
    "classify": ("hyp.classify.yaml", "Adam"),
    "semantic": ("hyp.semantic-finetune.yaml", "SGD"),
}
TRIES = 7  # bisection steps of --target-latency


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


def prune_task(settings: PruneSettings) -> list[dict[str, Any]]:
    """Prune a checkpoint.

    Args:
        settings: Options of prune.py.

    Returns:
        A row per network: before, pruned (or sparse), fine-tuned.
    """
    from models.checkpoint import load_checkpoint
    from tools.pruning.evaluation import PruningEvaluator
    from utils.backends import BACKENDS
    from utils.backends.open_weights import backend_for, find_weights
    from utils.core.device import select_device

    device = select_device(settings.device)
    paths = find_weights(settings.weights, settings.download)
    if len(paths) > 1:
        raise UserError(f"--weights: expected one checkpoint, got {len(paths)}")
    if backend_for(paths[0]) is not BACKENDS.get("pytorch"):
        raise UserError(f"{paths[0]}: an exported file cannot be pruned; prune the checkpoint and export the result")
    checkpoint = load_checkpoint(paths[0])
    if checkpoint.network.architecture.get("fused"):
        raise UserError(f"{paths[0]}: BatchNorm is fused into its weights; prune the original checkpoint")
    evaluator = PruningEvaluator.of(settings, checkpoint, paths[0], device)
    folder = run_folder(Path(settings.project), settings.name, settings.exist_ok)
    try:
        return _Pruning(settings, checkpoint, paths[0], evaluator, folder).run()
    finally:
        remove_if_empty(folder)


class _Pruning:
    """Pruning of one checkpoint; the report of `rows` is rewritten after every step."""

    def __init__(
        self, settings: PruneSettings, checkpoint: Checkpoint, path: Path, evaluator: PruningEvaluator, folder: Path
    ) -> None:
        self.settings, self.checkpoint, self.path = settings, checkpoint, path
        self.evaluator, self.folder = evaluator, folder
        self.rows: list[Row] = []

    def run(self) -> list[dict[str, Any]]:
        network = self.checkpoint.network
        self._add("before", network, self.path)
        if self.settings.sparsity is not None:
            self._store("sparse", self._sparse(network, self.settings.sparsity))
        else:
            pruned = self._pruned(network)
            self.evaluator.recalibrate(pruned)
            self._store("pruned", pruned)
            if self.settings.epochs:
                self._fine_tune()
        return [asdict(row) for row in self.rows]

    def _sparse(self, network: Network, fraction: float) -> Network:
        from tools.pruning.weight_sparsity import sparsify

        LOGGER.info(
            "sparsity reduces the size of compressed files; it does not speed up runtimes without sparse kernels"
        )
        return sparsify(network, fraction)

    def _pruned(self, network: Network) -> Network:
        """Remove the least important channels until the target is reached."""
        from tools.pruning.apply import without_channels
        from tools.pruning.channel_groups import find_coupling
        from tools.pruning.channel_selection import Costs, Limits, choose, removed_channels

        settings, size_hw = self.settings, (self.evaluator.size, self.evaluator.size)
        coupling = find_coupling(network)
        scores = self.evaluator.importance(network, coupling.groups)
        limits = Limits(settings.round_to, settings.max_cut, settings.importance == "taylor", settings.uniform)

        def cut_to(ratio: float) -> Network:
            costs = Costs(network, size_hw)
            chosen = choose(costs, coupling.groups, scores, limits, lambda remaining: remaining <= ratio)
            return without_channels(network, removed_channels(coupling.groups, chosen), coupling.fixed)

        if settings.target_flops is not None:
            return cut_to(settings.target_flops)
        return self._fast_enough(network, cut_to)

    def _fast_enough(self, network: Network, cut_to: Any) -> Network:
        """Find the largest network that is fast enough, by bisection of the remaining operations."""
        target, max_cut = self.settings.target_latency, self.settings.max_cut
        value, absolute = parse_latency(target)
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
            raise UserError(f"--target-latency {target}: not reached within --max-cut {max_cut:g}")
        return best

    def _store(self, name: str, network: Network) -> None:
        from models.checkpoint import save_checkpoint

        path = self.folder / f"{name}.pt"
        about = {"from": self.path.name, "options": asdict(self.settings)}
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

        settings, name = self.settings, self.checkpoint.task
        hyp, optimizer = TRAINING.get(name, TRAINING[""])
        training = TrainSettings(
            weights=str(self.folder / "pruned.pt"), data=self.evaluator.data_text, epochs=settings.epochs,
            hyp=settings.hyp or hyp, imgsz=(self.evaluator.size,), lr0=settings.lr0,
            batch_size=settings.batch_size, workers=settings.workers, seed=settings.seed, device=settings.device,
            noplots=settings.noplots, noautoanchor=True, project=str(self.folder), name="finetune", exist_ok=True,
            optimizer=optimizer, cos_lr=True, allow_label_faults=True,
        )  # fmt: skip
        fit(partial(select_training_task, name, training.fitness), training, ())
        best = self.folder / "finetune" / "weights" / "best.pt"
        self._add("fine-tuned", load_checkpoint(best).network, best)

    def _report(self) -> None:
        from tools.pruning.plots import draw_pruning
        from utils.core.device import describe

        rows = [asdict(row) for row in self.rows]
        about = {
            "weights": str(self.path), "data": self.evaluator.data_text, "imgsz": self.evaluator.size,
            "device": describe(self.evaluator.device), "options": asdict(self.settings),
        }  # fmt: skip
        if len(rows) < 2:
            return
        write_text(self.folder / "prune.json", json.dumps({**about, "networks": rows}, indent=1) + "\n")
        LOGGER.info(table(self.rows))
        if not self.settings.noplots:
            draw_pruning(rows, self.folder / "prune.png")
        LOGGER.info(f"{rows[-1]['weights']}, with {self.folder / 'prune.json'}")


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
