"""TorchScript: a recorded graph that torch runs without this project, from Python or C++."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import KEY, Description, from_json
from utils.backends.exported_runner import ExportedRunner, described, joined, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.core.contracts import Runner
from utils.core.errors import UserError

_CONFIG = "config.txt"  # where YOLOv5 puts shape, stride and names


@BACKENDS.register("torchscript")
class TorchScriptBackend:
    """Writes and runs .torchscript files, YOLOv5's included."""

    title, suffixes, ending = "TorchScript", (".torchscript", ".torchscript.pt", ".ptl"), ".torchscript"
    packages: tuple[str, ...] = ()
    open_sizes = True  # unless a size is named
    can = frozenset({"dynamic", "half", "preprocess", "optimize"})

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Trace the network; sizes stay open, `dynamic` only records that they are meant to be used so."""
        about, module, example = job.description, job.module(), job.example()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer's remarks about shapes; parity is checked afterwards
            traced = torch.jit.trace(module, example, strict=False)
            config = {"shape": list(example.shape), "stride": about.stride, "names": dict(enumerate(about.names))}
            extra = {_CONFIG: json.dumps(config), KEY: about.to_json()}
            if job.optimize:
                from torch.utils.mobile_optimizer import optimize_for_mobile

                optimize_for_mobile(traced)._save_for_lite_interpreter(str(path), _extra_files=extra)
            else:
                torch.jit.freeze(traced).save(str(path), _extra_files=extra)

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner for the files, several as an ensemble, and what the first says about itself."""
        warn_half(half, paths[0])
        return joined([_open(path, device) for path in paths], augment)


def _open(path: Path, device: torch.device) -> ExportedRunner:
    extra: dict[str, Any] = {KEY: "", _CONFIG: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path}: no TorchScript file that this torch can read") from error
    module.eval()

    def call(images: Tensor) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = module(images.to(device))
        return _tensors(found)

    about = from_json(_text(extra[KEY]), path) if extra[KEY] else _foreign(_text(extra[_CONFIG]), call, path)
    return ExportedRunner(about, call, path)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _tensors(found: Any) -> list[Tensor]:
    """Return the tensors of an output; YOLOv5's carry raw maps in lists, which nobody here needs."""
    return [found] if isinstance(found, Tensor) else [one for one in found if isinstance(one, Tensor)]


def _foreign(text: str, call: Any, path: Path) -> Description:
    """Return the description of a file that YOLOv5 wrote, from its config and one run on an empty image."""
    try:
        config = json.loads(text)
        shape = tuple(int(side) for side in config["shape"])
        entries = {"stride": str(config["stride"]), "names": str({int(k): v for k, v in dict(config["names"]).items()})}
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: says neither its classes nor its stride; export it again with export.py") from error
    with torch.inference_mode():
        return described(entries, shape, call, path)
