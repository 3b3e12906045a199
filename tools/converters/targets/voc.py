"""Writer of Pascal VOC boxes: `JPEGImages`, `Annotations`, `ImageSets/Main/<split>.txt`, data.yaml."""

from __future__ import annotations

from xml.sax.saxutils import escape

from tools.converters import TARGETS
from tools.converters.conversion_report import ConversionReport
from tools.converters.convert_settings import LabelSettings
from tools.converters.data_yaml_writer import format_data_yaml
from tools.converters.label_items import LabelledImage
from tools.converters.output_folder import OutputFolder
from utils.datasets.labels.annotation_objects import LabelledObject

_DECIMALS = 2


@TARGETS.register("voc")
class VocTarget:
    """Writer of boxes in VOC's inclusive pixel numbers from 1: xmin = x1 + 1, xmax = x2.

    Boxes of exactly one pixel, or of none after rounding, cannot be represented and are lost. Crowds become difficult
    objects.
    """

    def __init__(
        self, output: OutputFolder, settings: LabelSettings, names: tuple[str, ...], report: ConversionReport
    ) -> None:
        self.output, self.settings, self.names, self.report = output, settings, names, report
        self.decimals = _DECIMALS if settings.decimals is None else settings.decimals
        self.lists: dict[str, list[str]] = {}

    def add(self, item: LabelledImage) -> None:
        """Write one image and its XML file."""
        source, suffix = item.source, item.source.path.suffix
        flat = source.name.replace("/", "_").replace(" ", "_")
        name = self.output.unused([flat, f"{source.split}_{flat}", f"{source.split}_{flat}_{suffix[1:]}"])
        self.output.add_image(source.path, f"JPEGImages/{name}{suffix}", self.settings.images)
        height, width = item.size_hw
        lines = [
            "<annotation>",
            "\t<folder>JPEGImages</folder>",
            f"\t<filename>{escape(name + suffix)}</filename>",
            f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
            "\t<segmented>0</segmented>",
            *(line for one in item.objects for line in self._object(one, str(source.path))),
            "</annotation>",
        ]
        self.output.write(f"Annotations/{name}.xml", "\n".join(lines) + "\n")
        self.lists.setdefault(source.split, []).append(name)

    def _object(self, one: LabelledObject, image: str) -> list[str]:
        x1, y1, x2, y2 = one.box_xyxy.tolist()
        sides = [round(value, self.decimals) for value in (x1 + 1, y1 + 1, x2, y2)]
        if one.aside == "ignore":
            self.report.left_out["ignored region"] += 1
            return []
        if sides[2] <= sides[0] - 1 or sides[3] <= sides[1] - 1 or sides[:2] == sides[2:]:
            self.report.lose(image, f"{one.where}: {x2 - x1:g} x {y2 - y1:g} pixels cannot be represented in VOC")
            return []
        if sides[2] < sides[0] or sides[3] < sides[1]:
            self.report.note("box smaller than a pixel: xmax < xmin, which other programs may reject")
        if one.pieces and one.outlined:
            self.report.note("polygon written as box")
        if one.aside:
            self.report.note(f"{one.aside} object marked as difficult")
        self.report.objects[one.name] += 1
        texts = [
            f"{value:.{self.decimals}f}".rstrip("0").rstrip(".") if self.decimals else f"{value:.0f}" for value in sides
        ]
        box = "".join(
            f"<{tag}>{text}</{tag}>" for tag, text in zip(("xmin", "ymin", "xmax", "ymax"), texts, strict=True)
        )
        return [
            "\t<object>",
            f"\t\t<name>{escape(one.name)}</name>",
            f"\t\t<pose>Unspecified</pose><truncated>0</truncated><difficult>{int(bool(one.aside))}</difficult>",
            f"\t\t<bndbox>{box}</bndbox>",
            "\t</object>",
        ]

    def finish(self) -> None:
        """Write the list files and the data YAML."""
        for split, names in self.lists.items():
            self.output.write(f"ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name in names))
        paths = {split: f"ImageSets/Main/{split}.txt" for split in self.lists}
        self.output.write("data.yaml", format_data_yaml(paths, self.names, "voc", self.settings))
