"""Predictions for one or several images, with conversions to the formats of other libraries."""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import Results
from utils.core.errors import UserError
from utils.core.files import run_folder
from utils.core.log import LOGGER
from utils.core.segment_types import PanopticMap
from utils.engine.predict import count_classes, format_counts
from utils.hub.result_views import Boxes, Masks, Probs, summarize_image
from utils.hub.supervision_format import import_optional, to_supervision
from utils.ops.boxes import xyxy_to_cxcywh
from utils.ops.class_fractions import class_fractions
from utils.ops.masks import encode_rle, largest_contour
from utils.ops.panoptic import PanopticMerger
from utils.plots.draw import DrawStyle, annotate, class_name
from utils.plots.figure_io import write_image
from utils.plots.prediction_sinks import crop_box, safe_name
from utils.plots.semantic_style import SemanticStyle

if TYPE_CHECKING:
    from utils.hub.image_inputs import NamedImage

TOP_CLASSES = 5  # of a classified image in summaries and records
_CORNER_COLUMNS = ("xmin", "ymin", "xmax", "ymax", "confidence", "class", "name")
_CENTRE_COLUMNS = ("xcenter", "ycenter", "width", "height", "confidence", "class", "name")
_TABLE_COLUMNS = {
    "xyxy": _CORNER_COLUMNS,
    "xyxyn": _CORNER_COLUMNS,
    "xywh": _CENTRE_COLUMNS,
    "xywhn": _CENTRE_COLUMNS,
}
_PER_IMAGE = ("results", "ims", "files", "pred", *_TABLE_COLUMNS)  # attributes that are lists with one entry per image


class Elapsed(NamedTuple):
    """Time of one stage for all images of a call, in seconds."""

    t: float


class Detections:
    """Predictions for one or several images. Boxes are in pixels of the original images.

    Args:
        images: The images.
        results: One record per image.
        names: Class names, and those of the semantic head.
        seconds: Pre-processing, inference and post-processing time of the call.
        shape: Shape of the network input.

    Attributes:
        results: One record per image, with masks, semantic maps and class probabilities.
        xyxy: Per image an (n, 6) tensor: corners of the box, confidence, class.
        xywh: The same with centre, width and height.
        xyxyn: Corners divided by image width and height.
        xywhn: Centre, width and height divided by image width and height.
        pred: The same as `xyxy`.
        ims: The images, (H, W, 3) uint8 RGB; `imgs` is the same list.
        files: File names of the images.
        names: Class names by index.
        n: Number of images.
        t: Pre-processing, inference and post-processing time per image in milliseconds.
        times: The same for the whole call, as records whose `t` is in seconds.
        s: `shape`.
    """

    def __init__(
        self,
        images: Sequence[NamedImage],
        results: Sequence[Results],
        names: tuple[Sequence[str], Sequence[str]],
        seconds: tuple[float, ...],
        shape: tuple[int, ...],
    ) -> None:
        self.results, self.s = list(results), shape
        self._names, self._semantic_names = names
        self.times = tuple(map(Elapsed, seconds))
        self.t = tuple(1000 * one / len(images) for one in seconds)
        self.ims = [np.ascontiguousarray(image.bgr[:, :, ::-1]) for image in images]
        self.files = [image.name for image in images]
        self.names = dict(enumerate(self._names))
        self.n = len(self.ims)
        self.xyxy = [_box_rows(one) for one in results]
        self.xywh = [torch.cat((xyxy_to_cxcywh(rows[:, :4]), rows[:, 4:]), 1) for rows in self.xyxy]
        sizes = [torch.tensor([image.shape[1], image.shape[0]] * 2 + [1, 1]) for image in self.ims]
        self.xyxyn = [rows / size for rows, size in zip(self.xyxy, sizes, strict=True)]
        self.xywhn = [rows / size for rows, size in zip(self.xywh, sizes, strict=True)]
        self.pred = self.xyxy

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Detections]:
        return iter(self.tolist())

    def __getitem__(self, index: SupportsIndex) -> Detections:
        """Select one image."""
        return self.tolist()[index]

    def __str__(self) -> str:
        lines = [f"image {i + 1}/{self.n}: {self._summary(i)}" for i in range(self.n)]
        before, inside, after = self.t
        last = "NMS" if any(one.boxes is not None for one in self.results) else "post-process"
        times = f"{before:.1f}ms pre-process, {inside:.1f}ms inference, {after:.1f}ms {last}"
        return "\n".join([*lines, f"Speed: {times} per image at shape {self.s}"])

    def __repr__(self) -> str:
        return f"<Detections of {self.n} image{'s' if self.n != 1 else ''}>\n{self}"

    def _with(self, **attributes: Any) -> Detections:
        """Create a shallow copy with some attributes replaced."""
        changed = copy.copy(self)
        vars(changed).update(attributes)
        return changed

    def tolist(self) -> list[Detections]:
        """Split into one `Detections` per image."""
        return [
            self._with(n=1, **{name: getattr(self, name)[index : index + 1] for name in _PER_IMAGE})
            for index in range(self.n)
        ]

    @property
    def imgs(self) -> list[np.ndarray]:
        """The images under the name that YOLOv5 used before version 6.2."""
        return self.ims

    def _only_result(self, attribute: str) -> Results:
        if self.n != 1:
            raise UserError(f"{attribute}: the results have {self.n} images; select one, as in results[0].{attribute}")
        return self.results[0]

    @property
    def panoptic(self) -> PanopticMap | None:
        """Panoptic map of a single image, merged on first use; None for networks without masks or semantic maps.

        Raises:
            UserError: If the semantic head lacks a class of the mask head.
        """
        result = self._only_result("panoptic")
        if result.panoptic is None and result.fine_masks is not None and result.semantic is not None:
            result.panoptic = PanopticMerger(self._names, self._semantic_names)(result)
        return result.panoptic

    @property
    def boxes(self) -> Boxes | None:
        """Boxes of a single image; None for networks without boxes."""
        result = self._only_result("boxes")
        return None if result.boxes is None else Boxes(self.xyxy[0], self._original_hw)

    @property
    def masks(self) -> Masks | None:
        """Instance masks of a single image; None for networks without masks."""
        masks = self._only_result("masks").fine_masks
        return None if masks is None else Masks(masks, self._original_hw)

    @property
    def probs(self) -> Probs | None:
        """Class probabilities of a single image; None except for classifiers."""
        scores = self._only_result("probs").probabilities
        return None if scores is None else Probs(scores.float())

    @property
    def _original_hw(self) -> tuple[int, int]:
        height, width = self.ims[0].shape[:2]
        return height, width

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """Convert the predictions of a single image to plain values; see `summarize_image`."""
        return summarize_image((self.boxes, self.masks, self.probs), self._names, normalize, decimals)

    # ------------------------------------------------------------------------------------------------------------------
    # Summaries and images

    def _summary(self, index: int) -> str:
        height, width = self.ims[index].shape[:2]
        result = self.results[index]
        parts = []
        if result.boxes is not None:
            parts.append(format_counts(count_classes(result, self._names)))
        if result.semantic is not None:
            count = len(class_fractions(result.semantic.numpy()))
            parts.append(f"{count} semantic class{'es' if count != 1 else ''}")
        if result.probabilities is not None:
            parts += [f"{name} {score:.2f}" for name, score in self._top_classes(result)]
        return f"{height}x{width} {', '.join(parts)}"

    def _top_classes(self, result: Results) -> list[tuple[str, float]]:
        assert result.probabilities is not None
        scores, order = result.probabilities.float().topk(min(TOP_CLASSES, len(result.probabilities)))
        pairs = zip(order.tolist(), scores.tolist(), strict=True)
        return [(class_name(self._names, index), score) for index, score in pairs]

    def print(self) -> None:
        """Print a summary line per image and the speed."""
        sys.stdout.write(f"{self}\n")

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Draw the predictions.

        Args:
            labels: Write class names and confidences at boxes.

        Returns:
            Annotated copies of the images, (H, W, 3) uint8 RGB.
        """
        style = DrawStyle(labels=labels, outline_masks=True, semantic=SemanticStyle(tuple(self._semantic_names)))
        annotated = [
            annotate(image[:, :, ::-1], result, self._names, style)
            for image, result in zip(self.ims, self.results, strict=True)
        ]
        return [np.ascontiguousarray(image[:, :, ::-1]) for image in annotated]

    plot = render

    def show(self, labels: bool = True) -> None:
        """Show the annotated images with the system's image viewer."""
        from PIL import Image

        for image in self.render(labels):
            Image.fromarray(image).show()

    def save(self, labels: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False) -> Path:
        """Write the annotated images.

        Args:
            labels: Write class names and confidences at boxes.
            save_dir: The folder, numbered if it exists.
            exist_ok: Write into an existing folder instead.

        Returns:
            The folder.
        """
        folder = run_folder(Path(save_dir).parent, Path(save_dir).name, exist_ok)
        for name, image in zip(self._unique_names(), self.render(labels), strict=True):
            write_image(folder / name, image[:, :, ::-1])
        LOGGER.info(f"Saved {self.n} image{'s' if self.n != 1 else ''} to {folder}")
        return folder

    def _unique_names(self) -> list[str]:
        """Derive distinct file names by numbering repeated ones."""
        seen: dict[str, int] = {}
        names = []
        for name in self.files:
            seen[name] = seen.get(name, 0) + 1
            stem = safe_name(Path(name).stem)
            names.append(f"{stem}.jpg" if seen[name] == 1 else f"{stem}_{seen[name]}.jpg")
        return names

    def crop(
        self, save: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False
    ) -> list[dict[str, Any]]:
        """Crop every box from its image.

        Args:
            save: Also write the crops, in a folder per class.
            save_dir: The folder, numbered if it exists.
            exist_ok: Write into an existing folder instead.

        Returns:
            A record per box, in ascending order of confidence in each image: box, a list of four scalar tensors, conf,
            cls, label and im, the (H, W, 3) RGB pixels.
        """
        folder = run_folder(Path(save_dir).parent, Path(save_dir).name, exist_ok) if save else None
        crops = []
        written: Counter[Path] = Counter()
        for index, file in enumerate(self.files):
            for row in self.xyxy[index].flip(0):
                *box, confidence, number = row
                name = class_name(self._names, int(number))
                pixels = crop_box(self.ims[index], row[:4].tolist())
                label = f"{name} {confidence:.2f}"
                crops.append({"box": box, "conf": confidence, "cls": number, "label": label, "im": pixels})
                if folder is not None and pixels.size:
                    path = folder / "crops" / safe_name(name) / safe_name(Path(file).stem)
                    written[path] += 1
                    count = written[path] if written[path] > 1 else ""
                    write_image(path.with_name(f"{path.name}{count}.jpg"), pixels[:, :, ::-1])
        if folder is not None:
            LOGGER.info(f"Saved {len(crops)} crop{'s' if len(crops) != 1 else ''} to {folder}")
        return crops

    # ------------------------------------------------------------------------------------------------------------------
    # Conversions

    def semantic_classes(self, index: int) -> list[dict[str, Any]]:
        """List the semantic classes of image `index`: class, name and `share` of the pixels, the largest first."""
        classes, names = self.results[index].semantic, self._semantic_names
        fractions = {} if classes is None else class_fractions(classes.numpy())
        return [{"class": i, "name": class_name(names, i), "share": fraction} for i, fraction in fractions.items()]

    def records(self, index: int) -> list[dict[str, Any]]:
        """Convert the predictions of an image to plain values.

        Args:
            index: Of the image.

        Returns:
            A record per box, with the polygon and RLE of its mask if there are masks; for classifiers the most
            probable classes; for semantic segmentation without boxes the classes of the map.
        """
        result = self.results[index]
        if result.probabilities is not None:
            return [{"name": name, "confidence": score} for name, score in self._top_classes(result)]
        if result.boxes is None:
            return self.semantic_classes(index)
        records = []
        for row_index, row in enumerate(self.xyxy[index].tolist()):
            name = class_name(self._names, int(row[5]))
            record: dict[str, Any] = dict(zip(_CORNER_COLUMNS, (*row[:5], int(row[5]), name), strict=True))
            if result.fine_masks is not None:
                mask = result.fine_masks.original(row_index)
                record["segments"] = largest_contour(mask).tolist()
                record["rle"] = encode_rle(mask)
            records.append(record)
        return records

    def to_json(self) -> str:
        """Serialise the records of all images: a list per image."""
        return json.dumps([self.records(index) for index in range(self.n)])

    def pandas(self) -> Detections:
        """Convert the box tensors to tables.

        Returns:
            A copy whose xyxy, xyxyn, xywh and xywhn are lists of `pandas.DataFrame`.
        """
        package = import_optional("pandas", "Detections.pandas()")
        return self._with(
            **{
                name: [package.DataFrame(self._table(rows, columns)) for rows in getattr(self, name)]
                for name, columns in _TABLE_COLUMNS.items()
            }
        )

    def to_pandas(self) -> Any:
        """Convert the boxes of all images to one `pandas.DataFrame`, with the file name in the column `image`."""
        package = import_optional("pandas", "Detections.to_pandas()")
        tables = [{"image": [file] * len(rows), **self._table(rows, _CORNER_COLUMNS)}
                  for file, rows in zip(self.files, self.xyxy, strict=True)]  # fmt: skip
        return package.DataFrame({name: [one for table in tables for one in table[name]] for name in tables[0]})

    def to_supervision(self) -> Any:
        """Convert a single image to a `supervision.Detections`, for classifiers `Classifications`."""
        self._only_result("to_supervision()")
        return self.supervision()[0]

    def _table(self, rows: Tensor, columns: Sequence[str]) -> dict[str, list[Any]]:
        """Convert (n, 6) boxes to named columns with integer classes and class names."""
        *numbers, classes = rows.T.tolist()
        indices = [int(index) for index in classes]
        names = [class_name(self._names, index) for index in indices]
        return dict(zip(columns, (*numbers, indices, names), strict=True))

    def supervision(self) -> list[Any]:
        """Convert to records of the `supervision` package.

        Returns:
            Per image a `supervision.Detections`, for classifiers `Classifications`. For semantic segmentation without
            boxes each class is one entry with its mask.
        """
        return to_supervision(self.results, self.xyxy, self._names, self._semantic_names)


def _box_rows(result: Results) -> Tensor:
    """Join boxes, scores and classes to an (n, 6) tensor; (0, 6) without boxes."""
    if result.boxes is None or result.scores is None or result.classes is None:
        return torch.zeros(0, 6)
    return torch.cat((result.boxes.float(), result.scores.float()[:, None], result.classes.float()[:, None]), dim=1)
