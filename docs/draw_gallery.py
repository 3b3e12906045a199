"""Make the images of docs/gallery.md with the programs of this project: `python docs/draw_gallery.py`.

Trains one network with boxes, instance masks and a semantic map on the generated shapes, unless runs/gallery has it,
then predicts validation images and copies plots of the training. The training takes about half an hour on one CPU core.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "images" / "gallery"
RUNS = ROOT / "runs" / "gallery"
BEST = RUNS / "second" / "weights" / "best.pt"
SCENES = ("shapes_000012.jpg", "shapes_000014.jpg", "shapes_000048.jpg", "shapes_000053.jpg")
COMMON = ("--seg-mosaic", "--img", "192", "--epochs", "14", "--project", str(RUNS), "--workers", "0", "--device", "cpu")
RECIPE = ("--hyp", "hyp.shapes.yaml", "--optimizer", "AdamW", "--cos-lr", "--cache", "ram")
PLOTS = {  # plot of the training: (file of the gallery, width in pixels)
    "train_batch0.jpg": ("train_batch.jpg", 640),
    "val_batch0_pred.jpg": ("val_batch_pred.jpg", 640),
    "MaskPR_curve.png": ("pr_curve.jpg", 560),
    "confusion_matrix.png": ("confusion_matrix.jpg", 560),
    "results.png": ("results.jpg", 800),
}
LABELS, LABELS_PX = "labels.jpg", 560  # drawn from the data set


def run_program(name: str, *options: str) -> None:
    """Run a program of this project; raise CalledProcessError if it fails."""
    subprocess.run([sys.executable, str(ROOT / name), *options], cwd=ROOT, check=True)


def train() -> None:
    """Train the network in two stages, the second one from the weights of the first."""
    first = RUNS / "first" / "weights" / "best.pt"
    if not first.is_file():
        run_program("segment/train.py", "--semantic", "psp", *COMMON, "--name", "first")
    run_program("segment/train.py", "--weights", str(first), *COMMON, *RECIPE, "--name", "second")


def predict(images: Path) -> np.ndarray:
    """Predict the scenes and arrange image, boxes with masks, panoptic map and semantic map in columns."""
    output = RUNS / "predict"
    sources = RUNS / "scenes.txt"
    sources.write_text("".join(f"{images / name}\n" for name in SCENES), encoding="utf-8")
    run_program(
        "segment/predict.py", "--weights", str(BEST), "--source", str(sources), "--save-panoptic", "--save-mask",
        "--no-legend", "--project", str(RUNS), "--name", "predict", "--exist-ok",
        "--device", "cpu", "--panoptic-conf", "0.3",
    )  # fmt: skip
    columns = []
    for name in SCENES:
        stem = Path(name).stem
        paths = (images / name, output / name, output / "panoptic_colour" / f"{stem}.png")
        panels = [cv2.resize(cv2.imread(str(path)), (240, 180), interpolation=cv2.INTER_AREA)
                  for path in (*paths, output / "masks_colour" / f"{stem}.png")]  # fmt: skip
        columns.append(np.vstack([np.vstack([panel, np.full((6, 240, 3), 255, np.uint8)]) for panel in panels]))
    gap = np.full((columns[0].shape[0], 6, 3), 255, np.uint8)
    return np.hstack([part for column in columns for part in (column, gap)][:-1])


def shrink(image: np.ndarray, path: Path, width: int) -> None:
    """Write an image as a JPEG of the given width in pixels."""
    height = round(image.shape[0] * width / image.shape[1])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), small, [cv2.IMWRITE_JPEG_QUALITY, 72])


def draw_label_statistics(path: Path) -> None:
    """Draw the statistics of the training labels, as every training does; needs no network."""
    from utils.core.data_config import load_data
    from utils.datasets.generators import ensure_generated
    from utils.datasets.labels.label_scan import build_index
    from utils.plots.label_statistics import draw_label_overview

    data = load_data("shapes")
    ensure_generated(data)
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_label_overview(build_index(data, "train").boxes, Path(folder) / "labels.jpg", data.names)
        shrink(cv2.imread(str(drawn)), path, LABELS_PX)


def main() -> None:
    """Train if necessary, and write the images."""
    from utils.core.data_config import load_data

    if not BEST.is_file():
        train()
    FOLDER.mkdir(parents=True, exist_ok=True)
    scenes = predict(load_data("shapes").root / "images" / "val")
    cv2.imwrite(str(FOLDER / "scenes.jpg"), scenes, [cv2.IMWRITE_JPEG_QUALITY, 80])
    for source, (name, width) in PLOTS.items():
        shrink(cv2.imread(str(BEST.parents[1] / source)), FOLDER / name, width)
    draw_label_statistics(FOLDER / LABELS)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
