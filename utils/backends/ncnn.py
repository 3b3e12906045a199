"""ncnn: a folder with graph and weights for phones and small boards, made by pnnx, run by the ncnn package."""

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
from utils.backends.export_metadata import KEY, from_json
from utils.backends.exported_runner import ExportedRunner, joined, require, silent, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.backends.pt2 import traced_with_sizes
from utils.core.contracts import Runner
from utils.core.errors import UserError
from utils.core.files import write_text

_PARAM, _BIN, _ABOUT = "model.ncnn.param", "model.ncnn.bin", f"{KEY}.json"


@BACKENDS.register("ncnn")
class NcnnBackend:
    """Writes and runs folders called *_ncnn_model."""

    title, suffixes, ending = "ncnn", ("_ncnn_model",), "_ncnn_model"
    packages = ("pnnx", "ncnn")
    can = frozenset({"half"})
    slack = 20.0  # its convolutions are Winograd's, which round more

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert by way of TorchScript. FP16 keeps weights in half precision; the graph computes in fp32."""
        require("pnnx", "ncnn")
        import pnnx

        whole = replace(job, description=job.description.with_precision("fp32"))
        module = traced_with_sizes(whole)
        with tempfile.TemporaryDirectory() as folder, silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            half = job.description.precision == "fp16"
            pnnx.export(module, str(Path(folder) / "model.pt"), inputs=(job.example(),), fp16=half, check_trace=False)
            made = [Path(folder) / name for name in (_PARAM, _BIN)]
            if not all(one.is_file() for one in made):
                raise UserError("pnnx could not convert this network to ncnn")
            path.mkdir()
            for one in made:
                (path / one.name).write_bytes(one.read_bytes())
        write_text(path / _ABOUT, job.description.to_json())

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner on the CPU, several files as an ensemble, and what the first says about itself."""
        warn_half(half, paths[0])
        return joined([_open(path) for path in paths], augment)


def _open(path: Path) -> ExportedRunner:
    require("ncnn", f"{path}: running ncnn files")
    import ncnn

    files = [path / name for name in (_PARAM, _BIN, _ABOUT)]
    if missing := [one.name for one in files if not one.is_file()]:
        raise UserError(f"{path}: has no {missing[0]}; export it again with export.py --include ncnn")
    about = from_json(files[2].read_text(encoding="utf-8"), path)
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(str(files[0])) or net.load_model(str(files[1])):
        raise UserError(f"{path}: ncnn cannot read it")
    names = [f"out{index}" for index in range(len(about.outputs))]

    def call(images: Tensor) -> list[Tensor]:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(images[0].cpu().numpy())))
        found = []
        for name in names:
            status, value = extractor.extract(name)
            if status:
                raise UserError(f"{path}: ncnn failed at {name} with status {status}")
            found.append(torch.from_numpy(np.array(value))[None])
        return found

    return ExportedRunner(about, call, path)
