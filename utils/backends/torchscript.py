"""TorchScript export and runner: a traced graph that torch runs without this project, from Python or C++."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import METADATA_KEY, ExportMetadata, parse_metadata
from utils.backends.exported_runner import (
    ExportedRunner,
    InferFunction,
    combine_runners,
    resolve_metadata,
    warn_half_ignored,
)
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.core.contracts import Runner
from utils.core.errors import UserError

_CONFIG_FILE = "config.txt"  # extra file in which YOLOv5 stores shape, stride and names


@BACKENDS.register("torchscript")
class TorchScriptBackend(ExportBackend):
    """Writes and runs .torchscript files, also those that YOLOv5 exported."""

    title, suffixes, ending = "TorchScript", (".torchscript", ".torchscript.pt", ".ptl"), ".torchscript"
    dynamic_by_default = True
    capabilities = frozenset({"dynamic", "half", "end_to_end", "preprocess", "optimize"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Trace the network. Traces accept any size; `dynamic` only records the intended use."""
        metadata, module, example = job.metadata, job.module(), job.example()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer warns about shapes; export.py checks the outputs afterwards
            traced = torch.jit.trace(module, example, strict=False)
            config = {"shape": list(example.shape), "stride": metadata.stride, "names": dict(enumerate(metadata.names))}
            extra = {_CONFIG_FILE: json.dumps(config), METADATA_KEY: metadata.to_json()}
            if job.optimize:
                from torch.utils.mobile_optimizer import optimize_for_mobile

                content = optimize_for_mobile(traced)._save_to_buffer_for_lite_interpreter(_extra_files=extra)
            else:
                content = torch.jit.freeze(traced).save_to_buffer(_extra_files=extra)
        path.write_bytes(content)  # torch's file writer ends the process when the disk is full

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open files, several as an ensemble."""
        warn_half_ignored(half, paths[0])
        return combine_runners([_open(path, device) for path in paths], augment)


def _open(path: Path, device: torch.device) -> ExportedRunner:
    extra: dict[str, Any] = {METADATA_KEY: "", _CONFIG_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path}: not a TorchScript file that torch {torch.__version__} can read") from error
    module.eval()

    def infer(images: Tensor) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = module(images.to(device))
        if isinstance(outputs, Tensor):
            return [outputs]
        return [one for one in outputs if isinstance(one, Tensor)]  # YOLOv5's files also return lists of raw maps

    if extra[METADATA_KEY]:
        metadata = parse_metadata(_to_text(extra[METADATA_KEY]), path)
    else:
        metadata = _yolov5_metadata(_to_text(extra[_CONFIG_FILE]), infer, path)
    return ExportedRunner(metadata, infer, path)


def _to_text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _yolov5_metadata(config_text: str, infer: InferFunction, path: Path) -> ExportMetadata:
    """Infer the metadata of a file that YOLOv5 exported from its config and a trial run."""
    try:
        config = json.loads(config_text)
        shape = tuple(int(side) for side in config["shape"])
        entries = {"stride": str(config["stride"]), "names": str({int(k): v for k, v in dict(config["names"]).items()})}
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: has no class names and stride; export it again with export.py") from error
    with torch.inference_mode():
        return resolve_metadata(entries, shape, infer, path)
