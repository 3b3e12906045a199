"""An exported file as a `Runner`: prepares its input, splits batches, names its outputs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.ensemble import Ensemble
from models.tta import with_tta
from utils.backends.export_metadata import KEY, Description, Foreign, from_json, from_yolov5
from utils.core.contracts import Decoded, Outputs, Runner
from utils.core.errors import UserError
from utils.core.log import LOGGER

Call = Callable[[Tensor], Sequence[Tensor]]  # what the runtime computes of one batch, outputs in the graph's order

_MEAN, _DEVIATION = ([[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]])  # behaviour.md 4.12


class ExportedRunner:
    """Run `call` on what the file takes: its size, its batch, floats or bytes."""

    def __init__(self, about: Description, call: Call, path: Path) -> None:
        self.about, self._call, self.path = about, call, path
        self.specs, self.names, self.stride = about.specs, about.names, about.stride
        self.fixed_hw = None if about.dynamic else about.image_hw

    @torch.inference_mode()
    def run(self, images: Tensor) -> Outputs:
        """Return decoded outputs of (B, 3, H, W) uint8 or float images; there are no raw ones."""
        size_hw = (int(images.shape[2]), int(images.shape[3]))
        if self.fixed_hw not in (None, size_hw):
            raise UserError(f"{self.path}: takes images of {self.fixed_hw} pixels only, these have {size_hw}")
        fed = as_bytes(images, self.about.colors) if self.about.colors else as_floats(images)
        fed = (fed - fed.new_tensor(_MEAN)) / fed.new_tensor(_DEVIATION) if self.about.normalised else fed
        batch = len(fed) if self.about.dynamic else self.about.batch
        parts = [self._call(_filled(chunk, batch)) for chunk in fed.split(batch)]
        joined_parts = parts[0] if len(parts) == 1 else [torch.cat(list(one)) for one in zip(*parts, strict=True)]
        tensors = [tensor[: len(fed)] for tensor in joined_parts]
        decoded: dict[str, Decoded] = {}
        for (head, key), tensor in zip(self.about.outputs, tensors, strict=True):
            decoded.setdefault(head, {})[key] = tensor.float()
        return Outputs(decoded={head: self._in_our_terms(head, part) for head, part in decoded.items()})

    def _in_our_terms(self, head: str, part: Decoded) -> Decoded:
        spec = self.specs[head]
        if "logits" in part and spec.name == "classify":  # YOLOv5's files leave this to the reader
            return {"probabilities": part["logits"].softmax(dim=-1)}
        if self.about.suppression and spec.strides:
            return {**part, "predictions": predictions_of(part["predictions"], spec.num_classes)}
        return part


def predictions_of(rows: Tensor, num_classes: int) -> Tensor:
    """Return (B, T, 6 + M) suppressed rows as (B, T, 5 + C + M) predictions that suppress to the same rows.

    The score becomes the objectness and the class a certain one; mask coefficients, which suppression multiplies by
    the objectness, are divided by it.
    """
    corners, scores, classes = rows[..., :4], rows[..., 4:5], rows[..., 5].long().clamp(0, num_classes - 1)
    centres, sizes = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
    certain = functional.one_hot(classes, num_classes).to(rows.dtype)
    coefficients = rows[..., 6:] / scores.clamp_min(1e-12)
    return torch.cat((centres, sizes, scores, certain, coefficients), dim=-1)


def as_floats(images: Tensor) -> Tensor:
    """Return (B, 3, H, W) images as floats in [0, 1] in the default memory order, on their device."""
    if images.dtype != torch.uint8:
        return images.float().contiguous()
    scaled = torch.empty(images.shape, device=images.device)  # one pass for type and order: a quarter of the time
    return scaled.copy_(images).div_(255)


def as_bytes(images: Tensor, colors: str) -> Tensor:
    """Return (B, 3, H, W) RGB images as (B, H, W, 3) uint8 in the order `colors`."""
    pixels = images if images.dtype == torch.uint8 else (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.flip(1) if colors == "bgr" else pixels
    return pixels.permute(0, 2, 3, 1).contiguous()


def _filled(chunk: Tensor, batch: int) -> Tensor:
    """Return `chunk` with empty images after the last, so that a fixed batch is full."""
    missing = batch - len(chunk)
    return torch.cat((chunk, chunk.new_zeros((missing, *chunk.shape[1:])))) if missing else chunk


def from_arrays(arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Return tensors of a runtime's own arrays, copied: the runtime may use its memory again."""
    return [torch.from_numpy(np.array(array)) for array in arrays]


def described(entries: Mapping[str, str], input_shape: tuple[int, ...], call: Call, path: Path) -> Description:
    """Return what the metadata `entries` of a file say; of a file of YOLOv5's, what its outputs show.

    `input_shape` is (B, 3, H, W) with -1 for what is open.
    """
    if KEY in entries:
        return from_json(entries[KEY], path)
    trial = [side if side > 0 else usual for side, usual in zip(input_shape, (1, 3, 640, 640), strict=True)]
    shapes = tuple(tuple(output.shape) for output in call(torch.zeros(trial)))
    return from_yolov5(Foreign(entries, input_shape, shapes), path)


def joined(runners: Sequence[ExportedRunner], augment: bool) -> tuple[Runner, dict[str, Any]]:
    """Return one runner of several files, looked at from several views if `augment`, and the first one's record."""
    runner: Runner = runners[0] if len(runners) == 1 else Ensemble(runners)
    if augment and any(one.about.suppression for one in runners):
        raise UserError(f"{runners[0].path}: --augment needs all boxes, but this file suppresses some itself")
    about = runners[0].about
    meta = {**about.meta, "imgsz": max(about.image_hw)}
    return with_tta(runner) if augment else runner, meta


def require(package: str, what: str, install: str = "") -> None:
    """Raise UserError unless `package` can be imported; `what` needs it."""
    if not installed(package):
        raise UserError(f"{what} needs the package {package}: pip install {install or package}")


def installed(*packages: str) -> bool:
    """Tell whether all `packages` are there, without loading them."""
    try:
        return all(importlib.util.find_spec(package) is not None for package in packages)
    except (ImportError, ValueError):  # a parent that is missing or half installed
        return False


def warn_half(half: bool, path: Path) -> None:
    """Say that a file's precision was settled when it was exported."""
    if half:
        LOGGER.warning(f"--half: {path} computes in the precision it was exported with")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep converters that write to the terminal past Python, or run as programs of their own, off it."""
    saved = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - descriptors, not paths
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
