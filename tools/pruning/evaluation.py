"""Evaluation of networks during pruning: importance of channels, scores and latency."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.fuse import fuse
from models.network import Network
from models.network_runner import NetworkRunner
from tools.pruning.calibration import gather_gradients, recompute_statistics
from tools.pruning.channel_groups import Group
from tools.pruning.importance import TaylorImportance, by_batchnorm, by_weights
from tools.pruning.settings import PruneSettings
from utils.core.alternate_timing import time_alternately
from utils.core.contracts import EvalSettings, Loader, Task
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.log import LOGGER
from utils.datasets.fetch.dataset_download import resolve_dataset
from utils.engine.evaluate import evaluate
from utils.engine.run_setup import build_losses
from utils.tasks.task_selection import select_task

ROUNDS = 15  # timing rounds, whose median is reported


@dataclass
class PruningEvaluator:
    """Evaluator of a checkpoint and the networks pruned from it.

    Attributes:
        settings: Options of prune.py.
        task: Task of the checkpoint.
        data: Data set for calibration and scores; None: neither is possible.
        data_text: Data set as the user or the checkpoint names it.
        size: Image size in pixels.
        stride: Stride of the network.
        device: Device of all measurements.
    """

    settings: PruneSettings
    task: Task
    data: DataConfig | None
    data_text: str
    size: int
    stride: int
    device: torch.device

    @classmethod
    def of(cls, settings: PruneSettings, checkpoint: Checkpoint, path: Path, device: torch.device) -> PruningEvaluator:
        """Create the evaluator of a checkpoint.

        Raises:
            UserError: If data is needed but missing, or has other classes than the checkpoint.
        """
        network = checkpoint.network
        task = select_task(checkpoint.task, network.heads)
        default_size = max(spec.usual_px for spec in network.specs.values())
        size = int(settings.imgsz[0] if settings.imgsz else checkpoint.meta.get("imgsz") or default_size)
        step = max(network.stride, 32)
        size = network.fixed_hw[0] if network.fixed_hw else -(-size // step) * step
        text = str(settings.data or checkpoint.meta.get("data") or "")
        needs = settings.epochs or (settings.sparsity is None and settings.importance == "taylor")
        if not text and needs:
            why = "--epochs needs data" if settings.epochs else "--importance taylor needs data"
            raise UserError(f"{path}: {why}; give it with --data, or use --importance l2")
        if text and settings.data:
            resolve_dataset(text, settings.download)
        data = load_data(text) if text else None
        for head, spec in network.specs.items() if data is not None else ():
            names = data.names_for(head) if data is not None else None
            if names is not None and len(names) != spec.num_classes:
                raise UserError(
                    f"{text}: {len(names)} classes, but the {head} head of {path} has {spec.num_classes}; "
                    "use the data that it was trained on"
                )
        return cls(settings, task, data, text, size, network.stride, device)

    def _loader(self, split: str, rect: bool) -> Loader:
        assert self.data is not None
        request = LoadRequest(
            data=self.data, split=split, training=False, image_size=self.size, batch_size=self.settings.batch_size,
            stride=max(self.stride, 32), hyp=Hyp(), workers=self.settings.workers, rect=rect, pad=0.5 if rect else 0.0,
            allow_label_faults=True,
        )  # fmt: skip
        task = self.task if split == "train" else self.adapted_task
        return task.load(request)

    @property
    def adapted_task(self) -> Task:
        """Task that scores the network: on panoptic data by panoptic quality."""
        return self.task if self.data is None else self.task.for_data(self.task, self.data)

    @property
    def _batches(self) -> int:
        return -(-self.settings.samples // self.settings.batch_size)

    def importance(self, network: Network, groups: Sequence[Group]) -> list[Tensor]:
        """Compute the importance of the channels of each group by the criterion of --importance."""
        criterion = self.settings.importance
        if criterion in ("l1", "l2"):
            return by_weights(network, groups, int(criterion[1]))
        if criterion == "bn":
            return by_batchnorm(network, groups)
        hyp = Hyp()
        losses = build_losses(network, hyp, self.size, self.device)
        found = TaylorImportance(network, groups)
        loader = self._loader("train", rect=False)
        gather_gradients(found, loader, losses, self.task.gains(hyp), self.device, self._batches)
        return found.scores()

    def recalibrate(self, network: Network) -> None:
        """Recompute the BatchNorm statistics of a pruned network on training images, if there are any."""
        if self.data is None:
            LOGGER.warning("no --data: BatchNorm keeps the statistics of the original network")
        else:
            recompute_statistics(network, self._loader("train", rect=False), self.device, self._batches)

    def scores(self, network: Network) -> dict[str, float] | None:
        """Compute the scores of the fitness on the validation images; None without data or with --noval."""
        if self.data is None or self.settings.noval:
            return None
        runner = NetworkRunner(fuse(network).eval().to(self.device), self.device)
        loader = self._loader("val", rect=runner.fixed_hw is None and self.task.name != "classify")
        report = evaluate(runner, loader, EvalSettings(names=self.data.names), self.device)
        return {name: round(report.metrics[name], 4) for name in self.adapted_task.fitness}

    @torch.inference_mode()
    def milliseconds(self, *networks: Network) -> tuple[float, ...]:
        """Measure the median time of each network for one image in milliseconds, in alternation."""
        image = torch.rand(1, 3, self.size, self.size).to(self.device).contiguous(memory_format=torch.channels_last)
        runners = {str(i): fuse(network).eval().to(self.device) for i, network in enumerate(networks)}
        actions = {name: partial(runner, image) for name, runner in runners.items()}
        seconds = time_alternately(actions, ROUNDS, target=self.device)
        return tuple(1000 * statistics.median(times) for times in seconds.values())
