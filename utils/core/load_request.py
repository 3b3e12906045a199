"""Arguments of a task's `load`: which split of a data set to load, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

MANY_CLASSES = 1000  # from this number on, the predictions of a batch may need more memory than the network
MAX_PREDICTION_BYTES = 2**29  # of an evaluation batch with that many classes
_ANCHORS_PER_PX = 3 * (1 / 8**2 + 1 / 16**2 + 1 / 32**2)  # of the usual three levels

if TYPE_CHECKING:
    from utils.core.data_config import DataConfig
    from utils.core.hyp import Hyp


def evaluation_batch(batch: int, image_px: int, num_classes: int) -> int:
    """Choose the number of images per batch for the evaluation of boxes: fewer than `batch` for thousands of classes.

    Args:
        batch: Usual number.
        image_px: Longer side of the network input.
        num_classes: Number of classes.
    """
    if num_classes < MANY_CLASSES:
        return batch
    bytes_per_image = 4 * num_classes * _ANCHORS_PER_PX * image_px**2
    return max(1, min(batch, int(MAX_PREDICTION_BYTES / bytes_per_image)))


@dataclass(frozen=True)
class SemanticRequest:
    """Options for loading semantic maps."""

    base_size: int = 0  # long side of the image in evaluation, centre of the random sizes in training; 0: image_size
    mode: str = "whole"  # evaluation: `whole` at base_size, `native` at the original size, `crop` the centre
    fraction: float = 0.5  # of a training batch, if boxes and semantic maps come from different images
    mosaic: bool = False  # apply mosaic to images with both boxes and semantic maps
    fixed_hw: tuple[int, int] | None = None  # evaluation: the only input size of the network; images are padded


@dataclass(frozen=True)
class LoadRequest:
    """Arguments of `Task.load`: which split to load, and how."""

    data: DataConfig
    split: str  # train, val or test
    training: bool
    image_size: int
    batch_size: int  # per process
    stride: int
    hyp: Hyp
    epochs: int = 0  # of the run, after the last of which mosaic is closed (`close_mosaic`); 0: unknown
    workers: int = 8
    pin: bool = False  # into page-locked memory, from which GPUs copy asynchronously
    seed: int = 0
    rect: bool = False
    rect_group: int | None = None  # number of images with a common rectangular shape; None: batch_size
    pad: float = 0.0  # padding of rectangular shapes in strides
    cache: str | None = None  # ram or disk
    single_class: bool = False
    quad: bool = False
    allow_label_faults: bool = False  # continue when more than 1 % of the label files are faulty
    masks: bool = False  # rasterise polygons to `Batch.masks`
    mask_ratio: int = 4  # network input size divided by mask size
    overlap: bool = True  # one index map per image instead of one mask per object
    panoptic: bool = False  # evaluation: with the panoptic labels of each image
    mosaic_window: int = 64  # mosaic partners come from this many neighbours in the epoch order; 0: from all images
    semantic: SemanticRequest = field(default_factory=SemanticRequest)
