"""Batches: reproducible whatever the number of workers and ranks, each image where it belongs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.core.contracts import Batch, Geometry, ImageInfo
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.datasets.pipeline import image_cache as cache_module
from utils.datasets.pipeline.batch_plan import by_aspect, epoch_order, rect_shape, window_of
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.datasets.pipeline.collate import quad
from utils.datasets.pipeline.loader import BatchLoader

PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
RICH = Hyp(mosaic=0.8, mosaic9=0.3, mixup=0.4, copy_paste=0.5, degrees=5, flipud=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Eleven images of different shapes, with boxes, with polygons, and without objects."""
    root = tmp_path_factory.mktemp("set")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    rng = np.random.default_rng(0)
    for i in range(11):
        height, width = 24 + 8 * (i % 4), 64 - 8 * (i % 3)
        image = cv2.GaussianBlur(rng.integers(0, 255, (height, width, 3), dtype=np.uint8), (0, 0), 2)
        cv2.imwrite(str(root / "images" / f"{i:02d}.png"), image)
        text = {0: "", 1: "1 .2 .2 .7 .2 .7 .8 .2 .8\n"}.get(i % 5, f"{i % 3} .5 .5 .4 .6\n{i % 2} .2 .2 .2 .2\n")
        (root / "labels" / f"{i:02d}.txt").write_text(text)
    return DataConfig(root / "d.yaml", root, ("a", "b", "c"), {"train": (root / "images",), "val": (root / "images",)})


def load(data: DataConfig, place: tuple[int, int] = (0, 1), **changes) -> BatchLoader:
    options = {"training": True, "image_size": 64, "batch_size": 4, "stride": 32, "hyp": RICH, "workers": 0}
    options |= changes
    return open_box_loader(LoadRequest(data, "train" if options["training"] else "val", **options), place)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.info == b.info
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.boxes, b.boxes)


# ----------------------------------------------------------------------------------------------------------------------
# Determinism


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_independent_of_workers(data, workers, monkeypatch):
    monkeypatch.setattr("utils.datasets.pipeline.loader.usable_cpus", lambda: 4)
    alone, helped = load(data), load(data, workers=workers)
    assert helped.workers == workers
    for epoch in (0, 1):
        assert_same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))


def test_batches_differ_by_epoch_and_seed(data):
    one, other = load(data), load(data, seed=1)
    first = next(iter(one.epoch(0)))
    assert not torch.equal(first.images, next(iter(one.epoch(1))).images)
    assert not torch.equal(first.images, next(iter(other.epoch(0))).images)
    assert torch.equal(first.images, next(iter(one.epoch(0))).images)


@pytest.mark.parametrize("workers", [0, 2])
def test_start_in_mid_epoch(data, workers):
    loader = load(data, workers=workers)
    whole = list(loader.epoch(3))
    assert_same(whole[2:], list(loader.epoch(3, start=2)))
    iterator = loader.epoch(3)
    next(iterator)
    iterator.close()  # an epoch left half way does not disturb the next
    assert_same(whole, list(loader.epoch(3)))
    assert list(loader.epoch(3, start=3)) == []


def test_decoded_image_cache_does_not_change_batches(data):
    large, small = load(data), load(data)
    small.maker.images.limit_bytes = 1
    assert_same(list(large.epoch(0)), list(small.epoch(0)))
    assert large.decoded == 11 < small.decoded


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("rect", [False, True])
def test_ranks_match_one_process(data, world, rect):
    total = 6 if world < 5 else 5
    whole = list(load(data, batch_size=total, rect=rect).epoch(2))
    loaders = [load(data, (rank, world), batch_size=total // world, rect=rect) for rank in range(world)]
    shares = [list(loader.epoch(2)) for loader in loaders]
    assert {len(share) for share in shares} == {loaders[0].num_batches} == {len(whole)}
    for step, batch in enumerate(whole):
        for position in range(max(len(batch), world)):
            part, row = shares[position % world][step], position // world
            source = position % len(batch)
            assert part.info[row] == batch.info[source]
            assert torch.equal(part.images[row], batch.images[source])
            mine, theirs = part.boxes[part.boxes[:, 0] == row], batch.boxes[batch.boxes[:, 0] == source]
            assert torch.equal(mine[:, 1:], theirs[:, 1:])


def test_image_weights(data):
    weights = np.zeros(11)
    weights[[2, 7]] = 1, 3
    drawn = [info.index for batch in load(data).epoch(0, image_weights=weights) for info in batch.info]
    assert len(drawn) == 11
    assert set(drawn) <= {2, 7}
    many = epoch_order(4000, 0, 0, np.arange(4000) % 4)
    assert np.bincount(many % 4, minlength=4)[0] == 0
    assert np.bincount(many % 4)[3] / 4000 == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="finite"):
        epoch_order(3, 0, 0, np.array([1, np.nan, 1]))


@pytest.mark.parametrize(("count", "batch"), [(1000, 16), (1000, 64), (1000, 256), (70, 16), (1000, 48), (130, 128)])
def test_mosaic_window(count, batch):
    for position in range(count):
        window = window_of(position, count, batch)
        assert position in window
        assert 0 <= min(window) <= max(window) < count
        assert 48 <= len(window) <= 130
    assert window_of(5, count, batch, window=0) == range(count)


def test_mosaic_window_per_rank():
    for rank in range(4):
        mine = range(rank, 256, 4)
        assert {p for position in mine for p in window_of(position, 2560, 256)} == set(mine)


# ----------------------------------------------------------------------------------------------------------------------
# What is in a batch


def test_batch_layout(data):
    for batch in load(data).epoch(0):
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.boxes.shape[1] == 6
        assert ((batch.boxes[:, 2:] >= 0) & (batch.boxes[:, 2:] <= 1)).all()
        assert (batch.boxes[:, 0].diff() >= 0).all()
        assert batch.boxes[:, 0].max() < len(batch)


def test_training_without_augmentation_letterboxes(data):
    for batch in load(data, hyp=PLAIN).epoch(0):
        for row, info in enumerate(batch.info):
            height, width = cv2.imread(info.path).shape[:2]
            scale = 64 / max(height, width)
            image = cv2.imread(info.path)
            if scale != 1:
                image = cv2.resize(image, (int(width * scale), int(height * scale)))
            top, left = round((64 - image.shape[0]) / 2 - 0.1), round((64 - image.shape[1]) / 2 - 0.1)
            shown = batch.images[row].permute(1, 2, 0).numpy()[..., ::-1]
            np.testing.assert_array_equal(shown[top : top + image.shape[0], left : left + image.shape[1]], image)
            assert (shown[:top] == 114).all()


def test_evaluation_batches(data):
    loader = load(data, training=False, hyp=RICH)
    batches = list(loader.epoch(0))
    assert [info.index for batch in batches for info in batch.info] == list(range(11))
    assert loader.num_batches == 3
    for batch in batches:
        for row, info in enumerate(batch.info):
            geometry = info.geometry
            height, width = cv2.imread(info.path).shape[:2]
            assert geometry.original_hw == (height, width) == tuple(loader.shapes_hw[info.index])
            labels = loader.labels[info.index]
            rows = batch.boxes[batch.boxes[:, 0] == row].numpy()
            np.testing.assert_array_equal(rows[:, 1], labels[:, 0])
            pixels = rows[:, 2:4] * 64  # back to the original by the geometry
            original = (pixels - geometry.pad_xy) / geometry.scale_xy
            np.testing.assert_allclose(original, labels[:, 1:3] * (width, height), atol=1e-3)


def test_rectangular_batches(data):
    loader = load(data, training=False, rect=True, pad=0.5)
    order = by_aspect(loader.shapes_hw)
    batches = list(loader.epoch(0))
    assert [info.index for batch in batches for info in batch.info] == order.tolist()
    for start, batch in zip(range(0, 11, 4), batches, strict=True):
        group = loader.shapes_hw[order[start : start + 4]]
        assert tuple(batch.images.shape[2:]) == rect_shape(group[:, 0] / group[:, 1], 64, 32, 0.5)
    wide = load(data, training=False, rect=True, rect_group=8)
    assert [len(b) for b in wide.epoch(0)] == [4, 4, 3]
    assert len({tuple(b.images.shape) for b in list(wide.epoch(0))[:2]}) == 1


@pytest.mark.parametrize(("aspects", "pad", "shape"), [
    ([0.5, 0.6], 0.0, (384, 640)), ([0.5, 0.6], 0.5, (416, 672)), ([0.75, 0.75], 0.5, (512, 672)),
    ([1.5, 2.0], 0.0, (640, 448)), ([0.9, 1.2], 0.0, (640, 640)), ([0.9, 1.2], 0.5, (672, 672)),
])  # fmt: skip
def test_rect_shapes(aspects, pad, shape):
    assert rect_shape(np.array(aspects), 640, 32, pad) == shape


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_evaluate_every_image_once(data, world):
    loaders = [load(data, (rank, world), training=False, rect=True, batch_size=2) for rank in range(world)]
    seen = [info.index for loader in loaders for batch in loader.epoch(0) for info in batch.info]
    assert sorted(seen) == list(range(11))
    assert sum(loader.num_batches for loader in loaders) == 6


def test_loader_labels_and_counts(data):
    loader = load(data)
    assert loader.num_images == 11
    assert loader.num_batches == 3
    assert [len(labels) for labels in loader.labels] == [0, 1, 2, 2, 2, 0, 1, 2, 2, 2, 0]
    assert loader.class_counts.sum() == 14
    assert load(data, single_class=True).class_counts.tolist() == [14]


def test_quad_collate():
    images = torch.stack([torch.full((3, 2, 4), 10.0 * (i + 1)) for i in range(8)]).to(torch.uint8)
    boxes = torch.tensor([[i, i, 0.5, 0.5, 0.2, 0.4] for i in range(8)])
    info = [ImageInfo(i, str(i), Geometry((2, 4), (2, 4))) for i in range(8)]
    out = quad(Batch(images, boxes, info), [False, True])
    assert out.images.shape == (2, 3, 4, 8)
    assert out.images[0, 0].tolist() == [[10] * 4 + [30] * 4] * 2 + [[20] * 4 + [40] * 4] * 2
    assert (out.images[1] == 50).all()
    expected = [[0, 0, 0.25, 0.25, 0.1, 0.2], [0, 1, 0.25, 0.75, 0.1, 0.2], [0, 2, 0.75, 0.25, 0.1, 0.2],
                [0, 3, 0.75, 0.75, 0.1, 0.2], [1, 4, 0.5, 0.5, 0.2, 0.4]]  # fmt: skip
    torch.testing.assert_close(out.boxes, torch.tensor(expected))
    assert [i.index for i in out.info] == [0, 4]


def test_quad_batch_shape(data):
    batches = list(load(data, quad=True).epoch(0))
    assert [tuple(b.images.shape) for b in batches] == [(1, 3, 128, 128)] * 3
    with pytest.raises(UserError, match="quad"):
        load(data, quad=True, batch_size=6)


# ----------------------------------------------------------------------------------------------------------------------
# Caches and accidents


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_image_cache_does_not_change_batches(data, where):
    plain, cached = load(data), load(data, cache=where)
    assert_same(list(plain.epoch(0)), list(cached.epoch(0)))
    assert_same(list(load(data, training=False).epoch(0)), list(load(data, training=False, cache=where).epoch(0)))
    if where == "disk":
        arrays = sorted((data.root / "images").glob("*.npy"))
        assert len(arrays) == 11
        assert np.array_equal(np.load(arrays[3], allow_pickle=False), cv2.imread(str(data.root / "images" / "03.png")))
        arrays[3].write_bytes(b"junk")  # a damaged one is not believed
        assert_same(list(plain.epoch(0)), list(load(data, cache=where).epoch(0)))
        for path in arrays:
            path.unlink()


def test_no_room_for_cache(data, monkeypatch, caplog):
    monkeypatch.setattr(cache_module, "available_memory", lambda: 1000)
    loader = load(data, cache="ram")
    assert loader.maker.images.in_memory is None
    assert "images not cached" in caplog.text
    assert_same(list(load(data).epoch(0)), list(loader.epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_image_damaged_during_training(tmp_path, workers, caplog):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.full((64, 64, 3), 200, np.uint8))
        (tmp_path / "labels" / f"{i}.txt").write_text("0 .5 .5 .5 .5\n")
    data = DataConfig(tmp_path / "d.yaml", tmp_path, ("a",), {"train": (tmp_path / "images",)})
    loader = load(data, hyp=PLAIN, batch_size=2, workers=workers)
    (tmp_path / "images" / "2.png").write_bytes(b"broken")
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        assert sum(len(batch.boxes) for batch in batches) == 3
        for batch in batches:
            for image, info in zip(batch.images, batch.info, strict=True):
                assert (image == (114 if Path(info.path).name == "2.png" else 200)).all()
    assert caplog.text.count("grey image") == 1
    assert str(tmp_path / "images" / "2.png") in caplog.text


def test_invalid_load_requests(data):
    with pytest.raises(UserError, match="at least 1"):
        load(data, batch_size=0)
    with pytest.raises(UserError, match="ram or disk"):
        load(data, cache="tape")


def test_mosaic_decodes_each_image_about_once(coco128):
    names = tuple((coco128 / "names.txt").read_text().splitlines())
    data = DataConfig(coco128 / "d.yaml", coco128, names, {"train": (coco128 / "images" / "train2017",)})
    loader = load(data, hyp=Hyp(), image_size=128, batch_size=16)
    objects = sum(len(batch.boxes) for batch in loader.epoch(0))
    assert objects > 929  # four images each, less what is cropped away
    assert loader.decoded == 128
