"""Export checkpoints: write each format, compare the file with PyTorch, and move it into place."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from utils.core.errors import UserError, did_you_mean
from utils.core.log import LOGGER
from utils.programs.deployment import deploy, select_deployments, size_bytes
from utils.programs.export_settings import ExportSettings
from utils.programs.next_commands import prediction_command, validation_command

if TYPE_CHECKING:  # modules that load torch are imported after parsing, so that --help is fast
    from models.checkpoint import Checkpoint
    from models.network import Network
    from utils.backends.deploy.release import Release
    from utils.backends.flat_outputs import ExportBackend, ExportJob
    from utils.programs.export_certificate import Certificate, Certifier

UNSUPPORTED_FORMATS = {  # formats of YOLOv5's export.py that are not written
    "saved_model": "TensorFlow SavedModel",
    "pb": "TensorFlow GraphDef",
    "edgetpu": "Edge TPU",
    "tfjs": "TensorFlow.js",
    "paddle": "PaddlePaddle",
}
REQUIRED_CAPABILITIES = {  # option -> capability that every format must have, since the option changes the outputs
    "half": "half",
    "int8": "int8",
    "nms": "nms",
    "end_to_end": "end_to_end",
    "dynamic": "dynamic",
    "with_preprocess": "preprocess",
}
OPTIONAL_CAPABILITIES = {  # option -> capability that one format must have; others ignore the option
    "optimize": "optimize",
    "simplify": "simplify",
    "opset": "opset",
    "per_tensor": "per_tensor",
    "cache": "timing_cache",
    "mlmodel": "mlmodel",
    "verbose": "verbose",
}
MAX_INT8_ATTEMPTS = 3  # each leaves one more layer per output in floating point


def export_checkpoints(settings: ExportSettings, stop_at_error: bool = False) -> list[Path]:
    """Export checkpoints to the formats of the settings.

    Args:
        settings: Options of export.py.
        stop_at_error: Raise the first error; otherwise the remaining formats are written before an error is raised.

    Returns:
        The exported files, and the folders of `--deploy`.

    Raises:
        UserError: A format could not be written, or its outputs differ from PyTorch.
    """
    from models.checkpoint import load_checkpoint
    from utils.backends.open_weights import find_weights
    from utils.core.device import select_device
    from utils.programs.export_certificate import Certifier

    backends = _select_backends(settings)
    deployments = select_deployments(settings.deploy, tuple(backends))
    device = select_device(settings.device)
    written: list[Path] = []
    runnable: list[Path] = []  # files for --weights
    failures: list[str] = []
    for path in find_weights(settings.weights, settings.download):
        checkpoint = load_checkpoint(path)
        source = _prepare(checkpoint, path, settings)
        trained_on = str(checkpoint.meta.get("data") or "")
        certifier = Certifier(source.reference, settings, trained_on, device)
        exported: dict[str, Path] = {}
        for name, backend in backends.items():
            try:
                exported[name] = _export(name, backend, source, certifier, settings)
                runnable.append(exported[name])
            except UserError as error:
                if stop_at_error:
                    raise
                LOGGER.error(f"{name}: {error}")
                failures.append(name)
        jobs = {name: _with_sizes(source.job, settings, backends[name]) for name in exported}
        written += [*exported.values(), *deploy(deployments, source.release(path, exported, jobs), source.folder)]
    if runnable and not stop_at_error:
        predict, validate = (make(source.task, runnable[-1]) for make in (prediction_command, validation_command))
        LOGGER.info(f"usage: {predict}   {validate}")
        LOGGER.info(f"over HTTP: python serve.py --weights {shlex.quote(str(runnable[-1]))}")
    if failures:
        raise UserError(f"--include: {', '.join(failures)} not exported; the reasons are above")
    return written


def export_backends() -> dict[str, type[ExportBackend]]:
    """Find the backends that can write files, by format name."""
    from utils.backends import BACKENDS

    backends = {name: BACKENDS.get(name) for name in BACKENDS.names()}
    return {name: cast("type[ExportBackend]", one) for name, one in backends.items() if hasattr(one, "write")}


def parse_formats(include: Sequence[str]) -> list[str]:
    """Parse the values of --include, which may also be separated by commas.

    Args:
        include: Names of formats.

    Returns:
        Each name once.

    Raises:
        UserError: A format is unknown or not supported.
    """
    known = export_backends()
    names = [part.strip().lower() for text in include for part in text.split(",") if part.strip()]
    for name in names:
        if name in UNSUPPORTED_FORMATS:
            raise UserError(f"--include {name}: {UNSUPPORTED_FORMATS[name]} is not supported; see docs/export.md")
        if name not in known:
            raise UserError(f"--include {name}: unknown format{did_you_mean(name, known) or '; see docs/export.md'}")
    return list(dict.fromkeys(names))


def _select_backends(settings: ExportSettings) -> dict[str, type[ExportBackend]]:
    """Select the backends of --include; raise UserError for options that none of them supports."""
    names = parse_formats(settings.include)
    known = export_backends()
    backends = {name: known[name] for name in names}
    capabilities = set().union(*(backend.capabilities for backend in backends.values()))
    for option, capability in OPTIONAL_CAPABILITIES.items():
        if getattr(settings, option) and capability not in capabilities:
            raise UserError(f"--{option.replace('_', '-')}: not supported by {', '.join(names)}; leave it out")
    return backends


@dataclass(frozen=True)
class _Source:
    """A checkpoint to export: a job without its format, and where the files go."""

    reference: Network  # whose outputs the files must reproduce
    task: str  # name of its first head
    job: ExportJob
    folder: Path
    stem: str

    def release(self, checkpoint: Path, files: Mapping[str, Path], jobs: Mapping[str, ExportJob]) -> Release:
        """Describe exported files for deployments."""
        from utils.backends.deploy.release import Release

        metadata = {name: job.metadata for name, job in jobs.items()}
        return Release(self.stem, self.task, checkpoint, files, metadata, self.job.training)


def _prepare(checkpoint: Checkpoint, path: Path, settings: ExportSettings) -> _Source:
    import torch

    from models.fuse import fuse, replace_focus
    from utils.backends.export_metadata import ExportMetadata, NmsSettings
    from utils.backends.flat_outputs import ExportJob, decoded_output_names
    from utils.core.version import VERSION

    network = fuse(checkpoint.network).eval().requires_grad_(False)
    if settings.end_to_end:
        if settings.nms or settings.int8:
            raise UserError(f"--end-to-end and --{'nms' if settings.nms else 'int8'}: exclude each other")
        network.use_end_to_end()
    boxes = any(spec.strides for spec in network.specs.values())
    if settings.nms and not boxes:
        raise UserError(f"{path}: --nms requires a network with boxes; its heads are {', '.join(network.specs)}")
    nms = NmsSettings(
        settings.conf_thres, settings.iou_thres, settings.agnostic_nms, settings.topk_per_class, settings.topk_all
    )
    metadata = ExportMetadata(
        specs=network.specs,
        names=network.names,
        stride=network.stride,
        image_hw=_input_size(settings.imgsz, checkpoint),
        outputs=decoded_output_names(network),
        batch=max(settings.batch_size, 1),
        colors=settings.with_preprocess,
        nms=nms if settings.nms else None,
        precision=settings.precision,
        versions={"polyolo": VERSION, "torch": str(torch.__version__)},
        meta={key: str(checkpoint.meta[key]) for key in ("data",) if checkpoint.meta.get(key)},
    )
    job = ExportJob(
        network=replace_focus(network),
        metadata=metadata,
        opset=settings.opset,
        simplify=settings.simplify,
        optimize=settings.optimize,
        per_tensor=settings.per_tensor,
        mlmodel=settings.mlmodel,
        workspace_gb=settings.workspace,
        timing_cache=settings.cache,
        verbose=settings.verbose,
        trained=checkpoint.network,
        training=checkpoint.meta,
    )
    folder = Path(settings.output) if settings.output else path.parent
    return _Source(network, next(iter(network.specs)), job, folder, path.stem + ("_int8" if settings.int8 else ""))


def _input_size(sizes: Sequence[int], checkpoint: Checkpoint) -> tuple[int, int]:
    """Choose height and width of the input: --imgsz rounded up to the stride, else the size of the training."""
    from utils.core.train_settings import MAX_IMAGE_PX

    network = checkpoint.network
    if fixed := getattr(network, "fixed_hw", None):
        return int(fixed[0]), int(fixed[1])
    default_px = max(spec.usual_px for spec in network.specs.values())
    given = sizes or [int(checkpoint.meta.get("imgsz") or default_px)]
    if len(given) > 2 or min(given) < 1 or max(given) > MAX_IMAGE_PX:
        text = " ".join(map(str, given))
        raise UserError(f"--imgsz expects one size, or height and width, between 1 and {MAX_IMAGE_PX}, got {text}")
    stride = network.stride
    height, width = (-(-side // stride) * stride for side in (given[0], given[-1]))
    if (height, width) != (given[0], given[-1]):
        LOGGER.warning(f"--imgsz {given[0]} {given[-1]}: not multiples of the stride {stride}; using {height} {width}")
    return height, width


def _export(
    name: str, backend: type[ExportBackend], source: _Source, certifier: Certifier, settings: ExportSettings
) -> Path:
    """Write one format into a temporary folder, certify it, and move it into place."""
    dynamic = _is_dynamic(settings, backend)
    _check_backend(backend, settings, dynamic)
    folder = source.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{source.stem[:40]}.", dir=folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose a folder with --output") from error
    try:
        ending = ".mlmodel" if name == "coreml" and settings.mlmodel else backend.ending
        path = temporary / f"{source.stem}{ending}"
        start = time.perf_counter()
        job = _with_sizes(source.job, settings, backend)
        certificate = _write_certified(name, backend, job, certifier, path)
        seconds = time.perf_counter() - start
        certificate_path = temporary / f"{path.name}.json"
        certificate.save(certificate_path)
        final = folder / path.name
        _move(path, final)
        _move(certificate_path, folder / certificate_path.name)
    except OSError as error:  # a full disk, or a limit on files
        raise UserError(f"{folder / path.name}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    LOGGER.info(f"{backend.title}: {final}, {size_bytes(final) / 1e6:.1f} MB, {seconds:.1f} s; {certificate.summary}")
    if job.metadata.dynamic and name == "onnx":
        LOGGER.info("ONNX: any batch and image size; --static fixes both for programs that read a size from the file")
    return final


def _check_backend(backend: type[ExportBackend], settings: ExportSettings, dynamic: bool) -> None:
    """Raise UserError for options that the format does not support, and for missing packages."""
    from utils.backends.exported_runner import is_installed

    for option, capability in REQUIRED_CAPABILITIES.items():
        if getattr(settings, option) and capability not in backend.capabilities:
            raise UserError(f"--{option.replace('_', '-')}: not supported for {backend.title}; leave it out")
    if settings.batch_size > 1 and not dynamic and "batch" not in backend.capabilities:
        raise UserError(f"--batch-size {settings.batch_size}: {backend.title} supports one image per call only")
    for package in backend.packages:
        if not is_installed(package):
            raise UserError(f"{backend.title} needs the package {package}; pip install {' '.join(backend.packages)}")


def _with_sizes(job: ExportJob, settings: ExportSettings, backend: type[ExportBackend]) -> ExportJob:
    """Copy a job for a format, with dynamic or fixed input sizes."""
    return replace(job, metadata=replace(job.metadata, dynamic=_is_dynamic(settings, backend)))


def _is_dynamic(settings: ExportSettings, backend: type[ExportBackend]) -> bool:
    """Decide whether a file has dynamic sizes: with --dynamic, and by default where the format supports it well.

    Files of fixed size take squares where checkpoints take rectangles, which lowers their accuracy.
    """
    fixed = settings.static or settings.imgsz or settings.batch_size
    return bool(settings.dynamic or (backend.dynamic_by_default and not fixed))


def _write_certified(
    name: str, backend: type[ExportBackend], job: ExportJob, certifier: Certifier, path: Path
) -> Certificate:
    """Write and certify a file; retry INT8 with more layers in floating point while the accuracy drops too much."""
    if job.metadata.precision != "int8":
        backend.write(job, path)
        return certifier.certify(name, backend, job, path)
    job = replace(job, calibration=partial(certifier.calibration, job.metadata))
    for attempt in range(MAX_INT8_ATTEMPTS):
        backend.write(replace(job, extra_float_layers=attempt), path)
        last = attempt == MAX_INT8_ATTEMPTS - 1
        certificate = certifier.certify(name, backend, job, path, final=last)
        if certificate.passed or last:
            return certificate
        LOGGER.info(f"{backend.title}: {certificate.summary}; retrying with more layers in floating point")
        _remove(path)
    raise AssertionError("the last attempt returns")


def _move(path: Path, final: Path) -> None:
    """Move a file or folder into place, replacing an older one."""
    if path.is_dir() and final.exists():
        _remove(final)
    path.replace(final)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
