"""Steps that build a run: configuration, batch size, loaders, anchors, losses, optimizer, folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.add_semantic_head import DESIGNS
from models.checkpoint import Checkpoint, load_checkpoint
from models.network import Network
from utils.core import distributed as dist
from utils.core.contracts import Loader, Loss, Task
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.files import run_folder
from utils.core.hyp import Hyp, find_hyp
from utils.core.load_request import LoadRequest, SemanticRequest, evaluation_batch
from utils.core.log import LOGGER
from utils.core.seed import generator
from utils.core.train_settings import TrainSettings
from utils.engine.bn_sparsity import add_bn_sparsity
from utils.engine.optimizers import OPTIMIZERS
from utils.engine.parameter_groups import build_optimizer
from utils.engine.run_state import find_last, load_resumable
from utils.engine.schedules import SCHEDULES
from utils.losses import LOSSES
from utils.ops.anchors import check_anchors

RUN_FOLDER = "run_folder"  # key in the store of torchrun
_ANCHOR_STREAM = 1000  # random stream of AutoAnchor


def open_resumed(settings: TrainSettings) -> tuple[TrainSettings, Checkpoint | None]:
    """Load the checkpoint that `--resume` names.

    Returns:
        The settings of the run to resume, with device and workers of the new process and `--deterministic` if given,
        and its checkpoint; without `--resume` the given settings and None.
    """
    if not settings.resume and (first := dist.recall(RUN_FOLDER)):
        settings = _continue_first_attempt(settings, Path(first))
    if not settings.resume:
        return settings, None
    path = find_last(settings.resume, Path(settings.project))
    checkpoint = load_resumable(path)
    try:
        stored = TrainSettings.from_dict((checkpoint.training or {})["settings"])
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, its settings are not those of a training run") from error
    resumed = replace(
        stored,
        resume=str(path),
        device=settings.device or stored.device,
        workers=settings.workers,
        deterministic=settings.deterministic or stored.deterministic,
    )
    return resumed, checkpoint


def _continue_first_attempt(settings: TrainSettings, folder: Path) -> TrainSettings:
    """Choose the run folder of processes that torchrun has started again (`--max-restarts`): that of the first ones.

    Raises:
        SystemExit: If that training was complete.
    """
    last = folder / "weights" / "last.pt"
    LOGGER.info(f"restart {dist.restart_count()} by torchrun: continuing {folder}")
    if last.is_file():
        if load_checkpoint(last).training is None:
            LOGGER.info(f"{folder}: the training is complete")
            raise SystemExit(0)
        return replace(settings, resume=str(last))
    return replace(settings, project=str(folder.parent), name=folder.name, exist_ok=True)


def check_names(settings: TrainSettings) -> None:
    """Check the names of optimizer, schedule and semantic head before anything expensive is loaded.

    Raises:
        UserError: If a name is not registered.
    """
    OPTIMIZERS.get(settings.optimizer, "--optimizer")
    SCHEDULES.get(settings.schedule_name, "--schedule")
    if settings.semantic and settings.semantic not in DESIGNS:
        raise UserError(f"--semantic {settings.semantic}: must be one of {', '.join(DESIGNS)}")


def read_hyp(settings: TrainSettings) -> Hyp:
    """Read the hyperparameters of a new run: those of the file, overridden by options."""
    hyp = Hyp.from_file(find_hyp(settings.hyp))
    options: dict[str, Any] = {
        "label_smoothing": settings.label_smoothing,
        "lr0": settings.lr0,
        "weight_decay": settings.decay,
        "autobalance": 1.0 if settings.autobalance else None,
    }
    return replace(hyp, **{name: value for name, value in options.items() if value is not None})


def load_config(settings: TrainSettings, checkpoint: Checkpoint | None) -> tuple[Hyp, DataConfig]:
    """Load hyperparameters (of the checkpoint when resuming) and the data configuration."""
    hyp = read_hyp(settings) if checkpoint is None else Hyp.from_dict((checkpoint.training or {})["hyp"], "checkpoint")
    data = load_data(settings.data)
    return hyp, data.single_class() if settings.single_cls else data


def resolve_batch_size(
    settings: TrainSettings, hyp: Hyp, network: Network, device: torch.device, mixed: torch.dtype | None
) -> tuple[TrainSettings, Hyp]:
    """Choose the batch size if it is left to the device, and the nominal batch size if it is 0."""
    if settings.auto_batch:
        from utils.engine.autobatch import MEMORY_FRACTION, choose_batch_size

        fraction = MEMORY_FRACTION if settings.batch_size < 0 else float(settings.batch_size)
        batch = choose_batch_size(network, settings.imgsz[0], device, mixed, fraction)
        step = 4 * dist.world_size() if settings.quad else 1  # --quad joins four images into one
        settings = replace(settings, batch_size=max(batch // step * step, step))
    return settings, hyp if hyp.nominal_batch else replace(hyp, nominal_batch=float(settings.batch_size))


def open_loaders(
    task: Task, settings: TrainSettings, hyp: Hyp, data: DataConfig, stride: int, pin: bool = False
) -> tuple[Loader, Loader]:
    """Open the loaders of training and validation images.

    Raises:
        UserError: If the batch size is not a multiple of the number of processes.
    """
    world, batch = dist.world_size(), int(settings.batch_size)
    if batch % world:
        raise UserError(f"--batch-size {batch}: must be a multiple of the number of processes, {world}")
    request = LoadRequest(
        data=data,
        split="train",
        training=True,
        image_size=settings.imgsz[0],
        batch_size=batch // world,
        stride=max(stride, 32),
        hyp=hyp,
        epochs=settings.epochs,
        workers=settings.workers,
        pin=pin,
        seed=settings.seed,
        rect=settings.rect,
        cache=None if settings.cache == "val" else settings.cache,
        single_class=settings.single_cls,
        quad=settings.quad,
        mask_ratio=settings.mask_ratio,
        overlap=not settings.no_overlap,
        allow_label_faults=settings.allow_label_faults,
        mosaic_window=settings.mosaic_window,
        semantic=SemanticRequest(settings.base_size, settings.seg_mode, settings.seg_share, settings.seg_mosaic),
    )
    classes = data.num_classes if task.fit_anchors else 0
    validation = replace(
        request,
        split="val",
        training=False,
        image_size=settings.imgsz[-1],
        batch_size=evaluation_batch(max(2 * batch // world, 1), settings.imgsz[-1], classes),
        rect=True,
        rect_group=2 * batch,  # the same shapes for any number of processes
        pad=0.5,
        cache="ram" if settings.cache == "val" else settings.cache,
        quad=False,
    )
    return task.load(request), task.load(validation)


def fit_anchors(network: Network, loader: Loader, hyp: Hyp, settings: TrainSettings) -> None:
    """Replace the anchors of each head if they do not fit the labels (AutoAnchor); all ranks get the same anchors."""
    pretrained = bool(settings.weights) and not settings.cfg and hyp.anchors is None
    for name, spec in network.specs.items():
        if not spec.anchors:
            if spec.bins:
                LOGGER.info(f"AutoAnchor: head {name!r} has no anchors, nothing to fit")
            continue
        decision = None
        if dist.is_main():
            rng = generator(settings.seed, 0, 0, stream=_ANCHOR_STREAM)
            decision = check_anchors(
                loader.labels,
                loader.shapes_hw,
                spec.anchors,
                settings.imgsz[0],
                hyp.anchor_t,
                rng,
                strides=spec.strides,
            )
            LOGGER.info(decision.message)
            if pretrained and decision.new is not None:
                LOGGER.warning(
                    "the weights were trained with other anchors; keep those with --noautoanchor if training is short"
                )
        new = dist.broadcast(None if decision is None or decision.new is None else np.asarray(decision.new))
        if new is not None:
            levels = torch.from_numpy(new).float().reshape(len(spec.strides), -1, 2)
            network.set_anchors(name, levels.half().float())  # values that a half-precision checkpoint can store


def build_losses(network: Network, hyp: Hyp, image_size: int, device: torch.device) -> dict[str, Loss]:
    """Build the loss of each head, with gains scaled to the network and the data.

    Returns:
        Losses by head name.
    """
    if any(spec.bins for spec in network.specs.values()):
        hyp = replace(hyp, seg=hyp.seg * hyp.dense_seg)
    losses: dict[str, Loss] = {}
    for name, spec in network.specs.items():
        scaled = hyp.scaled(max(len(spec.strides), 1), spec.num_classes, image_size)
        losses[name] = LOSSES.get(spec.loss or name)(spec, scaled).to(device)
    return losses


def build_run_losses(
    network: Network, settings: TrainSettings, hyp: Hyp, mixed: torch.dtype | None, epoch_steps: int
) -> dict[str, Loss]:
    """Build the losses of a run on the device of the network, with that of `--distill`.

    Args:
        network: Network to train.
        settings: Options of the run.
        hyp: Hyperparameters, not scaled.
        mixed: Type of mixed precision; None for fp32.
        epoch_steps: Batches of an epoch.

    Returns:
        Losses by head name.
    """
    losses = build_losses(network, hyp, settings.imgsz[0], next(network.parameters()).device)
    if not settings.distill:
        return losses
    from utils.engine.distillation import distil_losses  # loaded only if it is used

    return distil_losses(losses, network, settings, hyp, mixed, settings.epochs * epoch_steps)


def build_run_optimizer(
    network: Network, settings: TrainSettings, hyp: Hyp, device: torch.device
) -> torch.optim.Optimizer:
    """Build the optimizer with the parameter groups that the options ask for.

    Raises:
        UserError: If a per-layer option is given for a network without layers (torchvision).
    """
    for option, given, rows in (
        ("--layer-decay", settings.layer_decay < 1, min(network.head_rows.values())),
        ("--backbone-warmup", settings.backbone_warmup > 0, len(network.architecture["backbone"])),
    ):
        if given and not rows:
            raise UserError(f"{option}: not supported by {settings.cfg or settings.weights}, which is a single layer")
    size, separate = int(settings.batch_size), settings.backbone_warmup > 0
    optimizer = build_optimizer(network, settings.optimizer, hyp, size, device, settings.layer_decay, separate)
    if settings.slimming:
        add_bn_sparsity(network, optimizer, settings.slimming, max(hyp.nominal_batch, settings.batch_size))
    return optimizer


def wrap_model(network: Network, settings: TrainSettings, device: torch.device) -> nn.Module:
    """Wrap the network for training: SyncBatchNorm, DDP and torch.compile as the options ask for."""
    model: nn.Module = network
    if settings.sync_bn and dist.world_size() == 1:
        LOGGER.warning("--sync-bn: has no effect with a single process")
    if dist.world_size() > 1:
        if settings.sync_bn:
            if device.type != "cuda":
                raise UserError("--sync-bn: works on GPUs only")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        model = wrap_ddp(model, device)
    return torch.compile(model) if settings.compile else model  # type: ignore[return-value]


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.parallel.DistributedDataParallel:
    """Wrap a model for data-parallel training in which ranks exchange gradients but no buffers.

    Buffers are BatchNorm statistics, which training does not read. Those of the first rank are validated and saved
    (`ModelEma.broadcast`), so those of the others need not be equal.
    """
    ids = [device.index] if device.type == "cuda" else None
    wrapped = nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # the name of the argument depends on the version of PyTorch
    return wrapped


def create_folder(settings: TrainSettings, checkpoint: Checkpoint | None) -> Path:
    """Create the folder of a new run, or return that of the resumed run."""
    if checkpoint is not None:
        folder = Path(settings.resume).resolve().parent.parent
        if dist.is_main():
            dist.remember(RUN_FOLDER, str(folder))
        return folder
    name = Path(settings.cfg).stem if settings.name == "cfg" and settings.cfg else settings.name
    return Path(dist.run_on_main(lambda: _new_folder(settings, name)))


def _new_folder(settings: TrainSettings, name: str) -> Path:
    folder = run_folder(Path(settings.project), name, settings.exist_ok)
    dist.remember(RUN_FOLDER, str(folder.resolve()))
    return folder
