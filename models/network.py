"""Run the graph of layers; give each head's raw tensors by its name, and decode them on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.activation_checkpointing import run_sparingly
from models.class_names import main_head
from utils.core.contracts import Decoded, HeadSpec, Raw

INPUT = -1  # as a source: the images


@dataclass(frozen=True)
class Route:
    """Where a layer's input comes from: indices of earlier layers, or the images."""

    sources: tuple[int, ...]
    joined: bool  # the layer takes a list, even of one


class Network(nn.Module):
    """Layers in a row with routes between them. Heads are the layers whose class is in `HEADS`, wherever they stand.

    `task` is the name of the main head, which says what the network is for, `names` are its classes', `class_names`
    every head's. Images must be divisible by `stride`. `architecture` rebuilds the network (`build_network`), without
    its weights.
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
        self._heads_at = frozenset(self._head_rows.values())
        self.task = str(main_head(list(self.heads.values())).name)
        self.names = self.class_names[self.task]
        last_use = {source: row for row, route in enumerate(self.routes) for source in route.sources}
        self.checkpointing = False  # in training: keep layers' inputs only, and compute what is inside them twice
        self._used = frozenset(last_use)
        self._finished = tuple(
            tuple(source for source, last in last_use.items() if last == row) for row in range(len(self.routes))
        )

    _mean: Tensor
    _std: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Network:
        """Move or convert everything; constants are made anew, so that half precision and back leaves no trace."""
        super()._apply(fn, recurse)
        for name, values in self.architecture.get("normalise", {}).items():
            buffer = getattr(self, f"_{name}")
            setattr(self, f"_{name}", torch.tensor(values, dtype=buffer.dtype, device=buffer.device).view(-1, 1, 1))
        return self

    @property
    def head_rows(self) -> dict[str, int]:
        """Return the number of each head's row."""
        return dict(self._head_rows)

    @property
    def heads(self) -> dict[str, Any]:
        """Return the heads by name."""
        return {name: self.model[row] for name, row in self._head_rows.items()}

    @property
    def specs(self) -> dict[str, HeadSpec]:
        """Return what losses and post-processing need of each head."""
        return {name: replace(head.spec, names=self.class_names[name]) for name, head in self.heads.items()}

    @property
    def fixed_hw(self) -> tuple[int, int] | None:
        """Return the only input size the network takes, None where any multiple of the stride will do."""
        sizes = [px for layer in self.model if (px := getattr(layer, "fixed_px", 0))]
        return (sizes[0], sizes[0]) if sizes else None

    def forward(self, images: Tensor) -> dict[str, Raw]:
        """Take (B, 3, H, W) floats in [0, 1] with H and W multiples of `stride`; return raw tensors by head name.

        What the description says of `normalise` (mean and deviation per channel) is done here.
        """
        if "normalise" in self.architecture:
            images = (images - self.get_buffer("_mean")) / self.get_buffer("_std")
        kept: dict[int, Tensor] = {INPUT: images}
        raw: dict[str, Raw] = {}
        for row, (layer, route) in enumerate(zip(self.model, self.routes, strict=True)):
            inputs = [kept[source] for source in route.sources]
            given = inputs if route.joined else inputs[0]
            spared = self.checkpointing and self.training and row not in self._heads_at
            output = run_sparingly(layer, given) if spared else layer(given)
            if isinstance(output, dict):
                raw[str(layer.name)] = output
            elif row in self._used:
                kept[row] = output
            for source in self._finished[row]:  # free maps as soon as nobody needs them
                del kept[source]
        return raw

    def decode(self, raw: dict[str, Raw]) -> dict[str, Decoded]:
        """Return each head's tensors in pixels and probabilities, in fp32 at least."""
        heads = self.heads
        return {name: heads[name].decode(tensors) for name, tensors in raw.items()}

    def set_anchors(self, head: str, anchors_px: Tensor) -> None:
        """Give a head other anchors: (L, A, 2) widths and heights in pixels, finest level first."""
        with torch.no_grad():
            self.heads[head].set_anchors(anchors_px.float())
        levels = [[side for anchor in level for side in anchor] for level in self.heads[head].spec.anchors]
        self.architecture = {**self.architecture, "anchors": levels}
