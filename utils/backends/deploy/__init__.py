"""Files that serve exported networks elsewhere, one target per module (`--deploy` of export.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from utils.backends.deploy.release import Release
from utils.core.registry import Registry


class Deployment(Protocol):
    """Target of a deployment: a class with static methods in the registry `DEPLOYMENTS`, used without an instance."""

    title: str  # display name
    formats: tuple[str, ...]  # export formats that it serves, in order of preference; empty: any
    ending: str  # of the folder that it writes

    @staticmethod
    def write(release: Release, folder: Path) -> None:
        """Write the files into `folder`, which exists and is empty.

        Raises:
            UserError: The target cannot serve this network.
        """


DEPLOYMENTS: Registry[type[Deployment]] = Registry("deployment", "utils.backends.deploy")
