"""Networks of the service: prepare an image for one of them, and run batches of prepared images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tools.service.schema import Parameters
from tools.service.service_settings import ServiceSettings, model_name
from utils.core.contracts import EvalSettings, ImageInfo, Results
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.hub.hub_model import Model, load
from utils.postprocess import POSTPROCESS

REFERENCE_AREA_PX = 640 * 640  # inputs up to this area form batches of `max_batch`; larger ones form smaller batches
PADDING_GREY = 114


@dataclass(frozen=True)
class PreparedImage:
    """An image as the network input, and the settings of its post-processing."""

    pixels: Tensor  # (1, 3, H, W) uint8 RGB
    info: ImageInfo
    settings: EvalSettings


class Predictor:
    """Models by name. `prepare` may be called in any thread, `process_batch` in one thread only.

    Args:
        settings: Options of serve.py.

    Raises:
        UserError: A checkpoint cannot be loaded, or two have the same name.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.models: dict[str, Model] = {}
        for path in settings.weights:
            name = model_name(path)
            if name in self.models:
                raise UserError(f"--weights {path}: the model name {name!r} is already taken; rename one of the files")
            self.models[name] = load(path, settings.device, settings.half, settings.download)
            self._warm_up(name)
            LOGGER.info(f"{name}: {self.models[name]!r}")

    @property
    def default_model(self) -> str:
        """Name of the model for requests that name none."""
        return next(iter(self.models))

    def default_size(self, name: str) -> int:
        """Get the longer side of the network input for requests that choose none."""
        model = self.models[name]
        return self.settings.imgsz or int(model.meta.get("imgsz") or model.default_px)

    def prepare(
        self, name: str, image: tuple[str, np.ndarray], size: int, settings: EvalSettings
    ) -> tuple[Hashable, PreparedImage]:
        """Fit an image to the input of a network.

        Args:
            name: Of the model.
            image: File name and (H, W, 3) BGR pixels.
            size: Longer side of the network input.
            settings: Of the post-processing.

        Returns:
            The batching key, model and input shape, and the prepared image. The shape depends on this image only, so
            that its results do not depend on other images of the batch.
        """
        model = self.models[name]
        file_name, bgr = image
        shape_hw = model.input_shape([(bgr.shape[0], bgr.shape[1])], size)
        pixels, geometries = model.fit([bgr], shape_hw)
        return (name, shape_hw), PreparedImage(pixels, ImageInfo(0, file_name, geometries[0]), settings)

    def eval_settings(self, name: str, parameters: Parameters) -> EvalSettings:
        """Create the settings of the post-processing for a request; absent parameters have the service's defaults."""
        settings = self.settings
        return EvalSettings(
            names=tuple(self.models[name].runner.names),
            confidence=settings.conf_thres if parameters.conf is None else parameters.conf,
            iou=settings.iou_thres if parameters.iou is None else parameters.iou,
            max_detections=parameters.max_det or settings.max_det,
            multi_label=False,
            agnostic=parameters.agnostic,
            classes=tuple(parameters.classes) if parameters.classes else None,
            fine_masks=True,
        )

    def max_batch_size(self, key: Hashable) -> int:
        """Compute how many images with a batching key form a batch: fewer if they are large, which bounds memory."""
        assert isinstance(key, tuple)
        height, width = key[1]
        return max(1, min(self.settings.max_batch, self.settings.max_batch * REFERENCE_AREA_PX // (height * width)))

    def _warm_up(self, name: str) -> None:
        grey = np.full((64, 64, 3), PADDING_GREY, np.uint8)
        model = self.models[name]
        settings = EvalSettings(names=tuple(model.runner.names), multi_label=False, fine_masks=True, max_detections=1)
        key, prepared = self.prepare(name, ("", grey), model.stride * 2, settings)
        self.process_batch(key, [prepared])

    @torch.inference_mode()
    def process_batch(self, key: Hashable, images: Sequence[PreparedImage]) -> list[Results]:
        """Run images with a common batching key; return their results on the CPU."""
        assert isinstance(key, tuple)
        model = self.models[key[0]]
        decoded = model.decode(torch.cat([image.pixels for image in images]))
        results = []
        for index, image in enumerate(images):
            result = Results(image.info)
            for head, spec in model.runner.specs.items():
                of_image = {part: tensor[index : index + 1] for part, tensor in decoded[head].items()}
                POSTPROCESS.get(head)(spec, image.settings)(of_image, [result])
            results.append(result.cpu())
        return results
