"""Conversion of checkpoints: official or native .pt to native .pt or .safetensors."""

from __future__ import annotations

from pathlib import Path

from tools.converters.convert_settings import CheckpointSettings
from utils.core.errors import UserError
from utils.core.log import LOGGER

_SUFFIXES = (".pt", ".safetensors")


def convert_checkpoint(settings: CheckpointSettings) -> Path:
    """Convert a checkpoint, without its training state.

    Args:
        settings: Source, destination and precision.

    Returns:
        Path of the file written, `settings.out`.

    Raises:
        UserError: The source cannot be read, or the destination exists or has an unknown suffix.
    """
    source, out = settings.source, settings.out
    if not source.is_file():
        raise UserError(f"--weights {source}: no such file")
    if out.suffix not in _SUFFIXES:
        raise UserError(f"--out {out}: expected the suffix {' or '.join(_SUFFIXES)}, got {out.suffix or 'none'}")
    if out.exists() and out.resolve() == source.resolve():
        raise UserError(f"--out {out}: is the source, which is never changed; choose another file")
    if out.exists() and not settings.exist_ok:
        raise UserError(f"--out {out}: exists already; choose another file or add --exist-ok")

    from models.checkpoint import load_checkpoint, save_checkpoint  # loads torch

    checkpoint = load_checkpoint(source)
    network = checkpoint.network
    parameters = sum(tensor.numel() for tensor in network.parameters())
    LOGGER.info(
        f"{source}: {checkpoint.source}, {checkpoint.task}, {len(checkpoint.names)} classes, {parameters} parameters"
    )
    if settings.dry_run:
        LOGGER.info(f"would be written to {out}")
        return out
    save_checkpoint(out, network, checkpoint.meta, half=settings.half)
    LOGGER.info(f"{out}: {out.stat().st_size} bytes written")
    return out
