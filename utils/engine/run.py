"""State of a training run: `Run` holds its parts, `TrainState` the counters that are saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.network import Network
from models.network_runner import NetworkRunner, scoring_runner
from utils.core.contracts import EvalSettings, Loader, Loss, Task
from utils.core.data_config import DataConfig
from utils.core.hyp import Hyp
from utils.core.train_settings import TrainSettings
from utils.engine.batchnorm_counters import BatchNormCounters
from utils.engine.ema import ModelEma
from utils.engine.gradient_guard import GradientGuard
from utils.engine.profiler import Phase, untimed
from utils.engine.step_schedule import StepSchedule
from utils.loggers import Loggers

FULLY_EVALUATED_EPOCHS = 39  # at the end of a run, `--seg-interval` is ignored for so many epochs


@dataclass
class TrainState:
    """Progress of a run. All fields are saved in checkpoints."""

    epoch: int = 0
    step: int = 0  # completed batches of this epoch
    global_step: int = 0  # completed batches of the run
    last_update: int = -1  # global step of the last optimizer step
    ema_updates: int = 0
    best_fitness: float = -1.0
    best_epoch: int = 0
    complete: bool = False  # no epoch follows, because all are done or the training stopped early
    bad_steps: int = 0  # optimizer steps skipped because of non-finite gradients
    loss_sums: dict[str, float] = field(default_factory=dict)  # of this epoch, over all ranks
    class_scores: list[float] = field(default_factory=list)  # main metric per class at the last validation


@dataclass
class Run:
    """All parts of a training run."""

    task: Task
    settings: TrainSettings
    hyp: Hyp  # as read from the file; the losses receive scaled gains
    data: DataConfig
    folder: Path
    device: torch.device
    mixed: torch.dtype | None  # autocast dtype, None for fp32
    network: Network
    model: nn.Module  # `network` compiled and wrapped by DDP
    ema: ModelEma[Network]
    losses: dict[str, Loss]  # by head name
    gains: Mapping[str, float]  # loss weights by head name, default 1
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    counters: BatchNormCounters
    guard: GradientGuard  # steps of `optimizer` that skip non-finite gradients
    schedule: StepSchedule
    train_loader: Loader
    val_loader: Loader
    loggers: Loggers
    state: TrainState = field(default_factory=TrainState)
    resumed: bool = False
    phase: Phase = untimed  # times the phases of the training loop with `--profile`

    @property
    def weights_folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "weights"

    def meta(self) -> dict[str, Any]:
        """Collect the training metadata that checkpoints store beside the weights."""
        return {
            "task": self.task.name,
            "data": str(self.settings.data),
            "imgsz": self.settings.imgsz[-1],
            "epochs_done": self.state.epoch,
            "best_fitness": self.state.best_fitness,
            "torch": str(torch.__version__),
        }

    def eval_settings(self) -> EvalSettings:
        """Build the evaluation settings of validation during training."""
        return EvalSettings(
            names=self.data.names,
            agnostic=self.settings.single_cls,
            single_class=self.settings.single_cls,
            annotations=None if self.data.is_panoptic else self.data.annotations.get("val"),
        )

    def skipped_heads(self, epoch: int) -> tuple[str, ...]:
        """List the heads that are not evaluated after this epoch because of `--seg-interval`."""
        near_end = self.settings.epochs - epoch <= FULLY_EVALUATED_EPOCHS
        return () if near_end or epoch % self.settings.seg_interval == 0 else self.task.periodic_heads

    def runner(self) -> NetworkRunner:
        """Wrap the EMA network for evaluation."""
        return scoring_runner(self.ema.network, self.device, self.mixed)
