"""Output folder of conversions: new ones appear atomically, existing ones are updated file by file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.datasets.file_access import read_binary, split_member


class OutputFolder:
    """Output folder that appears complete at the end of a `with` block, or not at all after an exception.

    Args:
        out: The folder.
        exist_ok: Allow an existing folder and replace files in it. Files of the source are never replaced.
        dry_run: Check paths and count files without writing.

    Attributes:
        written: Number of files written so far.
        protected: Real paths of the source's files.
    """

    def __init__(self, out: Path, exist_ok: bool = False, dry_run: bool = False) -> None:
        self.out, self.exist_ok, self.dry_run = Path(os.path.normpath(out.absolute())), exist_ok, dry_run
        self.written = 0
        self.protected: set[str] = set()
        self._taken: set[str] = set()
        self._root = self.out

    def __enter__(self) -> OutputFolder:
        try:
            used = self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir()))
            if used and not self.out.is_dir():
                raise UserError(f"--out {self.out}: expected a folder, got a file")
            if used and not self.exist_ok:
                raise UserError(f"--out {self.out}: exists and is not empty; choose another folder or add --exist-ok")
            if not used and not self.dry_run:
                self._root = self.out.with_name(f".{self.out.name}.{os.getpid()}.part")
                self._root.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written ({error.strerror or error})") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._root == self.out:
            return
        if kind is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            return
        try:
            if self.out.exists():  # empty
                self.out.rmdir()
            self._root.rename(self.out)
        except OSError as error:
            shutil.rmtree(self._root, ignore_errors=True)
            raise UserError(f"{self.out}: cannot be written ({error.strerror or error})") from error

    def unused(self, candidates: list[str]) -> str:
        """Reserve the first unused name among `candidates`, or the last one with a number appended."""
        names = [*candidates, *(f"{candidates[-1]}_{number}" for number in range(2, 10_000))]
        name = next((name for name in names if name.casefold() not in self._taken), None)
        if name is None:
            raise UserError(f"{self.out}: too many files with the name {candidates[0]!r}")
        self._taken.add(name.casefold())
        return name

    def path(self, below: str) -> Path:
        """Resolve where a file is written; raises UserError for paths outside of the folder and for source files."""
        path = Path(os.path.normpath(self.out / below))
        if not path.is_relative_to(self.out):
            raise UserError(f"{below}: would be written outside of {self.out}")
        if str(path) in self.protected or (path.exists() and str(path.resolve()) in self.protected):
            raise UserError(f"{path}: is a file of the source, which is never changed; choose another --out")
        return self._root / path.relative_to(self.out)

    def write(self, below: str, content: bytes | str) -> None:
        """Write a file at a path below the folder."""
        path = self.path(below)
        self.written += 1
        if self.dry_run:
            return
        data = content.encode() if isinstance(content, str) else content
        if self._root == self.out:
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error

    def add_image(self, source: Path, below: str, how: str) -> None:
        """Add an image.

        Args:
            source: The image.
            below: Path below the folder.
            how: `copy`, `link` for a symbolic link, or `none`.
        """
        path = self.path(below)
        if how == "none":
            return
        self.written += 1
        if self.dry_run:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{os.getpid()}{path.suffix}")
            temporary.unlink(missing_ok=True)
            if split_member(source) is not None:  # a member of a shard cannot be linked
                temporary.write_bytes(read_binary(source))
            elif how == "link":
                temporary.symlink_to(source.absolute())
            else:
                shutil.copyfile(source, temporary)
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
