"""Random generators keyed by their purpose, so that results do not depend on workers, ranks or restarts."""

import random

import numpy as np

_MASK = (1 << 64) - 1


def generator(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """Create the random generator that belongs to one sample of one epoch.

    The generator is counter-based (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), which
    makes it cheap to create and independent of all others.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        index: Index of the sample in the data set or of the step in the epoch.
        stream: Number of the purpose, which separates different uses of the same sample.
    """
    key = ((seed & 0xFFFFFFFF) << 32 | (epoch & 0xFFFFFFFF)) & _MASK
    return np.random.Generator(np.random.Philox(key=[key, ((stream & 0xFFFF) << 48 | (index & ((1 << 48) - 1)))]))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, used for initial weights and dropout."""
    import torch

    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
