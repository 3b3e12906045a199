"""Build backend (PEP 517): setuptools, run on the arrangement of `package_layout` instead of the clone itself."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from setuptools import build_meta

from wheelbuild.package_layout import stage_package

ConfigSettings = Mapping[str, "str | list[str] | None"]

build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
get_requires_for_build_wheel = build_meta.get_requires_for_build_wheel
get_requires_for_build_editable = build_meta.get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str, config_settings: ConfigSettings | None = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel whose only top-level package is `polyolo`; return its file name."""
    target = str(Path(wheel_directory).resolve())
    with _staged():
        name: str = build_meta.build_wheel(target, config_settings)
    return name


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: ConfigSettings | None = None) -> str:
    """Write the metadata of the wheel; return the name of its folder."""
    target = str(Path(metadata_directory).resolve())
    with _staged():
        name: str = build_meta.prepare_metadata_for_build_wheel(target, config_settings)
    return name


def build_editable(
    wheel_directory: str, config_settings: ConfigSettings | None = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel that puts the clone itself on the import path, with `models`, `utils` and `tools` at the top."""
    name: str = build_meta.build_editable(wheel_directory, {**(config_settings or {}), "editable_mode": "compat"})
    return name


@contextlib.contextmanager
def _staged() -> Iterator[None]:
    """Arrange the package in a temporary folder, and make that the current one."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        stage_package(root, Path(folder))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(root)
