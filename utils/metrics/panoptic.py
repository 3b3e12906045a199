"""Evaluator of panoptic maps: panoptic quality (PQ), segmentation quality (SQ) and recognition quality (RQ)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.core.contracts import Batch, EvalSettings, HeadSpec, Results, Scores
from utils.core.distributed import gather, is_main
from utils.core.files import atomic_path, write_text
from utils.core.segment_types import PanopticLabels, PanopticMap
from utils.metrics import EVALUATORS
from utils.metrics.panoptic_quality import PanopticQuality, Quality, TrueSegment, compare
from utils.ops.panoptic import encode_png, measure_segment

COLUMNS = ("Classes", "PQ", "SQ", "RQ")


@EVALUATORS.register("panoptic")
class PanopticEvaluator:
    """Evaluator of panoptic maps at the original size of the images.

    Only matches and errors of each image are kept, as integers, so that metrics do not depend on the order of images
    or ranks. Metrics: `pq`, `sq`, `rq`, each also with `_things` and `_stuff`, and `pq/<name>` of each class that
    occurs. An average over no class is NaN.

    Args:
        spec: Description of the panoptic maps.
        settings: With `save_json`, the maps are written beside that file in COCO's format.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings
        self.quality = PanopticQuality([name in spec.things for name in spec.names])
        self.writer = _MapWriter(settings.save_json) if settings.save_json is not None else None

    def update(self, results: list[Results], batch: Batch) -> None:
        """Compare the maps of a batch with its labels.

        Args:
            results: Post-processed results with panoptic maps, one per image.
            batch: The batch they were computed from; without panoptic labels it is ignored.

        Raises:
            ValueError: If a result has no panoptic map.
        """
        for labels, result in zip(batch.panoptic or (), results, strict=batch.panoptic is not None):
            if result.panoptic is None:
                raise ValueError(f"{result.info.path}: no panoptic map to evaluate; run post-processing first")
            marked = enumerate(zip(labels.classes, labels.crowd, strict=True), 1)
            segments = [TrueSegment(number, label, crowd) for number, (label, crowd) in marked]
            self.quality.add(result.info.index, compare(labels.numbers, segments, result.panoptic))
            if self.writer is not None:
                self.writer.add(labels, result.panoptic)

    def compute(self) -> Scores:
        """Compute the metrics over the images of all ranks; every rank returns the same."""
        groups, by_category = self.quality.compute()
        metrics: dict[str, float] = {}
        for group, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
            found = groups[group]
            metrics |= {f"pq{suffix}": found.pq, f"sq{suffix}": found.sq, f"rq{suffix}": found.rq}
        metrics |= {f"pq/{self.spec.names[number]}": quality.pq for number, quality in by_category.items()}
        rows = [(group, _row(groups[group])) for group in ("all", "things", "stuff")]
        rows += [(self.spec.names[number], _row(quality)) for number, quality in by_category.items()]
        note = ""
        if self.writer is not None:
            note = self.writer.finish()
        return Scores(
            metrics=metrics,
            columns=COLUMNS,
            rows=rows,
            per_class={number: quality.pq for number, quality in by_category.items()},
            note=note or f"PQ of things {groups['things'].pq:.4f}, of stuff {groups['stuff'].pq:.4f}",
        )


def _row(quality: Quality) -> dict[str, float]:
    values = (quality.categories, quality.pq, quality.sq, quality.rq)
    return dict(zip(COLUMNS, values, strict=True))


class _MapWriter:
    """Writes panoptic maps as PNG files at once and their segments in one JSON at the end.

    Args:
        predictions: Path of the JSON file of other predictions; `best_predictions.json` gives `best_panoptic.json` and
            the folder `best_panoptic`.
    """

    def __init__(self, predictions: Path) -> None:
        stem = predictions.stem.removesuffix("_predictions")
        self.json = predictions.with_name(f"{stem}_panoptic.json")
        self.folder = self.json.with_suffix("")
        self._annotations: list[tuple[int | str, str, list[dict[str, Any]]]] = []  # image id, file, segments

    def add(self, labels: PanopticLabels, panoptic: PanopticMap) -> None:
        """Write the map of one image."""
        path = self.folder / labels.map_name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(encode_png(panoptic.ids))
        segments = []
        for segment in panoptic.segments:
            _, box = measure_segment(panoptic.ids, segment.id)
            category = labels.category_ids[segment.category]
            segments.append({"id": segment.id, "category_id": category, "area": segment.area, "bbox": box})
        self._annotations.append((labels.image_id, labels.map_name, segments))

    def finish(self) -> str:
        """Write the JSON; all ranks must call this.

        Returns:
            A note about the files.
        """
        every = {image: (file, segments) for part in gather(self._annotations) for image, file, segments in part}
        annotations = [
            {"image_id": image, "file_name": every[image][0], "segments_info": every[image][1]}
            for image in sorted(every, key=lambda image: every[image][0])
        ]
        if is_main():
            write_text(self.json, json.dumps({"annotations": annotations}) + "\n")
        return f"{len(annotations)} panoptic maps: {self.json}, PNG files in {self.folder}"
