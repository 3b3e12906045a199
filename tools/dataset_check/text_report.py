"""Report of a data-set check: console summary and JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tools.dataset_check.anchor_fit import FittedAnchors
from tools.dataset_check.dataset_statistics import COUNT_EDGES, SIZE_EDGES, compute_statistics
from tools.dataset_check.findings import KINDS, SEVERITIES, Finding, counted
from tools.dataset_check.records import DatasetRecords
from utils.core.log import LOGGER

VERSION = 1
_MAX_SHOWN = 3  # findings per kind on the console


@dataclass
class CheckReport:
    """Findings and statistics of one check. Findings are sorted by severity, kind and text."""

    records: DatasetRecords
    findings: list[Finding]
    anchors: FittedAnchors | None = None
    statistics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = {kind: position for position, kind in enumerate(KINDS)}
        self.findings = sorted(
            _merge_repeated(self.findings), key=lambda one: (SEVERITIES.index(one.severity), order[one.kind], one.text)
        )
        self.statistics = self.statistics or compute_statistics(self.records)

    @property
    def counts(self) -> Counter[str]:
        """Number of findings of each severity."""
        return Counter({severity: 0 for severity in SEVERITIES} | Counter(one.severity for one in self.findings))

    def by_kind(self) -> dict[str, list[Finding]]:
        """Group the findings by kind."""
        found: dict[str, list[Finding]] = {}
        for one in self.findings:
            found.setdefault(one.kind, []).append(one)
        return found

    def to_json(self) -> str:
        """Serialize everything but the images."""
        data = self.records.data
        values = {
            "version": VERSION,
            "data": str(data.source),
            "image_size": self.records.imgsz,
            "names": list(data.names),
            "pixel_names": list(data.semantic.names) if data.semantic else [],
            "summary": {f"{severity}s": count for severity, count in self.counts.items()},
            "splits": self.statistics,
            "bins": {"sizes_px": list(SIZE_EDGES), "objects_per_image": list(COUNT_EDGES)},
            "anchors": None if self.anchors is None else self.anchors.to_dict(),
            "findings": [
                {
                    "severity": one.severity,
                    "kind": one.kind,
                    "split": one.split,
                    "image": one.image,
                    "others": list(one.others),
                    "boxes": [[round(value, 6) for value in box] for box in one.boxes],
                    "text": one.text,
                }
                for one in self.findings
            ],
        }
        return json.dumps(values, indent=1) + "\n"

    def log_summary(self) -> None:
        """Log the numbers and the first findings of each kind."""
        for split, about in self.statistics.items():
            parts = [counted(about["images"], "image")]
            parts += [f"{counted(about['objects'], 'object')} ({about['format']})"] if "objects" in about else []
            parts += [counted(about["maps"], "semantic map")] if "maps" in about else []
            LOGGER.info(f"{split}: {', '.join(parts)}")
        for kind, found in self.by_kind().items():
            about = KINDS[kind]
            LOGGER.info(f"{about.severity}: {about.title} ({kind}): {len(found)}")
            for one in found[:_MAX_SHOWN]:
                LOGGER.info(f"    {one.text}")
            if len(found) > _MAX_SHOWN:
                LOGGER.info(f"    … {len(found) - _MAX_SHOWN} more")
        if self.anchors is not None:
            self._log_anchors(self.anchors)
        counts = self.counts
        LOGGER.info(", ".join(counted(counts[severity], severity) for severity in SEVERITIES))

    def _log_anchors(self, anchors: FittedAnchors) -> None:
        for name, fit in ((anchors.reference, anchors.reference_fit), ("fitted", anchors.fit)):
            if fit is not None:
                LOGGER.info(
                    f"anchors ({name}): best possible recall {fit.recall:.4f}, "
                    f"{fit.matches_per_label:.2f} matching anchors per label, "
                    f"fitness {fit.fitness:.4f} ({counted(anchors.labels, 'label')} at image size {self.records.imgsz})"
                )
        for line in [anchors.advice, *anchors.to_yaml().splitlines()]:
            LOGGER.info(line)


def _merge_repeated(findings: list[Finding]) -> list[Finding]:
    """Keep the first of findings with the same kind and text, which several splits may have."""
    found: dict[tuple[str, str], Finding] = {}
    for one in findings:
        found.setdefault((one.kind, one.text), one)
    return list(found.values())
