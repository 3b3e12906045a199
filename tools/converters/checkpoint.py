"""Weights from one file format to another: official or native .pt to native .pt or .safetensors."""

from __future__ import annotations

from pathlib import Path

from tools.converters.convert_settings import CheckpointSettings
from utils.core.errors import UserError
from utils.core.log import LOGGER

_ENDINGS = (".pt", ".safetensors")


def convert_checkpoint(settings: CheckpointSettings) -> Path:
    """Write the network of `source` to `out`, without the state of its training; return `out`."""
    source, out = settings.source, settings.out
    if not source.is_file():
        raise UserError(f"--weights {source}: no such file")
    if out.suffix not in _ENDINGS:
        raise UserError(f"--out {out}: the ending must be one of {', '.join(_ENDINGS)}")
    if out.exists() and out.resolve() == source.resolve():
        raise UserError(f"--out {out}: is the source, which is never changed")
    if out.exists() and not settings.exist_ok:
        raise UserError(f"{out}: is there; choose another --out or give --exist-ok")

    from models.checkpoint import load_checkpoint, save_checkpoint

    found = load_checkpoint(source)
    network = found.network
    parameters = sum(tensor.numel() for tensor in network.parameters())
    LOGGER.info(f"{source}: {found.source}, {found.task}, {len(found.names)} classes, {parameters} parameters")
    if settings.dry_run:
        LOGGER.info(f"would be written to {out}")
        return out
    save_checkpoint(out, network, found.meta, half=settings.half)
    LOGGER.info(f"{out}: {out.stat().st_size} bytes written")
    return out
