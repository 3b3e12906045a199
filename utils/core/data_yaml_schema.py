"""Schema of the data-set YAML, and the messages for its faults. The keys are described in docs/reference/data.md."""

from __future__ import annotations

from typing import Any, Literal

from utils.core.errors import did_you_mean


def schemas() -> tuple[Any, Any]:
    """Build the pydantic models of a data-set YAML and of its `semantic:` block.

    They are built on demand because importing pydantic takes long.
    """
    from typing import Annotated

    from pydantic import BaseModel, ConfigDict, Field

    names_type = list[str | int | float | bool] | dict[str | int, str | int | float | bool]
    level = Annotated[int, Field(ge=0, le=255)]
    positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
    strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]

    class SemanticYaml(BaseModel):
        """The `semantic:` block; unknown keys are faults."""

        model_config = ConfigDict(extra="forbid", strict=True)
        path: str | None = None
        train: str | list[str] | None = None
        val: str | list[str] | None = None
        test: str | list[str] | None = None
        masks: dict[Literal["train", "val", "test"], str | list[str]] = {}
        names: names_type | str | None = None
        nc: int | None = None
        format: str | None = None
        palette: list[Annotated[list[level], Field(min_length=3, max_length=3)]] | None = None
        ignore: list[level] | None = None
        ids: dict[level, level] | None = None
        base: Annotated[int, Field(ge=32, le=16384)] | None = None
        low: positive | None = None
        high: positive | None = None
        std: positive | None = None
        flip: Annotated[float, Field(ge=0, le=1)] | None = None
        jitter: Annotated[list[strength], Field(min_length=4, max_length=4)] | None = None
        crop: Annotated[list[Annotated[float, Field(gt=0, le=8)]], Field(min_length=2, max_length=2)] | None = None

    class DataYaml(BaseModel):
        """The whole file; unknown keys are allowed for other programs."""

        model_config = ConfigDict(extra="allow", strict=True)
        path: str | None = None
        train: str | list[str] | None = None
        val: str | list[str] | None = None
        test: str | list[str] | None = None
        names: names_type | None = None
        nc: int | None = None
        stuff: list[str | int] = []
        format: str = "auto"
        generate: dict[str, Any] = {}
        annotations: dict[str, str] = {}
        defaults: dict[str, Any] = {}
        semantic: SemanticYaml | None = None
        download: Any = None  # checked when it is used: in files of other projects it may be a script
        label_names: list[str | int] | None = None
        shuffle_window: Annotated[int, Field(ge=0)] = 0

    return DataYaml, SemanticYaml


_EXPECTED = {
    "path": "a folder",
    "names": "a list of class names, or a mapping from numbers to names (0: person)",
    "stuff": "a list of the class names of a panoptic data set that are no things",
    "nc": "the number of classes, an integer",
    "format": "the name of a label format",
    "generate": "a mapping of settings",
    "annotations": "a mapping from splits to COCO JSON files (val: file.json)",
    "defaults": "a mapping of training options",
    "shuffle_window": "a number of images of at least 0",
    "label_names": "a list of the names that labels or folders use for the classes, in the order of `names`",
    "semantic": "a mapping that describes the images with semantic labels",
    "semantic.names": "a list of names, a mapping from numbers to names (0: road), or a file with a name per line",
    "semantic.masks": "a mapping from splits (train, val, test) to folders",
    "semantic.palette": "a list of colours, [red, green, blue] from 0 to 255 each",
    "semantic.ignore": "a list of mask values without a class, from 0 to 255",
    "semantic.ids": "a mapping from mask values to classes (7: 0), from 0 to 255",
    "semantic.base": "an integer from 32 to 16384, in pixels",
    "semantic.low": "a number above 0",
    "semantic.high": "a number above 0",
    "semantic.std": "a number above 0",
    "semantic.flip": "a probability from 0 to 1",
    "semantic.jitter": "four numbers of at least 0: brightness, contrast, saturation, hue",
    "semantic.crop": "two numbers above 0: width and height as fractions of the image size",
}
_EXPECTED_PATHS = "a folder of images, a list file, or a list of these"


def describe_fault(key: tuple[str, ...], values: dict[str, Any]) -> str:
    """Describe the invalid, missing or unknown value of a key.

    Args:
        key: Path of the key: its name, or the name of the block and its name in there.
        values: Content of the YAML file.
    """
    name, inner = ".".join(key), values
    for step in key[:-1]:
        inner = inner[step]
    if len(key) > 1 and key[-1] not in schemas()[1].model_fields:
        return f"unknown key `{name}:`{did_you_mean(key[-1], schemas()[1].model_fields)}"
    wanted = _EXPECTED.get(name) or _EXPECTED.get(key[-1], _EXPECTED_PATHS)
    if key[-1] not in inner:
        return f"`{name}:` is missing; it must be {wanted}"
    return f"`{name}:` must be {wanted}, got {inner[key[-1]]!r:.60}"
