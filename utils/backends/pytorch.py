"""Checkpoints run by PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import load_checkpoint
from models.ensemble import Ensemble
from models.fuse import fuse
from models.network import Network
from models.network_runner import NetworkRunner, to_input
from models.tta import Augmented, Mirrored, augmented
from utils.backends import BACKENDS
from utils.core.contracts import Outputs, Runner
from utils.core.device import cpu_has_bf16
from utils.core.errors import UserError
from utils.core.log import LOGGER


class HalfRunner(NetworkRunner):
    """Run a network whose weights are fp16, which saves the casts of autocast; decoding is fp32."""

    @torch.inference_mode()
    def run(self, images: Tensor) -> Outputs:
        """Return raw and decoded outputs of (B, 3, H, W) uint8 or float images."""
        raw = self.network(to_input(images, self.device, torch.float16))
        return Outputs(decoded=self.network.decode(raw), raw=raw)


@BACKENDS.register("pytorch")
class PyTorchBackend:
    """Runs .pt and .safetensors files of ours and official .pt files."""

    title, suffixes = "PyTorch", (".pt", ".safetensors")
    can: frozenset[str] = frozenset()

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False, folded: bool = True
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner for the checkpoints, several as an ensemble, and what the first says about itself.

        `augment` averages over scales and a flip (behaviour.md 2.5); `folded` folds normalisation into convolutions.
        """
        checkpoints = [load_checkpoint(path) for path in paths]
        for path, one in zip(paths, checkpoints, strict=True):
            if (channels := one.network.architecture.get("ch", 3)) != 3:
                raise UserError(f"{path}: takes images of {channels} channels; those here have 3")
        networks = [fuse(one.network) if folded else one.network for one in checkpoints]
        members = [_runner(network, device, half) for network in networks]
        runner: Runner = members[0] if len(members) == 1 else Ensemble(members)
        return augmented(runner) if augment else runner, checkpoints[0].meta


def _runner(network: Network, device: torch.device, half: bool) -> Runner:
    network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    if half and device.type != "cpu":
        return HalfRunner(network.half(), device)
    if half and not cpu_has_bf16():
        LOGGER.warning("--half: this CPU has no fast half precision; computing in fp32")
        return NetworkRunner(network, device)
    return NetworkRunner(network, device, torch.bfloat16 if half else None)


def watch_layers(runner: Runner) -> dict[str, Tensor]:
    """Return a table that always holds the (B, C, H, W) outputs of the last run, by row and name of the layer.

    Of an ensemble it shows the first network, of an augmented run the last pass. Exported files have no layers to
    see: UserError.
    """
    while isinstance(runner, (Ensemble, Augmented, Mirrored)):
        runner = runner.members[0] if isinstance(runner, Ensemble) else runner.runner
    if not isinstance(runner, NetworkRunner):
        raise UserError("--visualize needs a PyTorch checkpoint; exported files do not show their layers")
    maps: dict[str, Tensor] = {}
    for row, layer in enumerate(runner.network.model):
        layer.register_forward_hook(_keeper(maps, f"{row:02d}_{type(layer).__name__}"))
    return maps


def _keeper(maps: dict[str, Tensor], name: str) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            maps[name] = output.detach()

    return keep
