"""Run the project's CUDA code paths on a machine without a GPU, and count what a GPU would do.

A `SimulatedTensor` reports the device `cuda:0` and holds a CPU tensor; every operator on it runs on the CPU, so numbers
are exact and times mean nothing. `Recorder` collects:

- operators that mix tensors of both devices (an error in strict mode, as on a real GPU),
- places where the host would wait for the GPU: `.item()`, `.cpu()`, boolean indexing, blocking copies, ...,
- the number of operators that launch at least one kernel.

The CUDA runtime of torch has to answer a few calls, so a process must be started with the stub library preloaded:

    python tests/simulated_gpu.py train.py --device 0 --epochs 1        # run a program and print the record
    run_simulated(["tests/some_script.py"])                             # the same from a test

Limits: one device, no streams, no memory accounting, no nccl, no autocast of operators that exist on CUDA only.
"""

from __future__ import annotations

import collections
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda", 0)
GIB = 2**30

# operators that return a view or only allocate: no kernel runs
_NO_KERNEL = """
empty empty_like empty_strided new_empty new_empty_strided detach alias lift_fresh resize_ set_ is_pinned _pin_memory
_unsafe_view unsafe_split _local_scalar_dense
"""
NO_KERNEL = frozenset(_NO_KERNEL.split())
# operators whose result size depends on data, so the host waits for it
_DATA_DEPENDENT = """
nonzero masked_select _unique2 unique_consecutive unique_dim equal bincount is_nonzero repeat_interleave histc
multinomial
"""
DATA_DEPENDENT = frozenset(_DATA_DEPENDENT.split())
INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))
MIXING_ALLOWED = INDEXING | {"copy_", "_to_copy"}


class Recorder:
    """Record of the simulated device since the last `reset()`."""

    def __init__(self) -> None:
        self.strict = False
        self.phase = ""
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.launches = 0
        self.bytes = 0  # of all results, as if no memory were reused
        self.phases: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()

    def launch(self, name: str) -> None:
        """Count one operator that launches kernels."""
        self.launches += 1
        self.phases[self.phase] += 1
        self.operators[name] += 1

    def wait(self, kind: str) -> None:
        """Count one place where the host waits."""
        self.waits[f"{kind} at {caller()}"] += 1

    def mix(self, name: str) -> None:
        """Count an operator on tensors of two devices; raise in strict mode."""
        self.mixed[f"{name} at {caller()}"] += 1
        if self.strict:
            raise RuntimeError(f"{name}: expected all tensors on the same device, at {caller()}")

    def summary(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {
            "launches": self.launches,
            "phases": dict(self.phases),
            "waits": dict(self.waits),
            "mixed": dict(self.mixed),
            "operators": dict(self.operators.most_common(40)),
        }


RECORD = Recorder()


def caller() -> str:
    """Return the two innermost lines of project code on the stack, as `file:line < file:line`."""
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < 2:
        file = Path(frame.f_code.co_filename)
        if file != Path(__file__) and ROOT in file.parents:
            found.append(f"{file.relative_to(ROOT)}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found) or "torch"


class SimulatedTensor(torch.Tensor):
    """A tensor that reports `cuda:0` and computes on the CPU tensor it wraps."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> SimulatedTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        wrapper.inner = inner
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SimulatedTensor({self.inner!r})"

    def tolist(self) -> Any:
        """Return nested lists, after a wait."""
        RECORD.wait("tolist")
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Raise what torch raises for CUDA tensors."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def pin_memory(self, *_: Any) -> torch.Tensor:
        """Raise what torch raises for CUDA tensors."""
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy = SimulatedTensor(self.inner.detach().clone(memory_format=torch.preserve_format))
            copy.requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True  # how torch marks parameters of a subclass
            memo[id(self)] = copy
        return memo[id(self)]


class _Factories(TorchDispatchMode):
    """Send operators without a simulated input, such as `torch.zeros(..., device="cuda")`, to `dispatch`."""

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, SimulatedTensor) else value


def _wrap(value: Any) -> Any:
    plain = isinstance(value, torch.Tensor) and not isinstance(value, SimulatedTensor)
    return SimulatedTensor(value) if plain else value


def _copy_to(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run `_to_copy`: a cast, or a transfer between the devices."""
    source, options = args[0], dict(kwargs)
    target = options.pop("device", None)
    blocking = not options.pop("non_blocking", False)
    options.pop("pin_memory", None)
    simulated = isinstance(source, SimulatedTensor)
    to = torch.device(target).type if target is not None else ("cuda" if simulated else "cpu")
    if to == "meta":
        return func(_unwrap(source), device="meta", **options)
    if simulated and to == "cpu":
        RECORD.wait("device-to-host copy")
    elif not simulated and to == "cuda" and blocking:
        RECORD.wait("blocking host-to-device copy")
    if simulated or to == "cuda":
        RECORD.launch(name)
    inner = _unwrap(source)
    copied = func(inner, **options)
    if copied is inner:
        copied = copied.clone(memory_format=torch.preserve_format)
    return SimulatedTensor(copied) if to == "cuda" else copied


def _record(func: Any, name: str, args: Any, plain: list[torch.Tensor]) -> None:
    """Record mixed devices, waits and the launch of one operator on simulated tensors."""
    if any(tensor.dim() for tensor in plain) and name not in MIXING_ALLOWED and not name.endswith("_like"):
        RECORD.mix(name)
    if name in INDEXING:
        for index in args[1]:
            if isinstance(index, torch.Tensor):
                if index.dtype in (torch.bool, torch.uint8):
                    RECORD.wait("boolean indexing")
                elif not isinstance(index, SimulatedTensor):
                    RECORD.wait("index from the host")
    if name == "_local_scalar_dense":
        RECORD.wait("item")
    elif name in DATA_DEPENDENT:
        RECORD.wait(name)
    elif func.namespace == "torchvision":
        RECORD.wait("nms")
    if name not in NO_KERNEL and not func.is_view:
        RECORD.launch(name)


def _batch_norm(*arguments: Any) -> Any:
    """Compute cudnn_batch_norm, whose fourth output is a reserve of bytes."""
    return (*torch.ops.aten.native_batch_norm(*arguments), torch.zeros(0, dtype=torch.uint8))


def _batch_norm_backward(*arguments: Any) -> Any:
    """Compute cudnn_batch_norm_backward."""
    features, grad, weight, mean, variance, saved_mean, saved_variance, epsilon, _ = arguments
    return torch.ops.aten.native_batch_norm_backward(
        grad, features, weight, mean, variance, saved_mean, saved_variance, True, epsilon, [True, True, True]
    )


_BATCH_NORM = {"cudnn_batch_norm": _batch_norm, "cudnn_batch_norm_backward": _batch_norm_backward}


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operator as the simulated device would."""
    name = func._schema.name.split("::")[-1]
    if name == "_to_copy":
        return _copy_to(func, name, args, kwargs)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    plain = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if len(plain) == len(tensors) and (device is None or device.type != "cuda"):
        return func(*args, **kwargs)
    if name == "copy_":
        target, source = args[0], args[1]
        blocking = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if isinstance(target, SimulatedTensor) != isinstance(source, SimulatedTensor) and blocking:
            RECORD.wait("blocking copy")
        _unwrap(target).copy_(_unwrap(source))
        RECORD.launch(name)
        return target
    _record(func, name, args, plain)
    inner_args, inner_kwargs = tree_map(_unwrap, (args, kwargs))
    if device is not None:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu") if device.type == "cuda" else device}
    result = _BATCH_NORM.get(name, func)(*inner_args, **inner_kwargs)
    if name in ("_local_scalar_dense", "equal") or (device is not None and device.type != "cuda"):
        return result
    RECORD.bytes += 0 if func.is_view else sum(one.nbytes for one in tree_flatten(result)[0] if torch.is_tensor(one))
    result = tree_map(_wrap, result)
    aliases = func._schema.is_mutable or any(value.alias_info is not None for value in func._schema.returns)
    return return_and_correct_aliasing(func, args, kwargs, result) if aliases else result


class _InferenceMode(torch.no_grad):
    """`torch.inference_mode` without inference tensors, which subclasses do not support."""

    def __new__(cls, mode: Any = True) -> Any:
        return torch.no_grad()(mode) if callable(mode) else super().__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = mode

    def clone(self) -> _InferenceMode:
        return type(self)(self.mode)

    def __enter__(self) -> None:
        if self.mode:
            super().__enter__()

    def __exit__(self, *error: object) -> None:
        if self.mode:
            super().__exit__(*error)


def _load_torchscript(load: Any) -> Any:
    """Wrap `torch.jit.load`: the file is loaded on the CPU, and its constants are moved to the simulated device."""

    def load_and_move(file: Any, map_location: Any = None, **options: Any) -> Any:
        module = load(file, map_location="cpu", **options)
        if map_location is not None and torch.device(map_location).type == "cuda":
            torch._C._jit_set_profiling_executor(False)  # its fuser compiles kernels for the reported device
            torch._C._set_graph_executor_optimize(False)
            for node in module.graph.findAllNodes("prim::Constant"):
                if node.hasAttribute("value") and node.kindOf("value") == "t":
                    node.t_("value", SimulatedTensor(node.t("value")))
        return module

    return load_and_move


def install(strict: bool = True, capability: tuple[int, int] = (9, 0), memory_gib: float = 139) -> Recorder:
    """Make `cuda:0` a simulated device in this process; return the record.

    Args:
        strict: Raise where one operator gets tensors of two devices.
        capability: Compute capability that the device reports.
        memory_gib: Memory that the device reports, in GiB.
    """
    RECORD.strict = strict
    cuda = torch.cuda
    properties = types.SimpleNamespace(
        name="Simulated GPU", total_memory=int(memory_gib * GIB), major=capability[0], minor=capability[1],
        multi_processor_count=132,
    )  # fmt: skip
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "get_device_capability": capability,
        "memory_reserved": GIB,
        "memory_allocated": GIB,
        "max_memory_allocated": GIB,
        "mem_get_info": (int((memory_gib - 9) * GIB), properties.total_memory),
        "is_current_stream_capturing": False,
        **dict.fromkeys(
            ("_lazy_init", "set_device", "empty_cache", "set_rng_state", "manual_seed", "manual_seed_all")
        ),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.is_bf16_supported = lambda including_emulation=True: including_emulation or capability[0] >= 8  # type: ignore[assignment]
    cuda.reset_peak_memory_stats = lambda *_: setattr(RECORD, "bytes", 0)  # type: ignore[assignment]
    cuda.max_memory_reserved = lambda *_: GIB + RECORD.bytes  # type: ignore[assignment]
    cuda.synchronize = lambda *_, **__: RECORD.wait("synchronize")  # type: ignore[assignment]
    cuda.get_rng_state = lambda *_, **__: torch.zeros(16, dtype=torch.uint8)  # type: ignore[assignment]
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    from torch.utils import _foreach_utils

    _foreach_utils._foreach_supported_types.append(SimulatedTensor)  # type: ignore[attr-defined]
    torch.autograd.set_multithreading_enabled(False)
    torch.inference_mode = _InferenceMode  # type: ignore[misc,assignment]
    torch.jit.load = _load_torchscript(torch.jit.load)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _Factories().__enter__()
    return RECORD


# ----------------------------------------------------------------------------------------------------------------------
# The stub of the CUDA runtime

_RETURNS_SUCCESS = """
cudaDeviceCanAccessPeer cudaDeviceEnablePeerAccess cudaDeviceGetAttribute cudaDeviceGetDefaultMemPool
cudaDeviceGetPCIBusId cudaDeviceSynchronize cudaEventCreate cudaEventDestroy cudaEventElapsedTime cudaEventQuery
cudaEventRecord cudaEventRecordWithFlags cudaEventSynchronize cudaFree cudaFreeAsync cudaFuncGetAttributes
cudaFuncSetAttribute cudaGetDriverEntryPointByVersion cudaGetLastError cudaGetSymbolAddress cudaHostRegister
cudaHostUnregister cudaLaunchKernel cudaLaunchKernelExC cudaMemcpy cudaMemcpyAsync cudaMemset cudaMemsetAsync
cudaPeekAtLastError cudaPointerGetAttributes cudaSetDevice cudaStreamAddCallback cudaStreamDestroy
cudaStreamGetCaptureInfo cudaStreamGetPriority cudaStreamQuery cudaStreamSynchronize cudaStreamWaitEvent
cudaThreadExchangeStreamCaptureMode cudaProfilerStart cudaProfilerStop
"""
_RUNTIME = """
#include <stdlib.h>
#include <string.h>
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDeviceProperties(void *properties, int device) { memset(properties, 0, 700); return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -1;
  return 0;
}
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)1; return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = (void *)1; return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = (void *)1; return 0; }
int cudaStreamIsCapturing(void *stream, int *capturing) { *capturing = 0; return 0; }
const char *cudaGetErrorName(int error) { return "stub"; }
const char *cudaGetErrorString(int error) { return "stub"; }
int cudaMalloc(void **pointer, unsigned long size) { *pointer = 0; return 2; /* out of memory */ }
int cudaHostAlloc(void **pointer, unsigned long size, unsigned flags) {
  return posix_memalign(pointer, 4096, size ? size : 1);
}
int cudaFreeHost(void *pointer) { free(pointer); return 0; }
"""
_DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "stub"; return 0; }
int cuCtxGetCurrent(void **context) { *context = 0; return 0; }
"""


def available() -> str:
    """Return why the simulation cannot run here, or an empty string."""
    if sys.platform != "linux":
        return "the simulated GPU preloads a library, which works on Linux only"
    if shutil.which("gcc") is None:
        return "the simulated GPU needs gcc for its stub of the CUDA runtime"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return ""


def stub_libraries() -> Path:
    """Compile the stubs of the CUDA runtime and driver once; return their folder."""
    folder = Path(tempfile.gettempdir()) / f"simulated-gpu-{os.getuid()}-{torch.__version__}"
    if not (folder / "complete").exists():
        folder.mkdir(exist_ok=True)
        runtime = _RUNTIME + "\n".join(f"int {name}() {{ return 0; }}" for name in _RETURNS_SUCCESS.split())
        for file, code in (("libcudastub.so", runtime), ("libcuda.so.1", _DRIVER)):
            built = folder / f"{file}.{os.getpid()}"
            command = ["gcc", "-w", "-shared", "-fPIC", "-x", "c", "-o", str(built), "-"]
            subprocess.run(command, input=code, text=True, check=True)
            built.replace(folder / file)
        (folder / "complete").touch()
    return folder


def environment() -> dict[str, str]:
    """Return the environment of a process that can `install()` the simulation."""
    folder = stub_libraries()
    return {
        **os.environ,
        "LD_PRELOAD": str(folder / "libcudastub.so"),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH")))),
        "CUDA_MODULE_LOADING": "LAZY",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }


def run_simulated(
    arguments: Sequence[str], timeout: float = 300, **options: Any
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run a program on the simulated device; return the finished process and the record.

    Args:
        arguments: Program and its options, relative to the project's root.
        timeout: Seconds after which the process is killed.
        options: Arguments of `install`.

    Returns:
        The process with its output, and `Recorder.summary()` (empty if the program did not end normally).
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "record.json"
        settings = json.dumps({"report": str(report), **options})
        command = [sys.executable, __file__, settings, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=timeout, check=False
        )
        return done, json.loads(report.read_text()) if report.exists() else {}


def main() -> None:
    """Run `sys.argv[1]` with the options behind it, on the simulated device."""
    arguments = sys.argv[1:]
    settings: dict[str, Any] = json.loads(arguments.pop(0)) if arguments and arguments[0].startswith("{") else {}
    if "LD_PRELOAD" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())
    report = settings.pop("report", None)
    sys.argv = arguments
    sys.path.insert(0, str(ROOT))
    sys.modules["simulated_gpu"] = sys.modules["__main__"]  # one recorder, also for programs that import this module
    install(**settings)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        if report:
            Path(report).write_text(json.dumps(RECORD.summary()), encoding="utf-8")
        else:
            record = RECORD.summary()
            sys.stdout.write(f"{record['launches']} launches; mixed devices: {record['mixed'] or 'none'}\n")
            for place, count in collections.Counter(record["waits"]).most_common(40):
                sys.stdout.write(f"{count:6d} {place}\n")


if __name__ == "__main__":
    main()
