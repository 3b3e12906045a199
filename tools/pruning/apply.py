"""Removal of channels from a network: its architecture with widths, its weights, and a check of its outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.builder import build_network
from models.channel_widths import Widths, width_attributes
from models.network import Network
from tools.pruning.channel_groups import IN, OUT, PROBE_PX, is_depthwise
from utils.core.errors import UserError

ROUNDING = 1e-12  # relative rounding error of double precision over many layers
TOLERANCE = 1e-6  # relative to the difference between two images, because sums of fewer terms are rounded differently

Removed = Mapping[tuple[str, str], np.ndarray]  # (module, side) -> indices of its removed channels


def without_channels(network: Network, removed: Removed, fixed: frozenset[str]) -> Network:
    """Build a copy of a network without some channels.

    Args:
        network: The original.
        removed: Indices of the removed channels, by module and side.
        fixed: Modules whose number of outputs follows from the architecture.

    Raises:
        UserError: If the result does not compute what the original computes with the inputs from these channels
            set to zero.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    for name, module in network.named_modules():
        for key, tensor in _select_channels(module, removed.get((name, OUT)), removed.get((name, IN))).items():
            state[f"{name}.{key}"] = tensor.cpu()
    architecture = {**network.architecture, "widths": _record_widths(network, removed, fixed)}
    base = architecture["name"].removesuffix("-pruned")
    with torch.random.fork_rng(devices=[]):
        pruned = build_network({**architecture, "name": f"{base}-pruned"}, head_names=network.class_names)
    own = pruned.state_dict()
    if wrong := [key for key, tensor in own.items() if key not in state or tensor.shape != state[key].shape]:
        raise UserError(f"{base}: {wrong[0]} does not match the adjacent channels; this network cannot be pruned")
    pruned.load_state_dict(state)
    pruned.train(network.training)
    _verify(network, pruned, removed)
    return pruned


def _select_channels(module: nn.Module, out: np.ndarray | None, into: np.ndarray | None) -> dict[str, Tensor]:
    """Select the remaining channels of a module's tensors; empty if none is removed."""
    if not width_attributes(module) or (out is None and into is None):
        return {}
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    first, second = (into, out) if isinstance(module, nn.ConvTranspose2d) and not is_depthwise(module) else (out, into)
    found = {}
    for name, tensor in tensors.items():
        sides = [out] if tensor.ndim == 1 else [first, second]
        for dimension, side in enumerate(sides if tensor.ndim else []):
            if side is not None:
                remaining = np.setdiff1d(np.arange(tensor.shape[dimension]), side)
                tensor = tensor.index_select(dimension, torch.from_numpy(remaining).to(tensor.device))
        found[name] = tensor.detach()
    return found


def _record_widths(network: Network, removed: Removed, fixed: frozenset[str]) -> Widths:
    """Record the channel widths of every module of every row, as `models.channel_widths` reads them.

    The outputs of heads are omitted because they depend on the number of classes.
    """
    widths: Widths = {}
    for index, layer in enumerate(network.model):
        parts = {}
        for name, module in layer.named_modules():
            whole = f"model.{index}.{name}" if name else f"model.{index}"
            found = {}
            for attribute in width_attributes(module):
                side = IN if attribute.startswith("in_") else OUT
                if whole in fixed and side == OUT:
                    continue
                found[attribute] = _width(module, attribute, removed, (whole, OUT if is_depthwise(module) else side))
            if found:
                parts[name] = found
        if parts:
            widths[str(index)] = {"modules": parts}
    _add_outputs(network, widths, removed)
    return widths


def _width(module: nn.Module, attribute: str, removed: Removed, key: tuple[str, str]) -> int:
    now = int(getattr(module, attribute))
    if attribute == "groups" and not is_depthwise(module):
        return now
    return now - len(removed.get(key, ()))


def _add_outputs(network: Network, widths: Widths, removed: Removed) -> None:
    """Add the output width of each row with widths, measured in a forward pass on the meta device."""
    meta_network = copy.deepcopy(network).to("meta")
    for name, module in meta_network.named_modules():
        for key, tensor in _select_channels(module, removed.get((name, OUT)), removed.get((name, IN))).items():
            setattr(module, key, nn.Parameter(tensor) if isinstance(getattr(module, key), nn.Parameter) else tensor)
        if is_depthwise(module) and (name, OUT) in removed:
            module.groups -= len(removed[name, OUT])
    hooks = []
    for index, layer in enumerate(meta_network.model):
        if str(index) in widths and index not in meta_network.head_rows.values():

            def record(_: nn.Module, __: object, output: Tensor, row: str = str(index)) -> None:
                widths[row]["out"] = int(output.shape[1])

            hooks.append(layer.register_forward_hook(record))
    height, width = meta_network.fixed_hw or (PROBE_PX, PROBE_PX)
    try:
        with torch.no_grad():
            meta_network.eval()(torch.empty(1, meta_network.architecture.get("ch", 3), height, width, device="meta"))
    except RuntimeError as error:
        raise UserError(
            f"{network.architecture['name']}: cannot be pruned, its channels depend on each other in an unsupported way"
        ) from error
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def _verify(network: Network, pruned: Network, removed: Removed) -> None:
    """Check that `pruned` computes what `network` computes with the inputs from the removed channels set to zero.

    The comparison is in double precision and relative to the difference between the outputs of two images, since large
    biases would hide errors.

    Raises:
        UserError: If an output differs.
    """
    masked = copy.deepcopy(network).cpu().double().eval()
    for name, module in masked.named_modules():
        channels = removed.get((name, IN))
        if channels is not None:
            weight: Any = module.weight
            inputs = weight if isinstance(module, nn.ConvTranspose2d) else weight.transpose(0, 1)
            inputs[torch.from_numpy(channels)] = 0
    height, width = network.fixed_hw or (PROBE_PX, PROBE_PX)
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, network.architecture.get("ch", 3), height, width, generator=rng).double()
    images[1] *= 0.5
    wanted, found = masked(images), copy.deepcopy(pruned).cpu().double().eval()(images)
    for head, tensors in wanted.items():
        for name, tensor in tensors.items():
            differs = float((found[head][name] - tensor).abs().max())
            signal, size = float((tensor[0] - tensor[1]).abs().max()), float(tensor.abs().max())
            if not differs <= max(TOLERANCE * signal, ROUNDING * size):
                raise UserError(
                    f"{network.architecture['name']}: removing channels changes {head}/{name}; this network "
                    "cannot be pruned"
                )
