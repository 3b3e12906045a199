"""Writing of tar shards from any data set that training reads, one complete tar file after the other."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tools.converters.convert_settings import ShardSettings
from utils.core.data_config import SPLITS, DataConfig, load_data
from utils.core.errors import UserError
from utils.core.files import atomic_path, write_text
from utils.core.input_files import read_input
from utils.core.log import LOGGER, progress
from utils.core.yaml_file import write_yaml
from utils.datasets import READERS, SEMANTIC_READERS
from utils.datasets.file_access import read_binary
from utils.datasets.generators import ensure_generated
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.readers.auto import detect_format
from utils.datasets.labels.semantic_layout import INVALID, SemanticAugment, SemanticSplitFiles, default_table
from utils.datasets.labels.semantic_mask_files import map_classes, read_values
from utils.datasets.labels.yolo_lines import ImageLabels

STATE_NAME = "shards.json"
YAML_NAME = "data.yaml"
_MAX_STATE_BYTES = 2**30
_FAULTS_SHOWN = 10
_COPIED = ("yolo", "shards")  # formats whose label files are copied as they are

LabelReader = Callable[[int], tuple[str, bytes] | None]  # suffix and content of the label file of an image


class _Skip(Exception):  # noqa: N818 - no error of the program
    """An image that cannot be written; the message says why."""


@dataclass
class _Part:
    """Images that are written to the tar files `name-000000.tar` and so on."""

    name: str
    images: list[str]
    read_label: LabelReader | None = None
    read_mask: LabelReader | None = None


@dataclass
class _State:
    """Content of `shards.json`, written after each tar file."""

    plan: str  # hash of the settings and the list of images
    shards: dict[str, list[int]] = field(default_factory=dict)  # images read for each tar file, by part
    skipped: list[str] = field(default_factory=list)
    complete: bool = False


def write_shards(settings: ShardSettings) -> Path:
    """Write a data set as tar shards; an interrupted conversion goes on after the last complete tar file.

    Args:
        settings: source, output folder and size of a tar file.

    Returns:
        The data YAML of the shards.

    Raises:
        UserError: the data set cannot be read, the folder has other files, or it cannot be written.
    """
    if not 0 < settings.shard_mb <= 1_000_000:
        raise UserError(f"--shard-mb expects a number above 0 and up to 1000000, got {settings.shard_mb:g}")
    data = load_data(str(settings.source))
    ensure_generated(data)
    parts, values = _plan(data)
    out, state = settings.out, _State(_plan_key(settings, parts))
    state = _previous(settings, state)
    count, written = sum(len(part.images) for part in parts), sum(sum(done) for done in state.shards.values())
    if written:
        LOGGER.info(f"--out {out}: going on after {written} of {count} images")
    with progress(total=count, text="writing shards", unit="image") as bar:
        bar.update(written)
        for part in parts:
            _write_part(part, settings, state, bar.update)
    for block, key, name in _split_keys(parts, values):
        block[key] = f"{name}-{{{0:06d}..{len(state.shards[name]) - 1:06d}}}.tar"
    write_yaml(out / YAML_NAME, values)
    state.complete = True
    _save(out, state)
    for line in state.skipped[:_FAULTS_SHOWN]:
        LOGGER.warning(f"{line}; left out")
    if len(state.skipped) > _FAULTS_SHOWN:
        LOGGER.warning(f"{len(state.skipped) - _FAULTS_SHOWN} more images left out; see {STATE_NAME}")
    shards = sum(map(len, state.shards.values()))
    LOGGER.info(f"{out / YAML_NAME}: {count - len(state.skipped)} images in {shards} shards")
    return out / YAML_NAME


# ----------------------------------------------------------------------------------------------------------------------
# What is written


def _plan(data: DataConfig) -> tuple[list[_Part], dict[str, Any]]:
    """List what is written, and the keys of the data YAML but for the splits."""
    parts: dict[str, _Part] = {}
    values: dict[str, Any] = {"format": "shards"}
    if data.splits:
        values["names"] = dict(enumerate(data.names))
    for key, value in (("shuffle_window", data.shuffle_window), ("defaults", data.defaults)):
        values |= {key: value} if value else {}
    if data.annotations:
        values["annotations"] = {split: str(path.absolute()) for split, path in data.annotations.items()}
    for split in (split for split in SPLITS if split in data.splits):
        name = detect_format(data, split) if data.format == "auto" else data.format
        files = READERS.get(name, data.source)(data, split)
        for note in files.prepare() if files.prepare is not None else []:
            LOGGER.warning(note)
        parts[split] = _Part(split, list(files.images), _label_reader(files, name))
    config = data.semantic
    if config is not None:
        layout = SEMANTIC_READERS.get(config.format, data.source)
        augment, usual = layout.augment_for(data), SemanticAugment()
        block = {key: value for key, value in config.options.items() if key in ("ids", "ignore")}
        as_they_are = True
        for split in (split for split in SPLITS if split in config.splits):
            maps = layout.read(data, split)
            as_they_are = len(maps.tables) == 1 and np.array_equal(maps.tables[0], default_table(config))
            for note in maps.notes:
                LOGGER.warning(note)
            _add_masks(parts, split, maps, _mask_reader(maps, as_they_are, len(config.names)))
        block = block if as_they_are else {}
        for one in fields(SemanticAugment):
            if (value := getattr(augment, one.name)) != getattr(usual, one.name):
                block[one.name] = list(value) if isinstance(value, tuple) else value
        palette = [list(colour) for colour in config.palette]
        values["semantic"] = {"format": "shards", "names": dict(enumerate(config.names))} | block
        values["semantic"] |= {"palette": palette} if palette else {}
    if not parts:
        raise UserError(f"{data.source}: defines no split")
    return list(parts.values()), values


def _add_masks(parts: dict[str, _Part], split: str, maps: SemanticSplitFiles, read: LabelReader) -> None:
    """Add the masks of a split to the images with boxes if all of them are there, otherwise as a part of its own."""
    boxes = parts.get(split)
    rows = {image: row for row, image in enumerate(maps.images)}
    if boxes is None or not rows.keys() <= set(boxes.images):
        name = f"semantic-{split}"
        parts[name] = _Part(name, list(maps.images), read_mask=read)
        return
    of_image = [rows.get(image, -1) for image in boxes.images]
    boxes.read_mask = lambda image: read(of_image[image]) if of_image[image] >= 0 else None


def _split_keys(parts: list[_Part], values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """List the splits of the data YAML: mapping, key and part."""
    for part in parts:
        split = part.name.removeprefix("semantic-")
        if split == part.name:
            yield values, split, part.name
        if part.read_mask is not None:
            yield values["semantic"], split, part.name


def _label_reader(files: SplitFiles, name: str) -> LabelReader:
    def copy(image: int) -> tuple[str, bytes] | None:
        path = files.label_files[image]
        try:
            return os.path.splitext(path)[1], read_binary(path)  # noqa: PTH122
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _Skip(f"{path}: cannot be read ({error.strerror or error})") from error

    def convert(image: int) -> tuple[str, bytes] | None:
        labels = files.load_labels(image)
        if labels.faults:
            raise _Skip(labels.faults[0])
        if not labels.listed:
            raise _Skip(f"{files.images[image]}: not in the annotations")
        is_class = name in ("folders", "shards") and len(labels.boxes) == 1
        if is_class:
            return ".cls", f"{int(labels.boxes[0, 0])}".encode()
        return (".txt", _lines(labels)) if labels.present else None

    in_folders = name == "shards" and files.fingerprint.startswith("shards folders")
    return copy if name in _COPIED and not in_folders else convert


def _lines(labels: ImageLabels) -> bytes:
    """Format labels as YOLO lines without rounding: polygons if all objects have one, otherwise boxes."""
    outlined = len(labels.polygons) > 0 and all(len(polygon) >= 3 for polygon in labels.polygons)
    rows = []
    for number, box in enumerate(labels.boxes):
        values = labels.polygons[number].ravel() if outlined else box[1:]
        texts = (np.format_float_positional(value, trim="-") for value in np.clip(values, 0, 1).astype(np.float32))
        rows.append(" ".join([str(int(box[0])), *texts]) + "\n")
    return "".join(rows).encode()


def _mask_reader(maps: SemanticSplitFiles, as_they_are: bool, num_classes: int) -> LabelReader:
    def read(row: int) -> tuple[str, bytes] | None:
        path = maps.masks[row]
        try:
            content = read_binary(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _Skip(f"{path}: cannot be read ({error.strerror or error})") from error
        if as_they_are and path.lower().endswith(".png"):
            return ".mask.png", content
        try:
            values = read_values(Path(path))
        except ImageFault:  # the scan of the shards reports the same fault
            return ".mask.png", content
        if not as_they_are:
            table = maps.tables[maps.table_of[row]]
            invalid = (table == INVALID)[values]
            values = map_classes(values, table)
            values[invalid] = min(num_classes, 255)  # no class, so that the scan reports it
        return ".mask.png", cv2.imencode(".png", values)[1].tobytes()

    return read


# ----------------------------------------------------------------------------------------------------------------------
# Writing


def _plan_key(settings: ShardSettings, parts: list[_Part]) -> str:
    digest = hashlib.sha256(f"{settings.source.absolute()} {settings.shard_mb}".encode("utf-8", "surrogateescape"))
    for part in parts:
        digest.update("\n".join([part.name, *part.images, ""]).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _previous(settings: ShardSettings, new: _State) -> _State:
    """Load the state of an interrupted conversion of the same images; otherwise require an unused folder."""
    out, state = settings.out, new
    used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if used and (out / STATE_NAME).is_file():
        try:
            stored = json.loads(read_input(out / STATE_NAME, _MAX_STATE_BYTES))
            found = _State(str(stored["plan"]), dict(stored["shards"]), list(stored["skipped"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{out / STATE_NAME}: damaged; remove the folder or choose another --out") from error
        if found.plan == new.plan and not stored.get("complete"):
            for name in [path for path in out.iterdir() if path.name[0] == "." and path.suffix == ".tar"]:
                name.unlink()  # left by a killed process
            return found
    if used and not (settings.exist_ok and out.is_dir()):
        raise UserError(f"--out {out}: exists and is not empty; choose another folder or add --exist-ok")
    _save(out, state)
    return state


def _save(out: Path, state: _State) -> None:
    write_text(out / STATE_NAME, json.dumps(asdict(state)) + "\n")


def _write_part(part: _Part, settings: ShardSettings, state: _State, advance: Callable[[int], Any]) -> None:
    done = state.shards.setdefault(part.name, [])
    stems = _unique_stems(part.images)
    position = sum(done)
    while position < len(part.images):
        path = settings.out / f"{part.name}-{len(done):06d}.tar"
        start, skipped = position, len(state.skipped)
        with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            while position < len(part.images) and tar.offset < settings.shard_mb * 1e6:
                try:
                    members = _members(part, position)
                except _Skip as reason:
                    state.skipped.append(str(reason))
                    members = []
                for suffix, content in members:
                    info = tarfile.TarInfo(stems[position] + suffix)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                position += 1
                advance(1)
        if len(state.skipped) - skipped == position - start:  # nothing is left but faulty images
            path.unlink()
            if not done:
                raise UserError(f"--source {settings.source}: no image of {part.name} can be read; {state.skipped[-1]}")
            done[-1] += position - start
        else:
            done.append(position - start)
        _save(settings.out, state)


def _members(part: _Part, image: int) -> list[tuple[str, bytes]]:
    path = part.images[image]
    try:
        members = [(os.path.splitext(path)[1].lower(), read_binary(path))]  # noqa: PTH122
    except OSError as error:
        raise _Skip(f"{path}: cannot be read ({error.strerror or error})") from error
    for read in (part.read_label, part.read_mask):
        found = read(image) if read is not None else None
        members += [found] if found is not None else []
    return members


def _unique_stems(images: list[str]) -> list[str]:
    """Name the samples by their images, without dots, which would end the name of a sample."""
    taken: set[str] = set()
    stems = []
    for path in images:
        base = os.path.splitext(os.path.basename(path))[0].replace(".", "_").replace("\\", "_")  # noqa: PTH119, PTH122
        base = base.replace("\n", "_").replace("\r", "_")
        stem, number = base, 2
        while stem in taken:
            stem, number = f"{base}_{number}", number + 1
        taken.add(stem)
        stems.append(stem)
    return stems
