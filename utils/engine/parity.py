"""Numerical comparison of two runners: errors of every output tensor, and the fraction of matching detections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from utils.core.contracts import Decoded, EvalSettings, Geometry, HeadSpec, ImageInfo, Outputs, Results, Runner
from utils.ops.iou import pairwise_iou
from utils.postprocess import POSTPROCESS

DETECT_CONFIDENCE, VAL_CONFIDENCE = 0.25, 0.001  # default thresholds of detect.py and val.py
REFERENCE_SIZE_PX = 100  # errors of larger boxes are scaled down to it: fp32 has seven digits whatever the magnitude
MATCH_IOU, MATCH_PX = 0.99, 0.02
ROUNDING_FACTOR = 3.0  # two fp32 results may differ by the sum of their errors, and those of one are known
ALLOWED_UNMATCHED = 2  # NMS of two overlapping boxes with equal scores may keep either, depending on rounding


@dataclass(frozen=True)
class Limits:
    """Maximum differences between a runner and its reference. The names are keys of the certificate file."""

    pixels: float = 1e-3  # box coordinates above the threshold of detect.py, for boxes up to 100 px
    faint_pixels: float = 1e-2  # box coordinates above the threshold of val.py; fp32 differs from fp64 by 3e-3 there
    scores: float = 1e-4  # objectness, scores of boxes per class, and probabilities of whole images
    relative: float = 1e-3  # of other tensors, relative to the largest value
    matched: float = 0.99  # minimum fraction of matching detections
    classes: float = 1e-3  # fraction of semantic map cells with another argmax

    def of(self, measure: str) -> float:
        """Look up the limit of a measure called `head/key/kind`."""
        kind = measure.rpartition("/")[2]
        known = {name: getattr(self, name) for name in ("pixels", "faint_pixels", "scores", "classes")}
        return known.get(kind, self.relative)


@dataclass(frozen=True)
class MatchSettings:
    """Settings of the post-processing that turns outputs into the detections to match."""

    confidence: float = 0.25
    iou: float = 0.45
    max_detections: int = 300
    agnostic: bool = False
    score_margin: float = 0.0  # unmatched detections this close to the confidence threshold are ignored


@dataclass
class Parity:
    """Result of a comparison: largest errors by `head/key/kind`, and counts of detections."""

    errors: dict[str, float] = field(default_factory=dict)
    images: int = 0
    detections: int = 0  # of both runners together
    matched: int = 0

    @property
    def match_fraction(self) -> float | None:
        """Fraction of detections with a counterpart; None without detections."""
        return self.matched / self.detections if self.detections else None

    def violations(self, limits: Limits, rounding: Parity | None = None) -> list[str]:
        """Describe every error that exceeds its limit; an empty list means that the runners agree.

        Args:
            limits: Largest errors allowed.
            rounding: Comparison of the reference with itself in fp64. Errors up to three times its own are allowed: a
                network that is as sensitive to rounding as that gives other values in every runtime.
        """
        found = []
        for name, error in self.errors.items():
            limit = limits.of(name)
            if rounding is not None and rounding.errors.get(name, 0.0) < math.inf:
                limit = max(limit, ROUNDING_FACTOR * rounding.errors.get(name, 0.0))
            if not error <= limit:  # NaN is a violation too
                found.append(f"{name} differs by {error:.2g} (limit {limit:.2g})")
        unmatched = self.detections - self.matched
        fraction = self.match_fraction
        if fraction is not None and unmatched > max(ALLOWED_UNMATCHED, (1 - limits.matched) * self.detections):
            found.append(f"{100 * fraction:.1f} % of detections match (limit {100 * limits.matched:.1f} %)")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for the certificate file."""
        return {
            "images": self.images,
            "largest_error": self.errors,
            "detections": self.detections,
            "matched_at_iou_0.99": self.match_fraction,
        }

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {error:.2g}" for name, error in self.errors.items())
        parts = [f"largest errors {errors}"] if errors else []
        if self.match_fraction is not None:
            parts.append(f"{100 * self.match_fraction:.1f} % of {self.detections} detections match")
        return f"{self.images} images: {', '.join(parts)}" if parts else f"{self.images} images"


def compare(
    tested: Runner, reference: Runner, images: Iterable[Tensor], settings: MatchSettings, raw: bool = True
) -> Parity:
    """Compare the outputs of two runners.

    Args:
        tested: The runner under test.
        reference: The runner it must agree with.
        images: (B, 3, H, W) uint8 batches.
        settings: Post-processing for the comparison of detections.
        raw: Compare predictions before NMS; False for files that contain NMS.

    Returns:
        Largest errors and numbers of matching detections.
    """
    parity = Parity()
    for batch in images:
        tested_outputs, reference_outputs = tested.run(batch), reference.run(batch)
        for head, spec in reference.specs.items():
            for key, tensor in reference_outputs.decoded[head].items():
                other = tested_outputs.decoded[head][key].to(tensor)
                if key != "end_to_end" and (raw or key != "predictions"):  # rows of equal scores may change places
                    for kind, error in _errors(key, other, tensor, spec).items():
                        measure = f"{head}/{key}/{kind}"
                        before = parity.errors.get(measure, 0.0)
                        parity.errors[measure] = before if error <= before else error  # NaN stays
        size_hw = (int(batch.shape[2]), int(batch.shape[3]))
        pairs = zip(
            _detections(tested.specs, tested_outputs, len(batch), size_hw, settings),
            _detections(reference.specs, reference_outputs, len(batch), size_hw, settings),
            strict=True,
        )
        for first, second in pairs:
            matched, count = match(first, second, settings)
            parity.matched, parity.detections = parity.matched + matched, parity.detections + count
        parity.images += len(batch)
    return parity


def _errors(key: str, tested: Tensor, reference: Tensor, spec: HeadSpec) -> dict[str, float]:
    """Measure the errors of one decoded tensor, by kind: the fields of `Limits`."""
    if tested.shape != reference.shape:
        return {"shape": float("inf")}
    if key != "predictions":
        error = float((tested - reference).abs().max())
        if key == "probabilities":
            return {"scores": error}
        found = {"relative": error / max(float(reference.abs().max()), 1e-12)}
        if key == "logits" and reference.ndim == 4:
            found["classes"] = float((tested.argmax(dim=1) != reference.argmax(dim=1)).float().mean())
        return found
    end = 5 + spec.num_classes
    scores, expected_scores = (part[..., 4:5] * part[..., 5:end] for part in (tested, reference))
    confidence = torch.maximum(scores, expected_scores).amax(dim=-1)
    rows = (confidence >= VAL_CONFIDENCE) | confidence.isnan()
    differences = (tested[rows] - reference[rows]).abs()
    if not len(differences):
        return {"pixels": 0.0, "scores": 0.0}
    differences[:, :4] /= (reference[rows][:, 2:4].amax(dim=1, keepdim=True) / REFERENCE_SIZE_PX).clamp_min(1)
    confident = differences[~(confidence[rows] < DETECT_CONFIDENCE)]
    found = {
        "pixels": float(confident[:, :4].max()) if len(confident) else 0.0,
        "faint_pixels": float(differences[:, :4].max()),
        # not the class probabilities: where an anchor-free head divides by a small one, its rounding errors grow
        "scores": max(float(differences[:, 4].max()), float((scores - expected_scores)[rows].abs().max())),
    }
    if spec.num_masks:
        largest = max(float(reference[rows][:, end:].abs().max()), 1e-12)
        found["relative"] = float(differences[:, end:].max()) / largest
    return found


def _detections(
    specs: Mapping[str, HeadSpec], outputs: Outputs, count: int, size_hw: tuple[int, int], settings: MatchSettings
) -> list[list[Results]]:
    """Post-process the outputs of all box heads; the result has one list per image with one entry per head."""
    found: list[list[Results]] = [[] for _ in range(count)]
    eval_settings = EvalSettings(
        confidence=settings.confidence,
        iou=settings.iou,
        max_detections=settings.max_detections,
        multi_label=False,
        agnostic=settings.agnostic,
    )
    for head, spec in specs.items():
        if not {"predictions", "end_to_end"} & outputs.decoded[head].keys():
            continue
        decoded: Decoded = {key: tensor.cpu() for key, tensor in outputs.decoded[head].items()}
        results = [Results(ImageInfo(i, "", Geometry(size_hw, size_hw))) for i in range(count)]
        POSTPROCESS.get(head)(spec, eval_settings)(decoded, results)
        for of_image, result in zip(found, results, strict=True):
            of_image.append(result)
    return found


def match(first: list[Results], second: list[Results], settings: MatchSettings) -> tuple[int, int]:
    """Match the detections of two runners on one image.

    Detections match if their classes are equal and their IoU is at least 0.99 or no coordinate differs by more than
    0.02 px. Unmatched ones whose score is within `score_margin` of the threshold are ignored, since rounding decides
    whether they appear.

    Args:
        first: Results per head of one runner.
        second: Results per head of the other runner.
        settings: Threshold and margin.

    Returns:
        Number of matched detections and number of all detections, of both runners together.
    """
    matched = count = 0
    for one, other in zip(first, second, strict=True):
        assert one.boxes is not None and other.boxes is not None
        assert one.classes is not None and other.classes is not None
        distance_px = (one.boxes[:, None] - other.boxes[None]).abs().amax(dim=-1)  # empty clipped boxes have no IoU
        close = (pairwise_iou(one.boxes, other.boxes) >= MATCH_IOU) | (distance_px <= MATCH_PX)
        same = close & (one.classes[:, None] == other.classes[None])
        for results, has_match in ((one, same.any(dim=1)), (other, same.any(dim=0))):
            assert results.scores is not None
            borderline = ~has_match & (results.scores < settings.confidence + settings.score_margin)
            matched, count = matched + int(has_match.sum()), count + int((~borderline).sum())
    return matched, count
