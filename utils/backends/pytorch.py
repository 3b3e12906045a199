"""Runner of checkpoints with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import load_checkpoint
from models.ensemble import Ensemble
from models.fuse import fuse_in_place
from models.network import Network
from models.network_runner import ConvertedRunner, NetworkRunner
from models.tta import MirroredRunner, MultiViewRunner, with_tta
from utils.backends import BACKENDS
from utils.core.contracts import Backend, Runner
from utils.core.device import cpu_has_bf16
from utils.core.errors import UserError
from utils.core.log import LOGGER


@BACKENDS.register("pytorch")
class PyTorchBackend(Backend):
    """Runs .pt and .safetensors checkpoints of this project and YOLOv5's .pt checkpoints."""

    title, suffixes = "PyTorch", (".pt", ".safetensors")

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open checkpoints, several as an ensemble.

        Args:
            paths: The checkpoints.
            device: Where to run them.
            half: Compute in fp16 on GPUs, in bf16 on CPUs that support it.
            augment: Apply test-time augmentation: three scales, the middle one mirrored.

        Returns:
            The runner, and training metadata of the first checkpoint.
        """
        checkpoints = [load_checkpoint(path) for path in paths]
        for path, one in zip(paths, checkpoints, strict=True):
            if (channels := one.network.architecture.get("ch", 3)) != 3:
                raise UserError(f"{path}: the network takes images of {channels} channels; only 3 are supported here")
        networks = [fuse_in_place(one.network) for one in checkpoints]
        members = [_runner(network, device, half) for network in networks]
        runner: Runner = members[0] if len(members) == 1 else Ensemble(members)
        return with_tta(runner) if augment else runner, checkpoints[0].meta


def _runner(network: Network, device: torch.device, half: bool) -> Runner:
    network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    if half and device.type != "cpu":
        return ConvertedRunner(network, device)
    if half and not cpu_has_bf16():
        LOGGER.warning("--half: this CPU does not support bf16; computing in fp32")
        return NetworkRunner(network, device)
    return NetworkRunner(network, device, torch.bfloat16 if half else None)


def networks_of(runner: Runner, option: str) -> list[Network]:
    """List the networks that a runner computes, several for an ensemble.

    Args:
        runner: Of PyTorch checkpoints, possibly augmented.
        option: That needs the networks, for the message.

    Raises:
        UserError: The runner is an exported file.
    """
    if isinstance(runner, Ensemble):
        return [network for member in runner.members for network in networks_of(member, option)]
    if isinstance(runner, (MirroredRunner, MultiViewRunner)):
        return networks_of(runner.runner, option)
    if not isinstance(runner, NetworkRunner):
        raise UserError(f"{option}: exported files do not expose their layers; give a PyTorch checkpoint")
    return [runner.network]


def record_feature_maps(runner: Runner) -> dict[str, Tensor]:
    """Record the feature maps of every layer during each run.

    Args:
        runner: Of PyTorch checkpoints; of an ensemble the first network is recorded, of an augmented run the last
            pass.

    Returns:
        A table that always contains the (B, C, H, W) outputs of the last run, by index and class of the layer.

    Raises:
        UserError: The runner is an exported file, whose layers are not accessible.
    """
    maps: dict[str, Tensor] = {}
    for row, layer in enumerate(networks_of(runner, "--visualize")[0].model):
        layer.register_forward_hook(_recorder(maps, f"{row:02d}_{type(layer).__name__}"))
    return maps


def _recorder(maps: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, object], None]:
    def record(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            maps[name] = output.detach()

    return record
