"""The gate's findings for people at a console and for machines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tools.dataset_check.anchor_fit import FittedAnchors
from tools.dataset_check.dataset_statistics import COUNT_EDGES, SIZE_EDGES, statistics
from tools.dataset_check.findings import KINDS, SEVERITIES, Finding
from tools.dataset_check.records import Gathered
from utils.core.log import LOGGER

VERSION = 1
_SHOWN = 3  # findings of a kind on the console


@dataclass
class Report:
    """What one run of the gate found. Findings are sorted: errors first, then by kind."""

    gathered: Gathered
    findings: list[Finding]
    anchors: FittedAnchors | None = None
    statistics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = {kind: place for place, kind in enumerate(KINDS)}
        self.findings = sorted(
            _joined(self.findings), key=lambda one: (SEVERITIES.index(one.severity), order[one.kind], one.text)
        )
        self.statistics = self.statistics or statistics(self.gathered)

    @property
    def counts(self) -> Counter[str]:
        """Return how many findings there are of each severity."""
        return Counter({severity: 0 for severity in SEVERITIES} | Counter(one.severity for one in self.findings))

    def by_kind(self) -> dict[str, list[Finding]]:
        """Return the findings of each kind that has some."""
        found: dict[str, list[Finding]] = {}
        for one in self.findings:
            found.setdefault(one.kind, []).append(one)
        return found

    def json(self) -> str:
        """Return everything but the pictures."""
        data = self.gathered.data
        values = {
            "version": VERSION,
            "data": str(data.source),
            "image_size": self.gathered.imgsz,
            "names": list(data.names),
            "pixel_names": list(data.semantic.names) if data.semantic else [],
            "summary": {f"{severity}s": count for severity, count in self.counts.items()},
            "splits": self.statistics,
            "bins": {"sizes_px": list(SIZE_EDGES), "objects_per_image": list(COUNT_EDGES)},
            "anchors": None if self.anchors is None else self.anchors.values(),
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

    def tell(self) -> None:
        """Log the report in short."""
        for split, about in self.statistics.items():
            parts = [f"{about['images']} images"]
            parts += [f"{about['objects']} objects ({about['format']})"] if "objects" in about else []
            parts += [f"{about['maps']} class maps"] if "maps" in about else []
            LOGGER.info(f"{split}: {', '.join(parts)}")
        for kind, found in self.by_kind().items():
            about = KINDS[kind]
            LOGGER.info(f"{about.severity}: {about.title} ({kind}): {len(found)}")
            for one in found[:_SHOWN]:
                LOGGER.info(f"    {one.text}")
            if len(found) > _SHOWN:
                LOGGER.info(f"    … {len(found) - _SHOWN} more")
        if self.anchors is not None:
            self._tell_anchors(self.anchors)
        counts = self.counts
        LOGGER.info(", ".join(f"{counts[severity]} {severity}s" for severity in SEVERITIES))

    def _tell_anchors(self, anchors: FittedAnchors) -> None:
        for name, fit in ((anchors.usual, anchors.usual_fit), ("fitted", anchors.fit)):
            if fit is not None:
                LOGGER.info(
                    f"anchors {name}: best possible recall {fit.recall:.4f}, "
                    f"{fit.matches_per_label:.2f} match a label, fitness {fit.fitness:.4f} ({anchors.labels} labels at {self.gathered.imgsz})"
                )
        for line in [anchors.advice, *anchors.yaml().splitlines()]:
            LOGGER.info(line)


def _joined(findings: list[Finding]) -> list[Finding]:
    """Return the findings with the same thing said of several splits only once."""
    found: dict[tuple[str, str], Finding] = {}
    for one in findings:
        found.setdefault((one.kind, one.text), one)
    return list(found.values())
