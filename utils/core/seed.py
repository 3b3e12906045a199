"""Random numbers as functions of what they are for, so that workers, ranks and restarts change nothing."""

import random

import numpy as np

_MASK = (1 << 64) - 1


def generator(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """Return the generator that belongs to (seed, epoch, index); `stream` keeps different uses apart.

    Counter-based (Philox): making one costs microseconds and no state is shared between samples.
    """
    key = ((seed & 0xFFFFFFFF) << 32 | (epoch & 0xFFFFFFFF)) & _MASK
    return np.random.Generator(np.random.Philox(key=[key, ((stream & 0xFFFF) << 48 | (index & ((1 << 48) - 1)))]))


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed the global generators of Python, numpy and torch (initial weights, dropout)."""
    import torch

    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
    if deterministic and torch.cuda.is_available():
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
