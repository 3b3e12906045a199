"""Curves, confusion matrix, label statistics, the story of a run."""

import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers_run import ROOT

from utils.plots import label_statistics as label_plots
from utils.plots.chart import Series, blues, draw_curves, draw_line, draw_matrix
from utils.plots.curves import _smooth, draw_confidence_curve, draw_confusion, draw_pr_curve, draw_score_curves
from utils.plots.label_statistics import draw_labels
from utils.plots.results import draw_results, panel_rows, read_columns, smooth

X = np.linspace(0, 1, 1000)
COLUMNS = [
    "epoch",
    *("train/box_loss", "train/obj_loss", "train/cls_loss"),
    *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
    *("val/box_loss", "val/obj_loss", "val/cls_loss"),
    *("x/lr0", "x/lr1", "x/lr2"),
]


def is_picture(path, at_least=300) -> bool:
    image = cv2.imread(str(path))
    return image is not None and min(image.shape[:2]) >= at_least and image.std() > 1


@pytest.mark.parametrize("classes", [0, 1, 3, 25])
def test_curves_for_any_number_of_classes(tmp_path, classes):
    values = np.stack([1 - X**k for k in range(1, classes + 1)]) if classes else np.zeros((0, 1000))
    names = ["кошка", "a$b_$", "猫", *map(str, range(30))][:classes]
    assert is_picture(draw_confidence_curve(X, values, tmp_path / "F1_curve.png", names, "F1"))
    assert is_picture(draw_pr_curve(X, values, values.mean(axis=1), tmp_path / "PR_curve.png", names))


def test_smooth_operating_point():
    values = np.array([0, 1, 2, 3, 10, 3, 2, 1, *[0] * 12], float)  # 20 values, fraction .1, width 3
    expected = [1 / 3, 1, 2, 5, 16 / 3, 5, 2, 1, 1 / 3]
    assert _smooth(values)[:9] == pytest.approx(expected)


def test_curves_depend_on_values(tmp_path):
    for name, values in (("a", X), ("b", 1 - X)):
        draw_confidence_curve(X, values[None], tmp_path / f"{name}.png", ["x"], "P")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("classes", [1, 4, 31, 120])
def test_confusion_matrix_sizes(tmp_path, classes):
    matrix = np.eye(classes + 1) * 5
    matrix[0, -1] = 1
    assert is_picture(draw_confusion(matrix, tmp_path / "confusion_matrix.png", [f"c{i}" for i in range(classes)]))


def test_class_names_fit_beside_the_confusion_matrix(tmp_path):
    """The names are outside of the layout; their space is reserved by the labels of the axes."""
    names = [f"a rather long name {i} Ж 猫" for i in range(40)]
    draw_confusion(np.zeros((40, 40)), tmp_path / "confusion_matrix.png", names)
    image = cv2.imread(str(tmp_path / "confusion_matrix.png"), cv2.IMREAD_GRAYSCALE)
    ink = image < 128
    assert not ink[:, :4].any() and not ink[-4:].any()
    assert ink[:, : image.shape[1] // 4].any(axis=1).mean() > 0.4  # the names of the rows


def test_validation_plots_are_quick_and_do_not_need_matplotlib(tmp_path):
    """With matplotlib those of 80 classes took seconds."""
    curve = np.stack([1 - X ** (0.1 * k + 0.1) for k in range(80)])
    details = SimpleNamespace(
        classes=np.arange(80), positions=X, precision=curve, recall=curve, f1=curve, precision_by_recall=curve,
        ap50=curve.mean(axis=1),
    )  # fmt: skip
    names = [f"traffic light {index}" for index in range(80)]
    start = time.process_time()
    draw_score_curves(details, tmp_path, names)
    draw_confusion(np.eye(81), tmp_path / "confusion_matrix.png", names)
    assert time.process_time() - start < 1.5
    code = "import sys, utils.plots.curves; sys.exit('matplotlib.figure' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def pixels(canvas, colour, tolerance=0):
    return np.argwhere((np.abs(canvas.astype(int) - colour) <= tolerance).all(axis=-1))


def test_curve_follows_its_values():
    series = [Series("x", X, (0, 0, 255), 4), Series("", np.full_like(X, 0.5), (255, 0, 0), 4)]
    canvas = draw_curves(X, series, ("t", "x", "y"), (600, 400))
    rising, level = pixels(canvas[:, :400], (0, 0, 255)), pixels(canvas, (255, 0, 0))
    assert np.corrcoef(rising[:, 1], rising[:, 0])[0, 1] < -0.99
    assert np.ptp(level[:, 0]) <= 4 and np.ptp(level[:, 1]) > 300
    assert rising[:, 0].min() < level[:, 0].mean() < rising[:, 0].max()


def test_dashed_line_has_gaps():
    canvas = np.full((20, 200, 3), 255, np.uint8)
    draw_line(canvas, np.array([[5.0, 10.0], [100.0, 10.0], [195.0, 10.0]]), (0, 0, 0), 1, dashed=True)
    ink = (canvas[10, 5:196, 0] < 128).astype(int)
    assert 0.5 < ink.mean() < 0.8 and (np.diff(ink) == -1).sum() >= 8


def test_colours_of_fractions():
    colours = blues(np.array([0.0, 0.5, 1.0, np.nan]))
    assert colours.tolist() == [[255, 251, 247], [214, 174, 107], [107, 48, 8], [255, 255, 255]]


def test_cells_of_a_matrix_have_their_places(tmp_path):
    matrix = np.zeros((4, 4))
    matrix[0, 3] = 5  # predicted as the first class, truly the fourth
    draw_confusion(matrix, tmp_path / "confusion_matrix.png", list("abcd"))
    dark = pixels(cv2.imread(str(tmp_path / "confusion_matrix.png"))[:, :980], (107, 48, 8))
    assert len(dark) > 10_000 and dark[:, 0].max() < 260 and dark[:, 1].min() > 500


def test_matrix_of_more_classes_than_pixels():
    assert draw_matrix(np.eye(2500), [], [], ("t", "x", "y")).shape[0] < 2200


def test_empty_confusion_matrix(tmp_path):
    assert is_picture(draw_confusion(np.zeros((3, 3)), tmp_path / "confusion_matrix.png", ["a", "b"]))


@pytest.mark.parametrize("boxes", [0, 40])
def test_label_plots(tmp_path, boxes):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 3, (boxes, 1)), rng.random((boxes, 4))], axis=1)
    draw_labels(SimpleNamespace(labels=[rows[:10], rows[10:], np.zeros((0, 5))]), tmp_path, ["a", "b", "c"])
    assert is_picture(tmp_path / "labels.jpg") and is_picture(tmp_path / "labels_correlogram.jpg")


def test_positions_of_labels_run_downwards(tmp_path):
    """In the figures as in images, an object near the lower border is drawn below."""
    rows = np.array([[0, 0.5, 0.9, 0.1, 0.1]])
    draw_labels(SimpleNamespace(labels=[rows]), tmp_path, ["a"])
    yellow = pixels(cv2.imread(str(tmp_path / "labels.jpg")), (37, 231, 253), tolerance=40)
    centres, sizes = yellow[yellow[:, 1] < 675], yellow[yellow[:, 1] > 675]
    assert centres[:, 0].min() > 1100 and sizes[:, 0].min() > 1100 and sizes[:, 1].max() < 900
    correlogram = pixels(cv2.imread(str(tmp_path / "labels_correlogram.jpg")), (37, 231, 253), tolerance=40)
    y_over_x = correlogram[(correlogram[:, 0] < 675)]
    assert len(y_over_x) and y_over_x[:, 0].min() > 500  # second row of panels, y = 0.9 near its lower end


def test_label_plot_samples_many_boxes(tmp_path):
    rows = np.zeros((300_000, 5), np.float32)
    sample = label_plots._random_subset(rows, label_plots.MAX_BOXES)
    assert sample.shape == (100_000, 5)
    assert label_plots._random_subset(rows[:7], 100).shape == (7, 5)


def write_csv(path, rows):
    lines = [",".join(f"{name:>20}" for name in COLUMNS)]
    lines += [",".join(f"{value:20.5g}" for value in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def test_results_plot(tmp_path):
    write_csv(tmp_path / "results.csv", [[epoch] + [1 / (epoch + 1)] * 13 for epoch in range(5)])
    assert draw_results(tmp_path / "results.csv") == tmp_path / "results.png"
    assert is_picture(tmp_path / "results.png")


def test_results_plot_with_gaps(tmp_path):
    write_csv(tmp_path / "results.csv", [[0] + [float("nan")] * 13])
    assert draw_results(tmp_path / "results.csv") is not None
    (tmp_path / "empty.csv").write_text("")
    assert draw_results(tmp_path / "empty.csv") is None
    write_csv(tmp_path / "head.csv", [])
    assert draw_results(tmp_path / "head.csv") is None


def test_results_plot_grid():
    above, below = panel_rows(COLUMNS)
    assert above == COLUMNS[1:6] and below == [*COLUMNS[8:11], *COLUMNS[6:8]]
    boxes = ["metrics/precision(B)", "metrics/recall(B)", "metrics/mAP_0.5(B)", "metrics/mAP_0.5:0.95(B)"]
    names = (
        [f"train/{i}" for i in range(4)] + boxes + [b.replace("B", "M") for b in boxes] + [f"val/{i}" for i in range(4)]
    )
    assert [len(row) for row in panel_rows(names)] == [8, 8]
    more = [f"metrics/{i}" for i in range(5)]
    rows = panel_rows(names + more)  # metrics in rows of their own
    assert rows == [names[:4], names[-4:], names[4:11], [names[11], *more]]
    assert panel_rows(["epoch", "x/lr0"]) == [[], []]


def test_results_column_names_are_stripped(tmp_path):
    write_csv(tmp_path / "results.csv", [[0, *range(13)], [1, *range(13)]])
    columns = read_columns(tmp_path / "results.csv")
    assert columns["epoch"].tolist() == [0, 1] and columns["x/lr2"].tolist() == [12, 12]


def test_smooth():
    epochs = np.arange(9)
    assert smooth(epochs, np.full(9, 2.0)) == pytest.approx(np.full(9, 2.0))
    assert smooth(epochs, np.where(epochs == 4, 9.0, 0)).max() < 3
    assert smooth(np.zeros(0), np.zeros(0)).shape == (0,)
    every_tenth = 10 * epochs  # values that far apart are not averaged
    assert smooth(every_tenth, np.where(epochs == 4, 9.0, 0)).max() == pytest.approx(9, abs=0.1)


def test_curve_file_names(tmp_path):
    curve = np.stack([1 - X, X])
    details = SimpleNamespace(
        classes=np.array([0, 2]),
        positions=X,
        precision=curve,
        recall=curve,
        f1=curve,
        precision_by_recall=curve,
        ap50=np.array([0.5, 0.4]),
    )
    paths = draw_score_curves(details, tmp_path, ["a", "b", "c"])
    assert [path.name for path in paths] == ["PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"]
    assert all(is_picture(path) for path in paths)
