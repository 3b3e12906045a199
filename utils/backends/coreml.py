"""CoreML: written anywhere, run by macOS."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import KEY, from_json
from utils.backends.exported_runner import ExportedRunner, from_arrays, joined, require, silent, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.backends.pt2 import traced_with_sizes
from utils.core.contracts import Runner
from utils.core.errors import UserError


@BACKENDS.register("coreml")
class CoreMlBackend:
    """Writes .mlpackage (ML program) or .mlmodel (neural network) files."""

    title, suffixes, ending = "CoreML", (".mlpackage", ".mlmodel"), ".mlpackage"
    packages = ("coremltools",)
    can = frozenset({"half", "mlmodel"})

    @staticmethod
    def cannot_run() -> str:
        """Return why files cannot be run here, empty if they can."""
        return "" if sys.platform == "darwin" else "CoreML runs on macOS only"

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert a trace and check the inputs and outputs of what came out."""
        require("coremltools", "CoreML")
        with silent():  # it complains on systems where it can only write
            import coremltools

        about, example = job.description, job.example()
        precision = coremltools.precision
        kind: dict[str, Any] = {"convert_to": "neuralnetwork"}
        if not job.mlmodel:
            half = about.precision == "fp16"
            kind = {"convert_to": "mlprogram", "compute_precision": precision.FLOAT16 if half else precision.FLOAT32}
        elif about.precision == "fp16":
            raise UserError("--half --mlmodel: half precision is written as .mlpackage; leave --mlmodel out")
        with warnings.catch_warnings(), torch.no_grad(), silent():
            warnings.simplefilter("ignore")
            program = traced_with_sizes(job)
            try:
                model = coremltools.convert(
                    program,
                    inputs=[coremltools.TensorType(name="images", shape=tuple(example.shape))],
                    outputs=[coremltools.TensorType(name=name) for name in about.output_names],
                    skip_model_load=sys.platform != "darwin",
                    **kind,
                )
            except Exception as error:  # it fails in many ways with operators it does not know
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                raise UserError(f"coremltools cannot convert this network ({reason})") from error
        model.short_description = f"{next(iter(about.specs))} network, exported by Polyolo"
        model.user_defined_metadata.update({**about.as_yolov5(), KEY: about.to_json()})
        model.save(str(path))
        _check(coremltools.utils.load_spec(str(path)), job, path)

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner for the files; not on macOS UserError."""
        if reason := CoreMlBackend.cannot_run():
            raise UserError(f"{paths[0]}: {reason}; run the checkpoint or another format here")
        warn_half(half, paths[0])
        return joined([_open(path) for path in paths], augment)


def _check(spec: Any, job: ExportJob, path: Path) -> None:
    """Compare what the file says about itself with what was to be written."""
    inputs = {one.name: tuple(one.type.multiArrayType.shape) for one in spec.description.input}
    outputs = {one.name for one in spec.description.output}
    wanted = {"images": tuple(job.example().shape)}
    if inputs != wanted or outputs != set(job.description.output_names):
        raise UserError(f"{path}: coremltools wrote inputs {inputs} and outputs {sorted(outputs)}, wanted {wanted}")


def _open(path: Path) -> ExportedRunner:
    require("coremltools", f"{path}: running CoreML files")
    import coremltools

    model = coremltools.models.MLModel(str(path))
    about = from_json(model.user_defined_metadata.get(KEY, "{}"), path)

    def call(images: Tensor) -> list[Tensor]:
        found = model.predict({"images": images.cpu().numpy()})
        return from_arrays([found[name] for name in about.output_names])

    return ExportedRunner(about, call, path)
