"""ExecuTorch export and runner: PyTorch's runtime for phones and embedded devices, with XNNPACK kernels."""

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
from utils.backends.export_metadata import METADATA_KEY, parse_metadata
from utils.backends.exported_runner import (
    ExportedRunner,
    combine_runners,
    first_line,
    require_package,
    warn_half_ignored,
)
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.backends.pt2 import export_program
from utils.core.contracts import Runner
from utils.core.errors import UserError


@BACKENDS.register("executorch")
class ExecuTorchBackend(ExportBackend):
    """Writes and runs .pte files on the CPU."""

    title, suffixes, ending = "ExecuTorch", (".pte",), ".pte"
    packages = ("executorch",)
    capabilities = frozenset({"end_to_end", "preprocess", "batch"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Lower the exported program; a constant method of the program returns the metadata as bytes."""
        require_package("executorch", "ExecuTorch")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        text = torch.frombuffer(bytearray(job.metadata.to_json().encode()), dtype=torch.uint8)
        program = export_program(job)
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                lowered = to_edge_transform_and_lower(
                    program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: text}
                )
                path.write_bytes(lowered.to_executorch().buffer)
        except Exception as error:  # unsupported operators raise many unrelated classes
            raise UserError(f"ExecuTorch cannot lower this network ({first_line(error)})") from error
        finally:
            logging.disable(level)

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open files on the CPU, several as an ensemble."""
        warn_half_ignored(half, paths[0])
        return combine_runners([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    require_package("executorch", f"{path}: running ExecuTorch files")
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(path)
        method = program.load_method("forward")
        text = bytes(program.load_method(METADATA_KEY).execute([])[0].numpy()).decode()
    except (RuntimeError, OSError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: ExecuTorch cannot read this file; export it again") from error

    def infer(program: Any, images: Tensor) -> list[Tensor]:
        return [tensor.clone() for tensor in method.execute([images.cpu()])]

    bound = partial(infer, program)  # keeps the program alive, whose memory the method uses
    return ExportedRunner(parse_metadata(text, path), bound, path)
