"""The certificate of an exported file: what differs from PyTorch on real images, and with INT8 what it costs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
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
from models.network_runner import NetworkRunner
from utils.backends.export_metadata import Description
from utils.backends.exported_runner import as_bytes, as_floats
from utils.backends.flat_outputs import ExportJob
from utils.core.contracts import EvalSettings, Runner
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.files import write_text
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest, SemanticRequest
from utils.core.log import LOGGER, progress
from utils.datasets.generators import ensure
from utils.datasets.generators.shapes import Settings, image_scene
from utils.datasets.sources.frame_sources import open_source
from utils.engine.evaluate import evaluate
from utils.engine.parity import Limits, Looking, compare
from utils.ops.crop import centre_crop
from utils.ops.letterbox import letterbox
from utils.tasks.task_selection import task_of_heads

_ANY = float("inf")
LIMITS = {
    "fp32": Limits(),
    "fp16": Limits(
        pixels=4.0, faint_pixels=20.0, scores=0.02, relative=0.02, matched=0.5, classes=0.02
    ),  # IoU of 0.99 is strict for small boxes
    "int8": Limits(_ANY, _ANY, _ANY, _ANY, matched=0.0, classes=_ANY),  # judged by the accuracy it costs
}
IMAGES, CALIBRATION_IMAGES = 8, 100
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]


@dataclass
class Certificate:
    """What was found out about one file."""

    about: dict[str, Any]
    passed: bool
    words: str  # the same for people
    faults: list[str] = field(default_factory=list)


class Certifier:
    """Compares files made from one checkpoint with it."""

    def __init__(
        self, network: Network, meta: Mapping[str, Any], options: argparse.Namespace, device: torch.device
    ) -> None:
        self.options, self.device = options, device
        self.reference = NetworkRunner(network, torch.device("cpu"))
        self.data_text = str(options.data or meta.get("data") or "")
        self._before: dict[str, float] | None = None

    def certify(self, name: str, backend: Any, job: ExportJob, path: Path, final: bool = True) -> Certificate:
        """Load the file in its runtime and compare; if `final`, a failure that is not allowed is a UserError."""
        about = job.description
        record: dict[str, Any] = {"file": path.name, "format": name, "precision": about.precision, **about.made_with}
        if reason := _cannot_run(backend):
            LOGGER.warning(f"{backend.title}: not compared with PyTorch: {reason}")
            return Certificate({**record, "passed": None, "not_compared": reason}, True, f"not compared: {reason}")
        runner, _ = backend.open([path], self.device)
        limits = _scaled(LIMITS[about.precision], getattr(backend, "slack", 1.0))
        parity = compare(runner, self.reference, self._batches(job), _looking(job, limits), raw=not about.suppression)
        faults, words = parity.faults(limits), str(parity)
        record |= {"parity": parity.to_dict(), "limits": vars(limits)}
        if about.precision == "int8":
            loss = self._loss(runner, job)
            record["accuracy"] = loss
            words = f"{_words(loss)}; {words}"
            if loss["drop"] > self.options.max_drop:
                faults.append(f"loses {loss['drop']:.3f} (--max-drop {self.options.max_drop})")
        record |= {"passed": not faults, "faults": faults}
        if faults and final and not self.options.allow_mismatch:
            raise UserError(f"differs from PyTorch: {'; '.join(faults)}; --allow-mismatch keeps it all the same")
        if faults and final:
            LOGGER.warning(f"{backend.title}: differs from PyTorch: {'; '.join(faults)}; kept as asked")
        return Certificate(record, not faults, words, faults)

    def save(self, certificate: Certificate, path: Path) -> None:
        """Write the certificate as JSON."""
        write_text(path, json.dumps(certificate.about, indent=1, default=str) + "\n")

    # ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def pictures(self) -> list[np.ndarray]:
        """Return (H, W, 3) BGR images to compare on: of --source, else of the data, else generated."""
        if self.options.source:
            return [frame.image for group in islice(open_source(self.options.source), IMAGES) for frame in group]
        try:
            found = list(islice(self._split("val"), IMAGES)) if self.data_text else []
        except UserError:
            if self.options.data:
                raise
            found = []  # where the checkpoint was trained need not be here
        return found or _generated(IMAGES)

    @cached_property
    def data(self) -> DataConfig:
        """Return the data set that --data or the checkpoint names."""
        if not self.data_text:
            raise UserError("--int8 needs --data: images to calibrate with, and labels to see what it costs")
        return load_data(self.data_text)

    def _split(self, split: str) -> Iterator[np.ndarray]:
        ensure(self.data)
        data = self.data
        found = (data.split if data.splits else data.semantic_split)(split)
        places = [one for place in found for one in _folders(place)] if data.format == "folders" else found
        for groups in zip_longest(*(open_source(str(place)) for place in places)):  # a bit of every class
            yield from (frame.image for group in groups if group for frame in group)

    def calibration(self, about: Description) -> Iterator[Tensor]:
        """Return what an INT8 file is calibrated with: training images in the form the file takes."""
        group: list[Tensor] = []
        images = islice(self._split("train"), CALIBRATION_IMAGES)
        for picture in progress(images, total=CALIBRATION_IMAGES, text="calibrating", unit="img"):
            group.append(_fitted(picture, about))
            if len(group) == about.batch:
                joined, group = torch.cat(group), []
                yield as_bytes(joined, about.colors) if about.colors else as_floats(joined)

    def _batches(self, job: ExportJob) -> Iterator[Tensor]:
        """Return (B, 3, H, W) uint8 images of the sizes the file takes."""
        about = job.description
        whole = [_fitted(picture, about) for picture in self.pictures]
        if not about.dynamic:
            yield from torch.cat(whole).split(about.batch)
            return
        yield torch.cat(whole[:3])
        for picture in self.pictures[3:]:
            yield _fitted(picture, about, step=about.stride)

    def _loss(self, runner: Runner, job: ExportJob) -> dict[str, Any]:
        """Return the headline scores before and after, and the largest drop."""
        self._before = self._before or self.accuracy(self.reference, job.description.image_hw)
        after = self.accuracy(runner, job.description.image_hw)
        drop = max(self._before[name] - after[name] for name in after)
        return {"before": self._before, "after": after, "drop": drop, "data": str(self.data.source)}

    def accuracy(self, runner: Runner, image_hw: tuple[int, int]) -> dict[str, float]:
        """Return the task's headline numbers of `runner` on the validation images of the data."""
        return accuracy(runner, self.data, max(image_hw))


def accuracy(runner: Runner, data: DataConfig, size: int, batch: int = 16, square: bool = False) -> dict[str, float]:
    """Return the numbers that rank networks (mAP50-95 of boxes, of masks, top-1, mean IoU) on the val split.

    Of each head the one that counts most, if the data has labels for it. Images are squares where the runner takes
    nothing else, or if `square`; else rectangles with little border.
    """
    task = task_of_heads(runner.specs)
    fixed = (size, size) if square else runner.fixed_hw
    rect = fixed is None
    request = LoadRequest(
        data=data, split="val", training=False, image_size=size, batch_size=batch, stride=max(runner.stride, 32),
        hyp=Hyp(), workers=0, rect=rect, pad=0.5 if rect else 0.0, semantic=SemanticRequest(fixed_hw=fixed),
    )  # fmt: skip
    report = evaluate(runner, task.load(request), EvalSettings(names=data.names), torch.device("cpu"))
    most: dict[str, float] = {}
    for name, weight in task.fitness.items():
        head = name.partition("/")[0]
        most[head] = max(weight, most.get(head, 0.0))
    wanted = [name for name, weight in task.fitness.items() if weight == most[name.partition("/")[0]]]
    return {name: report.metrics[name] for name in wanted if name in report.metrics}


def _folders(place: Path) -> list[Path]:
    """Return the folders of a place that hold files."""
    return sorted(one for one in place.iterdir() if one.is_dir() and any(part.is_file() for part in one.iterdir()))


def _words(loss: dict[str, Any]) -> str:
    pairs = ", ".join(f"{name} {loss['before'][name]:.3f} -> {loss['after'][name]:.3f}" for name in loss["after"])
    return f"{pairs} on {Path(loss['data']).name}"


def _cannot_run(backend: Any) -> str:
    reason = getattr(backend, "cannot_run", None)
    return reason() if reason else ""


def _looking(job: ExportJob, limits: Limits) -> Looking:
    how = job.description.suppression
    slack = min(limits.scores * 10, 0.1)
    if how is None:
        return Looking(score_slack=slack)
    return Looking(how.confidence, how.iou, how.total, how.agnostic, slack)


def _scaled(limits: Limits, slack: float) -> Limits:
    pixels, faint = limits.pixels * slack, limits.faint_pixels * slack
    return Limits(pixels, faint, limits.scores * slack, limits.relative * slack, limits.matched, limits.classes * slack)


def _fitted(picture: np.ndarray, about: Description, step: int | None = None) -> Tensor:
    """Return (1, 3, H, W) uint8 RGB, as predictions fit it: with a border, with `step` as little of it as possible.

    Networks that look at the middle of pictures get that.
    """
    if all(spec.fit == "centre" for spec in about.specs.values()):
        boxed, _ = centre_crop(picture, about.image_hw)
    else:
        boxed, _ = letterbox(picture, about.image_hw, auto=step is not None, stride=step or 32)
    return torch.from_numpy(np.ascontiguousarray(boxed[:, :, ::-1].transpose(2, 0, 1)))[None]


def _generated(count: int) -> list[np.ndarray]:
    """Return pictures of shapes, for machines without images."""
    settings = Settings(train=1, val=count, size=320)
    scenes = [image_scene(settings, SHAPES, "val", index) for index in range(count)]
    return [cv2.cvtColor(scene.picture, cv2.COLOR_RGB2BGR) for scene in scenes]
