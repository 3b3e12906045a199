"""The graph of layers: raw tensors of each head by its name, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.activation_checkpointing import run_checkpointed
from models.class_names import main_head
from utils.core.contracts import Decoded, HeadSpec, Raw
from utils.core.errors import UserError

INPUT = -1  # as a source: the images


@dataclass(frozen=True)
class Route:
    """Inputs of a layer: indices of earlier layers, or `INPUT`."""

    sources: tuple[int, ...]
    takes_list: bool  # the layer is called with a list, even for one input


class Network(nn.Module):
    """Sequence of layers with routes between them. Layers whose class is in `HEADS` are heads, at any position.

    Attributes:
        task: name of the main head.
        names: class names of the main head.
        class_names: class names of every head.
        architecture: description that rebuilds the network without its weights (`build_network`).
        stride: images must be divisible by it.
        checkpointing: use activation checkpointing in training.
    """

    def __init__(
        self, layers: Sequence[nn.Module], routes: Sequence[Route], class_names: Mapping[str, tuple[str, ...]],
        architecture: dict[str, Any], stride: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = nn.ModuleList(layers)
        self.routes = tuple(routes)
        self.class_names, self.architecture, self.stride = dict(class_names), architecture, stride
        for name, values in architecture.get("normalise", {}).items():  # constants: not part of the weights
            self.register_buffer(f"_{name}", torch.tensor(values).view(-1, 1, 1), persistent=False)
        self._head_rows = {str(layer.name): i for i, layer in enumerate(layers) if hasattr(layer, "decode")}
        self._head_indices = frozenset(self._head_rows.values())
        self.task = str(main_head(list(self.heads.values())).name)
        self.names = self.class_names[self.task]
        self.checkpointing = False
        last_use = {source: row for row, route in enumerate(self.routes) for source in route.sources}
        self._used = frozenset(last_use)
        self._released = tuple(  # per row: sources that no later row uses
            tuple(source for source, last in last_use.items() if last == row) for row in range(len(self.routes))
        )

    _mean: Tensor
    _std: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Network:
        """Move or convert everything; constants are recreated, so that a round trip to half precision is exact."""
        super()._apply(fn, recurse)
        for name, values in self.architecture.get("normalise", {}).items():
            buffer = getattr(self, f"_{name}")
            setattr(self, f"_{name}", torch.tensor(values, dtype=buffer.dtype, device=buffer.device).view(-1, 1, 1))
        return self

    @property
    def head_rows(self) -> dict[str, int]:
        """Row number of each head."""
        return dict(self._head_rows)

    @property
    def heads(self) -> dict[str, Any]:
        """Heads by name."""
        return {name: self.model[row] for name, row in self._head_rows.items()}

    @property
    def specs(self) -> dict[str, HeadSpec]:
        """Static description of each head."""
        return {name: replace(head.spec, names=self.class_names[name]) for name, head in self.heads.items()}

    @property
    def fixed_hw(self) -> tuple[int, int] | None:
        """The only supported input size in pixels; None for any multiple of the stride."""
        sizes = [px for layer in self.model if (px := getattr(layer, "fixed_px", 0))]
        return (sizes[0], sizes[0]) if sizes else None

    def forward(self, images: Tensor) -> dict[str, Raw]:
        """Compute the raw tensors of each head.

        Args:
            images: (B, 3, H, W) floats in [0, 1], H and W multiples of `stride`; the architecture's `normalise` (mean
                and standard deviation per channel) is applied here.
        """
        if "normalise" in self.architecture:
            images = (images - self.get_buffer("_mean")) / self.get_buffer("_std")
        outputs: dict[int, Tensor] = {INPUT: images}
        raw: dict[str, Raw] = {}
        for row, (layer, route) in enumerate(zip(self.model, self.routes, strict=True)):
            inputs = [outputs[source] for source in route.sources]
            given = inputs if route.takes_list else inputs[0]
            recompute = self.checkpointing and self.training and row not in self._head_indices
            output = run_checkpointed(layer, given) if recompute else layer(given)
            if isinstance(output, dict):
                raw[str(layer.name)] = output
            elif row in self._used:
                outputs[row] = output
            for source in self._released[row]:  # bounds the memory of inference
                del outputs[source]
        return raw

    def decode(self, raw: dict[str, Raw]) -> dict[str, Decoded]:
        """Decode each head's raw tensors to pixels and probabilities, in fp32 at least."""
        heads = self.heads
        return {name: heads[name].decode(tensors) for name, tensors in raw.items()}

    def use_end_to_end(self) -> None:
        """Let inference use the duplicate filters, whose boxes need no NMS.

        Raises:
            UserError: No head has them.
        """
        able = [head for head in self.heads.values() if getattr(head, "duplicate_filter", None) is not None]
        if not able:
            name = self.architecture["name"]
            raise UserError(f"--end-to-end: {name} has no duplicate filter; train with --end-to-end, or use NMS")
        for head in able:
            head.use_duplicate_filter = True

    def set_anchors(self, head: str, anchors_px: Tensor) -> None:
        """Replace a head's anchors, (L, A, 2) widths and heights in pixels, finest level first."""
        with torch.no_grad():
            self.heads[head].set_anchors(anchors_px.float())
        levels = [[side for anchor in level for side in anchor] for level in self.heads[head].spec.anchors]
        self.architecture = {**self.architecture, "anchors": levels}
