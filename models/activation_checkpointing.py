"""Activation checkpointing: recompute a layer's activations in the backward pass (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def _frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Let BatchNorm update copies of its statistics, since the first pass has counted the batch."""
    norms = [module for module in layer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    originals = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers.update(buffers)


def run_checkpointed(layer: nn.Module, given: Tensor | list[Tensor]) -> Any:
    """Run `layer(given)` and store only its input for the backward pass.

    Gradients and BatchNorm statistics are bit-identical to those of an ordinary call.
    """
    if not torch.is_grad_enabled():
        return layer(given)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(layer)

    return checkpoint(layer, given, use_reentrant=False, context_fn=contexts)
