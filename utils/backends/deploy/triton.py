"""Model repository of NVIDIA Triton Inference Server: `config.pbtxt`, labels and the ONNX file of a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from utils.backends.deploy import DEPLOYMENTS, Deployment
from utils.backends.deploy.release import DYNAMIC, Release, TensorInfo, label_lines, read_onnx_tensors
from utils.core.errors import UserError
from utils.core.files import write_text

MAX_BATCH = 8  # of requests that the server joins, for files that take any batch
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}


@DEPLOYMENTS.register("triton")
class TritonDeployment(Deployment):
    """Writes NAME/config.pbtxt, NAME/labels.txt and NAME/1/model.onnx, served by the ONNX Runtime backend."""

    title, formats, ending = "Triton", ("onnx",), "_triton"

    @staticmethod
    def write(release: Release, folder: Path) -> None:
        """Write the repository; the configuration follows the inputs and outputs of the file."""
        source = release.files["onnx"]
        version = folder / release.stem / "1"
        version.mkdir(parents=True)
        shutil.copyfile(source, version / "model.onnx")
        write_text(folder / release.stem / "config.pbtxt", _config(release, *read_onnx_tensors(source)))
        write_text(folder / release.stem / "labels.txt", label_lines(release.class_names))


def _config(release: Release, inputs: list[TensorInfo], outputs: list[TensorInfo]) -> str:
    batched = all(one.shape and one.shape[0] == DYNAMIC for one in (*inputs, *outputs))
    lines = [
        f"name: {json.dumps(release.stem)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {MAX_BATCH if batched else 0}",
        *(f"input {{\n{_tensor(one, batched)}\n}}" for one in inputs),
    ]
    for one in outputs:
        label = '\n  label_filename: "labels.txt"' if release.task == "classify" else ""
        lines.append(f"output {{\n{_tensor(one, batched)}{label}\n}}")
    if batched:
        lines.append("dynamic_batching {\n  max_queue_delay_microseconds: 2000\n}")
    about = release.metadata["onnx"]
    values = {**about.to_yolov5(), "task": release.task}
    for key, text in values.items():
        value = json.dumps(text, ensure_ascii=False)
        lines.append(f"parameters {{\n  key: {json.dumps(key)}\n  value {{ string_value: {value} }}\n}}")
    return "\n".join(lines) + "\n"


def _tensor(one: TensorInfo, batched: bool) -> str:
    if one.dtype not in _TYPES:
        raise UserError(f"--deploy triton: no data type for {one.name} ({one.dtype}); export to ONNX without --half")
    dims = ", ".join(map(str, one.shape[batched:]))
    return f"  name: {json.dumps(one.name)}\n  data_type: {_TYPES[one.dtype]}\n  dims: [ {dims} ]"
