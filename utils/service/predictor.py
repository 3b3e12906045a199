"""The networks of the service, and one batch of images through one of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.core.contracts import EvalSettings, ImageInfo, Results
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.hub.model import Model, fitted, load
from utils.postprocess import POSTPROCESS
from utils.service.settings import ServiceSettings, model_name


@dataclass(frozen=True)
class Wish:
    """One image and how its results are wanted."""

    bgr: np.ndarray
    name: str
    confidence: float
    iou: float
    max_detections: int
    classes: tuple[int, ...] | None
    agnostic: bool


class Predictor:
    """Models by name. `work` is called in one thread only."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
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

    def key(self, name: str, bgr: np.ndarray, size: int) -> Hashable:
        """Return what images must share to go through a network together: the model and the shape of its input.

        The shape depends on the image alone, so its results do not depend on what else is in the batch.
        """
        model = self.models[name]
        return name, model.shape_for([(bgr.shape[0], bgr.shape[1])], size)

    def _warm_up(self, name: str) -> None:
        grey = np.full((64, 64, 3), 114, np.uint8)
        self.work(self.key(name, grey, 64), [Wish(grey, "", 0.5, 0.5, 1, None, False)])

    @torch.inference_mode()
    def work(self, key: Hashable, wishes: Sequence[Any]) -> list[Results]:
        """Return the results of images that share `key`, on the CPU."""
        assert isinstance(key, tuple)
        name, shape = key
        model = self.models[name]
        boxed, geometries = fitted([wish.bgr for wish in wishes], shape, model)
        decoded = model.raw(boxed)
        found = []
        for index, wish in enumerate(wishes):
            result = Results(ImageInfo(index, wish.name, geometries[index]))
            how = EvalSettings(
                names=tuple(model.runner.names),
                confidence=wish.confidence,
                iou=wish.iou,
                max_detections=wish.max_detections,
                multi_label=False,
                agnostic=wish.agnostic,
                classes=wish.classes,
                fine_masks=True,
            )
            for head, spec in model.runner.specs.items():
                mine = {part: tensor[index : index + 1] for part, tensor in decoded[head].items()}
                POSTPROCESS.get(head)(spec, how)(mine, [result])
            found.append(result.cpu())
        return found
