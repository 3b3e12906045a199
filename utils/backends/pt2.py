"""torch.export: the graph as `.pt2`, run by torch; and the same compiled to machine code (AOTInductor)."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import KEY, from_json
from utils.backends.exported_runner import ExportedRunner, joined, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.core.contracts import Runner
from utils.core.errors import UserError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def exported_program(job: ExportJob) -> Any:
    """Return the job's network as torch.export sees it, with open sizes if asked."""
    about = job.description
    step = about.stride
    example = job.example(batch=2, image_hw=(4 * step, 6 * step)) if about.dynamic else job.example()
    shapes = None
    if about.dynamic:
        batch = torch.export.Dim("batch", min=1, max=1024)
        height, width = (step * torch.export.Dim(name, min=1, max=512) for name in ("rows", "columns"))
        shapes = ({0: batch, 1: height, 2: width} if about.colors else {0: batch, 2: height, 3: width},)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(job.module(), (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises classes of its own that share no base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"torch.export cannot write this network ({reason})") from error


def traced_with_sizes(job: ExportJob) -> Any:
    """Return a TorchScript trace in which every size is a number, for converters that stumble over computed ones."""
    module = exported_program(job).module()
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.alias.default:  # torch's own way of saying "the same"; unknown to others
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    with _quiet(), torch.no_grad():
        return torch.jit.trace(module, job.example(), strict=False, check_trace=False)


@BACKENDS.register("pt2")
class Pt2Backend:
    """Writes and runs .pt2 files of torch.export."""

    title, suffixes, ending = "torch.export", (".pt2",), ".pt2"
    packages: tuple[str, ...] = ()
    open_sizes = True  # unless a size is named
    can = frozenset({"dynamic", "half", "preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Save the exported program with its description inside."""
        with _quiet():
            torch.export.save(exported_program(job), str(path), extra_files={KEY: job.description.to_json()})

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner for the files, several as an ensemble, and what the first says about itself."""
        warn_half(half, paths[0])
        return joined([_open(path, device) for path in paths], augment)


def _open(path: Path, device: torch.device) -> ExportedRunner:
    extra = {KEY: ""}
    try:
        with _quiet():
            program = torch.export.load(str(path), extra_files=extra)
    except Exception as error:  # a damaged archive shows in many ways
        raise UserError(f"{path}: no .pt2 file of torch.export that this torch can read") from error
    about = from_json(extra[KEY] or "{}", path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()

    def call(images: Tensor) -> list[Tensor]:
        try:
            return list(module(images.to(device)))
        except AssertionError as error:  # one of the conditions that export found in the network
            raise UserError(f"{path}: does not take images of {tuple(images.shape)} ({error})") from error

    return ExportedRunner(about, call, path)


@BACKENDS.register("aoti")
class AotInductorBackend:
    """Writes and runs .aoti.pt2 packages: machine code for the processor they were made on."""

    title, suffixes, ending = "AOTInductor", (".aoti.pt2",), ".aoti.pt2"
    packages: tuple[str, ...] = ()
    can = frozenset({"dynamic", "half", "preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Compile with the C++ compiler of this machine."""
        from torch._inductor import aoti_compile_and_package

        program = exported_program(job)
        configs = {"aot_inductor.metadata": {KEY: job.description.to_json()}}
        try:
            with _quiet():
                aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
        except Exception as error:  # no compiler, or one that fails: torch has many classes for it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"AOTInductor cannot compile this network here ({reason}); it needs a C++ compiler"
            ) from error

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner for the packages. They hold machine code: open only those you trust."""
        warn_half(half, paths[0])
        return joined([_open_compiled(path, device) for path in paths], augment)


def _open_compiled(path: Path, device: torch.device) -> ExportedRunner:
    from torch._inductor import aoti_load_package

    try:
        with _quiet():
            model = aoti_load_package(str(path))
        text = model.get_metadata().get(KEY, "{}")
    except Exception as error:  # a damaged archive shows in many ways
        raise UserError(f"{path}: no AOTInductor package that this torch can load") from error

    def call(images: Tensor) -> list[Tensor]:
        return list(model(images.to(device)))

    return ExportedRunner(from_json(text, path), call, path)
