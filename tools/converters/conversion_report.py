"""What a conversion did: counts, and everything that was left out with the reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from utils.core.log import LOGGER

NAME = "convert-report.json"
_SHOWN = 10


@dataclass
class Report:
    """Grows while images are converted."""

    settings: dict[str, Any]
    images: Counter[str] = field(default_factory=Counter)  # by split
    objects: Counter[str] = field(default_factory=Counter)  # by class
    skipped: list[dict[str, str]] = field(default_factory=list)  # images
    lost: list[dict[str, str]] = field(default_factory=list)  # objects
    left_out: Counter[str] = field(default_factory=Counter)  # objects, by reason, that were not wanted
    notes: Counter[str] = field(default_factory=Counter)

    def skip(self, image: str, why: str) -> None:
        """Note an image that was left out."""
        self.skipped.append({"image": image, "why": why})

    def lose(self, image: str, why: str) -> None:
        """Note an object that makes no sense."""
        self.lost.append({"image": image, "why": why})

    def note(self, text: str, count: int = 1) -> None:
        """Count something that a user should know."""
        self.notes[text] += count

    def text(self, files: int) -> str:
        """Return the report as JSON."""
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

    def tell(self, files: int, place: str, dry_run: bool) -> None:
        """Log the report in short."""
        images = ", ".join(f"{count} {split}" for split, count in self.images.items()) or "none"
        LOGGER.info(f"images: {images}; objects: {sum(self.objects.values())} of {len(self.objects)} classes")
        lines = [f"left out: {count} x {why}" for why, count in self.left_out.items()]
        lines += [f"note: {text}" + (f" ({count} x)" if count > 1 else "") for text, count in self.notes.items()]
        for line in lines:
            LOGGER.info(line)
        wrong = [f"{row['image']}: skipped: {row['why']}" for row in self.skipped]
        wrong += [f"{row['image']}: object lost: {row['why']}" for row in self.lost]
        for line in wrong[:_SHOWN]:
            LOGGER.warning(line)
        if len(wrong) > _SHOWN:
            LOGGER.warning(f"{len(wrong) - _SHOWN} more, all in {NAME}")
        verb = "would be written" if dry_run else "written"
        LOGGER.info(f"{files} files {verb} to {place}")
