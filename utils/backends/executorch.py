"""ExecuTorch: PyTorch's own runtime for phones and small devices, with XNNPACK's convolutions."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import KEY, from_json
from utils.backends.exported_runner import ExportedRunner, joined, require, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.backends.pt2 import exported_program
from utils.core.contracts import Runner
from utils.core.errors import UserError


@BACKENDS.register("executorch")
class ExecuTorchBackend:
    """Writes and runs .pte files."""

    title, suffixes, ending = "ExecuTorch", (".pte",), ".pte"
    packages = ("executorch",)
    can = frozenset({"preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Lower the exported program; the description is a method of the program that returns its bytes."""
        require("executorch", "ExecuTorch")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        text = torch.frombuffer(bytearray(job.description.to_json().encode()), dtype=torch.uint8)
        program = exported_program(job)
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                lowered = to_edge_transform_and_lower(
                    program, partitioner=[XnnpackPartitioner()], constant_methods={KEY: text}
                )
                path.write_bytes(lowered.to_executorch().buffer)
        except Exception as error:  # it fails in many ways with operators it does not know
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"ExecuTorch cannot lower this network ({reason})") from error
        finally:
            logging.disable(level)

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner on the CPU, several files as an ensemble, and what the first says about itself."""
        warn_half(half, paths[0])
        return joined([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    require("executorch", f"{path}: running ExecuTorch files")
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(path)
        method = program.load_method("forward")
        text = bytes(program.load_method(KEY).execute([])[0].numpy()).decode()
    except (RuntimeError, OSError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: ExecuTorch cannot read it") from error

    def call(keeper: Any, images: Tensor) -> list[Tensor]:
        return [tensor.clone() for tensor in method.execute([images.cpu()])]

    call_with_program = partial(call, program)  # the method uses the program's memory
    return ExportedRunner(from_json(text, path), call_with_program, path)
