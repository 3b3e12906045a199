"""Copy the weights that fit from one network's state into another, and say what did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.network import Network


@dataclass(frozen=True)
class TransferReport:
    """What was copied. `total` counts the tensors of the receiving network."""

    matched: int
    total: int
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, shape here, shape there
    missing: tuple[str, ...]  # the receiving network has them, the state has not
    unexpected: tuple[str, ...]  # the other way round
    skipped: tuple[str, ...]  # anchors, left alone on request

    def __str__(self) -> str:
        return f"Transferred {self.matched}/{self.total} items"


def state_for(network: Network, source: Network) -> dict[str, Tensor]:
    """Return the weights of `source` under the names they have in `network`.

    Heads of one name belong together, wherever they stand: in multiyolov5's files the box head is row 25, in YOLOv5's
    it is row 24. A head of `source` that `network` has not, or that stands where another moves to, is left out.
    """
    pairs = [(row, network.head_rows[name]) for name, row in source.head_rows.items() if name in network.head_rows]
    moved = {f"model.{old}.": f"model.{new}." for old, new in pairs if old != new}
    taken = tuple(moved) + tuple(moved.values())
    state = source.state_dict()
    found = {name: tensor for name, tensor in state.items() if not taken or not name.startswith(taken)}
    for old, new in moved.items():
        found |= {new + name.removeprefix(old): tensor for name, tensor in state.items() if name.startswith(old)}
    return found


def transfer(network: nn.Module, state: Mapping[str, Tensor], skip_anchors: bool = False) -> TransferReport:
    """Copy every tensor of `state` whose name and shape are the network's own; `skip_anchors` keeps its anchors."""
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
