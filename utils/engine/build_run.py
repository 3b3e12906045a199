"""From settings to a run: everything one training needs, built in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.add_semantic_head import with_semantic
from models.builder import build_network
from models.checkpoint import Checkpoint
from models.class_names import described_heads
from models.network import Network
from models.pretrained import starting_point
from models.transfer import transfer
from models.weight_download import resolve_weights
from utils.core import distributed as dist
from utils.core.contracts import Loader, Logger, Task
from utils.core.data_config import DataConfig, load_data
from utils.core.device import autocast_dtype, describe, select_device
from utils.core.errors import UserError
from utils.core.files import run_folder
from utils.core.hyp import Hyp, find_hyp
from utils.core.load_request import LoadRequest, SemanticRequest
from utils.core.log import LOGGER
from utils.core.seed import generator, seed_everything
from utils.core.train_settings import TrainSettings
from utils.engine.autobatch import SHARE, choose_batch
from utils.engine.bn_sparsity import add_slimming
from utils.engine.ema import ModelEma
from utils.engine.optimizers import OPTIMIZERS
from utils.engine.parameter_groups import build_optimizer
from utils.engine.profiler import Profile, untimed
from utils.engine.run import Run
from utils.engine.run_state import find_last, load_resumable, restore
from utils.engine.schedules import SCHEDULES
from utils.engine.step_schedule import Schedule
from utils.loggers import Loggers
from utils.losses import LOSSES
from utils.ops.anchors import check_anchors


def assemble(
    choose: Callable[[Collection[str]], Task], settings: TrainSettings, own_loggers: Sequence[Logger] = ()
) -> Run:
    """Build the run that `settings` describe, or put back the one they resume.

    `choose` returns the task for the heads that the network has; `own_loggers` are told beside those in settings.
    """
    checkpoint = None
    if settings.resume:
        checkpoint = load_resumable(find_last(settings.resume, Path(settings.project)))
        settings = _resumed_settings(settings, checkpoint)
    for registry, name, option in (
        (OPTIMIZERS, settings.optimizer, "--optimizer"),
        (SCHEDULES, settings.curve, "--schedule"),
    ):
        registry.get(name, option)  # a wrong name is an error before anything is loaded
    device = select_device(settings.device)
    dist.start(device)
    seed_everything(settings.seed + dist.rank())
    hyp = read_hyp(settings) if checkpoint is None else _resumed_hyp(checkpoint)
    data = load_data(settings.data)
    data = data.single_class() if settings.single_cls else data
    network = _network(choose(()), settings, hyp, data, checkpoint)
    if (channels := network.architecture.get("ch", 3)) != 3:
        raise UserError(f"{settings.cfg or settings.weights}: takes images of {channels} channels; those here have 3")
    task = choose(network.heads)
    require_heads(task.name, set(task.heads), set(network.heads), settings.weights or settings.cfg)
    freeze(network, settings.freeze)
    network.checkpointing = settings.checkpointing
    if checkpoint is None and settings.weights and not settings.freeze_bn and has_folded_statistics(network):
        LOGGER.warning(f"{settings.weights}: BatchNorm is folded into its weights; going on as with --freeze-bn")
        settings = replace(settings, freeze_bn=True)
    settings = _fitting_sizes(settings, network)
    mixed = autocast_dtype(device, settings.amp)
    settings = _with_batch(settings, network, device, mixed)
    hyp = hyp if hyp.nominal_batch else replace(hyp, nominal_batch=float(settings.batch_size))
    train_loader, val_loader = _loaders(task, settings, hyp, data, network.stride)
    if task.fit_anchors and checkpoint is None and not settings.noautoanchor:
        _fit_anchors(network, train_loader, hyp, settings)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = ModelEma(network)
    profile = Profile(device) if settings.profile and dist.is_main() else None
    run = Run(
        task=task,
        settings=settings,
        hyp=hyp,
        data=data,
        device=device,
        mixed=mixed,
        network=network,
        model=_wrap(network, settings, device),
        ema=ema,
        losses=build_losses(network, hyp, settings.imgsz[0], device),
        gains=task.gains(hyp),
        optimizer=_optimizer(network, settings, hyp, device),
        scaler=torch.amp.GradScaler(device.type, enabled=mixed is torch.float16),
        schedule=Schedule.of(settings, hyp, train_loader.num_batches),
        train_loader=train_loader,
        val_loader=val_loader,
        loggers=Loggers(("csv", *settings.log), [*own_loggers, *([profile] if profile else [])]),
        resumed=checkpoint is not None,
        phase=profile.phase if profile else untimed,
        folder=_folder(settings, checkpoint),  # last: what fails before leaves nothing behind
    )
    if checkpoint is not None:
        restore(run, checkpoint)
        LOGGER.info(f"resuming {run.folder} at epoch {run.state.epoch + 1}, batch {run.state.step + 1}")
    precision = "fp32" if mixed is None else str(mixed).removeprefix("torch.")
    LOGGER.info(f"{describe(device)}, {precision}, {dist.world_size()} process(es)")
    return run


def _resumed_settings(settings: TrainSettings, checkpoint: Checkpoint) -> TrainSettings:
    """Return the settings of the run to resume; where it runs may differ, and it may go on for more epochs."""
    path = find_last(settings.resume, Path(settings.project))
    try:
        stored = TrainSettings.from_dict((checkpoint.training or {})["settings"])
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, its settings are none of a training run") from error
    return replace(stored, resume=str(path), device=settings.device or stored.device, workers=settings.workers)


def _resumed_hyp(checkpoint: Checkpoint) -> Hyp:
    return Hyp.from_dict((checkpoint.training or {})["hyp"], "checkpoint")


def read_hyp(settings: TrainSettings) -> Hyp:
    """Return the hyper-parameters of a new run: those of the file, over them those that are options."""
    hyp = Hyp.from_file(find_hyp(settings.hyp))
    given: dict[str, Any] = {
        "label_smoothing": settings.label_smoothing,
        "lr0": settings.lr0,
        "weight_decay": settings.decay,
        "autobalance": 1.0 if settings.autobalance else None,
    }
    return replace(hyp, **{name: value for name, value in given.items() if value is not None})


def _network(task: Task, settings: TrainSettings, hyp: Hyp, data: DataConfig, checkpoint: Checkpoint | None) -> Network:
    """Return the network to train: resumed, transferred from weights, or new."""
    if checkpoint is not None:
        stored = checkpoint.network.architecture
        for head, spec in checkpoint.network.specs.items():
            if (names := data.names_for(head)) is not None and len(names) != spec.num_classes:
                raise UserError(
                    f"{data.source}: {len(names)} classes, but the run to resume has {spec.num_classes}; "
                    f"start a new one with --weights {settings.resume}"
                )
        return build_network(stored, head_names=_names(stored, data))
    weights = resolve_weights(settings.weights, settings.download) if settings.weights else None
    start = starting_point(settings, weights, task.heads, task.cfg)
    architecture = start.architecture
    if settings.semantic:
        architecture = with_semantic(architecture, settings.semantic, alone=not data.splits)
    per_level = None if hyp.anchors is None else round(hyp.anchors)
    network = build_network(architecture, anchors_per_level=per_level, head_names=_names(architecture, data))
    if (state := start.state_for(network)) is None:
        return network
    report = transfer(network, state, skip_anchors=bool(settings.cfg or per_level))
    LOGGER.info(f"{report} from {settings.weights or 'the published weights'}")
    if report.matched == 0:
        raise UserError(f"--weights {settings.weights}: none of its tensors fits --cfg {settings.cfg}")
    return network


def _names(architecture: dict[str, Any], data: DataConfig) -> dict[str, tuple[str, ...]]:
    """Return the classes in the data for each head of an architecture that it has labels for."""
    known = {head: data.names_for(head) for head in described_heads(architecture)}
    return {head: names for head, names in known.items() if names}


def require_heads(task: str, needed: set[str], present: set[str], source: str = "") -> None:
    """Raise if the model, read from `source`, lacks a head that the task trains."""
    if missing := needed - present:
        heads = ", ".join(sorted(present)) or "none"
        place = f"{source}: " if source else ""
        raise UserError(f"{place}task {task!r} needs the head {', '.join(sorted(missing))}; this model has: {heads}")


def freeze(network: Network, layers: tuple[int, ...]) -> None:
    """Stop training of layers 0 to n-1 for one number n, of exactly those for several (behaviour.md 3.2)."""
    count = len(network.model)
    if max(layers, default=0) > count:
        raise UserError(f"--freeze {' '.join(map(str, layers))}: this network has the layers 0 to {count - 1}")
    frozen = range(layers[0]) if len(layers) == 1 else layers
    prefixes = tuple(f"model.{index}." for index in frozen)
    for name, parameter in network.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.requires_grad_(False)
    if prefixes:
        LOGGER.info(f"frozen layers: {', '.join(str(index) for index in frozen)}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"--freeze {' '.join(map(str, layers))}: nothing of the {count} layers is left to train")


def has_folded_statistics(network: nn.Module) -> bool:
    """Tell whether BatchNorm does no more than add: what it subtracted and divided by is part of the weights before it.

    Statistics of batches would change what such a network computes beyond recognition.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None or bool(mean.any()) or not torch.equal(variance, torch.ones_like(variance)):
            return False
    return any(bool(norm.bias.any()) for norm in norms)  # those of a new network add nothing, too


def _fitting_sizes(settings: TrainSettings, network: Network) -> TrainSettings:
    """Round the image sizes up to the network's stride."""
    if (fixed := network.fixed_hw) and {*settings.imgsz} != {*fixed}:
        raise UserError(f"--imgsz {settings.imgsz[0]}: this network takes only images of {fixed[0]} x {fixed[1]}")
    step = max(network.stride, 32)
    sizes = tuple(max(math.ceil(size / step) * step, 2 * step) for size in settings.imgsz)
    if sizes != settings.imgsz:
        LOGGER.warning(f"--imgsz {settings.imgsz[0]} is no multiple of {step}; using {sizes[0]}")
    if isinstance(settings.multi_scale, tuple) and (odd := [size for size in settings.multi_scale if size % step]):
        raise UserError(f"--multi-scale {odd[0]}: no multiple of {step}, the network's stride")
    return replace(settings, imgsz=sizes)


def _with_batch(
    settings: TrainSettings, network: Network, device: torch.device, mixed: torch.dtype | None
) -> TrainSettings:
    """Return the settings with a batch size that suits the device where it is left to it."""
    if not settings.auto_batch:
        return settings
    share = SHARE if settings.batch_size < 0 else float(settings.batch_size)
    batch = choose_batch(network, settings.imgsz[0], device, mixed, share)
    step = 4 * dist.world_size() if settings.quad else 1  # --quad joins four images into one
    return replace(settings, batch_size=max(batch // step * step, step))


def _loaders(task: Task, settings: TrainSettings, hyp: Hyp, data: DataConfig, stride: int) -> tuple[Loader, Loader]:
    world, batch = dist.world_size(), int(settings.batch_size)
    if batch % world:
        raise UserError(f"--batch-size {batch} must divide by the {world} processes")
    request = LoadRequest(
        data=data,
        split="train",
        training=True,
        image_size=settings.imgsz[0],
        batch_size=batch // world,
        stride=max(stride, 32),
        hyp=hyp,
        workers=settings.workers,
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
    validation = replace(
        request,
        split="val",
        training=False,
        image_size=settings.imgsz[-1],
        batch_size=max(2 * batch // world, 1),
        rect=True,
        rect_group=2 * batch,  # the same shapes however many processes share the work
        pad=0.5,
        cache="ram" if settings.cache == "val" else settings.cache,
        quad=False,
    )
    return task.load(request), task.load(validation)


def _fit_anchors(network: Network, loader: Loader, hyp: Hyp, settings: TrainSettings) -> None:
    """Check that the anchors suit the labels, else learn others (behaviour.md 3.12); every rank gets the same."""
    learned = bool(settings.weights) and not settings.cfg and hyp.anchors is None
    for name, spec in network.specs.items():
        if not spec.anchors:
            continue
        decision = None
        if dist.is_main():
            rng = generator(settings.seed, 0, 0, stream=1000)
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
            if learned and decision.new is not None:
                LOGGER.warning("the weights were learned with other anchors; for a short training give --noautoanchor")
        new = dist.broadcast(None if decision is None or decision.new is None else np.asarray(decision.new))
        if new is not None:
            levels = torch.from_numpy(new).float().reshape(len(spec.strides), -1, 2)
            network.set_anchors(name, levels.half().float())  # what a half-precision checkpoint can hold


def _optimizer(network: Network, settings: TrainSettings, hyp: Hyp, device: torch.device) -> Any:
    """Build the optimizer; options about layers need a network that is described layer by layer."""
    for option, given, rows in (
        ("--layer-decay", settings.layer_decay < 1, min(network.head_rows.values())),
        ("--backbone-warmup", settings.backbone_warmup > 0, len(network.architecture["backbone"])),
    ):
        if given and not rows:
            raise UserError(f"{option}: this network is one layer, {settings.cfg or settings.weights}")
    optimizer = build_optimizer(
        network,
        settings.optimizer,
        hyp,
        int(settings.batch_size),
        device,
        layer_decay=settings.layer_decay,
        backbone_apart=settings.backbone_warmup > 0,
    )
    if settings.slimming:
        add_slimming(network, optimizer, settings.slimming, max(hyp.nominal_batch, settings.batch_size))
    return optimizer


def build_losses(network: Network, hyp: Hyp, image_size: int, device: torch.device) -> dict[str, Any]:
    """Return one loss per head of the network, by the head's name, with gains scaled to network and data."""
    losses = {}
    for name, spec in network.specs.items():
        scaled = hyp.scaled(max(len(spec.strides), 1), spec.num_classes, image_size)
        losses[name] = LOSSES.get(name)(spec, scaled).to(device)
    return losses


def _wrap(network: Network, settings: TrainSettings, device: torch.device) -> nn.Module:
    model: nn.Module = network
    if settings.sync_bn and dist.world_size() == 1:
        LOGGER.warning("--sync-bn: one process has nobody to share statistics with")
    if dist.world_size() > 1:
        if settings.sync_bn:
            if device.type != "cuda":
                raise UserError("--sync-bn works on GPUs only")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        ids = [device.index] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    return torch.compile(model) if settings.compile else model  # type: ignore[return-value]


def _folder(settings: TrainSettings, checkpoint: Checkpoint | None) -> Path:
    """Return the run's folder: a new one, or that of the run that is resumed."""
    if checkpoint is not None:
        return Path(settings.resume).resolve().parent.parent
    name = Path(settings.cfg).stem if settings.name == "cfg" and settings.cfg else settings.name
    return dist.run_on_main(lambda: run_folder(Path(settings.project), name, settings.exist_ok))
