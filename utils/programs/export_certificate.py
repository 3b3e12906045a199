"""Certificates of exported files: differences from PyTorch on real images, and the accuracy that INT8 costs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from models.network import Network
from models.network_runner import ConvertedRunner, NetworkRunner
from utils.backends.export_metadata import ExportMetadata
from utils.backends.exported_runner import to_nchw_floats, to_nhwc_bytes
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.core.contracts import EvalSettings, Runner
from utils.core.data_config import DataConfig, load_data
from utils.core.device import full_fp32
from utils.core.errors import UserError
from utils.core.files import write_text
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest, SemanticRequest
from utils.core.log import LOGGER, progress
from utils.datasets.generators import ensure_generated
from utils.datasets.generators.shapes import ShapesSettings, image_scene
from utils.datasets.sources.frame_sources import open_source
from utils.engine.evaluate import evaluate
from utils.engine.parity import Limits, MatchSettings, compare
from utils.ops.crop import centre_crop
from utils.ops.letterbox import letterbox
from utils.programs.export_settings import ExportSettings
from utils.tasks.task_selection import select_task_by_heads

_UNLIMITED = float("inf")
LIMITS = {
    "fp32": Limits(),
    "fp16": Limits(
        pixels=4.0, faint_pixels=20.0, scores=0.02, relative=0.02, matched=0.5, classes=0.02
    ),  # an IoU of 0.99 is strict for small boxes
    "int8": Limits(  # judged by the loss of accuracy instead
        _UNLIMITED, _UNLIMITED, _UNLIMITED, _UNLIMITED, matched=0.0, classes=_UNLIMITED
    ),
}
IMAGES, CALIBRATION_IMAGES = 8, 100
MAX_SCORE_MARGIN = 0.1
GENERATED_SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]


@dataclass
class Certificate:
    """Result of comparing one file with PyTorch."""

    record: dict[str, Any]  # content of the JSON file
    passed: bool
    summary: str  # for the log
    violations: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        write_text(path, json.dumps(self.record, indent=1, default=str) + "\n")


class Certifier:
    """Compare exported files with the checkpoint they were exported from.

    Args:
        network: The reference network.
        settings: Options of export.py.
        trained_on: Data-set YAML of the training, used if --data is not given; may be empty.
        device: Where exported files run.
    """

    def __init__(self, network: Network, settings: ExportSettings, trained_on: str, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.reference = NetworkRunner(network, torch.device("cpu"))
        self.data_yaml = settings.data or trained_on
        self._reference_accuracy: dict[str, float] | None = None

    def certify(
        self, name: str, backend: type[ExportBackend], job: ExportJob, path: Path, final: bool = True
    ) -> Certificate:
        """Run a file in its runtime and compare its outputs with PyTorch.

        Args:
            name: Of the format.
            backend: Of the format.
            job: What the file was exported from.
            path: The file.
            final: Raise UserError for differences, unless --allow-mismatch; else leave them to the caller.

        Returns:
            The certificate.
        """
        metadata = job.metadata
        record: dict[str, Any] = {
            "file": path.name,
            "format": name,
            "precision": metadata.precision,
            **metadata.versions,
        }
        if reason := backend.unavailable_reason():
            LOGGER.warning(f"{backend.title}: not compared with PyTorch: {reason}")
            return Certificate({**record, "passed": None, "not_compared": reason}, True, f"not compared: {reason}")
        runner, _ = backend.open([path], torch.device("cpu") if backend.runs_on_cpu_only else self.device)
        limits = _scale_limits(LIMITS[metadata.precision], backend.tolerance_factor)
        settings = _match_settings(metadata, limits)
        with full_fp32():
            parity = compare(runner, self.reference, self._batches(job), settings, raw=not metadata.nms)
        violations, summary = parity.violations(limits), str(parity)
        record |= {"parity": parity.to_dict(), "limits": vars(limits)}
        if violations and metadata.precision == "fp32":
            rounding = compare(self.reference, self._fp64_reference, self._batches(job), settings)
            violations = parity.violations(limits, rounding)
            record["rounding_of_pytorch"] = rounding.to_dict()["largest_error"]
        if metadata.precision == "int8":
            loss = self._accuracy_loss(runner, job)
            record["accuracy"] = loss
            summary = f"{_format_loss(loss)}; {summary}"
            if loss["drop"] > self.settings.max_drop:
                violations.append(f"accuracy drops by {loss['drop']:.3f} (--max-drop {self.settings.max_drop})")
        record |= {"passed": not violations, "faults": violations}
        if violations and final:
            text = f"differs from PyTorch: {'; '.join(violations)}"
            if not self.settings.allow_mismatch:
                raise UserError(f"{text}; --allow-mismatch writes it all the same")
            LOGGER.warning(f"{backend.title}: {text}; written because of --allow-mismatch")
        return Certificate(record, not violations, summary, violations)

    @cached_property
    def _fp64_reference(self) -> NetworkRunner:
        """The reference in fp64, which shows the rounding errors of fp32."""
        return ConvertedRunner(copy.deepcopy(self.reference.network), torch.device("cpu"), torch.float64)

    # ------------------------------------------------------------------------------------------------------------------
    # Images and data

    @cached_property
    def images(self) -> list[np.ndarray]:
        """Images to compare on, (H, W, 3) BGR: of --source, else of the data set, else generated ones."""
        if self.settings.source:
            return [frame.image for group in islice(open_source(self.settings.source), IMAGES) for frame in group]
        try:
            found = list(islice(self._split("val"), IMAGES)) if self.data_yaml else []
        except UserError:
            if self.settings.data:
                raise
            found = []  # the data set of the training is optional
        return found or _generate_images(IMAGES)

    @cached_property
    def data(self) -> DataConfig:
        """Data set of --data, else of the training."""
        if not self.data_yaml:
            raise UserError("--int8: --data is missing; it provides images for calibration and labels for the accuracy")
        return load_data(self.data_yaml)

    def _split(self, split: str) -> Iterator[np.ndarray]:
        ensure_generated(self.data)
        data = self.data
        found = (data.split if data.splits else data.semantic_split)(split)
        paths = [folder for path in found for folder in _class_folders(path)] if data.format == "folders" else found
        for groups in zip_longest(*(open_source(str(path)) for path in paths)):  # alternate between classes
            yield from (frame.image for group in groups if group for frame in group)

    def calibration(self, metadata: ExportMetadata) -> Iterator[Tensor]:
        """Yield training images for INT8 calibration, in the form that the file takes."""
        group: list[Tensor] = []
        images = islice(self._split("train"), CALIBRATION_IMAGES)
        for image in progress(images, total=CALIBRATION_IMAGES, text="calibrating", unit="img"):
            group.append(_fit(image, metadata))
            if len(group) == metadata.batch:
                batch, group = torch.cat(group), []
                yield to_nhwc_bytes(batch, metadata.colors) if metadata.colors else to_nchw_floats(batch)

    def _batches(self, job: ExportJob) -> Iterator[Tensor]:
        """Yield (B, 3, H, W) uint8 images in sizes that the file supports."""
        metadata = job.metadata
        fitted = [_fit(image, metadata) for image in self.images]
        if not metadata.dynamic:
            yield from torch.cat(fitted).split(metadata.batch)
            return
        yield torch.cat(fitted[:3])
        for image in self.images[3:]:
            yield _fit(image, metadata, stride=metadata.stride)

    def _accuracy_loss(self, runner: Runner, job: ExportJob) -> dict[str, Any]:
        """Compare the accuracy of a runner with that of the reference."""
        size = max(job.metadata.image_hw)
        self._reference_accuracy = self._reference_accuracy or accuracy(self.reference, self.data, size)
        after = accuracy(runner, self.data, size)
        drop = max(self._reference_accuracy[name] - after[name] for name in after)
        return {"before": self._reference_accuracy, "after": after, "drop": drop, "data": str(self.data.source)}


def accuracy(runner: Runner, data: DataConfig, size: int, batch: int = 16, square: bool = False) -> dict[str, float]:
    """Evaluate a runner on the val split.

    Args:
        runner: The network.
        data: The data set.
        size: Longer side of the images in pixels.
        batch: Images per batch.
        square: Pad images to squares; otherwise only if the runner requires it, else to rectangles.

    Returns:
        Per head, if the data set has labels for it, the metric with the largest weight in the fitness: mAP50-95 of
        boxes or masks, top-1 accuracy, mean IoU; on panoptic data also PQ.
    """
    usual = select_task_by_heads(runner.specs)
    task = usual.for_data(usual, data)
    fitness = {**usual.fitness, **task.fitness}
    fixed = (size, size) if square else runner.fixed_hw
    rect = fixed is None
    request = LoadRequest(
        data=data, split="val", training=False, image_size=size, batch_size=batch, stride=max(runner.stride, 32),
        hyp=Hyp(), workers=0, rect=rect, pad=0.5 if rect else 0.0, semantic=SemanticRequest(fixed_hw=fixed),
    )  # fmt: skip
    report = evaluate(runner, task.load(request), EvalSettings(names=data.names), torch.device("cpu"))
    most: dict[str, float] = {}
    for name, weight in fitness.items():
        head = name.partition("/")[0]
        most[head] = max(weight, most.get(head, 0.0))
    wanted = [name for name, weight in fitness.items() if weight == most[name.partition("/")[0]]]
    return {name: report.metrics[name] for name in wanted if name in report.metrics}


def _class_folders(path: Path) -> list[Path]:
    """List the subfolders that contain files."""
    return sorted(one for one in path.iterdir() if one.is_dir() and any(part.is_file() for part in one.iterdir()))


def _format_loss(loss: dict[str, Any]) -> str:
    pairs = ", ".join(f"{name} {loss['before'][name]:.3f} -> {loss['after'][name]:.3f}" for name in loss["after"])
    return f"{pairs} on {Path(loss['data']).name}"


def _match_settings(metadata: ExportMetadata, limits: Limits) -> MatchSettings:
    nms = metadata.nms
    margin = min(limits.scores * 10, MAX_SCORE_MARGIN)
    if nms is None:
        return MatchSettings(score_margin=margin)
    return MatchSettings(nms.confidence, nms.iou, nms.total, nms.agnostic, margin)


def _scale_limits(limits: Limits, factor: float) -> Limits:
    pixels, faint = limits.pixels * factor, limits.faint_pixels * factor
    scores, relative, classes = limits.scores * factor, limits.relative * factor, limits.classes * factor
    return Limits(pixels, faint, scores, relative, limits.matched, classes)


def _fit(image: np.ndarray, metadata: ExportMetadata, stride: int | None = None) -> Tensor:
    """Fit an image to the network input, as the prediction programs do.

    Args:
        image: (H, W, 3) BGR.
        metadata: Size of the input, and whether heads take a centre crop.
        stride: Pad only to a multiple of it instead of to the whole input.

    Returns:
        (1, 3, H, W) uint8 RGB.
    """
    if all(spec.fit == "centre" for spec in metadata.specs.values()):
        fitted, _ = centre_crop(image, metadata.image_hw)
    else:
        fitted, _ = letterbox(image, metadata.image_hw, auto=stride is not None, stride=stride or 32)
    return torch.from_numpy(np.ascontiguousarray(fitted[:, :, ::-1].transpose(2, 0, 1)))[None]


def _generate_images(count: int) -> list[np.ndarray]:
    """Generate images of shapes, for machines without data."""
    settings = ShapesSettings(train=1, val=count, size=320)
    scenes = [image_scene(settings, GENERATED_SHAPES, "val", index) for index in range(count)]
    return [cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR) for scene in scenes]
