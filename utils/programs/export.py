"""From options to exported files: what was asked for, format by format, each certified before it gets its name."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.cli import add_device, add_download, add_image_size, new_parser
from utils.core.errors import UserError
from utils.core.log import LOGGER

if TYPE_CHECKING:  # what needs torch is imported after parsing, so that --help answers at once
    import torch

    from models.checkpoint import Checkpoint
    from models.network import Network
    from utils.backends.flat_outputs import ExportJob
    from utils.programs.export_certificate import Certifier

NOT_WRITTEN = {
    "saved_model": "TensorFlow SavedModel",
    "pb": "TensorFlow GraphDef",
    "edgetpu": "Edge TPU",
    "tfjs": "TensorFlow.js",
    "paddle": "PaddlePaddle",
}
STRONG = {  # option: what a format must be able to; without it the numbers would be others than asked for
    "half": "half",
    "int8": "int8",
    "nms": "nms",
    "dynamic": "dynamic",
    "with_preprocess": "preprocess",
}
WEAK = {  # the same for options that change only how the file is written
    "optimize": "optimize",
    "simplify": "simplify",
    "opset": "opset",
    "per_tensor": "per_tensor",
    "cache": "timing_cache",
    "mlmodel": "mlmodel",
    "verbose": "verbose",
}
CAUTIONS = 3  # INT8: tries, each keeping more layers in higher precision


def export_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of export.py."""
    parser = new_parser(description)
    add = parser.add_argument
    add("--weights", nargs="+", default=[], help="checkpoints, each exported by itself; default: newest best.pt")
    add(
        "--include",
        nargs="+",
        default=["torchscript"],
        metavar="FORMAT",
        help="formats to write; docs/export.md lists them",
    )
    add("--output", default="", help="folder to write into; empty: beside each checkpoint")
    add("--data", default="", help="data-set YAML for INT8 calibration, its accuracy, and images to compare on")
    add("--source", default="", help="images to compare on; default: those of --data, else generated ones")
    add_image_size(parser, [], "size of the input, or height and width; empty: the size it was trained at, else 640")
    add("--batch-size", type=int, default=0, help="images per call, which fixes batch and size; 0: one, or any number")
    add_device(parser)
    parser.set_defaults(device="cpu")
    add("--half", action="store_true", help="weights in half precision")
    add("--int8", action="store_true", help="convolutions in 8-bit integers, calibrated on images of --data")
    add("--max-drop", type=float, default=0.02, help="with --int8: how much mAP50-95 (or top-1) may be lost")
    add("--per-tensor", action="store_true", help="with --int8: one scale per tensor instead of one per channel")
    open_help = "leave batch and image size open, as ONNX, OpenVINO, TorchScript and .pt2 are without --imgsz"
    add("--dynamic", action="store_true", help=open_help)
    add("--static", action="store_true", help="exactly one batch and image size")
    bytes_help = "take (B, H, W, 3) bytes in this order instead of (B, 3, H, W) floats"
    add("--with-preprocess", nargs="?", const="rgb", default="", choices=["rgb", "bgr"], help=bytes_help)
    add("--nms", action="store_true", help="put non-maximum suppression into the file")
    add("--agnostic-nms", action="store_true", help="with --nms: suppress overlapping boxes of different classes too")
    add("--conf-thres", type=float, default=0.25, help="with --nms: keep boxes with more confidence than this")
    add("--iou-thres", type=float, default=0.45, help="with --nms: of boxes that overlap more than this, keep the best")
    add("--topk-per-class", type=int, default=300, help="with --nms: keep at most this many boxes of a class")
    add("--topk-all", type=int, default=300, help="with --nms: keep at most this many boxes of an image")
    add("--opset", type=int, default=None, help="ONNX operator set; default: 17")
    add("--simplify", action="store_true", help="simplify the ONNX graph (package onnxslim)")
    add("--optimize", action="store_true", help="TorchScript for mobile devices")
    add("--workspace", type=int, default=4, help="TensorRT: GB of memory to build with")
    add("--cache", default="", help="TensorRT: file that keeps timings for the next build")
    add("--mlmodel", action="store_true", help="CoreML: the older .mlmodel instead of .mlpackage")
    add("--keras", action="store_true", help="YOLOv5's; refused, Keras files are not written")
    add("--train", action="store_true", help="YOLOv5's; refused, files always carry decoded outputs")
    add("--inplace", action="store_true", help="YOLOv5's; our decoding has one form, the file is the same")
    add("--grid", action="store_true", help="YOLOv5 v5.0's; boxes are decoded in the file with or without it")
    add("--verbose", action="store_true", help="show what exporters say (ONNX, TensorRT)")
    add("--allow-mismatch", action="store_true", help="keep files that differ from PyTorch by more than allowed")
    add_download(parser)
    return parser


def export_task(options: argparse.Namespace, gather: bool = True) -> list[Path]:
    """Export as `options` say; return the files.

    With `gather` a format that fails lets the others be written before UserError is raised, else it ends everything.
    """
    _check(options)
    from models.checkpoint import load_checkpoint
    from utils.backends import BACKENDS
    from utils.backends.open_weights import find_weights
    from utils.core.device import select_device
    from utils.programs.export_certificate import Certifier

    formats = _formats(options, BACKENDS)
    device = select_device(options.device)
    written: list[Path] = []
    failures: list[str] = []
    for path in find_weights(options.weights, options.download):
        checkpoint = load_checkpoint(path)
        subject = _subject(checkpoint, path, options)
        certifier = Certifier(subject.reference, checkpoint.meta, options, device)
        for name in formats:
            try:
                written.append(_export(name, BACKENDS.get(name), subject, certifier, options, device))
            except UserError as error:
                if not gather:
                    raise
                LOGGER.error(f"{name}: {error}")
                failures.append(name)
    if written and gather:
        _hint(written)
    if failures:
        raise UserError(f"not exported: {', '.join(failures)} (the reasons are above)")
    return written


def _check(options: argparse.Namespace) -> None:
    for name in ("conf_thres", "iou_thres"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: from 0 to 1")
    for name, least in (("batch_size", 0), ("topk_per_class", 1), ("topk_all", 1), ("workspace", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if options.dynamic and options.static:
        raise UserError("--dynamic and --static: sizes are open or fixed; choose one")
    if options.half and options.int8:
        raise UserError("--half and --int8: a file has one precision; choose one")
    if options.keras:
        raise UserError("--keras: Keras files are not written here; the nearest is --include tflite")
    if options.train:
        raise UserError("--train: files carry decoded outputs; train with train.py, which takes checkpoints")
    if options.agnostic_nms and not options.nms:
        raise UserError("--agnostic-nms: there is no suppression in the file without --nms")


def written_formats(backends: Any) -> list[str]:
    """Return the formats that can be written."""
    return [name for name in backends.names() if hasattr(backends.get(name), "write")]


def wanted_formats(include: list[str], backends: Any) -> list[str]:
    """Return the formats of --include, each once; one that is not written here is a UserError."""
    known = written_formats(backends)
    names = [part.strip().lower() for text in include for part in text.split(",") if part.strip()]
    for name in names:
        if name in NOT_WRITTEN:
            raise UserError(f"--include {name}: {NOT_WRITTEN[name]} is not written here (known: {', '.join(known)})")
        if name not in known:
            raise UserError(f"--include {name}: no such format (known: {', '.join(known)})")
    return list(dict.fromkeys(names))


def _formats(options: argparse.Namespace, backends: Any) -> list[str]:
    """Return the formats to write; an option that none of them knows is a UserError."""
    names = wanted_formats(options.include, backends)
    can = set().union(*(backends.get(name).can for name in names))
    for option, ability in WEAK.items():
        if getattr(options, option) and ability not in can:
            raise UserError(f"--{option.replace('_', '-')}: none of {', '.join(names)} knows it")
    return names


@dataclass(frozen=True)
class _Subject:
    """What is exported: a job without its format, and where files go."""

    reference: Network  # what it must compute
    job: ExportJob
    folder: Path
    stem: str


def _subject(checkpoint: Checkpoint, path: Path, options: argparse.Namespace) -> _Subject:
    import torch

    from models.fuse import fuse, replace_focus
    from utils.backends.export_metadata import Description, Suppression
    from utils.backends.flat_outputs import ExportJob, decoded_names
    from utils.core.version import VERSION

    network = fuse(checkpoint.network).eval().requires_grad_(False)
    boxes = any(spec.strides for spec in network.specs.values())
    if options.nms and not boxes:
        raise UserError(f"{path}: --nms is for networks that find boxes; this one has {', '.join(network.specs)}")
    suppression = Suppression(
        options.conf_thres, options.iou_thres, options.agnostic_nms, options.topk_per_class, options.topk_all
    )
    about = Description(
        specs=network.specs,
        names=network.names,
        stride=network.stride,
        image_hw=_size(options.imgsz, checkpoint),
        outputs=decoded_names(network),
        batch=max(options.batch_size, 1),
        colors=options.with_preprocess,
        suppression=suppression if options.nms else None,
        precision="int8" if options.int8 else "fp16" if options.half else "fp32",
        made_with={"polyolo": VERSION, "torch": str(torch.__version__)},
        meta={key: str(checkpoint.meta[key]) for key in ("data",) if checkpoint.meta.get(key)},
    )
    job = ExportJob(
        replace_focus(network), about, options.opset, options.simplify, options.optimize, options.per_tensor,
        options.mlmodel, options.workspace, options.cache, options.verbose,
    )  # fmt: skip
    folder = Path(options.output) if options.output else path.parent
    return _Subject(network, job, folder, path.stem + ("_int8" if options.int8 else ""))


def _size(sizes: list[int], checkpoint: Checkpoint) -> tuple[int, int]:
    from utils.core.train_settings import MAX_IMAGE_PX

    network = checkpoint.network
    if fixed := getattr(network, "fixed_hw", None):
        return int(fixed[0]), int(fixed[1])
    usual = max(spec.usual_px for spec in network.specs.values())
    given = sizes or [int(checkpoint.meta.get("imgsz") or usual)]
    if len(given) > 2 or min(given) < 1 or max(given) > MAX_IMAGE_PX:
        raise UserError(f"--imgsz {' '.join(map(str, given))}: one size, or height and width, up to {MAX_IMAGE_PX}")
    stride = network.stride
    height, width = (-(-side // stride) * stride for side in (given[0], given[-1]))
    if (height, width) != (given[0], given[-1]):
        LOGGER.warning(f"--imgsz {given[0]} {given[-1]}: no multiples of the stride {stride}; taking {height} {width}")
    return height, width


def _export(
    name: str, backend: Any, subject: _Subject, certifier: Certifier, options: argparse.Namespace, device: torch.device
) -> Path:
    """Write one format into a temporary folder, certify it, and move it to its place."""
    for option, ability in STRONG.items():
        if getattr(options, option) and ability not in backend.can:
            raise UserError(f"--{option.replace('_', '-')}: {backend.title} files are not written with it here")
    dynamic = _open_sizes(options, backend)
    if options.batch_size > 1 and not dynamic and "batch" not in backend.can:
        raise UserError(f"--batch-size {options.batch_size}: {backend.title} files take one image at a time here")
    for package in backend.packages:
        if not _installed(package):
            raise UserError(f"{backend.title} needs the package {package}: pip install {' '.join(backend.packages)}")
    folder = subject.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{subject.stem[:40]}.", dir=folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give --output a folder") from error
    try:
        ending = ".mlmodel" if name == "coreml" and options.mlmodel else backend.ending
        path = temporary / f"{subject.stem}{ending}"
        start = time.perf_counter()
        about = replace(subject.job.description, dynamic=dynamic)
        certificate = _write_certified(name, backend, replace(subject.job, description=about), certifier, path)
        seconds = time.perf_counter() - start
        certificate_path = temporary / f"{path.name}.json"
        certifier.save(certificate, certificate_path)
        final = folder / path.name
        _replace(path, final)
        _replace(certificate_path, folder / certificate_path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    LOGGER.info(f"{backend.title}: {final}, {size_bytes(final) / 1e6:.1f} MB, {seconds:.1f} s; {certificate.words}")
    return final


def _open_sizes(options: argparse.Namespace, backend: Any) -> bool:
    """Tell whether a file takes any batch and size: if asked, and where nothing is lost by it unless a size is named.

    Fixed files get squares where a checkpoint gets rectangles, and score lower by that.
    """
    named = options.static or options.imgsz or options.batch_size
    return bool(options.dynamic or (getattr(backend, "open_sizes", False) and not named))


def _write_certified(name: str, backend: Any, job: ExportJob, certifier: Certifier, path: Path) -> Any:
    """Write the file; one in INT8 again with more layers in higher precision while it loses too much."""
    if job.description.precision != "int8":
        backend.write(job, path)
        return certifier.certify(name, backend, job, path)
    job = replace(job, calibration=partial(certifier.calibration, job.description))
    for caution in range(CAUTIONS):
        backend.write(replace(job, caution=caution), path)
        last = caution == CAUTIONS - 1
        certificate = certifier.certify(name, backend, job, path, final=last)
        if certificate.passed or last:
            return certificate
        LOGGER.info(f"{backend.title}: {certificate.words}; keeping more layers in higher precision")
        _remove(path)
    raise AssertionError("the last try returns")


def _replace(path: Path, final: Path) -> None:
    """Put a file or folder in its place, over an older one."""
    if path.is_dir() and final.exists():
        _remove(final)
    path.replace(final)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a folder."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else path.stat().st_size


def _installed(package: str) -> bool:
    from utils.backends.exported_runner import installed

    return installed(package)


def _hint(written: list[Path]) -> None:
    path = written[-1]
    LOGGER.info(f"use it: python detect.py --weights {path}   python val.py --weights {path}")
