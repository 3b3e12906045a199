"""Callable model with the interface of YOLOv5's `torch.hub` models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.tta import with_tta
from utils.backends.open_weights import open_weights
from utils.core.contracts import Decoded, EvalSettings, Geometry, ImageInfo, Results, Runner
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.timing import Stopwatch
from utils.core.train_settings import MAX_IMAGE_PX
from utils.hub.detections import Detections
from utils.hub.image_inputs import common_shape, load_images
from utils.ops.crop import centre_crop
from utils.ops.letterbox import letterbox
from utils.postprocess import POSTPROCESS


class Model:
    """A network that is called with images of any kind and returns `Detections`, as from `torch.hub.load`.

    Attributes may be changed at any time.

    Args:
        runner: The network.
        device: Where it runs.
        meta: Training metadata of the checkpoint.

    Attributes:
        conf: Confidence threshold.
        iou: IoU threshold of NMS.
        max_det: Maximum number of detections per image.
        agnostic: Apply NMS across classes.
        multi_label: Allow several classes per box.
        classes: Class indices to detect; None: all.
        urls: Allow downloads of images from URLs.
    """

    def __init__(self, runner: Runner, device: torch.device, meta: dict[str, Any] | None = None) -> None:
        self.runner, self.device, self.meta = runner, device, meta or {}
        self.conf, self.iou, self.max_det = 0.25, 0.45, 1000
        self.agnostic = self.multi_label = self.urls = False
        self.classes: Sequence[int] | None = None
        self._augmented: Runner | None = None

    @property
    def names(self) -> dict[int, str]:
        """Class names by index."""
        return dict(enumerate(self.runner.names))

    @property
    def stride(self) -> int:
        """Height and width of the network input are multiples of it."""
        return self.runner.stride

    @property
    def default_px(self) -> int:
        """Default size of the network input."""
        return max((spec.usual_px for spec in self.runner.specs.values()), default=640)

    @property
    def uses_centre_crop(self) -> bool:
        """Whether the network takes the central square of images instead of whole images with padding."""
        return any(spec.fit == "centre" for spec in self.runner.specs.values())

    def __repr__(self) -> str:
        return f"Model({', '.join(self.runner.specs)}; {len(self.runner.names)} classes; {self.device})"

    def __call__(self, images: Any, size: int | tuple[int, int] | None = None, augment: bool = False) -> Any:
        """Predict on one image or a list of images, which may differ in type and size.

        Args:
            images: See `load_images`. A (B, 3, H, W) tensor, uint8 or floats in [0, 1], is passed to the network as it
                is.
            size: Longer side of the network input, or height and width, in pixels; None: 640, for classifiers 224.
            augment: Apply test-time augmentation.

        Returns:
            The `Detections`; for a (B, 3, H, W) tensor the decoded outputs by head name.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            return self.decode(images, augment)
        preprocess, inference, postprocess = (Stopwatch(self.device) for _ in range(3))
        with preprocess:
            loaded = load_images(images, self.urls)
            arrays = [image.bgr for image in loaded]
            shape_hw = self.input_shape(
                [array.shape[:2] for array in arrays], self.default_px if size is None else size
            )
            batch, geometries = self.fit(arrays, shape_hw)
            info = [ImageInfo(i, loaded[i].name, geometry) for i, geometry in enumerate(geometries)]
        with inference:
            decoded = self.decode(batch, augment)
        with postprocess:
            results = self._postprocess(decoded, info)
        milliseconds = tuple(watch.seconds * 1000 / len(loaded) for watch in (preprocess, inference, postprocess))
        return Detections(loaded, results, self.runner, milliseconds, tuple(batch.shape))

    @torch.inference_mode()
    def decode(self, images: Tensor, augment: bool = False) -> dict[str, Decoded]:
        """Run a (B, 3, H, W) batch, uint8 or floats in [0, 1]; return the decoded outputs by head name."""
        if not augment:
            return self.runner.run(images).decoded
        if self._augmented is None:
            self._augmented = with_tta(self.runner)
        return self._augmented.run(images).decoded

    def input_shape(self, sizes_hw: Sequence[Any], size: int | tuple[int, int]) -> tuple[int, int]:
        """Choose the network input for a batch of images.

        Args:
            sizes_hw: Height and width of each image.
            size: Longer side, or height and width.

        Returns:
            Height and width in pixels.
        """
        if self.runner.fixed_hw is not None:
            return self.runner.fixed_hw
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_IMAGE_PX for side in sides):
            raise UserError(f"size expects pixels, or height and width, between 1 and {MAX_IMAGE_PX}, got {size!r}")
        if isinstance(size, int) and not self.uses_centre_crop:
            return common_shape(sizes_hw, size, self.stride)
        height, width = (-(-side // self.stride) * self.stride for side in sides)
        return height, width

    def fit(self, images: Sequence[np.ndarray], shape_hw: tuple[int, int]) -> tuple[Tensor, list[Geometry]]:
        """Fit images to the network input.

        Args:
            images: (H, W, 3) BGR arrays.
            shape_hw: Height and width of the input.

        Returns:
            (B, 3, H, W) uint8 RGB, and how each image was resized.
        """
        if self.uses_centre_crop:
            fitted = [centre_crop(image, shape_hw) for image in images]
        else:
            fitted = [letterbox(image, shape_hw, auto=False, stride=self.stride) for image in images]
        pixels = np.stack([np.ascontiguousarray(image[:, :, ::-1]) for image, _ in fitted])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), [geometry for _, geometry in fitted]

    @torch.inference_mode()
    def _postprocess(self, decoded: dict[str, Decoded], info: Sequence[ImageInfo]) -> list[Results]:
        settings = EvalSettings(
            names=tuple(self.runner.names),
            confidence=self.conf,
            iou=self.iou,
            max_detections=self.max_det,
            multi_label=self.multi_label,
            agnostic=self.agnostic,
            classes=None if self.classes is None else tuple(self.classes),
            fine_masks=True,
        )
        results = [Results(one) for one in info]
        for name, spec in self.runner.specs.items():
            POSTPROCESS.get(name)(spec, settings)(decoded[name], results)
        return [one.cpu() for one in results]


def load(
    weights: str | Path | Sequence[str | Path], device: str = "", half: bool = False, download: bool = False
) -> Model:
    """Load checkpoints or exported files as a `Model`.

    Args:
        weights: A file, or several that form an ensemble.
        device: As --device of the programs; empty: the first GPU, else the CPU.
        half: Compute in half precision.
        download: Fetch official weights that are missing.

    Returns:
        The model.
    """
    paths = [weights] if isinstance(weights, (str, Path)) else list(weights)
    selected = select_device(str(device))
    opened = open_weights([str(path) for path in paths], selected, half=half, download=download)
    return Model(opened.runner, selected, opened.meta)
