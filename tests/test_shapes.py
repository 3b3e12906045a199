"""The generated data set: the same every time, right in its labels, safe to interrupt."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.datasets import GENERATORS
from utils.datasets.generators import prepare
from utils.datasets.generators.outlines import OUTLINES, clip_polygon, polygon_area, transform_outline
from utils.datasets.generators.prepare import MARKER, ensure_generated
from utils.datasets.generators.shapes import ShapesSettings, image_scene

NAMES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent")


def small(root: Path, **settings: object) -> DataConfig:
    return replace(
        load_data("shapes"), root=root, generate={"kind": "shapes", "train": 9, "val": 7, "size": 96, **settings}
    )


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "set"
    ensure_generated(small(root))
    return root


def test_generated_folder():
    data = load_data("shapes")
    assert data.root == ROOT / "datasets" / "shapes"
    assert data.names == NAMES
    assert data.splits == {"train": (data.root / "images/train",), "val": (data.root / "images/val",)}


def test_generation_is_deterministic(made, tmp_path):
    ensure_generated(small(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(made)
    assert len(contents(made)) == 3 * (9 + 7) + 7 * (2 + 2) + 2  # marker and lock


def test_concurrent_generation(made, tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); "
        "from test_shapes import small, ensure_generated; "
        "ensure_generated(small(Path(sys.argv[1])))"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "set")]
    both = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert contents(tmp_path / "set") == contents(made)


def test_seed_changes_images(made, tmp_path):
    ensure_generated(small(tmp_path / "other", seed=1))
    first, other = contents(made), contents(tmp_path / "other")
    assert all(first[name] != other[name] for name in first if name.startswith("images/"))


def test_complete_set_is_not_rewritten(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    ensure_generated(small(made))
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_label_polygons_inside_image(made):
    for path in made.glob("labels/*/*.txt"):
        for line in path.read_text().splitlines():
            label, *points = line.split()
            values = np.array(points, float)
            assert int(label) in range(len(NAMES))
            assert len(values) >= 6
            assert len(values) % 2 == 0
            assert values.min() >= 0
            assert values.max() <= 1


def test_every_class_in_both_splits(made):
    for split in ("train", "val"):
        lines = [line for path in made.glob(f"labels/{split}/*.txt") for line in path.read_text().splitlines()]
        assert {int(line.split()[0]) for line in lines} == set(range(len(NAMES)))
        for name in NAMES:
            assert len(list(made.glob(f"classes/{split}/{name}/*.jpg"))) == 2


def test_image_and_mask_sizes(made):
    sizes = set()
    for path in made.glob("images/*/*.jpg"):
        image = cv2.imread(str(path))
        mask = cv2.imread(str(made / "masks" / path.parent.name / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == image.shape[:2]
        assert max(mask.shape) == 96
        assert mask.max() <= len(NAMES)
        sizes.add(mask.shape)
    assert len(sizes) > 3


def test_boxes_match_masks():
    gaps = []  # between box and visible pixels, of objects with nothing in front
    for index in range(40):
        scene = image_scene(ShapesSettings(size=320), list(NAMES), "train", index)
        for number, one in enumerate(scene.objects):
            ys, xs = np.nonzero(scene.instance_map == number)
            low, high = one.polygon.min(axis=0), one.polygon.max(axis=0)
            shown = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert (shown[:2] > low - 0.85).all()  # pixels covered by half count
            assert (shown[2:] < high + 0.85).all()
            assert len(xs) / polygon_area(one.polygon) > 0.55
            around = scene.instance_map[int(low[1]) : int(high[1]) + 1, int(low[0]) : int(high[0]) + 1]
            inside = cv2.fillPoly(np.zeros(scene.instance_map.shape, np.uint8), [one.polygon.astype(np.int32)], 1)
            inside = cv2.erode(inside, np.ones((3, 3), np.uint8)) > 0
            if set(np.unique(around)) <= {-1, number} and (scene.instance_map[inside] == number).all():
                gaps.append(np.abs(shown - [*low, *high]).max())
    assert len(gaps) > 30
    assert np.mean(gaps) < 0.8
    assert np.quantile(gaps, 0.95) < 2  # the points of stars and crescents are thinner than a pixel


def test_background_images(tmp_path):
    files = GENERATORS.get("shapes")(small(tmp_path, train=40)).make(39)
    assert files["labels/train/shapes_000039.txt"] == b""
    mask = cv2.imdecode(np.frombuffer(files["masks/train/shapes_000039.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.unique(mask).tolist() == [len(NAMES)]


@pytest.mark.parametrize("step", [0, 5, 20])
def test_interrupted_generation_is_completed(made, tmp_path, monkeypatch, step):
    data = small(tmp_path / "cut")
    replace_file = prepare._replace
    calls = iter(range(10_000))

    def stop_early(*arguments):
        if next(calls) == step:
            raise KeyboardInterrupt
        replace_file(*arguments)

    monkeypatch.setattr(prepare, "_replace", stop_early)
    with pytest.raises(KeyboardInterrupt):
        ensure_generated(data)
    assert not (data.root / MARKER).exists()
    monkeypatch.setattr(prepare, "_replace", replace_file)
    ensure_generated(data)
    assert contents(data.root) == contents(made)


def test_missing_file_is_regenerated(tmp_path):
    data = small(tmp_path / "set")
    ensure_generated(data)
    whole = contents(data.root)
    (data.root / "labels/val/shapes_000003.txt").unlink()
    ensure_generated(data)
    assert contents(data.root) == whole


def test_changed_settings_regenerate(tmp_path):
    data = small(tmp_path / "set")
    ensure_generated(data)
    mine = data.root / "images/train/mine.jpg"
    mine.write_bytes(b"not generated")
    ensure_generated(small(data.root, train=7, seed=3))
    assert mine.read_bytes() == b"not generated"
    assert len(list(data.root.glob("images/train/shapes_*.jpg"))) == 7
    assert len(list(data.root.glob("labels/train/*.txt"))) == 7
    assert json.loads((data.root / MARKER).read_text())["settings"]["seed"] == 3
    assert not (data.root / ".partial").exists()


def test_leftovers_are_removed(made, tmp_path):
    data = small(tmp_path / "set")
    left = data.root / ".partial" / "1.jpg"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    ensure_generated(data)
    assert contents(data.root) == contents(made)


def test_damaged_marker(tmp_path):
    data = small(tmp_path / "set")
    ensure_generated(data)
    for text in ("", "[]", "{", '{"settings": 1}'):
        (data.root / MARKER).write_text(text)
        ensure_generated(data)
        assert json.loads((data.root / MARKER).read_text())["settings"]["size"] == 96


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the generated data .*set another `path:`"):
        ensure_generated(small(tmp_path / "file" / "set"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": None}, "`generate:` requires `kind:`"),
        ({"kind": "shape"}, "did you mean 'shapes'"),
        ({"trian": 5}, r"unknown key `generate\.trian`"),
        ({"train": 0}, "integer from 1 to"),
        ({"val": 2.5}, "expects an integer"),
        ({"size": 20}, "integer from 64 to"),
        ({"seed": True}, "expects an integer"),
    ],
)
def test_invalid_settings(tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        ensure_generated(small(tmp_path / "set", **settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_unknown_shape_class(tmp_path):
    with pytest.raises(UserError, match="unknown shape 'hexagon'"):
        ensure_generated(replace(small(tmp_path / "set"), names=("circle", "hexagon")))


def test_other_data_is_untouched(tmp_path):
    ensure_generated(replace(small(tmp_path / "set"), generate={}))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_simple(name):
    polygon = transform_outline(OUTLINES[name](), 100, 1.0, 30, (60, 60))
    filled = cv2.fillPoly(np.zeros((120, 120), np.uint8), [np.round(polygon).astype(np.int32)], 1)
    assert filled.sum() == pytest.approx(polygon_area(polygon), rel=0.08)  # crossing edges would cancel in the formula
    assert 75 < np.ptp(polygon, axis=0).max() < 115


def test_polygon_clipping():
    square = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    cut = clip_polygon(square, 10, 10)
    assert polygon_area(cut) == pytest.approx(1.0)
    assert cut.min(axis=0).tolist() == [0, 0]
    assert cut.max(axis=0).tolist() == [1, 1]
    assert len(clip_polygon(square + 20, 10, 10)) == 0
    assert clip_polygon(square + 5, 10, 10).tolist() == (square + 5).tolist()
