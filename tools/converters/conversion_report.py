"""Report of a conversion: counts, and everything that was left out with its reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from utils.core.log import LOGGER

REPORT_NAME = "convert-report.json"
_FAULTS_SHOWN = 10


@dataclass
class ConversionReport:
    """Counters and lists filled while images are converted."""

    settings: dict[str, Any]
    images: Counter[str] = field(default_factory=Counter)  # by split
    objects: Counter[str] = field(default_factory=Counter)  # by class
    skipped: list[dict[str, str]] = field(default_factory=list)  # images with faults
    lost: list[dict[str, str]] = field(default_factory=list)  # objects with invalid coordinates
    left_out: Counter[str] = field(default_factory=Counter)  # valid objects excluded by the settings, by reason
    notes: Counter[str] = field(default_factory=Counter)

    def skip(self, image: str, why: str) -> None:
        """Record an image that was left out."""
        self.skipped.append({"image": image, "why": why})

    def lose(self, image: str, why: str) -> None:
        """Record an invalid object that was left out."""
        self.lost.append({"image": image, "why": why})

    def note(self, text: str, count: int = 1) -> None:
        """Count an event the user should know about."""
        self.notes[text] += count

    def to_json(self, files: int) -> str:
        """Serialize the report; `files` is the number of files written."""
        values = {
            "settings": self.settings,
            "files written": files,
            "images": dict(self.images),
            "objects": dict(self.objects),
            "objects left out": dict(self.left_out),
            "objects lost": self.lost,
            "images skipped": self.skipped,
            "notes": dict(self.notes),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def log_summary(self, files: int, out: str, dry_run: bool) -> None:
        """Log counts, notes and the first faults.

        Args:
            files: Number of files written.
            out: Output folder, for the message.
            dry_run: Whether the files were only counted.
        """
        images = ", ".join(f"{count} {split}" for split, count in self.images.items()) or "none"
        LOGGER.info(f"images: {images}; objects: {sum(self.objects.values())} in {len(self.objects)} classes")
        lines = [f"left out: {count} x {why}" for why, count in self.left_out.items()]
        lines += [f"note: {text}" + (f" ({count} x)" if count > 1 else "") for text, count in self.notes.items()]
        for line in lines:
            LOGGER.info(line)
        faults = [f"{row['image']}: skipped: {row['why']}" for row in self.skipped]
        faults += [f"{row['image']}: object lost: {row['why']}" for row in self.lost]
        for line in faults[:_FAULTS_SHOWN]:
            LOGGER.warning(line)
        if len(faults) > _FAULTS_SHOWN:
            LOGGER.warning(f"{len(faults) - _FAULTS_SHOWN} more faults; see {REPORT_NAME}")
        verb = "would be written" if dry_run else "written"
        LOGGER.info(f"{files} files {verb} to {out}")
