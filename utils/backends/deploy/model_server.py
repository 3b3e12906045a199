"""Model repository of OpenVINO Model Server: `config.json` and the OpenVINO or ONNX files of a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from utils.backends.deploy import DEPLOYMENTS, Deployment
from utils.backends.deploy.release import Release, label_lines
from utils.core.files import write_text

MOUNT = "/models"  # where the repository is mounted in the server's container


@DEPLOYMENTS.register("ovms")
class ModelServerDeployment(Deployment):
    """Writes config.json, NAME/1/ with the network and NAME/labels.txt."""

    title, formats, ending = "OpenVINO Model Server", ("openvino", "onnx"), "_ovms"

    @staticmethod
    def write(release: Release, folder: Path) -> None:
        """Write the repository; the server reads inputs and outputs from the files."""
        name = release.first_format(ModelServerDeployment.formats)
        source = release.files[name]
        version = folder / release.stem / "1"
        version.mkdir(parents=True)
        for file in sorted(source.glob("*.*")) if source.is_dir() else [source]:
            if file.suffix in (".xml", ".bin", ".onnx"):
                shutil.copyfile(file, version / file.name)
        config = {"name": release.stem, "base_path": f"{MOUNT}/{release.stem}"}
        write_text(folder / "config.json", json.dumps({"model_config_list": [{"config": config}]}, indent=1) + "\n")
        write_text(folder / release.stem / "labels.txt", label_lines(release.class_names))
