"""Draw the figures of the tutorials from generated scenes and computed numbers: `python docs/draw_pictures.py`.

Each function writes one file below docs/images/tutorials. Nothing is trained and nothing is downloaded.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from utils.datasets.pipeline.sample import Sample

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "images" / "tutorials"
SIZE = 224
NAMES = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]
_GAP, _TITLE_PX = 10, 24


def load_samples(count: int, size: int = SIZE, seed: int = 5) -> list[Sample]:
    """Generate scenes and read them as samples, in which images and labels are in pixels."""
    from utils.core.data_config import load_data
    from utils.core.yaml_file import write_yaml
    from utils.datasets.generators import ensure_generated
    from utils.datasets.pipeline.sample import Sample

    samples = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "scenes.yaml"
        splits = {"train": "images/train", "val": "images/val"}
        generate = {"kind": "shapes", "train": count, "val": 1, "size": size, "seed": seed}
        write_yaml(source, {"path": "scenes", **splits, "names": NAMES, "generate": generate})
        data = load_data(str(source))
        ensure_generated(data)
        for path in sorted((data.root / "images" / "train").glob("*.jpg")):
            image = cv2.imread(str(path))
            scale = np.array(image.shape[1::-1], np.float32)
            lines = (data.root / "labels" / "train" / f"{path.stem}.txt").read_text(encoding="utf-8").splitlines()
            rows = [np.array(line.split(), np.float32) for line in lines]
            polygons = [row[1:].reshape(-1, 2) * scale for row in rows]
            boxes = np.array([[*polygon.min(0), *polygon.max(0)] for polygon in polygons], np.float32).reshape(-1, 4)
            classes = np.array([row[0] for row in rows], np.float32)
            samples.append(Sample(image, boxes, classes, polygons))
    return samples


def draw_sample(sample: Sample) -> np.ndarray:
    """Draw the boxes of a sample on its image."""
    from utils.plots.palette import palette

    canvas = np.ascontiguousarray(sample.image[..., :3]).copy()
    for box, label in zip(sample.boxes_xyxy.round().astype(int).tolist(), sample.classes, strict=True):
        colour = tuple(int(value) for value in palette(NAMES)[int(label)][::-1])
        cv2.rectangle(canvas, box[:2], box[2:], (255, 255, 255), 3, cv2.LINE_AA)
        cv2.rectangle(canvas, box[:2], box[2:], colour, 2, cv2.LINE_AA)
    return canvas


def arrange_panels(panels: Sequence[tuple[str, np.ndarray]], height: int = SIZE) -> np.ndarray:
    """Place titled images of any size side by side, at one height."""
    columns = []
    for title, image in panels:
        width = round(image.shape[1] * height / image.shape[0])
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        head = np.full((_TITLE_PX, width, 3), 255, np.uint8)
        cv2.putText(head, title, (2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
        columns += [np.vstack([head, resized]), np.full((height + _TITLE_PX, _GAP, 3), 255, np.uint8)]
    return np.hstack(columns[:-1])


def write_jpeg(name: str, image: np.ndarray, folder: Path, quality: int = 82) -> None:
    """Write an image."""
    cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def draw_mosaic(folder: Path) -> None:
    """Draw a mosaic step by step: sources, canvas, random warp, flip and colour."""
    from utils.datasets.pipeline.augment import write_rgb
    from utils.datasets.pipeline.mosaic import View, compose, mosaic4
    from utils.ops.transform import Warp

    samples = load_samples(4)
    side = max(max(sample.size_hw) for sample in samples)
    sheet = np.full((2 * side + _GAP, 2 * side + _GAP, 3), 255, np.uint8)
    for number, sample in enumerate(samples):
        row, column = divmod(number, 2)
        height, width = sample.size_hw
        top, left = row * (side + _GAP), column * (side + _GAP)
        sheet[top : top + height, left : left + width] = draw_sample(sample)
    tiles = mosaic4(samples, SIZE, (190, 250))
    whole, half = (2 * SIZE, 2 * SIZE), (SIZE, SIZE)
    canvas = draw_sample(compose(tiles, View(whole, whole)))
    cv2.drawMarker(canvas, (190, 250), (255, 255, 255), cv2.MARKER_CROSS, 40, 3)
    warp = Warp(angle=8, scale=0.8, translate_xy=(0.53, 0.46))
    warped = compose(tiles, View(whole, half, warp))
    final = compose(tiles, View(whole, half, warp, flip_lr=True))
    coloured = np.empty_like(final.image)
    write_rgb(final.image, coloured, np.array([1.01, 1.5, 0.8]))
    final.image = coloured[..., ::-1]
    panels = [
        ("1. four images", sheet),
        ("2. canvas of twice the size", canvas),
        ("3. random warp to the input size", draw_sample(warped)),
        ("4. mirrored, other colours", draw_sample(final)),
    ]
    write_jpeg("mosaic.jpg", arrange_panels(panels, 260), folder)


def draw_mixtures(folder: Path) -> None:
    """Draw a mosaic of nine, MixUp and copy-paste."""
    from utils.datasets.pipeline.augment import copy_paste, mixup
    from utils.datasets.pipeline.mosaic import View, compose, mosaic4, mosaic9
    from utils.ops.transform import Warp

    samples = load_samples(13)
    whole, half = (2 * SIZE, 2 * SIZE), (SIZE, SIZE)
    view = View(whole, half, Warp(scale=0.5))
    nine = compose(mosaic9(samples[:9], SIZE, (100, 120)), view)
    first, second = (compose(mosaic4(samples[i : i + 4], SIZE, (SIZE, SIZE)), view) for i in (0, 4))
    pasted = copy_paste(samples[0], 1.0, np.random.default_rng(1))
    panels = [
        ("mosaic of nine", draw_sample(nine)),
        ("mixup, fraction 0.5", draw_sample(mixup(first, second, 0.5))),
        ("before copy-paste", draw_sample(samples[0])),
        ("copy-paste, mirrored copies", draw_sample(pasted)),
    ]
    write_jpeg("mixtures.jpg", arrange_panels(panels), folder)


def draw_letterbox(folder: Path) -> None:
    """Draw one image in a square and in the rectangle of its group."""
    from utils.datasets.pipeline.batch_plan import rect_shape
    from utils.ops.letterbox import letterbox

    image = load_samples(1, size=320, seed=8)[0].image[:180]
    shape = rect_shape(np.array([image.shape[0] / image.shape[1]]), 320, 32, 0.5)
    square, _ = letterbox(image, (320, 320))
    rectangle, _ = letterbox(image, shape, scale_up=False)
    frame = np.full((352, 352, 3), 255, np.uint8)
    top = (352 - shape[0]) // 2
    frame[top : top + shape[0], : shape[1]] = rectangle[:, :352]
    panels = [("square: 320 x 320", square), (f"rectangle: {shape[0]} x {shape[1]}", frame)]
    write_jpeg("letterbox.jpg", arrange_panels(panels, 300), folder)


def draw_levels(folder: Path) -> None:
    """Draw the grid cells and the anchors of the three levels of yolov5n on one image."""
    from models.architecture import read_architecture
    from models.builder import build_network

    spec = build_network(read_architecture("yolov5n")).specs["detect"]
    image = cv2.resize(load_samples(1, size=320, seed=2)[0].image, (320, 320))
    panels = []
    for stride, anchors in zip(spec.strides, spec.anchors, strict=True):
        canvas = (image * 0.75).astype(np.uint8)
        for position in range(0, 320, stride):
            cv2.line(canvas, (position, 0), (position, 319), (150, 150, 150), 1)
            cv2.line(canvas, (0, position), (319, position), (150, 150, 150), 1)
        middle = 160 + stride // 2
        cell = middle // stride * stride
        cv2.rectangle(canvas, (cell, cell), (cell + stride, cell + stride), (0, 220, 255), -1)
        for width, height in anchors:
            corner = (round(middle - width / 2), round(middle - height / 2))
            opposite = (round(middle + width / 2), round(middle + height / 2))
            cv2.rectangle(canvas, corner, opposite, (255, 255, 255), 2, cv2.LINE_AA)
        panels.append((f"stride {stride}: {320 // stride} x {320 // stride} cells", canvas))
    write_jpeg("levels.jpg", arrange_panels(panels, 260), folder)


def draw_views(folder: Path) -> None:
    """Draw the three views of test-time augmentation."""
    import torch

    from models.tta import VIEWS, rescale

    image = cv2.resize(load_samples(1, size=320, seed=4)[0].image, (320, 256))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    sheet = np.full((256 + _TITLE_PX, 3 * 330, 3), 255, np.uint8)
    for number, view in enumerate(VIEWS):
        seen = rescale(tensor.flip(3) if view.mirrored else tensor, view.scale, 32)
        pixels = (seen[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        left = 330 * number
        sheet[_TITLE_PX : _TITLE_PX + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        title = f"scale {view.scale:g}{', mirrored' if view.mirrored else ''}: {pixels.shape[0]} x {pixels.shape[1]}"
        cv2.putText(sheet, title, (left + 2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    write_jpeg("views.jpg", sheet, folder)


def _new_axes(count: int, width_inch: float, height_inch: float) -> tuple[object, list[Axes]]:
    from utils.plots.figure_io import new_figure

    figure = new_figure(width_inch, height_inch)
    return figure, [figure.add_subplot(1, count, number + 1) for number in range(count)]


def _save(figure: object, path: Path) -> None:
    from typing import cast

    from matplotlib.figure import Figure

    from utils.plots.figure_io import save_figure

    shown = cast(Figure, figure)
    shown.set_layout_engine("tight")
    save_figure(shown, path, dpi=80)


def draw_iou_pairs(folder: Path) -> None:
    """Draw pairs of boxes with their intersection over union."""
    import torch
    from matplotlib.patches import Rectangle

    from utils.ops.iou import pairwise_iou

    figure, axes = _new_axes(3, 9, 3)
    first = torch.tensor([[1.0, 1.0, 5.0, 4.0]])
    for panel, shift in zip(axes, ((0.4, 0.25), (2.0, 1.0), (3.0, 2.0)), strict=True):
        second = first + torch.tensor([[*shift, *shift]])
        low, high = torch.maximum(first, second)[0, :2].tolist(), torch.minimum(first, second)[0, 2:].tolist()
        for box, colour in ((first, "tab:blue"), (second, "tab:orange")):
            left, top, right, bottom = box[0].tolist()
            panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, lw=2.5))
        panel.add_patch(Rectangle((low[0], low[1]), high[0] - low[0], high[1] - low[1], color="tab:green", alpha=0.35))
        panel.set(xlim=(0.5, 8.5), ylim=(6.5, 0.5), aspect="equal", xticks=[], yticks=[])
        panel.set_title(f"IoU = {float(pairwise_iou(first, second)):.2f}")
    _save(figure, folder / "iou_pairs.png")


def draw_iou_curves(folder: Path) -> None:
    """Plot the four measures of a shifted box, and IoU by shift for boxes of several sizes."""
    import torch

    from utils.ops.iou import paired_iou

    figure, (left, right) = _new_axes(2, 9, 3.4)
    shifts = torch.linspace(0, 60, 121)
    fixed = torch.tensor([[0.0, 0.0, 20.0, 20.0]]).expand(len(shifts), 4)
    moved = fixed.clone()
    moved[:, 0] = shifts
    for kind in ("iou", "giou", "diou", "ciou"):
        style = "--" if kind == "ciou" else "-"
        left.plot(shifts, paired_iou(fixed, moved, kind), style, label=kind[:-3].upper() + "IoU")
    left.axvline(20, color="grey", lw=0.8, ls=":")
    left.set(xlabel="shift of a 20 px box (px)", title="boxes part at 20 px")
    left.legend()
    shifts = torch.linspace(0, 20, 81)
    for side in (8, 16, 32, 128):
        fixed = torch.tensor([[0.0, 0.0, side, side]]).expand(len(shifts), 4)
        moved = fixed.clone()
        moved[:, 0] = shifts
        right.plot(shifts, paired_iou(fixed, moved, "iou"), label=f"{side} px box")
    right.axhline(0.5, color="grey", lw=0.8, ls=":")
    right.set(xlabel="shift (px)", title="IoU of a shifted box, by size")
    right.legend()
    for panel in (left, right):
        panel.grid(alpha=0.3)
    _save(figure, folder / "iou_curves.png")


def draw_map(folder: Path) -> None:
    """Plot the precision-recall curve of the worked example in the tutorial, and its envelope."""
    from utils.metrics.average_precision import average_precision

    correct = np.array([1, 1, 0, 1, 0, 1, 0])
    hits, ranks = correct.cumsum(), np.arange(1, 8)
    recall, precision = hits / 5, hits / ranks
    area, recalls, envelope = average_precision(recall, precision)
    figure, axes = _new_axes(2, 9, 3.4)
    axes[0].plot(recall, precision, "o-", color="tab:blue")
    for number, (x, y) in enumerate(zip(recall, precision, strict=True), 1):
        axes[0].annotate(str(number), (x, y), textcoords="offset points", xytext=(5, 4))
    axes[0].set_title("after each detection, by falling score")
    axes[1].plot(recall, precision, "o", color="tab:blue", alpha=0.4)
    axes[1].plot(recalls, envelope, color="tab:red")
    points = np.linspace(0, 1, 101)
    axes[1].fill_between(points, np.interp(points, recalls, envelope), color="tab:red", alpha=0.15)
    axes[1].set_title(f"envelope; area = AP = {area:.3f}")
    for panel in axes:
        panel.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(0, 1.08))
        panel.grid(alpha=0.3)
    _save(figure, folder / "map.png")


def draw_thresholds(folder: Path) -> None:
    """Plot AP by IoU threshold of detections with random localisation errors, for three sizes of objects."""
    from utils.metrics.average_precision import evaluate_detections
    from utils.metrics.matching import IOU_THRESHOLDS, match_detections
    from utils.ops.iou import pairwise_iou_numpy

    figure, axes = _new_axes(1, 5, 3.4)
    for side in (16, 48, 160):
        rng = np.random.default_rng(0)
        correct = []
        for _ in range(300):
            label = np.array([[100.0, 100.0, 100.0 + side, 100.0 + side]])
            found = label + rng.normal(0, 2, (1, 4))
            correct.append(match_detections(pairwise_iou_numpy(label, found), np.ones((1, 1), bool)))
        zeros = np.zeros(300)
        ap = evaluate_detections(np.concatenate(correct), rng.random(300), zeros, zeros).ap[0]
        axes[0].plot(IOU_THRESHOLDS, ap, "o-", label=f"{side} px: mean {ap.mean():.2f}")
    axes[0].set(xlabel="IoU threshold", ylabel="AP", ylim=(-0.03, 1.05))
    axes[0].set_title("corners off by 2 px (standard deviation)")
    axes[0].legend()
    axes[0].grid(alpha=0.3)
    _save(figure, folder / "thresholds.png")


FIGURES: tuple[Callable[[Path], None], ...] = (
    draw_mosaic, draw_mixtures, draw_letterbox, draw_levels, draw_views, draw_iou_pairs, draw_iou_curves, draw_map,
    draw_thresholds,
)  # fmt: skip


def main() -> None:
    """Draw every figure."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for draw in FIGURES:
        draw(FOLDER)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
