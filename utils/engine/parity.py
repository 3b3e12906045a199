"""Does a runner compute what another one does? Errors of every tensor, and the detections they have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from utils.core.contracts import Decoded, EvalSettings, Geometry, HeadSpec, ImageInfo, Outputs, Results, Runner
from utils.ops.iou import pairwise_iou
from utils.postprocess import POSTPROCESS

SHOWN_FROM, FAINT_FROM = 0.25, 0.001  # confidence that detect.py shows, and that val.py counts
USUAL_PX = 100  # the error of a larger box counts in proportion: fp32 has seven digits, wherever the point is
SAME_IOU, SAME_PX = 0.99, 0.02
ONE_FLIP = 2  # two boxes of equal score that suppress each other: which one stays is a matter of rounding


@dataclass(frozen=True)
class Limits:
    """How far outputs may differ."""

    pixels: float = 1e-3  # of boxes up to 100 px that are sure enough to be shown
    faint_pixels: float = 1e-2  # of those that only scoring sees; PyTorch's own fp32 is 3e-3 away from fp64 here
    scores: float = 1e-4  # of both, and of whole-image probabilities
    relative: float = 1e-3  # of other tensors, as a share of the largest value
    matched: float = 0.99  # share of detections in common
    classes: float = 1e-3  # share of a map's cells whose best class is another

    def of(self, measure: str) -> float:
        """Return the limit for a measure called `head/key/kind`."""
        kind = measure.rpartition("/")[2]
        known = {name: getattr(self, name) for name in ("pixels", "faint_pixels", "scores", "classes")}
        return known.get(kind, self.relative)


@dataclass(frozen=True)
class Looking:
    """How detections are made for the comparison."""

    confidence: float = 0.25
    iou: float = 0.45
    max_detections: int = 300
    agnostic: bool = False
    score_slack: float = 0.0  # scores of matching detections may differ by so much


@dataclass
class Parity:
    """What a comparison found: largest errors by `head/key/kind`, and detections."""

    errors: dict[str, float] = field(default_factory=dict)
    images: int = 0
    detections: int = 0  # of both sides together
    matched: int = 0

    @property
    def share(self) -> float | None:
        """Return the share of detections that have a partner, None if there were none."""
        return self.matched / self.detections if self.detections else None

    def faults(self, limits: Limits) -> list[str]:
        """Return in words what is beyond `limits`, nothing if all is well."""
        found = [
            f"{name} differs by {error:.2g} (limit {limits.of(name):.2g})"
            for name, error in self.errors.items()
            if not error <= limits.of(name)  # NaN is a fault too
        ]
        odd = self.detections - self.matched
        if self.share is not None and odd > max(ONE_FLIP, (1 - limits.matched) * self.detections):
            found.append(f"{100 * self.share:.1f} % of detections match (limit {100 * limits.matched:.1f} %)")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for files."""
        return {
            "images": self.images,
            "largest_error": self.errors,
            "detections": self.detections,
            "matched_at_iou_0.99": self.share,
        }

    def __str__(self) -> str:
        parts = [f"{name} {error:.2g}" for name, error in self.errors.items()]
        if self.share is not None:
            parts.append(f"{100 * self.share:.1f} % of {self.detections} detections match")
        return f"{self.images} images: largest errors {', '.join(parts)}" if parts else f"{self.images} images"


def compare(tested: Runner, reference: Runner, images: Iterable[Tensor], looking: Looking, raw: bool = True) -> Parity:
    """Compare on (B, 3, H, W) uint8 batches; without `raw` (a file that suppresses itself) detections only."""
    parity = Parity()
    for batch in images:
        theirs, ours = tested.run(batch), reference.run(batch)
        for head, spec in reference.specs.items():
            for key, tensor in ours.decoded[head].items():
                other = theirs.decoded[head][key].to(tensor.device)
                if raw or key != "predictions":
                    _note(parity.errors, f"{head}/{key}", _errors(key, other, tensor, spec))
        size_hw = (int(batch.shape[2]), int(batch.shape[3]))
        pairs = zip(
            _detections(tested.specs, theirs, len(batch), size_hw, looking),
            _detections(reference.specs, ours, len(batch), size_hw, looking),
            strict=True,
        )
        for one, other_one in pairs:
            matched, count = match(one, other_one, looking)
            parity.matched, parity.detections = parity.matched + matched, parity.detections + count
        parity.images += len(batch)
    return parity


def _note(errors: dict[str, float], name: str, found: Mapping[str, float]) -> None:
    for kind, error in found.items():
        key = f"{name}/{kind}"
        before = errors.get(key, 0.0)
        errors[key] = before if error <= before else error  # NaN stays


def _errors(key: str, tested: Tensor, reference: Tensor, spec: HeadSpec) -> dict[str, float]:
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
    scores = slice(4, 5 + spec.num_classes)
    sure = torch.maximum(*((part[..., 4:5] * part[..., 5 : scores.stop]).amax(dim=-1) for part in (tested, reference)))
    rows = (sure >= FAINT_FROM) | sure.isnan()
    gaps = (tested[rows] - reference[rows]).abs()
    if not len(gaps):
        return {"pixels": 0.0, "scores": 0.0}
    gaps[:, :4] /= (reference[rows][:, 2:4].amax(dim=1, keepdim=True) / USUAL_PX).clamp_min(1)
    shown = gaps[~(sure[rows] < SHOWN_FROM)]
    found = {
        "pixels": float(shown[:, :4].max()) if len(shown) else 0.0,
        "faint_pixels": float(gaps[:, :4].max()),
        "scores": float(gaps[:, scores].max()),
    }
    if spec.num_masks:
        largest = max(float(reference[rows][:, scores.stop :].abs().max()), 1e-12)
        found["relative"] = float(gaps[:, scores.stop :].max()) / largest
    return found


def _detections(
    specs: Mapping[str, HeadSpec], outputs: Outputs, count: int, size_hw: tuple[int, int], looking: Looking
) -> list[list[Results]]:
    """Return per image the results of every head with boxes."""
    found: list[list[Results]] = [[] for _ in range(count)]
    settings = EvalSettings(
        confidence=looking.confidence,
        iou=looking.iou,
        max_detections=looking.max_detections,
        multi_label=False,
        agnostic=looking.agnostic,
    )
    for head, spec in specs.items():
        if "predictions" not in outputs.decoded[head]:
            continue
        decoded: Decoded = {key: tensor.cpu() for key, tensor in outputs.decoded[head].items()}
        results = [Results(ImageInfo(i, "", Geometry(size_hw, size_hw))) for i in range(count)]
        POSTPROCESS.get(head)(spec, settings)(decoded, results)
        for mine, result in zip(found, results, strict=True):
            mine.append(result)
    return found


def match(first: list[Results], second: list[Results], looking: Looking) -> tuple[int, int]:
    """Return how many detections of both have a partner: same class, IoU of 0.99; and how many there are.

    One without a partner whose score is within `score_slack` of the threshold is not counted: rounding decides there.
    """
    matched = count = 0
    for one, other in zip(first, second, strict=True):
        assert one.boxes is not None and other.boxes is not None
        assert one.classes is not None and other.classes is not None
        apart_px = (one.boxes[:, None] - other.boxes[None]).abs().amax(dim=-1)  # boxes clipped to nothing have no IoU
        alike = (pairwise_iou(one.boxes, other.boxes) >= SAME_IOU) | (apart_px <= SAME_PX)
        same = alike & (one.classes[:, None] == other.classes[None])
        for results, has in ((one, same.any(dim=1)), (other, same.any(dim=0))):
            assert results.scores is not None
            borderline = ~has & (results.scores < looking.confidence + looking.score_slack)
            matched, count = matched + int(has.sum()), count + int((~borderline).sum())
    return matched, count
