"""Evaluate every task on the CPU and on the simulated GPU; write metrics and the cost of every batch as JSON.

    python tests/simulated_gpu.py tests/gpu_evaluations.py FOLDER BATCH

A batch costs all between its hand-over by the loader and that of the next one, with losses and metrics.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_step_counts import difference, snapshot
from helpers_networks import randomize_batchnorm
from helpers_run import tiny_data
from helpers_semantic import pixel_set
from simulated_gpu import DEVICE

from models.add_semantic_head import with_semantic_head
from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fuse import fuse
from models.network_runner import NetworkRunner
from utils.core.contracts import EvalSettings, Loader
from utils.core.data_config import DataConfig, load_data
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.yaml_file import write_yaml
from utils.engine import evaluate as evaluation
from utils.engine.run_setup import build_losses
from utils.tasks import TASKS

IMAGES, SIZE = 32, 64


def class_folders(folder: Path) -> Path:
    """Write the YAML of a small classification data set."""
    names = ["circle", "square", "star", "cross"]
    generate = {"kind": "shape-classes", "train": 1, "val": IMAGES // len(names), "size": SIZE, "seed": 3}
    values = {"path": "folders", "train": "train", "val": "val", "names": names, "format": "folders"}
    write_yaml(folder / "folders.yaml", {**values, "generate": generate})
    return folder / "folders.yaml"


def subjects(folder: Path) -> dict[str, tuple[Path, str, DataConfig]]:
    """Write networks and data: checkpoint, task and data by name."""
    boxes = load_data(str(tiny_data(folder, train=1, val=IMAGES, size=SIZE)))
    pixels = pixel_set(folder / "pixels", IMAGES, ((48, SIZE),))
    names = {"detect": ("detect", boxes), "segment": ("segment", boxes)}
    names |= {"classify": ("classify", load_data(str(class_folders(folder)))), "semantic": ("semantic", pixels)}
    kinds = {"detect": "yolov5n", "segment": "yolov5n-seg", "classify": "yolov5n-cls"}
    found = {}
    for name, (task, data) in names.items():
        torch.manual_seed(0)
        path = folder / f"{name}.pt"
        if name == "semantic":
            architecture = with_semantic_head(read_architecture("yolov5n"), "psp", alone=True)
            network = build_network(architecture, head_names={"semantic": data.semantic.names})
        else:
            network = build_network(read_architecture(kinds[name]), len(data.names), data.names)
        save_checkpoint(path, randomize_batchnorm(network), meta={"imgsz": SIZE})
        found[name] = path, task, data
    return found


def run(path: Path, task: str, data: DataConfig, batch: int, device: torch.device) -> tuple[Any, list[dict[str, Any]]]:
    """Evaluate a checkpoint on a device; return the metrics and the cost of every batch."""
    network = fuse(load_checkpoint(path).network.float().eval()).to(device)
    request = LoadRequest(data, "val", False, SIZE, batch, 32, Hyp(), workers=0)
    loader: Loader = TASKS.get(task).load(request)
    losses = build_losses(network, Hyp(), SIZE, device)
    counts: list[dict[str, Any]] = []

    def counted(batches: Iterable[Any], **_: Any) -> Iterator[Any]:
        for one in batches:
            before = snapshot()
            yield one
            counts.append({"images": len(one), **difference(snapshot(), before)})

    evaluation.progress = counted  # type: ignore[assignment]
    settings = EvalSettings(names=data.names)
    report = evaluation.evaluate(NetworkRunner(network, device), loader, settings, device, losses)
    return report.metrics, counts


def main() -> None:
    """Evaluate all tasks and write the report."""
    folder, batch = Path(sys.argv[1]), int(sys.argv[2])
    report = {}
    for name, subject in subjects(folder).items():
        cpu, _ = run(*subject, batch, torch.device("cpu"))
        gpu, counts = run(*subject, batch, DEVICE)
        report[name] = {"cpu": cpu, "gpu": gpu, "batches": counts}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
