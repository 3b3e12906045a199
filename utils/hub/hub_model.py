"""A checkpoint to call with images (behaviour.md 5.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.backends.open_weights import open_weights
from utils.core.contracts import Decoded, EvalSettings, Geometry, ImageInfo, Results, Runner
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.timing import Stopwatch
from utils.core.train_settings import MAX_IMAGE_PX
from utils.hub.detections import Detections
from utils.hub.image_inputs import Picture, common_shape, pictures
from utils.ops.crop import centre_crop
from utils.ops.letterbox import letterbox
from utils.postprocess import POSTPROCESS


class Model:
    """What `torch.hub.load` returns: call it with images, get `Detections`.

    The attributes may be changed at any time: `conf` and `iou` are the thresholds of suppression, `agnostic` lets boxes
    of different classes suppress each other, `multi_label` lets a box have several classes, `classes` keeps only these
    numbers, `max_det` is the most boxes per image, `urls` allows to fetch images from addresses.
    """

    def __init__(self, runner: Runner, device: torch.device, meta: dict[str, Any] | None = None) -> None:
        self.runner, self.device, self.meta = runner, device, meta or {}
        self.conf, self.iou, self.max_det = 0.25, 0.45, 1000
        self.agnostic = self.multi_label = self.urls = False
        self.classes: Sequence[int] | None = None
        self._augmented: Runner | None = None

    @property
    def names(self) -> dict[int, str]:
        """Return the class names by number."""
        return dict(enumerate(self.runner.names))

    @property
    def stride(self) -> int:
        """Return what the sides of the network's input divide by."""
        return self.runner.stride

    def __repr__(self) -> str:
        return f"Model({', '.join(self.runner.specs)}; {len(self.runner.names)} classes; {self.device})"

    def __call__(self, images: Any, size: int | tuple[int, int] | None = None, augment: bool = False) -> Any:
        """Return the `Detections` of an image or a list of images, of any sizes and kinds mixed.

        A path, an address (only with `urls`), a PIL image, an RGB array (H, W, 3), a (3, H, W) tensor. `size` is the
        longer side at which the network sees them (640, for whole-image classifiers 224). A (B, 3, H, W) tensor, uint8
        or from 0 to 1, goes through as it is and its decoded outputs come back, by the names of the heads.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            return self.raw(images, augment)
        watches = [Stopwatch(self.device) for _ in range(3)]
        with watches[0]:
            given = pictures(images, self.urls)
            boxed, info = self._boxed(given, self.usual_px if size is None else size)
        with watches[1]:
            decoded = self.raw(boxed, augment)
        with watches[2]:
            found = self._results(decoded, info)
        milliseconds = tuple(watch.seconds * 1000 / len(given) for watch in watches)
        return Detections(given, found, self.runner, milliseconds, tuple(boxed.shape))

    @torch.inference_mode()
    def raw(self, images: Tensor, augment: bool = False) -> dict[str, Decoded]:
        """Return the decoded outputs of a (B, 3, H, W) batch, uint8 or floats from 0 to 1, by the heads' names."""
        return self._runner(augment).run(images).decoded

    def _runner(self, augment: bool) -> Runner:
        if not augment:
            return self.runner
        if self._augmented is None:
            from models.tta import augmented

            self._augmented = augmented(self.runner)
        return self._augmented

    @property
    def usual_px(self) -> int:
        """Return the size of the input where nobody says which."""
        return max((spec.usual_px for spec in self.runner.specs.values()), default=640)

    def _boxed(self, given: Sequence[Picture], size: int | tuple[int, int]) -> tuple[Tensor, list[ImageInfo]]:
        """Return the images at one size as (B, 3, H, W) uint8 RGB, and where each came from."""
        images = [picture.bgr for picture in given]
        boxed, geometries = fitted(images, self.shape_for([image.shape[:2] for image in images], size), self)
        return boxed, [ImageInfo(i, given[i].name, geometry) for i, geometry in enumerate(geometries)]

    def shape_for(self, sizes_hw: Sequence[Any], size: int | tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) at which images of these sizes go through the network together."""
        if self.runner.fixed_hw is not None:
            return self.runner.fixed_hw
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_IMAGE_PX for side in sides):
            raise UserError(f"size {size!r}: a number of pixels up to {MAX_IMAGE_PX}, or height and width")
        if isinstance(size, int) and not self.square:
            return common_shape(sizes_hw, size, self.stride)
        height, width = (-(-side // self.stride) * self.stride for side in sides)
        return height, width

    @property
    def square(self) -> bool:
        """Tell whether the network sees the middle square of images."""
        return any(spec.fit == "centre" for spec in self.runner.specs.values())

    @torch.inference_mode()
    def _results(self, decoded: dict[str, Decoded], info: Sequence[ImageInfo]) -> list[Results]:
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


def fitted(images: Sequence[np.ndarray], shape_hw: tuple[int, int], model: Model) -> tuple[Tensor, list[Geometry]]:
    """Return (H, W, 3) BGR images as the network sees them, (B, 3, H, W) uint8 RGB, and how each was fitted."""
    if model.square:
        placed = [centre_crop(image, shape_hw) for image in images]
    else:
        placed = [letterbox(image, shape_hw, auto=False, stride=model.stride) for image in images]
    pixels = np.stack([np.ascontiguousarray(image[:, :, ::-1]) for image, _ in placed])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), [geometry for _, geometry in placed]


def load(
    weights: str | Path | Sequence[str | Path], device: str = "", half: bool = False, download: bool = False
) -> Model:
    """Return a checkpoint or an exported file, several as an ensemble, as a `Model`.

    `device` is as in the programs: empty for the first GPU or the CPU. `download` may fetch official weights.
    """
    paths = [weights] if isinstance(weights, (str, Path)) else list(weights)
    chosen = select_device(str(device))
    opened = open_weights([str(path) for path in paths], chosen, half=half, download=download)
    return Model(opened.runner, chosen, opened.meta)
