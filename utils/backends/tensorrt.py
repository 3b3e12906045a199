"""TensorRT export from ONNX, and runner of engines.

UNTESTED: written from NVIDIA's documentation of TensorRT 10 and never run. Please report what fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.backends import BACKENDS
from utils.backends.export_metadata import METADATA_KEY, parse_metadata
from utils.backends.exported_runner import ExportedRunner, combine_runners, require_package, warn_half_ignored
from utils.backends.flat_outputs import ExportBackend, ExportJob
from utils.backends.onnx_graph import build
from utils.core.contracts import Runner
from utils.core.errors import UserError

_HEADER = f"{METADATA_KEY}-engine\n".encode()  # followed by one line of metadata and the engine


@BACKENDS.register("engine")
class TensorRtBackend(ExportBackend):
    """Writes and runs .engine files on NVIDIA GPUs; an engine runs on the GPU model it was built on. UNTESTED."""

    title, suffixes, ending = "TensorRT", (".engine",), ".engine"
    packages = ("tensorrt", "onnx")
    capabilities = frozenset(
        {"dynamic", "half", "nms", "end_to_end", "preprocess", "opset", "simplify", "batch", "timing_cache", "verbose"}
    )
    tolerance_factor = 20.0  # convolutions use TF32 by default

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Build an engine; with --half TensorRT chooses FP16 layer by layer."""
        require_package("tensorrt", "TensorRT")
        import tensorrt

        if not torch.cuda.is_available():
            raise UserError("TensorRT: building an engine needs an NVIDIA GPU, but torch finds none")
        onnx_file = path.with_suffix(".onnx")
        try:
            build(replace(job, metadata=job.metadata.with_precision("fp32")), onnx_file)
            logger = tensorrt.Logger(tensorrt.Logger.INFO if job.verbose else tensorrt.Logger.ERROR)
            builder = tensorrt.Builder(logger)
            network = builder.create_network(0)
            parser = tensorrt.OnnxParser(network, logger)
            if not parser.parse_from_file(str(onnx_file)):
                raise UserError(f"TensorRT cannot read the ONNX graph ({parser.get_error(0).desc()})")
        finally:
            onnx_file.unlink(missing_ok=True)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, job.workspace_gb << 30)
        if job.metadata.precision == "fp16":
            config.set_flag(tensorrt.BuilderFlag.FP16)
        if job.metadata.dynamic:
            config.add_optimization_profile(_optimization_profile(builder, job))
        cache = _load_timing_cache(config, job.timing_cache)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise UserError("TensorRT cannot build an engine of this network; --verbose shows the reason")
        if cache is not None:
            Path(job.timing_cache).write_bytes(bytes(config.get_timing_cache().serialize()))
        path.write_bytes(_HEADER + job.metadata.to_json().encode() + b"\n" + bytes(engine))

    @staticmethod
    def open(
        paths: Sequence[Path], device: torch.device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open engines on the GPU `device`. They contain machine code: open only those you trust."""
        warn_half_ignored(half, paths[0])
        if device.type != "cuda":
            raise UserError(f"{paths[0]}: TensorRT engines run on NVIDIA GPUs only, not on {device}; give --device 0")
        return combine_runners([_open(path, device) for path in paths], augment)


def _optimization_profile(builder: Any, job: ExportJob) -> Any:
    metadata = job.metadata
    smallest, largest = 2 * metadata.stride, max(metadata.image_hw)
    typical = (max(1, metadata.batch // 2), *metadata.image_hw)
    shapes = [(1, smallest, smallest), typical, (metadata.batch, largest, largest)]
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((b, h, w, 3) if metadata.colors else (b, 3, h, w) for b, h, w in shapes))
    return profile


def _load_timing_cache(config: Any, text: str) -> Any:
    if not text:
        return None
    path = Path(text)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=True)
    return cache


def _open(path: Path, device: torch.device) -> ExportedRunner:
    require_package("tensorrt", f"{path}: running TensorRT engines")
    import tensorrt

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.startswith(_HEADER):
        raise UserError(f"{path}: not an engine written by export.py; export it again with --include engine")
    text, _, engine_bytes = content[len(_HEADER) :].partition(b"\n")
    metadata = parse_metadata(text.decode(), path)
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(engine_bytes)
    if engine is None:
        raise UserError(f"{path}: the engine was built for another GPU or TensorRT version; export it again")
    context = engine.create_execution_context()

    def infer(images: Tensor) -> list[Tensor]:
        inputs = images.to(device).contiguous()
        context.set_input_shape("images", tuple(inputs.shape))
        context.set_tensor_address("images", inputs.data_ptr())
        outputs = []
        for name in metadata.output_names:
            tensor = torch.empty(tuple(context.get_tensor_shape(name)), device=device)
            context.set_tensor_address(name, tensor.data_ptr())
            outputs.append(tensor)
        stream = torch.cuda.current_stream(device)
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return outputs

    return ExportedRunner(metadata, infer, path)
