"""The networks of the service: an image made ready for one, and a batch of them through it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.service.memory_trim import give_back
from tools.service.service_settings import ServiceSettings, model_name
from utils.core.contracts import EvalSettings, ImageInfo, Results
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.hub.hub_model import Model, fitted, load
from utils.postprocess import POSTPROCESS

TRIM = 16  # batches after which free memory is given back: some milliseconds each time
AREA_PX = 640 * 640  # of the images of which `max_batch` go through a network together; larger ones are fewer


@dataclass(frozen=True)
class Wish:
    """One image as the network sees it, and how its results are wanted."""

    pixels: Tensor  # (1, 3, H, W) uint8 RGB
    info: ImageInfo
    how: EvalSettings


class Predictor:
    """Models by name. `ready` may be called in any thread, `work` in one only."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self._batches = 0
        self.models: dict[str, Model] = {}
        for path in settings.weights:
            name = model_name(path)
            if name in self.models:
                raise UserError(f"--weights {path}: another checkpoint is called {name!r} already; rename one")
            self.models[name] = load(path, settings.device, settings.half, settings.download)
            self._warm_up(name)
            LOGGER.info(f"{name}: {self.models[name]!r}")

    @property
    def first(self) -> str:
        """Return the name of the model that answers when none is named."""
        return next(iter(self.models))

    def size_of(self, name: str) -> int:
        """Return the longer side at which a model sees images unless a request says otherwise."""
        usual = self.models[name].usual_px
        return self.settings.imgsz or int(self.models[name].meta.get("imgsz") or usual)

    def ready(self, name: str, image: tuple[str, np.ndarray], size: int, how: EvalSettings) -> tuple[Hashable, Wish]:
        """Return a (H, W, 3) BGR image with its name as a wish, and its key.

        Images must share the key to go through a network together: the model and the shape of its input. The shape
        depends on the image alone, so its results do not depend on what else is in the batch.
        """
        model = self.models[name]
        called, bgr = image
        shape = model.shape_for([(bgr.shape[0], bgr.shape[1])], size)
        boxed, geometries = fitted([bgr], shape, model)
        return (name, shape), Wish(boxed, ImageInfo(0, called, geometries[0]), how)

    def how(self, name: str, **asked: Any) -> EvalSettings:
        """Return how results of a model are wanted."""
        return EvalSettings(names=tuple(self.models[name].runner.names), multi_label=False, fine_masks=True, **asked)

    def most(self, key: Hashable) -> int:
        """Return how many images with this key go through the network together: fewer where they are large."""
        assert isinstance(key, tuple)
        height, width = key[1]
        return max(1, min(self.settings.max_batch, self.settings.max_batch * AREA_PX // (height * width)))

    def _warm_up(self, name: str) -> None:
        grey = np.full((64, 64, 3), 114, np.uint8)
        key, wish = self.ready(name, ("", grey), self.models[name].stride * 2, self.how(name, max_detections=1))
        self.work(key, [wish])

    @torch.inference_mode()
    def work(self, key: Hashable, wishes: Sequence[Wish]) -> list[Results]:
        """Return the results of images that share `key`, on the CPU."""
        assert isinstance(key, tuple)
        model = self.models[key[0]]
        decoded = model.raw(torch.cat([wish.pixels for wish in wishes]))
        found = []
        for index, wish in enumerate(wishes):
            result = Results(wish.info)
            for head, spec in model.runner.specs.items():
                mine = {part: tensor[index : index + 1] for part, tensor in decoded[head].items()}
                POSTPROCESS.get(head)(spec, wish.how)(mine, [result])
            found.append(result.cpu())
        self._batches += 1
        if self._batches % TRIM == 0:
            give_back()
        return found
