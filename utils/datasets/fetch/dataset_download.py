"""Download of what a data YAML's `download:` lists, only where the user asked for it with --download."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from utils.core import distributed as dist
from utils.core.data_config import DataConfig, load_data
from utils.core.data_paths import datasets_folder
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.http_client import RemoteFile, download_file
from utils.core.log import LOGGER
from utils.core.yaml_file import read_yaml
from utils.datasets.fetch.archives import extract, is_archive
from utils.datasets.fetch.array_files import ARRAY_FORMATS, write_images

_TYPES: dict[str, type] = {  # of the keys of a `download:` entry
    "url": str,
    "size": int,
    "sha256": str,
    "md5": str,
    "to": str,
    "strip": int,
    "keep": bool,
    "gives": str,
    "pictures": str,
}
_HEX_DIGITS = {"sha256": 64, "md5": 32}


@dataclass(frozen=True)
class DownloadItem:
    """One entry of `download:`: a file and what to do with it."""

    remote: RemoteFile
    to: str = "."  # destination below the data set's folder
    strip: int = 0  # leading path components of an archive's members to remove
    keep: bool = False  # keep an archive as it is instead of extracting it
    pictures: str = ""  # array format, a key of ARRAY_FORMATS; converted to image files once everything is downloaded
    gives: str = ""  # path below the data set's folder; if it exists, the entry is skipped

    @property
    def name(self) -> str:
        """File name, from the address."""
        return unquote(urlsplit(self.remote.url).path).rsplit("/", 1)[-1]


def parse_download(data: DataConfig) -> list[DownloadItem]:
    """Parse and validate the `download:` list of a data YAML.

    Raises:
        UserError: It is missing, not a list of addresses, or an entry is invalid.
    """
    given = data.download
    if isinstance(given, str) and re.match(r"https?://\S+$", given.strip()):
        given = [given.strip()]
    if not isinstance(given, list) or not given:
        fault = "is not a list of addresses, and scripts are never run" if given else "is missing"
        raise UserError(f"{data.source}: `download:` {fault}; write `download: [{{url: https://…, sha256: …}}]`")
    return [_parse_item(entry, f"{data.source}: `download:` entry {number}") for number, entry in enumerate(given, 1)]


def _parse_item(entry: Any, where: str) -> DownloadItem:
    values = {"url": entry} if isinstance(entry, str) else entry
    if not isinstance(values, dict) or "url" not in values:
        raise UserError(f"{where}: expected an address, or a mapping with `url:`")
    for key, value in values.items():
        if key not in _TYPES:
            raise UserError(f"{where}: unknown key {key!r}; known keys: {', '.join(_TYPES)}")
        negative = isinstance(value, int) and value < 0
        if not isinstance(value, _TYPES[key]) or negative or (_TYPES[key] is int and isinstance(value, bool)):
            raise UserError(f"{where}: invalid value `{key}: {value!r:.60}`; expected {_TYPES[key].__name__}")
    url, to = values["url"], values.get("to", ".")
    if not re.match(r"https?://[^/\s]+/\S*[^/\s]$", url):
        raise UserError(f"{where}: {url[:80]!r} is not the http or https address of a file")
    for name, digits in _HEX_DIGITS.items():
        if name in values and not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", values[name]):
            raise UserError(f"{where}: `{name}:` expects {digits} hexadecimal digits")
    for key, path in (("to", to), ("gives", values.get("gives", ""))):
        if Path(path).is_absolute() or ".." in Path(path).parts or "\\" in path:
            raise UserError(f"{where}: `{key}: {path}` is outside of the data set's folder")
    if values.get("pictures", "idx") not in ARRAY_FORMATS:
        known = ", ".join(ARRAY_FORMATS)
        raise UserError(f"{where}: `pictures: {values['pictures']:.40}` is not a known array format; choose {known}")
    remote = RemoteFile(url, values.get("size"), values.get("sha256"), values.get("md5"))
    own = {key: value for key, value in values.items() if key in ("strip", "keep", "gives", "pictures")}
    item = DownloadItem(remote, to, **own)
    if item.name in ("", ".", "..") or "/" in item.name or "\\" in item.name or "\0" in item.name:
        raise UserError(f"{where}: {url[:80]!r} does not end in a file name")
    return item


def resolve_dataset(text: str, download: bool) -> DataConfig:
    """Load a data YAML and, if `download` is set, download its training and validation data where missing.

    Args:
        text: Path or name of the data YAML.
        download: Whether the network may be used. Without it, reading a missing split raises an error that says what
            to do.

    Returns:
        The data set's configuration.

    Raises:
        UserError: The YAML is invalid, several processes run, or the download fails or is incomplete.
    """
    data = load_data(text)
    if not download or data.generate or not data.download or not missing_paths(data):
        return data
    if dist.world_size() > 1:
        raise UserError(
            f"{data.source}: --download works in a single process only; "
            f"run `python check.py --data {data.source} --download` first"
        )
    root = download_root(data)
    items = [item for item in parse_download(data) if not item.gives or not (root / item.gives).exists()]
    LOGGER.info(f"downloading {len(items)} files to {root}; the data set has its own licence")
    download_items(items, root, data.label_names or data.names)
    data = load_data(text)
    if missing := missing_paths(data):
        raise UserError(
            f"{data.source}: everything in `download:` was downloaded to {root}, but {missing[0]} is missing"
        )
    return data


def missing_paths(data: DataConfig) -> list[Path]:
    """List the image folders, lists and annotation files of the train and val splits that do not exist."""
    paths: list[Path] = []
    for split in ("train", "val"):
        paths += [*data.splits.get(split, ()), *([data.annotations[split]] if split in data.annotations else [])]
        if data.semantic is not None:
            paths += [*data.semantic.splits.get(split, ()), *data.semantic.masks.get(split, ())]
    return [path for path in paths if not path.exists()]


def download_root(data: DataConfig) -> Path:
    """Folder to download to: in the datasets folder for our own YAMLs, otherwise the YAML's `path:`."""
    given = read_yaml(data.source).get("path")
    if data.source.parent == ROOT / "data" and isinstance(given, str) and not Path(given).is_absolute():
        return datasets_folder() / Path(given).name
    return data.root


def download_items(items: list[DownloadItem], root: Path, class_folders: Sequence[str] = ()) -> None:
    """Download and extract files, then move everything to `root` at once; files already there are not replaced.

    Work happens in `<root>.download`; after an interruption, items completed there are not downloaded again.

    Args:
        items: What to download.
        root: The data set's folder.
        class_folders: Folder names of the classes, for arrays that become image files.
    """
    work = root.with_name(f"{root.name}.download")
    staging = work / "staging"
    for number, item in enumerate(items):
        done = work / f"{number}.done"
        if done.is_file() and done.read_text(encoding="utf-8") == repr(item):
            continue
        _download_item(item, work / f"{number}.{item.name}", work / "extracting", staging)
        done.write_text(repr(item), encoding="utf-8")
    for number, (array_format, to) in enumerate(dict.fromkeys((item.pictures, item.to) for item in items)):
        if array_format:
            _convert_arrays(array_format, staging / to, class_folders, work / f"{number}.converted")
    try:
        _merge(staging, root)
        shutil.rmtree(work)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror or error})") from error


def _convert_arrays(array_format: str, folder: Path, class_folders: Sequence[str], done: Path) -> None:
    """Replace array files by image files; `done` marks that an interrupted run has already written the images."""
    if not done.exists():
        write_images(array_format, folder, class_folders)
        done.touch()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.unlink()


def _download_item(item: DownloadItem, file: Path, scratch: Path, staging: Path) -> None:
    """Download one file and merge it, or what it contains, into `staging`."""
    download_file(item.remote, file)
    shutil.rmtree(scratch, ignore_errors=True)
    if is_archive(item.name) and not item.keep:
        try:
            extract(file, scratch / item.to, item.strip)
        except UserError:
            shutil.rmtree(scratch, ignore_errors=True)
            file.unlink()  # otherwise the next attempt would fail on the same bytes
            raise
    else:
        (scratch / item.to).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, scratch / item.to / item.name)
    _merge(scratch, staging)
    file.unlink()


def _merge(source: Path, target: Path) -> None:
    """Move the content of `source` into `target`; existing files are kept, new folders are moved as a whole."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    for entry in sorted(source.iterdir()):
        destination = target / entry.name
        if entry.is_dir() and destination.is_dir():
            _merge(entry, destination)
        elif not destination.exists():
            entry.rename(destination)
    shutil.rmtree(source)
