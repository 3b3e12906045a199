"""Transfer of weights by name and shape from one network's state to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.network import Network
from utils.core.errors import UserError


@dataclass(frozen=True)
class TransferReport:
    """Result of a transfer; `total` counts the tensors of the receiving network."""

    matched: int
    total: int
    mismatched: tuple[
        tuple[str, tuple[int, ...], tuple[int, ...]], ...
    ]  # name, shape in the network, shape in the state
    missing: tuple[str, ...]  # in the network only
    unexpected: tuple[str, ...]  # in the state only
    skipped: tuple[str, ...]  # anchors that were not to be copied

    def __str__(self) -> str:
        return f"Transferred {self.matched}/{self.total} items"


def align_state(network: Network, source: Network) -> dict[str, Tensor]:
    """Rename the weights of `source` to the row numbers of `network`.

    Heads of one name correspond in whichever row they are: multiyolov5's files have the box head in row 25, YOLOv5's
    in row 24. Heads that `network` does not have are left out, as are other rows of `source` where `network` has a
    head.
    """
    source_heads = {f"model.{row}.": name for name, row in source.head_rows.items()}
    own_heads = tuple(f"model.{row}." for row in network.head_rows.values())
    aligned = {}
    for key, tensor in source.state_dict().items():
        prefix = key[: key.index(".", len("model.")) + 1]
        if prefix not in source_heads:
            if not key.startswith(own_heads):
                aligned[key] = tensor
        elif source_heads[prefix] in network.head_rows:
            aligned[f"model.{network.head_rows[source_heads[prefix]]}.{key.removeprefix(prefix)}"] = tensor
    return aligned


def transfer(network: nn.Module, state: Mapping[str, Tensor], skip_anchors: bool = False) -> TransferReport:
    """Copy every tensor of `state` whose name and shape match one of the network's.

    Args:
        network: receives the weights in place.
        state: tensors by name.
        skip_anchors: keep the network's own anchors.
    """
    own = network.state_dict()
    skipped = tuple(name for name in own if skip_anchors and name.rsplit(".", 1)[-1] == "anchors")
    mismatched, matched = [], []
    for name, tensor in own.items():
        if name not in state or name in skipped:
            continue
        if tensor.shape == state[name].shape:
            matched.append(name)
        else:
            mismatched.append((name, tuple(tensor.shape), tuple(state[name].shape)))
    with torch.no_grad():
        for name in matched:
            own[name].copy_(state[name])  # state_dict shares memory with the network
    return TransferReport(
        matched=len(matched),
        total=len(own),
        mismatched=tuple(mismatched),
        missing=tuple(name for name in own if name not in state and name not in skipped),
        unexpected=tuple(name for name in state if name not in own),
        skipped=skipped,
    )


def load_state(network: Network, state: dict[str, Tensor]) -> None:
    """Replace the network's weights by `state`, in fp32.

    Raises:
        UserError: Names or shapes differ.
    """
    own = network.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise UserError(f"does not match its own description: {missing[0]} and {len(missing) - 1} more are missing")
    if unexpected := sorted(state.keys() - own.keys()):
        raise UserError(
            f"does not match its own description: {unexpected[0]} and {len(unexpected) - 1} more are unexpected"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            shapes = f"has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            raise UserError(f"does not match its own description: {name} {shapes}")
    own_copies = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    network.load_state_dict(own_copies, assign=True)
