"""CoreML export and runner.

Files are written on any system, but run by macOS only. UNTESTED: no written file has been run; only the declared
inputs and outputs are checked.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import METADATA_KEY, parse_metadata
from utils.backends.exported_runner import (
    ExportedRunner,
    combine_runners,
    copy_to_tensors,
    first_line,
    require_package,
    silence_terminal,
    warn_half_ignored,
)
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.backends.pt2 import trace_with_fixed_sizes
from utils.core.contracts import Runner
from utils.core.errors import UserError


@BACKENDS.register("coreml")
class CoreMlBackend(ExportBackend):
    """Writes and runs .mlpackage (ML program) and .mlmodel (neural network) files."""

    title, suffixes, ending = "CoreML", (".mlpackage", ".mlmodel"), ".mlpackage"
    packages = ("coremltools",)
    capabilities = frozenset({"half", "mlmodel"})

    @staticmethod
    def unavailable_reason() -> str:
        """Explain why files cannot run here; empty on macOS."""
        return "" if sys.platform == "darwin" else "CoreML runs on macOS only"

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Convert a TorchScript trace, then check the inputs and outputs of the written file."""
        require_package("coremltools", "CoreML")
        with silence_terminal():  # it prints warnings on systems where it can only write
            import coremltools

        metadata, example = job.metadata, job.example()
        precision = coremltools.precision
        kind: dict[str, Any] = {"convert_to": "neuralnetwork"}
        if not job.mlmodel:
            half = metadata.precision == "fp16"
            kind = {"convert_to": "mlprogram", "compute_precision": precision.FLOAT16 if half else precision.FLOAT32}
        elif metadata.precision == "fp16":
            raise UserError("--half --mlmodel: half precision requires .mlpackage; leave --mlmodel out")
        with warnings.catch_warnings(), torch.no_grad(), silence_terminal():
            warnings.simplefilter("ignore")
            program = trace_with_fixed_sizes(job)
            try:
                model = coremltools.convert(
                    program,
                    inputs=[coremltools.TensorType(name="images", shape=tuple(example.shape))],
                    outputs=[coremltools.TensorType(name=name) for name in metadata.output_names],
                    skip_model_load=sys.platform != "darwin",
                    **kind,
                )
            except Exception as error:  # unsupported operators raise many unrelated classes
                raise UserError(f"coremltools cannot convert this network ({first_line(error)})") from error
        model.short_description = f"{next(iter(metadata.specs))} network, exported by Polyolo"
        model.user_defined_metadata.update({**metadata.to_yolov5(), METADATA_KEY: metadata.to_json()})
        model.save(str(path))
        _check_interface(coremltools.utils.load_spec(str(path)), job, path)

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open files on macOS; elsewhere raise UserError."""
        if reason := CoreMlBackend.unavailable_reason():
            raise UserError(f"{paths[0]}: {reason}; run the checkpoint or another format here")
        warn_half_ignored(half, paths[0])
        return combine_runners([_open(path) for path in paths], augment)


def _check_interface(spec: Any, job: ExportJob, path: Path) -> None:
    """Compare the inputs and outputs that the file declares with those of the job."""
    inputs = {one.name: tuple(one.type.multiArrayType.shape) for one in spec.description.input}
    outputs = {one.name for one in spec.description.output}
    expected = {"images": tuple(job.example().shape)}
    if inputs != expected or outputs != set(job.metadata.output_names):
        raise UserError(f"{path}: coremltools wrote inputs {inputs} and outputs {sorted(outputs)}, expected {expected}")


def _open(path: Path) -> ExportedRunner:
    require_package("coremltools", f"{path}: running CoreML files")
    import coremltools

    model = coremltools.models.MLModel(str(path))
    metadata = parse_metadata(model.user_defined_metadata.get(METADATA_KEY, "{}"), path)

    def infer(images: Tensor) -> list[Tensor]:
        outputs = model.predict({"images": images.cpu().numpy()})
        return copy_to_tensors([outputs[name] for name in metadata.output_names])

    return ExportedRunner(metadata, infer, path)
