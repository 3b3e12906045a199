"""What a data-set YAML may hold, and how a fault in it is told (behaviour.md 4.1)."""

from __future__ import annotations

from typing import Any, Literal


def forms() -> tuple[Any, Any]:
    """Return what a data YAML and its `semantic:` block may hold, as pydantic models, built when they are needed."""
    from typing import Annotated

    from pydantic import BaseModel, ConfigDict, Field

    names_type = list[str | int | float | bool] | dict[str | int, str | int | float | bool]
    level = Annotated[int, Field(ge=0, le=255)]
    positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
    strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]

    class SemanticYaml(BaseModel):
        """The `semantic:` block; a key it does not know is a fault."""

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
        """The keys a data YAML may have; users' own extra keys are left alone."""

        model_config = ConfigDict(extra="allow", strict=True)
        path: str | None = None
        train: str | list[str] | None = None
        val: str | list[str] | None = None
        test: str | list[str] | None = None
        names: names_type | None = None
        nc: int | None = None
        format: str = "auto"
        generate: dict[str, Any] = {}
        annotations: dict[str, str] = {}
        defaults: dict[str, Any] = {}
        semantic: SemanticYaml | None = None
        download: Any = None  # of other tools it may be a program, which is no fault as long as nobody runs it
        label_names: list[str | int] | None = None

    return DataYaml, SemanticYaml


_WANTED = {
    "path": "a folder",
    "names": "a list of class names, or a table of them by number (0: person)",
    "nc": "the whole number of classes",
    "format": "the name of a label format",
    "generate": "a table of settings",
    "annotations": "a table of COCO JSON files by split (val: file.json)",
    "defaults": "a table of training options",
    "label_names": "a list of what the labels or folders call the classes, in the order of `names`",
    "semantic": "a table that says where images with a class per pixel are",
    "semantic.names": "a list of class names, a table of them by number (0: road), or a file with one name a line",
    "semantic.masks": "a table of folders by split (train, val, test)",
    "semantic.palette": "a list of colours, [red, green, blue] from 0 to 255 each",
    "semantic.ignore": "a list of the masks' values that are no class, from 0 to 255",
    "semantic.ids": "a table of classes by the masks' values (7: 0), from 0 to 255",
    "semantic.base": "a whole number of pixels, 32 to 16384",
    "semantic.low": "a number above 0",
    "semantic.high": "a number above 0",
    "semantic.std": "a number above 0",
    "semantic.flip": "a probability, 0 to 1",
    "semantic.jitter": "four numbers of at least 0: brightness, contrast, saturation, hue",
    "semantic.crop": "two numbers above 0, width and height in parts of the image size",
}


def expected(key: tuple[str, ...], values: dict[str, Any]) -> str:
    """Return what stands at a key of the YAML (or of a block in it) and what should."""
    name, inner = ".".join(key), values
    for step in key[:-1]:
        inner = inner[step]
    if len(key) > 1 and key[-1] not in forms()[1].model_fields:
        return f"unknown key `{name}:` (known: {', '.join(forms()[1].model_fields)})"
    wanted = _WANTED.get(name) or _WANTED.get(key[-1], "a folder of images, a list file, or a list of these")
    got = inner.get(key[-1])
    return f"`{name}:` must be {wanted}, got {got!r:.60}" if key[-1] in inner else f"`{name}:` is missing, {wanted}"
