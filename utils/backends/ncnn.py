"""ncnn export with pnnx, and runner with the ncnn package: a folder with graph and weights for phones and boards."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import METADATA_KEY, parse_metadata
from utils.backends.exported_runner import (
    ExportedRunner,
    combine_runners,
    require_package,
    silence_terminal,
    warn_half_ignored,
)
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.backends.pt2 import trace_with_fixed_sizes
from utils.core.contracts import Runner
from utils.core.errors import UserError
from utils.core.files import write_text

_PARAM_FILE, _BIN_FILE, _METADATA_FILE = "model.ncnn.param", "model.ncnn.bin", f"{METADATA_KEY}.json"


@BACKENDS.register("ncnn")
class NcnnBackend(ExportBackend):
    """Writes and runs folders called *_ncnn_model."""

    title, suffixes, ending = "ncnn", ("_ncnn_model",), "_ncnn_model"
    packages = ("pnnx", "ncnn")
    capabilities = frozenset({"half"})
    tolerance_factor = 20.0  # Winograd convolutions round more

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert a TorchScript trace. With fp16 the weights are stored in half precision and computed in fp32."""
        require_package("pnnx", "ncnn")
        import pnnx

        fp32_job = replace(job, metadata=job.metadata.with_precision("fp32"))
        module = trace_with_fixed_sizes(fp32_job)
        with tempfile.TemporaryDirectory() as folder, silence_terminal(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            half = job.metadata.precision == "fp16"
            pnnx.export(module, str(Path(folder) / "model.pt"), inputs=(job.example(),), fp16=half, check_trace=False)
            files = [Path(folder) / name for name in (_PARAM_FILE, _BIN_FILE)]
            if not all(one.is_file() for one in files):
                raise UserError("pnnx cannot convert this network to ncnn")
            path.mkdir()
            for one in files:
                (path / one.name).write_bytes(one.read_bytes())
        write_text(path / _METADATA_FILE, job.metadata.to_json())

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open folders on the CPU, several as an ensemble."""
        warn_half_ignored(half, paths[0])
        return combine_runners([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    require_package("ncnn", f"{path}: running ncnn files")
    import ncnn

    files = [path / name for name in (_PARAM_FILE, _BIN_FILE, _METADATA_FILE)]
    if missing := [one.name for one in files if not one.is_file()]:
        raise UserError(f"{path}: {missing[0]} is missing; export it again with export.py --include ncnn")
    metadata = parse_metadata(files[2].read_text(encoding="utf-8"), path)
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(str(files[0])) or net.load_model(str(files[1])):
        raise UserError(f"{path}: ncnn cannot read this folder; export it again")
    names = [f"out{index}" for index in range(len(metadata.outputs))]

    def infer(images: Tensor) -> list[Tensor]:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(images[0].cpu().numpy())))
        outputs = []
        for name in names:
            status, value = extractor.extract(name)
            if status:
                raise UserError(f"{path}: ncnn failed to compute {name} (status {status})")
            outputs.append(torch.from_numpy(np.array(value))[None])
        return outputs

    return ExportedRunner(metadata, infer, path)
