"""Masks on their way from label files to the loss and the scores: they show what the image shows, however many."""

import cv2
import numpy as np
import pytest
import torch

from models.builder import build_network, read_architecture
from utils.core.contracts import EvalSettings, HeadSpec, Results
from utils.core.data_config import DataConfig
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.datasets.pipeline.collate import MaskStyle, rasterise_masks
from utils.datasets.pipeline.sample import Sample
from utils.losses import LOSSES
from utils.metrics import EVALUATORS
from utils.metrics.segment import label_masks
from utils.plots.batches import draw_batch

SIZE = 128
LOUD = Hyp(
    hsv_h=0, hsv_s=0, hsv_v=0, mosaic=1.0, degrees=25, translate=0.1, scale=0.4, shear=8, perspective=0.0006,
    flipud=0.5, fliplr=0.5, copy_paste=0.6,
)  # fmt: skip


def star(centre, radius, points=5):
    """Return a shape with dents, so that its box says little about it."""
    angle = np.arange(2 * points) * np.pi / points - np.pi / 2
    reach = radius * np.where(np.arange(2 * points) % 2, 0.5, 1.0)
    return np.float32(centre) + np.stack((np.cos(angle), np.sin(angle)), 1).astype(np.float32) * reach[:, None]


def write_set(root, images):
    """Write images, each a list of polygons in pixels of SIZE x SIZE: white things on black."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number, polygons in enumerate(images):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        lines = []
        for polygon in polygons:
            cv2.fillPoly(image, [polygon.astype(np.int32)], (255, 255, 255))
            lines.append("0 " + " ".join(f"{value:.6f}" for value in (polygon / SIZE).ravel()))
        cv2.imwrite(str(root / "images" / f"{number}.png"), image)
        (root / "labels" / f"{number}.txt").write_text("\n".join(lines))
    place = (root / "images",)
    return DataConfig(root / "d.yaml", root, ("thing",), {"train": place, "val": place})


def load(data, **changes):
    options = {"training": True, "image_size": SIZE, "batch_size": 4, "stride": 32, "hyp": LOUD, "workers": 0}
    options |= {"masks": True, "mask_ratio": 1} | changes
    place = options.pop("place", (0, 1))
    return open_box_loader(LoadRequest(data, "train" if options["training"] else "val", **options), place)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images of one or two stars apart from each other, and one of nothing."""
    images = [[star((40 + 2 * i, 44), 30)] + [star((96, 92), 20 + i)] * (i % 2) for i in range(7)]
    return write_set(tmp_path_factory.mktemp("stars") / "set", [*images, []])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_masks_follow_augmentation(data, overlap, mosaic):
    """Masks are exactly where the augmented image is white."""
    hyp = Hyp(**{**vars(LOUD), "mosaic": mosaic})
    shared = total = seen = 0
    for epoch in range(3):
        for batch in load(data, overlap=overlap, hyp=hyp).epoch(epoch):
            for place in range(len(batch)):
                masks = label_masks(batch, place)
                drawn = masks.any(0).numpy() if len(masks) else np.zeros((SIZE, SIZE), bool)
                shown = batch.images[place, 0].numpy() > 184  # halfway between white and the grey border
                shared, total, seen = shared + (shown & drawn).sum(), total + (shown | drawn).sum(), seen + len(masks)
                boxes = batch.boxes[batch.boxes[:, 0] == place, 2:]
                for mask, box in zip(masks, boxes, strict=True):
                    y, x = mask.nonzero(as_tuple=True)
                    if not overlap and len(x):  # whole objects: the box is the mask's extent
                        low, high = (box[:2] - box[2:] / 2) * SIZE, (box[:2] + box[2:] / 2) * SIZE
                        extent = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
                        assert (extent - torch.cat((low, high))).abs().max() < 6  # edges cut at a shallow angle
    assert seen > 25 and shared / total > 0.9


def test_mosaic_with_masks(tmp_path):
    """Mosaic tiles are shuffled for boxes, and not for masks."""
    still = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=1.0)
    data = write_set(tmp_path / "set", [[star((64, 64), 60)] for _ in range(4)])
    for number in range(4):
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{number}.png"), np.full((SIZE, SIZE, 3), 50 * number, np.uint8))
    first = {True: [], False: []}
    for masks in (True, False):
        for epoch in range(4):
            for batch in load(data, hyp=still, masks=masks).epoch(epoch):
                corners = batch.images[:, 0, 0, 0].tolist()  # the tile at the top left
                first[masks] += [corner == 50 * info.index for corner, info in zip(corners, batch.info, strict=True)]
    assert all(first[True]) and not all(first[False]) and any(first[False])


@pytest.mark.parametrize("overlap", [True, False])
def test_masks_independent_of_workers_and_ranks(data, overlap, monkeypatch):
    monkeypatch.setattr("utils.datasets.pipeline.loader.usable_cpus", lambda: 4)
    options = {"overlap": overlap, "mask_ratio": 4}
    whole = list(load(data, **options).epoch(1))
    for alone, helped in zip(whole, load(data, workers=2, **options).epoch(1), strict=True):
        assert torch.equal(alone.masks, helped.masks) and torch.equal(alone.boxes, helped.boxes)
    shares = [list(load(data, batch_size=2, place=(rank, 2), **options).epoch(1)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for position in range(len(batch)):
            part, row = shares[position % 2][step], position // 2
            assert torch.equal(label_masks(part, row), label_masks(batch, position))


def test_overlapping_masks_sort_by_area():
    large, small = star((60, 60), 50), star((60, 60), 12)
    boxes = np.stack([np.concatenate((p.min(0), p.max(0))) for p in (small, large)])
    sample = Sample(np.zeros((SIZE, SIZE, 3), np.uint8), boxes, np.float32([1, 2]), [small, large])
    maps, (ordered,) = rasterise_masks([sample], (SIZE, SIZE), MaskStyle(ratio=2, overlap=True))
    assert ordered.classes.tolist() == [2, 1] and ordered.boxes_xyxy[1] == pytest.approx(boxes[0])
    assert maps[0, 30, 30] == 2 and maps[0, 30, 42] == 1 and maps[0, 2, 2] == 0


# ----------------------------------------------------------------------------------------------------------------------
# More objects than a byte can number

COLUMNS, ROWS = 20, 15


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """One image of 300 squares that do not touch, and one of three."""
    squares = [
        np.float32([[x, y], [x + 4, y], [x + 4, y + 4], [x, y + 4]]) + 0.5
        for y in range(1, 1 + 8 * ROWS, 8)
        for x in range(1, 1 + 6 * COLUMNS, 6)
    ]
    return write_set(tmp_path_factory.mktemp("crowd") / "set", [squares, squares[:3]])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network(read_architecture("yolov5n-seg"), 1, ("thing",))


def test_three_hundred_objects(crowd, network, tmp_path):
    still = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
    batches = {overlap: next(load(crowd, hyp=still, overlap=overlap).epoch(0)) for overlap in (True, False)}
    numbered, separate = batches[True], batches[False]
    assert len(numbered.boxes) == 303 and numbered.masks.dtype == torch.int32 and int(numbered.masks.max()) == 300
    many = int(numbered.boxes[:, 0].long().bincount().argmax())
    masks = label_masks(numbered, many)
    assert masks.shape == (300, SIZE, SIZE) and (masks.sum((1, 2)) == 25).all()

    spec: HeadSpec = network.specs["segment"]
    raw = network(numbered.images.float() / 255)["segment"]
    terms = [LOSSES.get("segment")(spec, still)(raw, batch) for batch in (numbered, separate)]
    first, second = (float(term["seg"].detach()) for term in terms)
    assert first > 0 and first == pytest.approx(second, rel=1e-5)
    sum(terms[0].values()).backward()

    scored = next(load(crowd, hyp=still, overlap=True, training=False, batch_size=2).epoch(0))
    evaluator = EVALUATORS.get("segment")(spec, EvalSettings(names=("thing",)))
    results = []
    for place, info in enumerate(scored.info):
        rows = scored.boxes[scored.boxes[:, 0] == place]
        boxes = torch.cat((rows[:, 2:4] - rows[:, 4:] / 2, rows[:, 2:4] + rows[:, 4:] / 2), 1) * SIZE
        scores, found = torch.linspace(0.9, 0.5, len(rows)), label_masks(scored, place)
        results.append(Results(info, boxes, scores, torch.zeros(len(rows), dtype=torch.int64), masks=found))
    evaluator.update(results, scored)
    numbers = evaluator.compute().metrics
    assert numbers["mask_map50_95"] == numbers["box_map50_95"] == pytest.approx(0.995, abs=1e-3)
    draw_batch(scored, tmp_path / "a.jpg", ("thing",), results)
    assert (tmp_path / "a.jpg").stat().st_size > 1000
