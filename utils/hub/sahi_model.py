"""Sliced inference: a detection model for the `sahi` package (`pip install sahi`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from utils.core.errors import UserError
from utils.hub.hub_model import Model, load

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
except ImportError as error:
    raise UserError("utils.hub.sahi_model needs the package sahi; pip install sahi") from error


class SahiModel(DetectionModel):
    """Checkpoint or exported file as a `sahi` detection model, with masks if the network has them.

    The constructor takes the arguments of `sahi.models.base.DetectionModel`: `model_path`, or a loaded `model`,
    `confidence_threshold`, `device`, `image_size`.
    """

    model: Model
    category_mapping: dict[str, str]

    def load_model(self) -> None:
        """Open `model_path`."""
        if not self.model_path:
            raise UserError("model_path: not given; name a checkpoint or an exported file")
        self.set_model(load(self.model_path, str(self.device)))

    def set_model(self, model: Model, **_: object) -> None:
        """Use a loaded model; its confidence threshold becomes that of this object."""
        if not isinstance(model, Model):
            raise UserError(f"model: expected what hub.load returns, got {type(model).__name__}")
        model.conf = self.confidence_threshold
        self.model = model
        if not self.category_mapping:
            self.category_mapping = {str(index): name for index, name in enumerate(self.category_names)}

    @property
    def num_categories(self) -> int:
        """Number of classes."""
        return self.model.nc

    @property
    def has_mask(self) -> bool:
        """Whether the network predicts instance masks."""
        return any(spec.num_masks for spec in self.model.runner.specs.values())

    @property
    def category_names(self) -> list[str]:
        """Class names in the order of their indices."""
        return list(self.model.class_names)

    def perform_inference(self, image: np.ndarray) -> None:
        """Predict on an (H, W, 3) RGB image."""
        self._original_predictions = self.model(image, size=self.image_size)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        """Convert the predictions of the slices to sahi's records, shifted to the whole image."""
        shifts = fix_shift_amount_list(shift_amount_list or [[0, 0]])
        given: Any = fix_full_shape_list(full_shape_list)
        shapes: list[Any] = list(given or [None] * len(shifts))
        self._object_prediction_list_per_image = [
            self._convert_image(result.boxes, result.masks, shift, shape)
            for result, shift, shape in zip(self._original_predictions, shifts, shapes, strict=True)
        ]

    def _convert_image(self, boxes: Any, masks: Any, shift: Any, shape: Any) -> list[ObjectPrediction]:
        outlines = None if masks is None else masks.xy
        converted = []
        for index, (x1, y1, x2, y2, score, number) in enumerate(boxes.data.tolist()):
            outline = None if outlines is None else outlines[index].flatten().tolist()
            if x2 <= x1 or y2 <= y1 or (outline is not None and len(outline) < 6):
                continue
            converted.append(
                ObjectPrediction(
                    bbox=[x1, y1, x2, y2],
                    category_id=int(number),
                    score=score,
                    segmentation=None if outline is None else [outline],
                    category_name=self.category_mapping[str(int(number))],
                    shift_amount=shift,
                    full_shape=shape,
                )
            )
        return converted
