"""torch.export: export and runner of .pt2 programs, and of AOTInductor packages compiled to machine code."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import METADATA_KEY, parse_metadata
from utils.backends.exported_runner import ExportedRunner, combine_runners, first_line, warn_half_ignored
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.core.contracts import Runner
from utils.core.errors import UserError

_DEVICE_KEY = "AOTI_DEVICE_KEY"  # entry of torch's metadata in AOTInductor packages


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and the log of torch's exporters below errors."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._inductor", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def export_program(job: ExportJob) -> Any:
    """Export a network with torch.export, with dynamic sizes if the job's metadata say so.

    Args:
        job: What to export.

    Returns:
        The `torch.export.ExportedProgram`.

    Raises:
        UserError: torch.export does not support the network.
    """
    metadata = job.metadata
    step = metadata.stride
    example = job.example(batch=2, image_hw=(4 * step, 6 * step)) if metadata.dynamic else job.example()
    shapes = None
    if metadata.dynamic:
        batch = torch.export.Dim("batch", min=1, max=1024)
        height, width = (step * torch.export.Dim(name, min=1, max=512) for name in ("rows", "columns"))
        shapes = ({0: batch, 1: height, 2: width} if metadata.colors else {0: batch, 2: height, 3: width},)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(job.module(), (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export's errors have no common base but Exception
        raise UserError(f"torch.export cannot export this network ({first_line(error)})") from error


def trace_with_fixed_sizes(job: ExportJob) -> Any:
    """Trace a network to TorchScript with all sizes as constants, for converters that fail on computed ones."""
    module = export_program(job).module()
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.alias.default:  # an identity that other converters do not know
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    with _quiet(), torch.no_grad():
        return torch.jit.trace(module, job.example(), strict=False, check_trace=False)


@BACKENDS.register("pt2")
class Pt2Backend(ExportBackend):
    """Writes and runs .pt2 files of torch.export."""

    title, suffixes, ending = "torch.export", (".pt2",), ".pt2"
    dynamic_by_default = True
    capabilities = frozenset({"dynamic", "half", "end_to_end", "preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Save the exported program with the metadata inside."""
        content = io.BytesIO()  # torch's file writer would hide the reason of a failed write
        with _quiet():
            torch.export.save(export_program(job), content, extra_files={METADATA_KEY: job.metadata.to_json()})
        path.write_bytes(content.getbuffer())

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open files, several as an ensemble."""
        warn_half_ignored(half, paths[0])
        return combine_runners([_open(path, device) for path in paths], augment)


def _open(path: Path, device: torch.device) -> ExportedRunner:
    extra = {METADATA_KEY: ""}
    try:
        with _quiet():
            program = torch.export.load(str(path), extra_files=extra)
    except Exception as error:  # damaged archives raise many unrelated classes
        raise UserError(f"{path}: not a torch.export file that torch {torch.__version__} can read") from error
    metadata = parse_metadata(extra[METADATA_KEY] or "{}", path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()

    def infer(images: Tensor) -> list[Tensor]:
        try:
            return list(module(images.to(device)))
        except AssertionError as error:  # a shape constraint that torch.export recorded
            raise UserError(f"{path}: does not accept images of shape {tuple(images.shape)} ({error})") from error

    return ExportedRunner(metadata, infer, path)


@BACKENDS.register("aoti")
class AotInductorBackend(ExportBackend):
    """Writes and runs .aoti.pt2 packages: machine code for the processor they were compiled on."""

    runs_on_cpu_only = True
    title, suffixes, ending = "AOTInductor", (".aoti.pt2",), ".aoti.pt2"
    capabilities = frozenset({"dynamic", "half", "end_to_end", "preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Compile the exported program with the C++ compiler of this machine."""
        from torch._inductor import aoti_compile_and_package

        program = export_program(job)
        configs = {"aot_inductor.metadata": {METADATA_KEY: job.metadata.to_json()}}
        try:
            with _quiet():
                aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
        except Exception as error:  # missing or failing compilers raise many unrelated classes
            reason = first_line(error)
            raise UserError(f"AOTInductor cannot compile this network ({reason}); it needs a C++ compiler") from error

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open packages, several as an ensemble. They contain machine code: open only those you trust."""
        warn_half_ignored(half, paths[0])
        return combine_runners([_open_compiled(path, device) for path in paths], augment)


def _compiled_for(path: Path) -> str:
    """Read the type of the device that a package was compiled for; empty if it does not say."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("_metadata.json"):
                    return str(json.loads(archive.read(name)).get(_DEVICE_KEY, ""))
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile):  # opening the package reports the fault
        return ""
    return ""


def _open_compiled(path: Path, device: torch.device) -> ExportedRunner:
    from torch._inductor import aoti_load_package

    compiled_for = _compiled_for(path)  # before its code is loaded, which may fail on another device
    if compiled_for not in ("", device.type):
        raise UserError(
            f"{path}: compiled for {compiled_for}, but the device is {device.type}; give --device "
            f"{'cpu' if compiled_for == 'cpu' else '0'}, or export it again"
        )
    try:
        with _quiet():
            model = aoti_load_package(str(path))
        text = model.get_metadata().get(METADATA_KEY, "{}")
    except Exception as error:  # damaged archives raise many unrelated classes
        raise UserError(f"{path}: not an AOTInductor package that torch {torch.__version__} can load") from error

    def infer(images: Tensor) -> list[Tensor]:
        return list(model(images.to(device)))

    return ExportedRunner(parse_metadata(text, path), infer, path)
