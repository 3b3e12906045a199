"""Build the network of a training run: resumed, fine-tuned from weights, or new; freeze layers and check its heads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from models.add_semantic_head import only_semantic_head, with_semantic_head
from models.builder import build_network
from models.checkpoint import Checkpoint
from models.class_names import list_heads
from models.network import Network
from models.pretrained import choose_initial_network
from models.transfer import transfer
from models.weight_download import resolve_weights
from utils.core.contracts import Task
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.log import LOGGER
from utils.core.train_settings import TrainSettings


def build_trainable_network(
    task: Task, settings: TrainSettings, hyp: Hyp, data: DataConfig, checkpoint: Checkpoint | None
) -> Network:
    """Build the network to train, with random, pretrained or (later) restored weights.

    Args:
        task: Task of the script; gives the required heads and the default architecture.
        settings: Options of the run.
        hyp: Hyperparameters; `anchors` changes the number of anchors.
        data: Data set; its classes determine the size of the heads.
        checkpoint: Checkpoint of the run to resume, or None. Its weights are restored by `run_state.restore`.

    Raises:
        UserError: If weights, architecture and data do not fit together.
    """
    if checkpoint is not None:
        network = _rebuild(settings, data, checkpoint)
    else:
        network = _build_from_weights(task, settings, hyp, data)
    if (channels := network.architecture.get("ch", 3)) != 3:
        raise UserError(f"{settings.cfg or settings.weights}: expects {channels} input channels; images have 3")
    return network


def _rebuild(settings: TrainSettings, data: DataConfig, checkpoint: Checkpoint) -> Network:
    stored = checkpoint.network.architecture
    for head, spec in checkpoint.network.specs.items():
        if (names := data.names_for(head)) is not None and len(names) != spec.num_classes:
            raise UserError(
                f"{data.source}: {len(names)} classes, but the run to resume has {spec.num_classes}; "
                f"start a new run with --weights {settings.resume}"
            )
    return build_network(stored, head_names=_head_names(stored, data))


def _build_from_weights(task: Task, settings: TrainSettings, hyp: Hyp, data: DataConfig) -> Network:
    weights = resolve_weights(settings.weights, settings.download) if settings.weights else None
    start = choose_initial_network(settings, weights, task.heads, task.cfg)
    architecture = start.architecture
    heads = list_heads(architecture)
    if settings.semantic:
        architecture = with_semantic_head(architecture, settings.semantic, alone=not data.splits)
    elif task.added_head and not settings.cfg and "semantic" not in heads:
        LOGGER.info(f"{data.source}: is panoptic; a semantic head (--semantic {task.added_head}) is added")
        architecture = with_semantic_head(architecture, task.added_head)
    elif not data.splits and "semantic" in heads and len(heads) > 1:
        LOGGER.info(f"{data.source}: has no boxes; the semantic head is trained alone")
        architecture = only_semantic_head(architecture)
    if settings.end_to_end:
        architecture = {**architecture, "end_to_end": True}
    per_level = None if hyp.anchors is None else round(hyp.anchors)
    network = build_network(architecture, anchors_per_level=per_level, head_names=_head_names(architecture, data))
    if settings.end_to_end and not any(getattr(head, "duplicate_filter", None) for head in network.heads.values()):
        model = settings.cfg or settings.weights
        raise UserError(f"--end-to-end: {model} has no anchor-free head of boxes alone; use --cfg polyolo-n")
    if (state := start.state_for(network)) is None:
        return network
    report = transfer(network, state, skip_anchors=bool(settings.cfg or per_level))
    LOGGER.info(f"{report} from {settings.weights or 'the published weights'}")
    if report.matched == 0:
        raise UserError(f"--weights {settings.weights}: no tensor fits --cfg {settings.cfg}")
    return network


def _head_names(architecture: dict[str, Any], data: DataConfig) -> dict[str, tuple[str, ...]]:
    """Return the class names in the data for each head that it has labels for."""
    known = {head: data.names_for(head) for head in list_heads(architecture)}
    return {head: names for head, names in known.items() if names}


def require_heads(task: str, needed: set[str], present: set[str], source: str = "") -> None:
    """Check that a model has all heads of a task.

    Args:
        task: Name of the task.
        needed: Heads of the task.
        present: Heads of the model.
        source: File of the model, for the error message.

    Raises:
        UserError: If a head is missing.
    """
    if missing := needed - present:
        heads = ", ".join(sorted(present)) or "none"
        prefix = f"{source}: " if source else ""
        raise UserError(f"{prefix}task {task!r} needs the head {', '.join(sorted(missing))}; this model has: {heads}")


def freeze_layers(network: Network, layers: tuple[int, ...]) -> None:
    """Exclude layers from training.

    Args:
        network: Network to change in place.
        layers: One number n freezes layers 0 to n-1, several numbers freeze exactly those layers.

    Raises:
        UserError: If a layer does not exist or nothing is left to train.
    """
    option = f"--freeze {' '.join(map(str, layers))}"
    count = len(network.model)
    if max(layers, default=0) > count:
        raise UserError(f"{option}: this network has the layers 0 to {count - 1}")
    frozen = range(layers[0]) if len(layers) == 1 else layers
    prefixes = tuple(f"model.{index}." for index in frozen)
    for name, parameter in network.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.requires_grad_(False)
    if prefixes:
        LOGGER.info(f"frozen layers: {', '.join(str(index) for index in frozen)}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"{option}: none of the {count} layers is left to train")


def has_folded_batchnorm(network: nn.Module) -> bool:
    """Check whether BatchNorm layers are folded into the convolutions before them, so that they only add a bias.

    Training such a network with batch statistics would destroy its function. A new network, whose BatchNorm layers
    have zero bias, does not count as folded.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None or bool(mean.any()) or not torch.equal(variance, torch.ones_like(variance)):
            return False
    return any(bool(norm.bias.any()) for norm in norms)


def round_image_sizes(settings: TrainSettings, network: Network) -> TrainSettings:
    """Round the image sizes up to multiples of the stride of the network.

    Raises:
        UserError: If the network has a fixed input size, or `--multi-scale` lists a size that is not a multiple.
    """
    if (fixed := network.fixed_hw) and {*settings.imgsz} != {*fixed}:
        raise UserError(f"--imgsz {settings.imgsz[0]}: this network only takes images of {fixed[0]} x {fixed[1]}")
    step = max(network.stride, 32)
    sizes = tuple(max(math.ceil(size / step) * step, 2 * step) for size in settings.imgsz)
    if sizes != settings.imgsz:
        LOGGER.warning(f"--imgsz {settings.imgsz[0]} is not a multiple of {step}; using {sizes[0]}")
    if isinstance(settings.multi_scale, tuple) and (odd := [size for size in settings.multi_scale if size % step]):
        raise UserError(f"--multi-scale {odd[0]}: not a multiple of {step}, the stride of the network")
    return replace(settings, imgsz=sizes)
