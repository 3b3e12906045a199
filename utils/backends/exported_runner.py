"""Run an exported file as a `Runner`, and helpers shared by the backends of exported formats."""

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
from utils.backends.export_metadata import METADATA_KEY, ExportMetadata, ForeignFile, infer_metadata, parse_metadata
from utils.core.contracts import Decoded, Outputs, Runner
from utils.core.errors import UserError
from utils.core.log import LOGGER

InferFunction = Callable[[Tensor], Sequence[Tensor]]  # runs one batch; outputs come in the order of the graph

_IMAGENET_MEAN = [[[0.485]], [[0.456]], [[0.406]]]
_IMAGENET_STD = [[[0.229]], [[0.224]], [[0.225]]]
MAX_REASON_LENGTH = 200  # characters of a library's error that are passed on


class ExportedRunner:
    """Runner of an exported file: converts the input, splits batches and names the outputs.

    Args:
        metadata: Of the file.
        infer: Runs the file's graph on one input batch.
        path: The file, for error messages.
    """

    def __init__(self, metadata: ExportMetadata, infer: InferFunction, path: Path) -> None:
        self.metadata, self._infer, self.path = metadata, infer, path
        self.specs, self.names, self.stride = metadata.specs, metadata.names, metadata.stride
        self.fixed_hw = None if metadata.dynamic else metadata.image_hw

    @torch.inference_mode()
    def run(self, images: Tensor) -> Outputs:
        """Compute decoded outputs of (B, 3, H, W) uint8 or float images; exported files have no raw outputs."""
        size_hw = (int(images.shape[2]), int(images.shape[3]))
        if self.fixed_hw not in (None, size_hw):
            raise UserError(f"{self.path}: takes images of {self.fixed_hw} pixels only, got {size_hw}")
        metadata = self.metadata
        inputs = to_nhwc_bytes(images, metadata.colors) if metadata.colors else to_nchw_floats(images)
        if metadata.normalised:
            inputs = (inputs - inputs.new_tensor(_IMAGENET_MEAN)) / inputs.new_tensor(_IMAGENET_STD)
        batch = len(inputs) if metadata.dynamic else metadata.batch
        parts = [self._infer(_pad_batch(chunk, batch)) for chunk in inputs.split(batch)]
        whole = parts[0] if len(parts) == 1 else [torch.cat(list(one)) for one in zip(*parts, strict=True)]
        decoded: dict[str, Decoded] = {}
        for (head, key), tensor in zip(metadata.outputs, whole, strict=True):
            decoded.setdefault(head, {})[key] = tensor[: len(inputs)].float()
        return Outputs(decoded={head: self._convert(head, tensors) for head, tensors in decoded.items()})

    def _convert(self, head: str, tensors: Decoded) -> Decoded:
        """Convert the outputs of one head to what `Head.decode` would return."""
        spec = self.specs[head]
        if "logits" in tensors and spec.name == "classify":  # YOLOv5 exports classifiers without their softmax
            return {"probabilities": tensors["logits"].softmax(dim=-1)}
        if self.metadata.nms and spec.strides:
            return {**tensors, "predictions": nms_rows_to_predictions(tensors["predictions"], spec.num_classes)}
        return tensors


def nms_rows_to_predictions(rows: Tensor, num_classes: int) -> Tensor:
    """Convert rows of NMS inside the graph to predictions that NMS maps to the same rows again.

    The score becomes the objectness and the class probability is 1. Mask coefficients are divided by the objectness,
    since post-processing multiplies them by it.

    Args:
        rows: (B, T, 6 + M) x1, y1, x2, y2, score, class, mask coefficients.
        num_classes: Number of classes C.

    Returns:
        (B, T, 5 + C + M) predictions.
    """
    corners, scores, classes = rows[..., :4], rows[..., 4:5], rows[..., 5].long().clamp(0, num_classes - 1)
    centres, sizes = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
    one_hot = functional.one_hot(classes, num_classes).to(rows.dtype)
    coefficients = rows[..., 6:] / scores.clamp_min(1e-12)
    return torch.cat((centres, sizes, scores, one_hot, coefficients), dim=-1)


def to_nchw_floats(images: Tensor) -> Tensor:
    """Convert (B, 3, H, W) images to contiguous floats in [0, 1] on the same device."""
    if images.dtype != torch.uint8:
        return images.float().contiguous()
    scaled = torch.empty(images.shape, device=images.device)  # type and memory order in one pass: four times as fast
    return scaled.copy_(images).div_(255)


def to_nhwc_bytes(images: Tensor, colors: str) -> Tensor:
    """Convert (B, 3, H, W) RGB images to (B, H, W, 3) uint8 in the channel order `colors`, rgb or bgr."""
    pixels = images if images.dtype == torch.uint8 else (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.flip(1) if colors == "bgr" else pixels
    return pixels.permute(0, 2, 3, 1).contiguous()


def _pad_batch(chunk: Tensor, batch: int) -> Tensor:
    """Append empty images so that a fixed batch size is filled."""
    missing = batch - len(chunk)
    return torch.cat((chunk, chunk.new_zeros((missing, *chunk.shape[1:])))) if missing else chunk


def copy_to_tensors(arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Copy a runtime's output arrays to tensors, since the runtime may reuse its memory."""
    return [torch.from_numpy(np.array(array)) for array in arrays]


def resolve_metadata(
    entries: Mapping[str, str], input_shape: tuple[int, ...], infer: InferFunction, path: Path
) -> ExportMetadata:
    """Read the metadata of a file, or infer it by a trial run if YOLOv5 exported the file.

    Args:
        entries: The file's metadata table.
        input_shape: (B, 3, H, W), -1 for dynamic dimensions.
        infer: Runs the graph.
        path: The file, for error messages.

    Returns:
        The metadata.
    """
    if METADATA_KEY in entries:
        return parse_metadata(entries[METADATA_KEY], path)
    trial = [side if side > 0 else default for side, default in zip(input_shape, (1, 3, 640, 640), strict=True)]
    shapes = tuple(tuple(output.shape) for output in infer(torch.zeros(trial)))
    return infer_metadata(ForeignFile(entries, input_shape, shapes), path)


def combine_runners(runners: Sequence[ExportedRunner], augment: bool) -> tuple[Runner, dict[str, Any]]:
    """Combine the runners of one or several files.

    Args:
        runners: One runner per file; several form an ensemble.
        augment: Apply test-time augmentation.

    Returns:
        The runner, and training metadata of the first file with its input size as `imgsz`.

    Raises:
        UserError: Augmentation of a file that contains NMS.
    """
    runner: Runner = runners[0] if len(runners) == 1 else Ensemble(runners)
    if augment and any(one.metadata.nms for one in runners):
        raise UserError(f"{runners[0].path}: contains NMS, but --augment needs all boxes; export it without --nms")
    metadata = runners[0].metadata
    meta = {**metadata.meta, "imgsz": max(metadata.image_hw)}
    return with_tta(runner) if augment else runner, meta


def require_package(package: str, needed_by: str, install: str = "") -> None:
    """Raise UserError unless a package is installed.

    Args:
        package: Name of the module.
        needed_by: What needs it, the start of the error message.
        install: Name for pip if it differs from the module's.
    """
    if not is_installed(package):
        raise UserError(f"{needed_by} needs the package {package}; pip install {install or package}")


def is_installed(*packages: str) -> bool:
    """Check whether all packages are installed, without importing them."""
    try:
        return all(importlib.util.find_spec(package) is not None for package in packages)
    except (ImportError, ValueError):  # a parent package that is missing or broken
        return False


def first_line(error: BaseException) -> str:
    """Extract the first line of an error message, or its class name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_REASON_LENGTH]


def warn_half_ignored(half: bool, path: Path) -> None:
    """Warn that --half does not change the precision of an exported file."""
    if half:
        LOGGER.warning(f"--half: {path} computes in the precision it was exported with; --half is ignored")


@contextlib.contextmanager
def silence_terminal() -> Iterator[None]:
    """Redirect stdout and stderr to the null device at descriptor level, also for native code and subprocesses."""
    saved = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "wb") as null_device:  # noqa: PTH123 - descriptors, not paths
        try:
            for number in (1, 2):
                os.dup2(null_device.fileno(), number)
            yield
        finally:
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
