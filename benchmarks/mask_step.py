"""Cost of instance masks in a training step and in validation with many objects, compared with detection.

python benchmarks/mask_step.py --write
python benchmarks/mask_step.py --boxes 100 --size 640 --batch-size 8 --device 0 --write

Times are measured alternately in one process. Peak memory is measured in a separate process per side: resident memory
above that before the first step, or the memory allocated by PyTorch on a GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from benchmarks.train_step import Side, our_side, random_batch
from models.network_runner import NetworkRunner
from utils.core.cli import run_script
from utils.core.contracts import Batch, EvalSettings, Results
from utils.core.device import select_device
from utils.core.files import ROOT
from utils.metrics import EVALUATORS
from utils.ops.boxes import cxcywhn_to_xyxy
from utils.postprocess import POSTPROCESS

NAME = "mask_step"
SIDES = {"detection": "yolov5n", "segmentation": "yolov5n-seg"}
MASK_RATIO = 4


def masked_batch(count: int, size: int, boxes_per_image: int, device: torch.device) -> Batch:
    """Draw a batch of noise images whose masks are the rectangles of the boxes."""
    batch = random_batch(count, size, boxes_per_image, 80)
    side = size // MASK_RATIO
    kind = torch.uint8 if boxes_per_image <= torch.iinfo(torch.uint8).max else torch.int32
    batch.masks = torch.zeros(count, side, side, dtype=kind)
    corners = cxcywhn_to_xyxy(batch.boxes[:, 2:], (side, side)).round().int().clamp(0, side)
    for row, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        batch.masks[row // boxes_per_image, y1:y2, x1:x2] = row % boxes_per_image + 1
    return batch.to(device)


def validate(side: Side, batch: Batch) -> float:
    """Validate a batch as during training, with 300 detections per image; return the seconds."""
    side.network.eval()
    head, spec = next(iter(side.network.specs.items()))
    settings = EvalSettings(confidence=0.0, multi_label=False)
    post, evaluator = POSTPROCESS.get(head)(spec, settings), EVALUATORS.get(head)(spec, settings)
    start = time.perf_counter()
    outputs = NetworkRunner(side.network, side.device, side.mixed).run(batch.images)
    with torch.inference_mode():
        losses = [value for loss in side.losses.values() for value in loss(outputs.raw[head], batch).values()]
        results = [Results(info) for info in batch.info]
        post(outputs.decoded[head], results)
    evaluator.update([result.cpu() for result in results], batch)
    assert all(bool(torch.isfinite(value)) for value in losses)
    seconds = time.perf_counter() - start
    side.network.train()
    return seconds


def peak_bytes(name: str, options: argparse.Namespace) -> int:
    """Measure the peak memory of training steps of one side in a separate process."""
    line = [sys.executable, str(ROOT / "benchmarks" / f"{NAME}.py"), "--alone", name, "--device", options.device]
    for option in ("size", "batch-size", "boxes", "amp"):
        line += [f"--{option}", str(getattr(options, option.replace("-", "_")))]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def steps_alone(name: str, options: argparse.Namespace, device: torch.device) -> int:
    """Run two training steps in this process; return their peak memory in bytes."""
    batch = masked_batch(options.batch_size, options.size, options.boxes, device)
    side = our_side(SIDES[name], options, device)
    before = resident_bytes()
    for _ in range(2):
        side.step(batch)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes() - before


def resident_bytes() -> int:
    """Get the resident memory of this process in bytes; its peak where the system has no current value."""
    return _status("VmRSS") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Get the peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    # on Linux, the rusage of a child includes the memory of its parent
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    """Read a size in bytes from /proc/self/status; 0 on other systems."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--size", type=int, default=640, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=100, help="objects per image")
    parser.add_argument("--steps", type=int, default=5, help="rounds, whose median is reported")
    parser.add_argument("--warm-up", type=int, default=1, help="warm-up rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="auto", help="precision: auto, fp32, fp16, bf16")
    parser.add_argument("--alone", choices=sorted(SIDES), help=argparse.SUPPRESS)  # a child that measures its memory
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the ratios of segmentation to detection."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    if options.alone:
        peak = steps_alone(options.alone, options, device)
        print(json.dumps({"peak_bytes": peak}))
        return {"peak_bytes": peak}
    batch = masked_batch(options.batch_size, options.size, options.boxes, device)
    sides = {name: our_side(cfg, options, device) for name, cfg in SIDES.items()}
    actions = {f"{name} training": (lambda side=side: side.step(batch)) for name, side in sides.items()}
    actions |= {f"{name} validation": (lambda side=side: validate(side, batch)) for name, side in sides.items()}
    found = alternate(actions, options.steps, options.warm_up)
    peaks = {name: peak_bytes(name, options) for name in SIDES}
    memory = peaks["segmentation"] / max(peaks["detection"], 1)
    rows, medians = [], {"memory": memory}
    for part in ("training", "validation"):
        boxes, masks = (spread(found[f"{name} {part}"]).scaled(1000 / options.batch_size) for name in SIDES)
        more = ratios(found[f"segmentation {part}"], found[f"detection {part}"])
        rows.append(f"| {part}, ms per image | {boxes.text(1)} | {masks.text(1)} | **{more.text()}** |")
        medians[part] = more.median
    medians["validation/training"] = ratios(found["segmentation validation"], found["segmentation training"]).median
    detection, segmentation = (peaks[name] / 2**20 for name in SIDES)
    rows.append(f"| training, peak MiB | {detection:.0f} | {segmentation:.0f} | **{memory:.2f}** |")
    body = [
        f"{options.batch_size} images of {options.size}x{options.size} with {options.boxes} labels each, 300 objects "
        f"found in each; {', '.join(SIDES.values())}. Median and range of {options.steps} rounds after "
        f"{options.warm_up} to warm up. Validating a mask image takes {medians['validation/training']:.2f} times "
        "what training on it takes.",
        "",
        "| | detection | segmentation | times as much |",
        "|---|---|---|---|",
        *rows,
    ]
    publish(report("What masks cost", NAME, line, body, device), NAME, options.write)
    return medians


if __name__ == "__main__":
    run_script(main)
