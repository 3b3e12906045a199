"""`--deploy` of export.py: folders that serve exported files elsewhere."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.errors import UserError
from utils.core.log import LOGGER

if TYPE_CHECKING:  # modules that load torch are imported after parsing, so that --help is fast
    from utils.backends.deploy import Deployment
    from utils.backends.deploy.release import Release


def select_deployments(names: Sequence[str], formats: Sequence[str]) -> dict[str, type[Deployment]]:
    """Select the targets of --deploy.

    Args:
        names: Values of the option.
        formats: Export formats of --include.

    Returns:
        Deployments by name.

    Raises:
        UserError: A target is unknown, or serves none of the formats.
    """
    if not names:
        return {}
    from utils.backends.deploy import DEPLOYMENTS

    selected = {name: DEPLOYMENTS.get(name, "--deploy") for name in names}
    for name, deployment in selected.items():
        if deployment.formats and not set(deployment.formats) & set(formats):
            needed = " or ".join(deployment.formats)
            raise UserError(f"--deploy {name}: {deployment.title} serves {needed}; add it to --include")
    return selected


def deploy(deployments: Mapping[str, type[Deployment]], release: Release, folder: Path) -> list[Path]:
    """Write the folders of deployments.

    Args:
        deployments: By name; those whose formats could not be exported are skipped with a warning.
        release: The exported files.
        folder: Parent of the folders; older ones of the same name are replaced.

    Returns:
        The folders.
    """
    written = []
    for name, deployment in deployments.items():
        if not release.files or (deployment.formats and not set(deployment.formats) & set(release.files)):
            LOGGER.warning(f"--deploy {name}: skipped, since no file for it was exported")
            continue
        final = folder / f"{release.stem}{deployment.ending}"
        temporary = Path(tempfile.mkdtemp(prefix=f".{release.stem[:40]}.", dir=folder))
        try:
            deployment.write(release, temporary)
            if final.is_dir():
                shutil.rmtree(final)
            temporary.chmod(0o755)  # mkdtemp's folders are private; a server runs as another user
            temporary.replace(final)
        except OSError as error:
            raise UserError(f"{final}: cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        LOGGER.info(f"{deployment.title}: {final}, {size_bytes(final) / 1e6:.1f} MB")
        written.append(final)
    return written


def size_bytes(path: Path) -> int:
    """Measure the size of a file, or of all files in a folder."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else path.stat().st_size
