"""TensorRT engines, by way of ONNX. UNTESTED: written to NVIDIA's documentation of version 10, never run by us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import KEY, from_json
from utils.backends.exported_runner import ExportedRunner, joined, require, warn_half
from utils.backends.flat_outputs import ExportJob
from utils.backends.onnx_graph import build
from utils.core.contracts import Runner
from utils.core.errors import UserError

_MARK = f"{KEY}-engine\n".encode()  # then the description in one line, then the engine


@BACKENDS.register("engine")
class TensorRtBackend:
    """Writes and runs .engine files; both need an NVIDIA GPU, and an engine fits the GPU it was built on."""

    title, suffixes, ending = "TensorRT", (".engine",), ".engine"
    packages = ("tensorrt", "onnx")
    can = frozenset({"dynamic", "half", "nms", "preprocess", "opset", "simplify", "batch", "timing_cache", "verbose"})
    slack = 20.0  # TF32 convolutions are its default

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Build an engine; --half lets it choose FP16 layer by layer."""
        require("tensorrt", "TensorRT")
        import tensorrt

        if not torch.cuda.is_available():
            raise UserError("TensorRT builds engines on an NVIDIA GPU; torch sees none here")
        through = path.with_suffix(".onnx")
        try:
            build(replace(job, description=job.description.with_precision("fp32")), through)
            logger = tensorrt.Logger(tensorrt.Logger.INFO if job.verbose else tensorrt.Logger.ERROR)
            builder = tensorrt.Builder(logger)
            network = builder.create_network(0)
            parser = tensorrt.OnnxParser(network, logger)
            if not parser.parse_from_file(str(through)):
                raise UserError(f"TensorRT cannot read the ONNX graph ({parser.get_error(0).desc()})")
        finally:
            through.unlink(missing_ok=True)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, job.workspace_gb << 30)
        if job.description.precision == "fp16":
            config.set_flag(tensorrt.BuilderFlag.FP16)
        if job.description.dynamic:
            config.add_optimization_profile(_profile(builder, job))
        cache = _load_cache(config, job.timing_cache)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise UserError("TensorRT could not build an engine; --verbose shows why")
        if cache is not None:
            Path(job.timing_cache).write_bytes(bytes(config.get_timing_cache().serialize()))
        path.write_bytes(_MARK + job.description.to_json().encode() + b"\n" + bytes(engine))

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Return a runner on the GPU `device`. Engines hold machine code: open only those you trust."""
        warn_half(half, paths[0])
        if device.type != "cuda":
            raise UserError(f"{paths[0]}: TensorRT engines run on NVIDIA GPUs only; give --device 0")
        return joined([_open(path, device) for path in paths], augment)


def _profile(builder: Any, job: ExportJob) -> Any:
    about = job.description
    least, most = 2 * about.stride, max(about.image_hw)
    shapes = [(1, least, least), (max(1, about.batch // 2), *about.image_hw), (about.batch, most, most)]
    ordered = [(b, h, w, 3) if about.colors else (b, 3, h, w) for b, h, w in shapes]
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *ordered)
    return profile


def _load_cache(config: Any, text: str) -> Any:
    if not text:
        return None
    path = Path(text)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=True)
    return cache


def _open(path: Path, device: torch.device) -> ExportedRunner:
    require("tensorrt", f"{path}: running TensorRT engines")
    import tensorrt

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.startswith(_MARK):
        raise UserError(f"{path}: no engine that export.py wrote; export it again with --include engine")
    text, _, engine_bytes = content[len(_MARK) :].partition(b"\n")
    about = from_json(text.decode(), path)
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(engine_bytes)
    if engine is None:
        raise UserError(f"{path}: this GPU or TensorRT is not the one the engine was built for; export it again")
    context = engine.create_execution_context()

    def call(images: Tensor) -> list[Tensor]:
        fed = images.to(device).contiguous()
        context.set_input_shape("images", tuple(fed.shape))
        context.set_tensor_address("images", fed.data_ptr())
        found = []
        for name in about.output_names:
            tensor = torch.empty(tuple(context.get_tensor_shape(name)), device=device)
            context.set_tensor_address(name, tensor.data_ptr())
            found.append(tensor)
        stream = torch.cuda.current_stream(device)
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return found

    return ExportedRunner(about, call, path)
