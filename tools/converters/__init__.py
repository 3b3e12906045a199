"""Conversion of labels between formats, of checkpoints between file formats, and division of images into splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from utils.core.registry import Registry

if TYPE_CHECKING:
    from tools.converters.conversion_report import ConversionReport
    from tools.converters.convert_settings import LabelSettings
    from tools.converters.label_items import LabelSource, LabelTarget
    from tools.converters.output_folder import OutputFolder

    SourceFactory = Callable[[LabelSettings], LabelSource]
    TargetFactory = Callable[[OutputFolder, LabelSettings, tuple[str, ...], ConversionReport], LabelTarget]

SOURCES: Registry[SourceFactory] = Registry("label format to read", "tools.converters.sources")
TARGETS: Registry[TargetFactory] = Registry("label format to write", "tools.converters.targets")
