"""Numbers of a data set and a run that `--recipe` depends on."""

from __future__ import annotations

from dataclasses import dataclass

FEW_STEPS = 10_000  # with fewer steps of 64 images than this, a step per batch and AdamW learn more
LARGEST_STEP = 64  # images
WANTED_STEPS = 500  # batches are halved until the run has this many steps
SMALLEST_BATCH = 4  # images


@dataclass(frozen=True)
class Facts:
    """Numbers that the recipe depends on."""

    images: int
    objects: int
    epochs: int
    batch_size: int
    pretrained: bool
    processes: int = 1
    fixed_batch: bool = False  # the user chose the batch size
    class_counts: tuple[int, ...] = ()  # objects per class, if an anchor-free head learns them

    @property
    def default_steps(self) -> int:
        """Optimizer steps with YOLOv5's nominal batch of 64 images."""
        return self.images * self.epochs // LARGEST_STEP

    @property
    def is_small(self) -> bool:
        """Whether YOLOv5's defaults would make too few steps."""
        return self.default_steps < FEW_STEPS

    @property
    def batch(self) -> int:
        """Batch size with enough steps, if possible; a multiple of the number of processes."""
        batch, few = self.batch_size, self.images * self.epochs / WANTED_STEPS
        while (
            not self.fixed_batch and batch > few and batch >= 2 * SMALLEST_BATCH and batch % (2 * self.processes) == 0
        ):
            batch //= 2
        return batch
