"""BatchNorm's counters of batches, kept out of the training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class BatchNormCounters:
    """Count the batches that BatchNorm layers see on the host.

    BatchNorm adds 1 to `num_batches_tracked` in every layer and step, one kernel each on a GPU, and nothing reads it
    unless `momentum` is None. In a `paused()` block the layers have no counter; `flush()` updates all of them at once.

    Args:
        model: Model whose counters are paused.
        enabled: Whether to do anything; on a CPU the additions cost nothing.
    """

    def __init__(self, model: nn.Module, enabled: bool = True) -> None:
        self._pending = 0
        self._norms = [
            (module, counter)
            for module in model.modules()
            if enabled
            and isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.momentum is not None
            and isinstance(counter := module.num_batches_tracked, Tensor)
        ]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the counters out of the layers for the forward pass of one batch."""
        for module, _ in self._norms:
            module._buffers["num_batches_tracked"] = None
        try:
            yield
        finally:
            for module, counter in self._norms:
                module._buffers["num_batches_tracked"] = counter
            self._pending += 1

    @torch.no_grad()
    def flush(self) -> None:
        """Bring the counters of layers in training mode up to date."""
        counters = [counter for module, counter in self._norms if module.training]
        if counters and self._pending:
            torch._foreach_add_(counters, self._pending)
        self._pending = 0
