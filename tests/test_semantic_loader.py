"""Batches with semantic maps: random draws, independence of workers and ranks, pixel alignment."""

import cv2
import numpy as np
import pytest
import torch
from helpers_semantic import COLOURS, pixel_set, request, scene, write_pair

from utils.core.contracts import Batch
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.seed import generator
from utils.datasets.labels.semantic_layout import SemanticAugment
from utils.datasets.labels.semantic_layouts.citybdd import AUGMENT as CITYBDD
from utils.datasets.labels.semantic_layouts.cityscapes import AUGMENT as CITYS
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.datasets.pipeline.sample import Sample
from utils.datasets.pipeline.semantic_augment import (
    ColourJitter,
    RandomCrop,
    apply_jitter,
    crop_into,
    draw_crop,
    draw_jitter,
    long_side_distribution,
    scaled_hw,
)
from utils.datasets.pipeline.semantic_samples import open_semantic_loader
from utils.ops.letterbox import BORDER

CALM = {"jitter": [0, 0, 0, 0], "flip": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine images of three sizes."""
    return pixel_set(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Nine images with a box and a class map each."""
    return pixel_set(tmp_path_factory.mktemp("both"), boxes=True)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.info == b.info
        assert torch.equal(a.images, b.images) and torch.equal(a.semantic, b.semantic) and torch.equal(a.boxes, b.boxes)


def nearest_class(rgb: np.ndarray) -> np.ndarray:
    """Return the class of the nearest colour for each pixel of an image."""
    distance = np.abs(rgb[..., None, ::-1].astype(int) - COLOURS).sum(-1)
    return distance.argmin(-1)


def far_from_edges(classes: np.ndarray, reach: int = 1) -> np.ndarray:
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return cv2.erode(classes, kernel) == cv2.dilate(classes, kernel)


# ----------------------------------------------------------------------------------------------------------------------
# SemanticAugment


@pytest.mark.parametrize(
    ("draws", "base", "count", "ends", "mode"),
    [
        (CITYS, 1024, 76, (672, 3072), 896),
        (CITYBDD, 1024, 44, (672, 2048), 896),
        (SemanticAugment(), 832, 20, (640, 1248), 704),
    ],
)
def test_random_scale_golden_values(draws, base, count, ends, mode):
    sides, chances = long_side_distribution(base, draws.low, draws.high, draws.std)
    assert (len(sides), sides[0], sides[-1], sides[chances.argmax()]) == (count, *ends, mode)
    assert chances.sum() == pytest.approx(1)
    if draws is CITYS:
        assert (sides * chances).sum() == pytest.approx(1380, abs=0.5)
        # normal density around step 28: one standard deviation away it is exp(-1/2) of the highest
        assert chances[(28 + 25) - 21] / chances.max() == pytest.approx(np.exp(-0.5))


def test_random_draw_distribution():
    draws, hits, sizes, flips = SemanticAugment(), set(), [], 0
    for number in range(3000):
        placing = draw_crop(generator(0, 0, number), (100, 200), (96, 96), draws, 128)
        assert placing.size_hw == (int(100 * placing.size_hw[1] / 200 + 0.5), placing.size_hw[1])
        assert 0 <= placing.left <= placing.size_hw[1] - 96 and placing.top == max(0, placing.top)
        flips += placing.flip
        sizes.append(placing.size_hw[1])
        if placing.size_hw[1] == 128:
            hits.add(placing.left)
    assert hits == set(range(33))
    assert flips / 3000 == pytest.approx(0.5, abs=0.04)
    sides, chances = long_side_distribution(128, 0.75, 1.5, 35)
    assert sides.tolist() == [96, 128, 160, 192]
    np.testing.assert_allclose([sizes.count(side) / 3000 for side in sides], chances, atol=0.03)


def test_short_side_rounding():
    assert scaled_hw((375, 1242), 1024) == (309, 1024)  # 309.18
    assert scaled_hw((1242, 374), 1024) == (1024, 308)  # 308.35
    assert scaled_hw((5, 10), 672) == (336, 672)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(37, 80), (80, 100), (200, 250)])
def test_placement_matches_separate_steps(flip, size):
    image, classes = scene(3, 40, 50)
    image = cv2.GaussianBlur(image, (0, 0), 1.5)
    big = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    # independent of OpenCV's nearest: the source pixel that holds the centre of the target pixel
    rows = ((np.arange(size[0]) + 0.5) * 40 / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * 50 / size[1]).astype(int)
    labels = classes[rows][:, columns]
    if flip:
        big, labels = big[:, ::-1], labels[:, ::-1]
    left, top = max(0, size[1] - 64) // 2, max(0, size[0] - 64) // 3
    wanted, wanted_labels = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)
    part = big[top : top + 64, left : left + 64]
    wanted[: part.shape[0], : part.shape[1]] = part
    wanted_labels[: part.shape[0], : part.shape[1]] = labels[top : top + 64, left : left + 64]
    out, out_labels = np.empty((64, 64, 3), np.uint8), np.empty((64, 64), np.uint8)
    crop_into(Sample(image, semantic=classes), RandomCrop(flip, size, left, top), out, out_labels)
    assert np.abs(out.astype(int) - wanted).max() <= 6  # positions are rounded to 1/32 pixel there
    assert np.abs(out.astype(int) - wanted).mean() < 0.5
    assert ((out_labels == 255) == (wanted_labels == 255)).all()
    # a centre exactly between two source pixels may go either way
    inside = far_from_edges(wanted_labels)
    assert (out_labels == wanted_labels)[inside].all() and (out_labels == wanted_labels).mean() > 0.97


def test_color_jitter_matches_torchvision(coco128):
    functional = pytest.importorskip("torchvision.transforms.functional")
    from PIL import Image

    image = cv2.imread(str(coco128 / "images/train2017/000000000009.jpg"))[..., ::-1].copy()
    cases = {
        "adjust_brightness": ("brightness", (0.6, 1.4), 1), "adjust_contrast": ("contrast", (0.6, 1.4), 1),
        "adjust_saturation": ("saturation", (0.6, 1.44), 1), "adjust_hue": ("hue", (-0.15, 0.05), 12),
    }  # fmt: skip
    for name, (field, factors, worst) in cases.items():
        for factor in factors:
            out = image.copy()
            apply_jitter(out, ColourJitter(**{field: factor}))
            wanted = np.asarray(getattr(functional, name)(Image.fromarray(image), factor)).astype(int)
            difference = np.abs(out - wanted)
            assert difference.max() <= worst and difference.mean() < 1, name
            assert np.abs(out.astype(int) - image).mean() > 2  # it does something


def test_color_jitter_draws():
    drawn = [draw_jitter(generator(0, 0, number), (0.4, 1.5, 0.2, 0.1)) for number in range(800)]
    for field, low, high in (("brightness", 0.6, 1.4), ("contrast", 0, 2.5), ("saturation", 0.8, 1.2)):
        values = [getattr(colours, field) for colours in drawn]
        assert low <= min(values) < low + 0.05 * (high - low) and high - 0.05 * (high - low) < max(values) <= high
    assert -0.1 <= min(c.hue for c in drawn) < -0.09 and 0.09 < max(c.hue for c in drawn) <= 0.1
    assert len({colours.order for colours in drawn}) == 24
    one, other = np.full((4, 4, 3), 200, np.uint8), np.full((4, 4, 3), 200, np.uint8)
    one[0, 0] = other[0, 0] = 10
    apply_jitter(one, ColourJitter(brightness=2.0, contrast=0.5, order=(0, 1, 2, 3)))
    apply_jitter(other, ColourJitter(brightness=2.0, contrast=0.5, order=(1, 0, 2, 3)))
    assert (one != other).any()  # the order counts


# ----------------------------------------------------------------------------------------------------------------------
# Training


def test_training_batch_layout(data):
    loader = open_semantic_loader(request(data))
    assert (loader.num_images, loader.num_batches, loader.heads) == (9, 3, ("semantic",))
    assert loader.class_counts.shape == (3,) and loader.shapes_hw.shape == (9, 2)
    assert [labels.shape for labels in loader.labels] == [(0, 5)] * 9
    batches = list(loader.epoch(0))
    assert sorted(info.index for batch in batches for info in batch.info) == list(range(9))
    for batch in batches:
        assert batch.images.shape == (len(batch), 3, 64, 64) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.semantic.shape == (len(batch), 64, 64) and batch.semantic.dtype == torch.uint8
        assert batch.boxes.shape == (0, 6) and not batch.boxes_known.any()
        assert set(batch.semantic.unique().tolist()) <= {0, 1, 2, 255}


def test_map_matches_image(tmp_path):
    calm = pixel_set(tmp_path, 9, jitter=[0, 0, 0, 0])
    seen = 0
    for epoch in range(3):
        for batch in open_semantic_loader(request(calm)).epoch(epoch):
            for image, classes in zip(batch.images.permute(0, 2, 3, 1).numpy(), batch.semantic.numpy(), strict=True):
                inside = far_from_edges(classes, 2) & (classes != 255)
                assert (nearest_class(image)[inside] == classes[inside]).all()
                assert (image[classes == 255] == 0).all()
                seen += inside.sum()
    assert seen > 20_000


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_independent_of_workers(data, workers, monkeypatch):
    monkeypatch.setattr("utils.datasets.pipeline.loader.usable_cpus", lambda: 4)
    alone, helped = open_semantic_loader(request(data)), open_semantic_loader(request(data, workers=workers))
    for epoch in (0, 1):
        assert_same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    whole = list(alone.epoch(2))
    assert_same(whole[2:], list(helped.epoch(2, start=2)))
    assert not torch.equal(whole[0].images, next(iter(alone.epoch(1))).images)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_match_one_process(data, world):
    whole = list(open_semantic_loader(request(data, batch_size=6)).epoch(1))
    loaders = [open_semantic_loader(request(data, batch_size=6 // world), (rank, world)) for rank in range(world)]
    shares = [list(loader.epoch(1)) for loader in loaders]
    assert {len(share) for share in shares} == {len(whole)} == {loaders[0].num_batches}
    for step, batch in enumerate(whole):
        for position in range(len(batch)):
            part, row = shares[position % world][step], position // world
            assert part.info[row] == batch.info[position]
            assert torch.equal(part.images[row], batch.images[position])
            assert torch.equal(part.semantic[row], batch.semantic[position])


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_image_cache_does_not_change_batches(data, where):
    plain, cached = open_semantic_loader(request(data)), open_semantic_loader(request(data, cache=where))
    assert_same(list(plain.epoch(0)), list(cached.epoch(0)))
    scored = [open_semantic_loader(request(data, training=False, cache=c)) for c in (None, where)]
    assert_same(*(list(loader.epoch(0)) for loader in scored))
    for path in (data.root / "images").glob("*.npy"):
        path.unlink()


def test_yaml_augmentation_options(tmp_path):
    options = {**CALM, "base": 96, "low": 1.0, "high": 1.0, "crop": [1.5, 0.5]}
    wide = pixel_set(tmp_path, 2, sizes=((48, 96),), **options)
    image, classes = scene(0, 48, 96)
    batch = next(iter(open_semantic_loader(request(wide)).epoch(0)))
    assert batch.images.shape == (2, 3, 32, 96)  # 64 x (1.5, 0.5)
    row = [info.index for info in batch.info].index(0)
    shown = batch.semantic[row].numpy()
    tops = [top for top in range(17) if (classes[top : top + 32] == shown).all()]
    assert len(tops) >= 1  # long side 96 = the image's own: cut, not resized
    assert any((batch.images[row].permute(1, 2, 0).numpy()[..., ::-1] == image[top : top + 32]).all() for top in tops)
    larger = next(iter(open_semantic_loader(request(wide, base_size=192)).epoch(0)))
    assert larger.images.shape == batch.images.shape and not torch.equal(larger.semantic, batch.semantic)


@pytest.mark.parametrize("workers", [0, 2])
def test_file_damaged_during_training(tmp_path, caplog, workers):
    data = pixel_set(tmp_path, 6, sizes=((64, 64),), low=1.0, high=1.0, **CALM)
    loader = open_semantic_loader(request(data, workers=workers))
    (tmp_path / "masks" / "01.png").write_bytes(b"broken")
    (tmp_path / "images" / "02.png").write_bytes(b"broken")
    cv2.imwrite(str(tmp_path / "images" / "03.png"), np.zeros((80, 64, 3), np.uint8))
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            for classes, info in zip(batch.semantic, batch.info, strict=True):
                assert bool((classes == 255).all()) == (info.index in (1, 2, 3))
    for name in ("masks/01.png", "images/02.png", "images/03.png"):
        assert caplog.text.count(str(tmp_path / name)) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def test_whole_mode(data):
    loader = open_semantic_loader(request(data, training=False, base_size=100, batch_size=2))
    batches = list(loader.epoch(0))
    assert sorted(info.index for batch in batches for info in batch.info) == list(range(9))
    shapes = {(40, 64): (96, 128), (64, 48): (128, 96), (48, 48): (128, 128)}  # 100 -> 128; 128 * 40 / 64 = 80 -> 96
    assert [len(batch) for batch in batches] == [2, 1, 2, 1, 2, 1]
    for batch in batches:
        for row, info in enumerate(batch.info):
            height, width = info.geometry.original_hw
            network = info.geometry.network_hw
            assert batch.semantic.shape[1:] == (height, width) and shapes[height, width] == network
            assert tuple(batch.images.shape[2:]) == network and info.geometry.pad_xy == (0, 0)
            assert info.geometry.scale_xy == (network[1] / width, network[0] / height)
            image, classes = scene(info.index, height, width)
            np.testing.assert_array_equal(batch.semantic[row].numpy(), classes)
            wanted = cv2.resize(image, network[::-1])[..., ::-1]
            np.testing.assert_array_equal(batch.images[row].permute(1, 2, 0).numpy(), wanted)
        assert not batch.boxes_known.any() and len(batch.boxes) == 0


def test_native_mode(data):
    for batch in open_semantic_loader(request(data, training=False, mode="native")).epoch(0):
        for row, info in enumerate(batch.info):
            height, width = info.geometry.original_hw
            assert info.geometry.network_hw == (64, 64) and info.geometry.scale_xy == (1.0, 1.0)
            image, classes = scene(info.index, height, width)
            pixels = batch.images[row].permute(1, 2, 0).numpy()[..., ::-1]
            np.testing.assert_array_equal(pixels[:height, :width], image)
            assert (pixels[height:] == 0).all() and (pixels[:, width:] == 0).all()
            np.testing.assert_array_equal(batch.semantic[row].numpy(), classes)


def test_crop_mode(data):
    loader = open_semantic_loader(request(data, training=False, mode="crop", image_size=96))
    batches = list(loader.epoch(0))
    assert [len(batch) for batch in batches] == [4, 4, 1]  # all crops have one size
    for batch in batches:
        assert batch.images.shape[2:] == (96, 96) and batch.semantic.shape[1:] == (96, 96)
        for row, info in enumerate(batch.info):
            assert info.geometry.original_hw == info.geometry.network_hw == (96, 96)
            classes = batch.semantic[row].numpy()
            inside = far_from_edges(classes, 3)
            shown = nearest_class(batch.images[row].permute(1, 2, 0).numpy())
            assert (shown == classes)[inside].all() and inside.mean() > 0.4
    wide = next(row for row, info in enumerate(batches[0].info) if info.index == 0)  # 40 x 64: 96 x 153, 28 cut off
    _, classes = scene(0, 40, 64)
    assert batches[0].semantic[wide][48, 48] == classes[20, int((48.5 + 28) * 64 / 153)]
    with pytest.raises(UserError, match="mode must be one of whole, native, crop, got 'centre'"):
        open_semantic_loader(request(data, training=False, mode="centre"))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_evaluate_every_image_once(data, world):
    one = [[i.index for i in b.info] for b in open_semantic_loader(request(data, training=False)).epoch(0)]
    loaders = [open_semantic_loader(request(data, training=False), (rank, world)) for rank in range(world)]
    shares = [[[i.index for i in b.info] for b in loader.epoch(0)] for loader in loaders]
    assert [shares[step % world][step // world] for step in range(len(one))] == one
    assert sum(loader.num_batches for loader in loaders) == len(one)


# ----------------------------------------------------------------------------------------------------------------------
# Boxes and pixels of the same images


def test_mosaic_with_semantic_map(both):
    rich = Hyp(mosaic=0.6, mosaic9=0.4, degrees=20, flipud=0.3, hsv_h=0, hsv_s=0, hsv_v=0)
    loader = open_box_loader(request(both, mosaic=True, hyp=rich))
    assert loader.heads == ()
    seen = 0
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            assert batch.semantic.shape == (len(batch), 64, 64) and batch.boxes_known is None
            assert len(batch.boxes) > 0
            for image, classes in zip(batch.images.permute(0, 2, 3, 1).numpy(), batch.semantic.numpy(), strict=True):
                border = (image == BORDER).all(-1)
                assert (classes[cv2.erode(border.astype(np.uint8), np.ones((3, 3))) > 0] == 255).all()
                inside = far_from_edges(classes, 2) & (classes != 255)
                assert (nearest_class(image)[inside] == classes[inside]).mean() > 0.99
                seen += inside.sum()
    assert seen > 20_000
    plain = open_box_loader(request(both, hyp=rich))
    for a, b in zip(plain.epoch(0), loader.epoch(0), strict=True):  # the maps change nothing else
        assert torch.equal(a.images, b.images) and torch.equal(a.boxes, b.boxes) and a.semantic is None


@pytest.mark.parametrize("changes", [{"cache": "ram"}, {"workers": 2}])
def test_semantic_mosaic_is_deterministic(both, changes, monkeypatch):
    monkeypatch.setattr("utils.datasets.pipeline.loader.usable_cpus", lambda: 4)
    first, second = (open_box_loader(request(both, mosaic=True, **more)) for more in ({}, changes))
    assert_same(list(first.epoch(1)), list(second.epoch(1)))


def test_images_without_map_are_ignored(tmp_path):
    data = pixel_set(tmp_path, 4, sizes=((64, 64),), boxes=True)
    write_pair(tmp_path, "few/00", *scene(0, 64, 64), ("images2", "masks2"))
    (tmp_path / "list.txt").write_text("images/00.png\nimages/02.png\n")
    from dataclasses import replace

    data = replace(data, semantic=replace(data.semantic, splits={"train": (tmp_path / "list.txt",)}))
    still = Hyp(mosaic=0, translate=0, scale=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0)
    batch = next(iter(open_box_loader(request(data, mosaic=True, hyp=still)).epoch(0)))
    for classes, info in zip(batch.semantic.numpy(), batch.info, strict=True):
        wanted = scene(info.index, 64, 64)[1] if info.index in (0, 2) else np.full((64, 64), 255)
        np.testing.assert_array_equal(classes, wanted)
    elsewhere = replace(data, semantic=replace(data.semantic, splits={"train": (tmp_path / "images2",)},
                                               masks={"train": (tmp_path / "masks2",)}))  # fmt: skip
    with pytest.raises(UserError, match="have no image in common"):
        open_box_loader(request(elsewhere, mosaic=True))
    with pytest.raises(UserError, match="--quad"):
        open_box_loader(request(data, mosaic=True, quad=True))
