"""Everything one training run is made of, and what of it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.network import Network
from models.network_runner import NetworkRunner
from utils.core.contracts import EvalSettings, Loader, Task
from utils.core.data_config import DataConfig
from utils.core.hyp import Hyp
from utils.core.train_settings import TrainSettings
from utils.engine.ema import ModelEma
from utils.engine.profiler import Phase, untimed
from utils.engine.step_schedule import Schedule
from utils.loggers import Loggers

ALWAYS_SCORED = 40  # epochs before the end in which every head is scored


@dataclass
class TrainState:
    """Where a run is. Every field is saved; a new field is saved by existing."""

    epoch: int = 0
    step: int = 0  # batches of this epoch that are done
    global_step: int = 0  # batches of the run that are done
    last_update: int = -1  # the batch that ended with the last optimizer step
    ema_updates: int = 0
    best_fitness: float = -1.0
    best_epoch: int = 0
    bad_steps: int = 0  # updates left out because a gradient was not finite
    loss_sums: dict[str, float] = field(default_factory=dict)  # of this epoch, over all ranks
    class_scores: list[float] = field(default_factory=list)  # per class, of the last validation


@dataclass
class Run:
    """Everything one training run is made of."""

    task: Task
    settings: TrainSettings
    hyp: Hyp  # as the files say; losses get it scaled
    data: DataConfig
    folder: Path
    device: torch.device
    mixed: torch.dtype | None  # autocast type
    network: Network
    model: nn.Module  # the network as the loop calls it: compiled, wrapped for DDP
    ema: ModelEma[Network]
    losses: dict[str, Any]
    gains: Mapping[str, float]  # by which the losses of heads are multiplied; else 1
    optimizer: Any
    scaler: Any
    schedule: Schedule
    train_loader: Loader
    val_loader: Loader
    loggers: Loggers
    state: TrainState = field(default_factory=TrainState)
    resumed: bool = False
    phase: Phase = untimed  # times what the loop does (`--profile`)

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint says about its training besides the weights."""
        return {
            "task": self.task.name,
            "data": str(self.settings.data),
            "imgsz": self.settings.imgsz[-1],
            "epochs_done": self.state.epoch,
            "best_fitness": self.state.best_fitness,
            "torch": str(torch.__version__),
        }

    def eval_settings(self) -> EvalSettings:
        """Return how validation during training scores."""
        return EvalSettings(
            names=self.data.names,
            agnostic=self.settings.single_cls,
            single_class=self.settings.single_cls,
            annotations=self.data.annotations.get("val"),
        )

    def left_out(self, epoch: int) -> tuple[str, ...]:
        """Return the heads that are not scored after this epoch (behaviour.md 12.8)."""
        interval, last = self.settings.seg_interval, self.settings.epochs - epoch < ALWAYS_SCORED
        return () if last or epoch % interval == 0 else self.task.periodic_heads

    def runner(self) -> NetworkRunner:
        """Return the averaged network, ready to be scored."""
        return NetworkRunner(self.ema.network, self.device, self.mixed)
