"""Configuration of DeepStream's nvinfer element for the ONNX file of a network, with a labels file."""

from __future__ import annotations

import shutil
from pathlib import Path

from utils.backends.deploy import DEPLOYMENTS, Deployment
from utils.backends.deploy.release import DYNAMIC, Release, label_lines, read_onnx_tensors
from utils.core.errors import UserError
from utils.core.files import write_text

_CLASSIFIER, _OTHER = 1, 100  # values of network-type; 100 attaches the output tensors without parsing them
_PRECISIONS = {"fp32": 0, "int8": 1, "fp16": 2}  # values of network-mode


@DEPLOYMENTS.register("deepstream")
class DeepStreamDeployment(Deployment):
    """Writes config_infer.txt, labels.txt and the ONNX file."""

    title, formats, ending = "DeepStream", ("onnx",), "_deepstream"

    @staticmethod
    def write(release: Release, folder: Path) -> None:
        """Write the folder; nvinfer builds the TensorRT engine at its first start.

        Raises:
            UserError: The file takes bytes, which nvinfer does not feed.
        """
        about = release.metadata["onnx"]
        if about.colors:
            raise UserError("--deploy deepstream: nvinfer feeds (B, 3, H, W) floats; leave out --with-preprocess")
        source = release.files["onnx"]
        shutil.copyfile(source, folder / source.name)
        classifies = release.task == "classify"
        names = release.class_names
        if classifies and any(";" in name for name in names):
            raise UserError("--deploy deepstream: a class name has a semicolon, which separates labels; rename it")
        labels = ";".join(names) + "\n" if classifies else label_lines(names)
        write_text(folder / "labels.txt", labels)
        inputs, outputs = read_onnx_tensors(source)
        _, channels, height, width = inputs[0].shape
        if DYNAMIC in (height, width):
            height, width = about.image_hw
        batch = about.batch if inputs[0].shape[0] == DYNAMIC else inputs[0].shape[0]
        values: dict[str, object] = {
            "gpu-id": 0,
            "onnx-file": source.name,
            "model-engine-file": f"{source.name}_b{batch}_gpu0_{about.precision}.engine",
            "labelfile-path": "labels.txt",
            "batch-size": batch,
            "infer-dims": f"{channels};{height};{width}",
            "network-mode": _PRECISIONS[about.precision],
            "network-type": _CLASSIFIER if classifies else _OTHER,
            "model-color-format": 0,  # RGB
            "net-scale-factor": repr(1 / 255),
            "maintain-aspect-ratio": 0 if classifies else 1,
            "symmetric-padding": 0 if classifies else 1,
            "process-mode": 1,  # whole frames
            "gie-unique-id": 1,
            "interval": 0,
            "num-detected-classes": len(names),
            "output-blob-names": ";".join(one.name for one in outputs),
            **({"classifier-threshold": 0.2} if classifies else {"output-tensor-meta": 1}),
        }
        lines = "".join(f"{key}={value}\n" for key, value in values.items())
        write_text(folder / "config_infer.txt", f"[property]\n{lines}")
