"""What was found in some images, in the forms people ask for (behaviour.md 5.5)."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import Results, Runner
from utils.core.errors import UserError
from utils.core.files import run_folder
from utils.core.log import LOGGER
from utils.engine.predict import count_classes, in_words
from utils.ops.boxes import xyxy_to_cxcywh
from utils.ops.class_fractions import class_fractions
from utils.ops.masks import encode_rle, largest_contour
from utils.plots.draw import annotate, class_name
from utils.plots.figure_io import write_image
from utils.plots.prediction_sinks import cut_out, safe_name

if TYPE_CHECKING:
    from utils.hub.image_inputs import Picture

TOP = 5  # classes of a whole image that are told
_CORNERS = ("xmin", "ymin", "xmax", "ymax", "confidence", "class", "name")
_CENTRES = ("xcenter", "ycenter", "width", "height", "confidence", "class", "name")


def optional(module: str, feature: str) -> ModuleType:
    """Return a package that only `feature` needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{feature} needs the package {module}: pip install {module}") from error


class Detections:
    """Everything found in one or several images. Boxes are in pixels of the original images.

    `xyxy`, `xywh` (centres), `xyxyn` and `xywhn` hold an (n, 6) tensor per image: the box, confidence, class. `results`
    has the records with masks, classes of pixels and probabilities; `t` is milliseconds per image before, in and after
    the network, `s` the shape of its input, `files` the images' names.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        results: Sequence[Results],
        runner: Runner,
        milliseconds: tuple[float, ...],
        shape: tuple[int, ...],
    ) -> None:
        self.results, self.runner, self.t, self.s = list(results), runner, milliseconds, shape
        self.ims = [np.ascontiguousarray(picture.bgr[:, :, ::-1]) for picture in pictures]
        self.files = [picture.name for picture in pictures]
        self.names = dict(enumerate(runner.names))
        self.n = len(self.ims)
        self.xyxy = [_rows(one) for one in results]
        self.xywh = [torch.cat((xyxy_to_cxcywh(rows[:, :4]), rows[:, 4:]), 1) for rows in self.xyxy]
        sizes = [torch.tensor([image.shape[1], image.shape[0]] * 2 + [1, 1]) for image in self.ims]
        self.xyxyn = [rows / size for rows, size in zip(self.xyxy, sizes, strict=True)]
        self.xywhn = [rows / size for rows, size in zip(self.xywh, sizes, strict=True)]
        self.pred = self.xyxy

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Detections]:
        return iter(self.tolist())

    def __str__(self) -> str:
        lines = [f"image {i + 1}/{self.n}: {self._line(i)}" for i in range(self.n)]
        before, inside, after = self.t
        times = f"{before:.1f}ms pre-process, {inside:.1f}ms inference, {after:.1f}ms NMS"
        return "\n".join([*lines, f"Speed: {times} per image at shape {self.s}"])

    def __repr__(self) -> str:
        return f"<Detections of {self.n} image{'s' if self.n != 1 else ''}>\n{self}"

    def _line(self, number: int) -> str:
        height, width = self.ims[number].shape[:2]
        result = self.results[number]
        told = []
        if result.boxes is not None:
            told.append(in_words(count_classes(result, self.runner.names)))
        if result.semantic is not None:
            count = len(class_fractions(result.semantic.numpy()))
            told.append(f"{count} class{'es' if count != 1 else ''} of pixels")
        if result.probabilities is not None:
            told += [f"{name} {score:.2f}" for name, score in self._top(result)]
        return f"{height}x{width} {', '.join(told)}"

    def _top(self, result: Results) -> list[tuple[str, float]]:
        assert result.probabilities is not None
        scores, order = result.probabilities.float().topk(min(TOP, len(result.probabilities)))
        pairs = zip(order.tolist(), scores.tolist(), strict=True)
        return [(class_name(self.runner.names, index), score) for index, score in pairs]

    def print(self) -> None:
        """Write the summary to the console."""
        sys.stdout.write(f"{self}\n")

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Return the images with everything drawn on them, (H, W, 3) uint8 RGB."""
        from utils.plots.draw import DrawStyle
        from utils.plots.semantic_overlay import SemanticStyle

        look = SemanticStyle(self._names_of_pixels())
        style = DrawStyle(labels=labels, outline_masks=True, semantic=look)
        drawn = [
            annotate(image[:, :, ::-1], result, self.runner.names, style)
            for image, result in zip(self.ims, self.results, strict=True)
        ]
        return [np.ascontiguousarray(picture[:, :, ::-1]) for picture in drawn]

    plot = render

    def show(self, labels: bool = True) -> None:
        """Show the images with the viewer of the system."""
        from PIL import Image

        for picture in self.render(labels):
            Image.fromarray(picture).show()

    def save(self, labels: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False) -> Path:
        """Write the drawn images into a folder, a new one unless `exist_ok`; return it."""
        folder = run_folder(Path(save_dir).parent, Path(save_dir).name, exist_ok)
        for name, picture in zip(self._unique(), self.render(labels), strict=True):
            write_image(folder / name, picture[:, :, ::-1])
        LOGGER.info(f"saved {self.n} image{'s' if self.n != 1 else ''} in {folder}")
        return folder

    def _unique(self) -> list[str]:
        """Return a file name per image; of equal ones the later get a number."""
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
        """Return a record per box: box (4,), conf, cls, label, im (RGB); with `save` also as files by class."""
        folder = run_folder(Path(save_dir).parent, Path(save_dir).name, exist_ok) if save else None
        crops = []
        for number, file in enumerate(self._unique()):
            for row in self.xyxy[number]:
                name = class_name(self.runner.names, int(row[5]))
                pixels = cut_out(self.ims[number], row[:4].tolist())
                record = {"box": row[:4], "conf": row[4], "cls": row[5], "label": f"{name} {row[4]:.2f}", "im": pixels}
                crops.append(record)
                if folder is not None and pixels.size:
                    place = folder / "crops" / safe_name(name) / f"{Path(file).stem}_{len(crops)}.jpg"
                    write_image(place, pixels[:, :, ::-1])
        return crops

    def tolist(self) -> list[Detections]:
        """Return one `Detections` per image."""
        single = []
        for number in range(self.n):
            one = Detections.__new__(Detections)
            one.runner, one.t, one.s, one.names, one.n = self.runner, self.t, self.s, self.names, 1
            for name in ("results", "ims", "files", "xyxy", "xywh", "xyxyn", "xywhn", "pred"):
                setattr(one, name, [getattr(self, name)[number]])
            single.append(one)
        return single

    def _names_of_pixels(self) -> tuple[str, ...]:
        spec = self.runner.specs.get("semantic")
        return tuple(spec.names if spec is not None and spec.names else self.runner.names)

    def pixel_classes(self, number: int) -> list[dict[str, Any]]:
        """Return class, name and share of the pixels of image `number`, the largest first; [] without such a head."""
        classes, names = self.results[number].semantic, self._names_of_pixels()
        shares = {} if classes is None else class_fractions(classes.numpy())
        return [{"class": index, "name": class_name(names, index), "share": part} for index, part in shares.items()]

    def records(self, number: int) -> list[dict[str, Any]]:
        """Return plain values for each object of image `number`, for JSON.

        Of networks that find no boxes they are the likeliest classes of the image, or the classes of its pixels.
        """
        result = self.results[number]
        if result.probabilities is not None:
            return [{"name": name, "confidence": score} for name, score in self._top(result)]
        if result.boxes is None:
            return self.pixel_classes(number)
        rows = []
        for index, row in enumerate(self.xyxy[number].tolist()):
            name = class_name(self.runner.names, int(row[5]))
            record: dict[str, Any] = dict(zip(_CORNERS, (*row[:5], int(row[5]), name), strict=True))
            if result.fine_masks is not None:
                mask = result.fine_masks.original(index)
                record["segments"] = largest_contour(mask).tolist()
                record["rle"] = encode_rle(mask)
            rows.append(record)
        return rows

    def to_json(self) -> str:
        """Return the records as JSON: a list per image of boxes (and outlines), or of classes."""
        return json.dumps([self.records(number) for number in range(self.n)])

    def pandas(self) -> Detections:
        """Return the same with tables in place of tensors in xyxy, xywh, xyxyn and xywhn."""
        frames = optional("pandas", "Detections.pandas()")
        tables = Detections.__new__(Detections)
        tables.__dict__.update(self.__dict__)
        for kind, columns in (("xyxy", _CORNERS), ("xyxyn", _CORNERS), ("xywh", _CENTRES), ("xywhn", _CENTRES)):
            named = [
                [[*row[:5], int(row[5]), class_name(self.runner.names, int(row[5]))] for row in rows.tolist()]
                for rows in getattr(self, kind)
            ]
            setattr(tables, kind, [frames.DataFrame(rows, columns=list(columns)) for rows in named])
        return tables

    def supervision(self) -> list[Any]:
        """Return a `supervision.Detections` per image; of networks for whole images its `Classifications`.

        Where there are no boxes but classes of pixels, each class that occurs is one entry with its mask.
        """
        package = optional("supervision", "Detections.supervision()")
        converted = []
        for result, rows in zip(self.results, self.xyxy, strict=True):
            if result.probabilities is not None:
                scores = result.probabilities.float().numpy()
                converted.append(package.Classifications(class_id=np.arange(len(scores)), confidence=scores))
                continue
            if result.boxes is None and result.semantic is not None:
                converted.append(self._regions(package, result.semantic.numpy()))
                continue
            masks = None
            if result.fine_masks is not None and len(rows):
                masks = np.stack([result.fine_masks.original(index) for index in range(len(rows))])
            numbers = rows[:, 5].long().numpy()
            converted.append(
                package.Detections(
                    xyxy=rows[:, :4].numpy(),
                    confidence=rows[:, 4].numpy(),
                    class_id=numbers,
                    mask=masks,
                    data={"class_name": np.array([class_name(self.runner.names, int(i)) for i in numbers], dtype=str)},
                )
            )
        return converted

    def _regions(self, package: ModuleType, classes: np.ndarray) -> Any:
        """Return a class per pixel as supervision's record: a mask and its box per class, the largest first."""
        numbers = np.array(list(class_fractions(classes)), int)
        if not len(numbers):
            return package.Detections.empty()
        masks = np.stack([classes == number for number in numbers])
        names = self._names_of_pixels()
        return package.Detections(
            xyxy=package.mask_to_xyxy(masks).astype(np.float32),
            class_id=numbers,
            mask=masks,
            data={"class_name": np.array([class_name(names, int(number)) for number in numbers], dtype=str)},
        )


def _rows(result: Results) -> Tensor:
    """Return the (n, 6) boxes, confidences and classes of an image; without boxes there are none."""
    if result.boxes is None or result.scores is None or result.classes is None:
        return torch.zeros(0, 6)
    return torch.cat((result.boxes.float(), result.scores.float()[:, None], result.classes.float()[:, None]), dim=1)
