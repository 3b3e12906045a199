"""What the `download:` of a data YAML names, brought to where the YAML looks for it. Only when the user asks for it."""

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
from utils.core.log import LOGGER
from utils.core.yaml_file import read_yaml
from utils.datasets.fetch import array_files as arrays
from utils.datasets.fetch.archives import is_archive, unpack
from utils.datasets.fetch.http_client import Wanted, fetch_file

_HEX = {"sha256": 64, "md5": 32}


@dataclass(frozen=True)
class Piece:
    """One file to fetch, and what becomes of it."""

    wanted: Wanted
    to: str = "."  # folder below the data set's
    strip: int = 0  # leading folders of the archive that are left out
    keep: bool = False  # the file itself, though it is an archive
    pictures: str = ""  # arrays of this kind, which become image files when all is there: a name in arrays.KINDS
    gives: str = ""  # below the data set's folder; where this is there already, nothing is fetched

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return unquote(urlsplit(self.wanted.url).path).rsplit("/", 1)[-1]


def pieces_of(data: DataConfig) -> list[Piece]:
    """Return what `download:` lists. UserError: it is missing, no list of addresses, or has faults."""
    given = data.download
    if isinstance(given, str) and re.match(r"https?://\S+$", given.strip()):
        given = [given.strip()]
    if not isinstance(given, list) or not given:
        why = "is no list of addresses, and programs are never run" if given else "is missing"
        raise UserError(f"{data.source}: `download:` {why}; write `download: [{{url: https://…, sha256: …}}]`")
    return [_piece(entry, f"{data.source}: `download:` entry {number}") for number, entry in enumerate(given, 1)]


def _piece(entry: Any, where: str) -> Piece:
    values = {"url": entry} if isinstance(entry, str) else entry
    kinds = {"url": str, "size": int, "sha256": str, "md5": str, "to": str, "strip": int, "keep": bool, "gives": str}
    kinds["pictures"] = str
    if not isinstance(values, dict) or "url" not in values:
        raise UserError(f"{where}: an address, or a table with `url:` is expected")
    for key, value in values.items():
        if key not in kinds:
            raise UserError(f"{where}: unknown key {key!r} (known: {', '.join(kinds)})")
        negative = isinstance(value, int) and value < 0
        if not isinstance(value, kinds[key]) or negative or (kinds[key] is int and isinstance(value, bool)):
            raise UserError(f"{where}: `{key}: {value!r:.60}` does not fit")
    url, to = values["url"], values.get("to", ".")
    if not re.match(r"https?://[^/\s]+/\S*[^/\s]$", url):
        raise UserError(f"{where}: {url[:80]!r} is no http or https address of a file")
    for name, digits in _HEX.items():
        if name in values and not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", values[name]):
            raise UserError(f"{where}: `{name}:` has {digits} hexadecimal digits")
    for key, place in (("to", to), ("gives", values.get("gives", ""))):
        if Path(place).is_absolute() or ".." in Path(place).parts or "\\" in place:
            raise UserError(f"{where}: `{key}: {place}` leads out of the data set's folder")
    if values.get("pictures", "idx") not in arrays.KINDS:
        raise UserError(f"{where}: `pictures: {values['pictures']:.40}` is none of {', '.join(arrays.KINDS)}")
    wanted = Wanted(url, values.get("size"), values.get("sha256"), values.get("md5"))
    own = {key: value for key, value in values.items() if key in ("strip", "keep", "gives", "pictures")}
    piece = Piece(wanted, to, **own)
    if piece.name in ("", ".", "..") or "/" in piece.name or "\\" in piece.name or "\0" in piece.name:
        raise UserError(f"{where}: {url[:80]!r} ends in no name of a file")
    return piece


def provide(text: str, download: bool) -> DataConfig:
    """Return the data set that `text` names; if parts of it are missing, and `download` allows it, they are fetched.

    Without `download` nothing is fetched, and reading the missing split says what to do.
    """
    data = load_data(text)
    missing = missing_places(data)
    if not download or not missing or data.generate or not data.download:
        return data
    if dist.world_size() > 1:
        raise UserError(f"{data.source}: fetch the data before several processes start: check.py --data … --download")
    root = destination(data)
    pieces = [piece for piece in pieces_of(data) if not piece.gives or not (root / piece.gives).exists()]
    LOGGER.info(f"fetching {len(pieces)} files to {root}; the data have their own licence")
    fetch(pieces, root, data.label_names or data.names)
    data = load_data(text)
    still = missing_places(data)
    if still:
        raise UserError(f"{data.source}: all of `download:` was fetched to {root}, but {still[0]} is not there")
    return data


def missing_places(data: DataConfig) -> list[Path]:
    """Return the places and annotations of training and validation that are not there."""
    places: list[Path] = []
    for split in ("train", "val"):
        places += [*data.splits.get(split, ()), *([data.annotations[split]] if split in data.annotations else [])]
        if data.semantic is not None:
            places += [*data.semantic.splits.get(split, ()), *data.semantic.masks.get(split, ())]
    return [place for place in places if not place.exists()]


def destination(data: DataConfig) -> Path:
    """Return the folder for what is fetched: among the data sets for a YAML of ours, else where the YAML points."""
    given = read_yaml(data.source).get("path")
    if data.source.parent == ROOT / "data" and isinstance(given, str) and not Path(given).is_absolute():
        return datasets_folder() / Path(given).name
    return data.root


def fetch(pieces: list[Piece], root: Path, names: Sequence[str] = ()) -> None:
    """Fetch and unpack, then move everything to `root` at once; files that are there already stay as they are.

    Until then all lies in a folder beside it, where an interrupted run goes on: whole archives are not fetched again.
    `names` are the folders of the classes, where arrays become pictures.
    """
    work = root.with_name(f"{root.name}.download")
    whole = work / "whole"
    for number, piece in enumerate(pieces):
        done = work / f"{number}.done"
        if done.is_file() and done.read_text(encoding="utf-8") == repr(piece):
            continue
        _one(piece, work / f"{number}.{piece.name}", work / "unpacking", whole)
        done.write_text(repr(piece), encoding="utf-8")
    for number, (kind, to) in enumerate(dict.fromkeys((piece.pictures, piece.to) for piece in pieces)):
        if kind:
            _draw(kind, whole / to, names, work / f"{number}.drawn")
    try:
        _merge(whole, root)
        shutil.rmtree(work)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror or error})") from error


def _draw(kind: str, folder: Path, names: Sequence[str], mark: Path) -> None:
    """Have pictures written in place of arrays, unless an interrupted run has done so and left `mark`."""
    if not mark.exists():
        arrays.write_pictures(kind, folder, names)
        mark.touch()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.unlink()


def _one(piece: Piece, file: Path, scratch: Path, whole: Path) -> None:
    """Fetch a file; add what is in it to `whole`."""
    fetch_file(piece.wanted, file)
    shutil.rmtree(scratch, ignore_errors=True)
    if is_archive(piece.name) and not piece.keep:
        try:
            unpack(file, scratch / piece.to, piece.strip)
        except UserError:
            shutil.rmtree(scratch, ignore_errors=True)
            file.unlink()  # else the next attempt would fail on the same bytes
            raise
    else:
        (scratch / piece.to).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, scratch / piece.to / piece.name)
    _merge(scratch, whole)
    file.unlink()


def _merge(source: Path, target: Path) -> None:
    """Move what `source` holds into `target`, by whole folders where these are new; existing files are kept."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(entry, place)
        elif not place.exists():
            entry.rename(place)
    shutil.rmtree(source)
