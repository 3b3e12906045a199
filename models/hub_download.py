"""Download of weights from the Hugging Face Hub, `hf://owner/repository/file`, only with `--download`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from utils.core.errors import UserError
from utils.core.http_client import RemoteFile, download_file
from utils.core.log import LOGGER

SCHEME = "hf://"
FOLDER = Path("hf")  # of downloaded files, in the current folder
MAX_BYTES = 8 << 30
SUFFIXES = (".pt", ".safetensors", ".onnx", ".torchscript")  # of weights that are single files
_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")  # owner, repository, revision, and each folder of the file


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of the Hub."""

    owner: str
    repository: str
    revision: str
    file: str

    @property
    def url(self) -> str:
        """Address of the content; `HF_ENDPOINT` names a mirror, as for the Hub's own client."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.owner}/{self.repository}/resolve/{quote(self.revision, safe='')}/{quote(self.file)}"

    @property
    def path(self) -> Path:
        """Local path; revisions other than main have a folder of their own."""
        repository = self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"
        return FOLDER / self.owner / repository / PurePosixPath(self.file)


def parse_hub_file(text: str) -> HubFile:
    """Parse `hf://owner/repository/file` or `hf://owner/repository@revision/file`.

    Raises:
        UserError: It has another form, or the file is no weight file.
    """
    parts = text.removeprefix(SCHEME).split("/")
    expected = "expected hf://owner/repository/file, with @revision after the repository for another one than main"
    if len(parts) < 3:
        raise UserError(f"--weights {text}: {expected}")
    owner, (repository, at, revision), file = parts[0], parts[1].partition("@"), parts[2:]
    named = [owner, repository, *([revision] if at else []), *file]
    if not all(_PART.fullmatch(part) for part in named):
        raise UserError(f"--weights {text}: {expected}")
    if PurePosixPath(file[-1]).suffix not in SUFFIXES:
        raise UserError(f"--weights {text}: not a weight file; expected {', '.join(SUFFIXES)}")
    return HubFile(owner, repository, revision or "main", "/".join(file))


def resolve_hub_weights(text: str, download: bool) -> Path:
    """Find the local copy of a file of the Hub; with `download`, fetch it if it is missing.

    Args:
        text: `hf://owner/repository/file`.
        download: Whether the network may be used.

    Returns:
        Path of the file, below the folder `hf`.

    Raises:
        UserError: The address is malformed, or the file is neither here nor to be had.
    """
    remote = parse_hub_file(text)
    if remote.path.is_file():
        return remote.path
    if not download:
        raise UserError(f"{text}: not downloaded yet; --download fetches it to {remote.path}")
    LOGGER.info(f"downloading {remote.url} to {remote.path} (its repository states its licence)")
    download_file(RemoteFile(remote.url, min_bytes=1, max_bytes=MAX_BYTES), remote.path)
    return remote.path
