"""Layers that keep only their input for the backward pass, and compute what is inside them a second time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def _statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Let BatchNorm count into copies: the batch has been counted in the first pass."""
    norms = [module for module in layer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def run_sparingly(layer: nn.Module, given: Tensor | list[Tensor]) -> Any:
    """Return `layer(given)`; gradients and BatchNorm statistics are the usual ones, to the last bit.

    Less memory for more time: what is inside is not kept but computed again (Chen et al. 2016).
    """
    if not torch.is_grad_enabled():
        return layer(given)

    def passes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(layer)

    return checkpoint(layer, given, use_reentrant=False, context_fn=passes)
