"""Two data sets in one batch: fractions, and unlabelled images that are not background."""

import threading
from dataclasses import replace

import pytest
import torch
from helpers_semantic import pixel_set, request

from utils.core.contracts import Batch, Geometry, HeadSpec, ImageInfo
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.datasets.pipeline import mixed_loader
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.datasets.pipeline.mixed_loader import (
    LoaderSequence,
    MixedLoader,
    concatenate_batches,
    has_same_images,
    open_mixed_loader,
    split_batch_size,
)
from utils.datasets.pipeline.semantic_samples import open_semantic_loader
from utils.losses import LOSSES


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Boxes of five images, pixels of seven others."""
    boxes = pixel_set(tmp_path_factory.mktemp("boxes"), 5, boxes=True)
    pixels = pixel_set(tmp_path_factory.mktemp("pixels"), 7)
    return replace(boxes, semantic=pixels.semantic)


def same(first: Batch, second: Batch) -> bool:
    names = ("images", "boxes", "boxes_known", "semantic")
    return first.info == second.info and all(torch.equal(getattr(first, n), getattr(second, n)) for n in names)


@pytest.mark.parametrize(
    ("batch", "share", "sizes"),
    [(16, 0.5, (8, 8)), (5, 0.5, (3, 2)), (18, 0.3, (13, 5)), (2, 0.9, (1, 1)), (16, 0.01, (15, 1)), (7, 0.99, (1, 6))],
)
def test_batch_fractions(batch, share, sizes):
    assert split_batch_size(batch, share) == sizes and sum(sizes) == batch


@pytest.mark.parametrize(("batch", "share"), [(1, 0.5), (8, 0.0), (8, 1.0), (8, -0.1)])
def test_batch_too_small_to_divide(batch, share):
    with pytest.raises(UserError, match=r"batch size 1|fraction"):
        split_batch_size(batch, share)


def test_batch_size_can_be_changed(data):
    wanted = open_mixed_loader(replace(request(data, fraction=0.25), batch_size=8))
    changed = open_mixed_loader(request(data, fraction=0.25)).with_batch_size(8)
    assert all(same(*pair) for pair in zip(changed.epoch(1), wanted.epoch(1), strict=True))
    assert LoaderSequence([wanted.primary, wanted.secondary]).with_batch_size(2).parts[0].num_batches == 3


def test_mixed_batch_label_flags(data):
    loader = open_mixed_loader(request(data, fraction=0.5))
    assert loader.heads == ("detect", "semantic")
    assert (loader.primary.num_batches, loader.secondary.num_batches, loader.num_batches) == (3, 4, 4)
    assert (loader.num_images, loader.total_images) == (5, 12)
    assert loader.class_counts.tolist() == [3, 2] and len(loader.labels) == len(loader.shapes_hw) == 5
    alone = next(iter(loader.secondary.epoch(0)))
    batch = next(iter(loader.epoch(0)))
    assert batch.images.shape == (4, 3, 64, 64) and batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.boxes_known.tolist() == [True, True, False, False]
    assert len(batch.boxes) > 0 and batch.boxes[:, 0].max() < 2
    assert (batch.semantic[:2] == 255).all() and torch.equal(batch.semantic[2:], alone.semantic)
    assert torch.equal(batch.images[2:], alone.images)
    assert [info.index for info in batch.info[2:]] == [info.index + 5 for info in alone.info]
    assert "boxes" in batch.info[0].path and "pixels" in batch.info[2].path


def test_shorter_set_wraps_to_next_epoch(data):
    loader = open_mixed_loader(request(data, fraction=0.5))  # 3 batches of boxes, 4 of pixels
    seen = [[info.index for info in batch.info if info.index < 5] for e in range(3) for batch in loader.epoch(e)]
    assert len(seen) == 12
    for own_epoch in range(4):  # 12 steps: four whole epochs of the boxes
        assert sorted(i for step in seen[3 * own_epoch : 3 * own_epoch + 3] for i in step) == list(range(5))
        wanted = [[i.index for i in batch.info] for batch in loader.primary.epoch(own_epoch)]
        assert seen[3 * own_epoch : 3 * own_epoch + 3] == wanted


def test_batches_are_concatenated_in_a_thread(data, monkeypatch):
    """The next batch is ready when the caller asks for it, and a closed epoch leaves no thread."""
    threads = []

    def concatenate(*arguments):
        threads.append(threading.current_thread())
        return concatenate_batches(*arguments)

    monkeypatch.setattr(mixed_loader, "concatenate_batches", concatenate)
    epoch = open_mixed_loader(request(data)).epoch(0)
    next(epoch)
    epoch.close()
    assert len(threads) == 2 and threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("workers", [0, 2])
def test_start_in_mid_epoch(data, workers, monkeypatch):
    for module in ("mixed_loader", "loader"):
        monkeypatch.setattr(f"utils.datasets.pipeline.{module}.usable_cpus", lambda: 4)
    plain, loader = open_mixed_loader(request(data)), open_mixed_loader(request(data, workers=workers))
    assert [part.workers for part in (loader.primary, loader.secondary)] == [workers // 2] * 2
    whole = list(plain.epoch(1))
    for start in (0, 3, 1, 4):
        rest = list(loader.epoch(1, start=start))
        assert len(rest) == 4 - start
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))
    iterator = loader.epoch(1)
    next(iterator)
    iterator.close()
    assert same(next(iter(loader.epoch(1))), whole[0])


def test_ranks_match_one_process(data):
    whole = list(open_mixed_loader(request(data, batch_size=4)).epoch(1))
    shares = [list(open_mixed_loader(request(data, batch_size=2), place=(rank, 2)).epoch(1)) for rank in range(2)]
    assert [len(share) for share in shares] == [len(whole)] * 2
    for step, batch in enumerate(whole):
        wanted = {info.index: image for info, image in zip(batch.info, batch.images, strict=True)}
        found = {
            info.index: image
            for share in shares
            for info, image in zip(share[step].info, share[step].images, strict=True)
        }
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[index], found[index]) for index in wanted)


def test_same_images_for_both_tasks(tmp_path):
    data = pixel_set(tmp_path, 6, boxes=True)
    assert has_same_images(request(data))
    batch = next(iter(open_mixed_loader(request(data)).epoch(0)))
    assert batch.boxes_known.tolist() == [True, True, False, False]
    other = replace(data, semantic=replace(data.semantic, splits={"train": (tmp_path / "elsewhere",)}))
    assert not has_same_images(request(other)) and not has_same_images(request(replace(data, semantic=None)))


def test_incompatible_loaders(data):
    with pytest.raises(UserError, match="--rect"):
        open_mixed_loader(request(data, rect=True))
    with pytest.raises(UserError, match="--quad"):
        open_mixed_loader(request(data, quad=True))
    wide = replace(data, semantic=replace(data.semantic, options={"crop": [1.0, 0.5]}))
    with pytest.raises(UserError, match=r"`semantic.crop:` must be \[1, 1\].*64 x 32"):
        open_mixed_loader(request(wide))
    info = [ImageInfo(0, "a", Geometry((8, 8), (8, 8)))]
    small, large = (Batch(torch.zeros(1, 3, side, side), torch.zeros(0, 6), info) for side in (8, 16))
    with pytest.raises(ValueError, match="cannot be concatenated"):
        concatenate_batches(small, large)


def batch_with(masks: torch.Tensor | None, boxes: int, classes: torch.Tensor | None = None) -> Batch:
    info = [ImageInfo(i, str(i), Geometry((8, 8), (8, 8))) for i in range(2)]
    rows = torch.zeros(boxes, 6)
    return Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), rows, info, masks=masks, classes=classes)


def test_instance_masks_and_classes_are_preserved():
    overlap = torch.ones(2, 4, 4, dtype=torch.uint8)
    both = concatenate_batches(batch_with(overlap, 3, torch.tensor([4, 5])), batch_with(None, 0))
    assert both.masks.shape == (4, 4, 4) and both.masks.sum(dim=(1, 2)).tolist() == [16, 16, 0, 0]
    assert both.classes.tolist() == [4, 5, -1, -1] and both.semantic is None
    stacked = concatenate_batches(batch_with(None, 0), batch_with(torch.ones(3, 4, 4, dtype=torch.bool), 3))
    assert stacked.masks.shape == (3, 4, 4) and stacked.boxes[:, 0].tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="boxes without masks"):
        concatenate_batches(batch_with(overlap, 3), batch_with(None, 1))


def test_unlabelled_images_are_not_background(data):
    """The loss of a mixed batch is that of its images with boxes; the others get no gradient at all."""
    anchors = (((10.0, 13.0), (30.0, 23.0)), ((60.0, 60.0), (40.0, 20.0)))
    loss = LOSSES.get("detect")(HeadSpec("detect", 2, (8, 16), anchors), Hyp())
    batch = next(iter(open_mixed_loader(request(data)).epoch(0)))
    alone = next(iter(open_mixed_loader(request(data)).primary.epoch(0)))
    torch.manual_seed(0)
    raw = {f"level{i}": torch.randn(4, 2, side, side, 7, requires_grad=True) for i, side in enumerate((8, 4))}
    terms = loss(raw, batch)
    expected = loss({name: level[:2].detach() for name, level in raw.items()}, alone)
    for name, term in terms.items():
        assert float(term.detach()) == pytest.approx(float(expected[name]), rel=1e-5)
    sum(terms.values()).backward()
    for level in raw.values():
        assert level.grad[:2].abs().sum() > 0 and level.grad[2:].abs().sum() == 0
    taken_for_background = loss({name: level.detach() for name, level in raw.items()}, replace(batch, boxes_known=None))
    assert float(taken_for_background["obj"]) != pytest.approx(float(expected["obj"]), rel=1e-3)


def test_detection_loss_of_semantic_batch_is_zero(data):
    batch = next(iter(open_semantic_loader(request(data)).epoch(0)))
    loss = LOSSES.get("detect")(HeadSpec("detect", 2, (8,), (((10.0, 13.0),),)), Hyp())
    level = torch.randn(4, 1, 8, 8, 7, requires_grad=True)
    terms = loss({"level0": level}, batch)
    assert [float(term.detach()) for term in terms.values()] == [0, 0, 0]
    sum(terms.values()).backward()
    assert level.grad is not None and level.grad.abs().sum() == 0


def test_evaluation_suite(data):
    wanted = request(data, training=False, rect=True)
    boxes = open_box_loader(wanted)
    boxes.heads = ("detect",)
    suite = LoaderSequence((boxes, open_semantic_loader(wanted)))
    assert suite.heads == ("detect", "semantic") and [part.heads for part in suite.parts] == [
        ("detect",),
        ("semantic",),
    ]
    assert (suite.num_images, suite.num_batches) == (12, sum(part.num_batches for part in suite.parts))
    assert len(suite.labels) == len(suite.shapes_hw) == 5 and suite.class_counts.tolist() == [3, 2]
    batches = list(suite.epoch(0))
    chained = [batch for part in suite.parts for batch in part.epoch(0)]
    assert [b.info for b in batches] == [b.info for b in chained] and len(batches) == suite.num_batches
    for start in range(len(batches) + 1):
        assert [b.info for b in suite.epoch(0, start=start)] == [b.info for b in batches[start:]]
    with pytest.raises(ValueError, match="at least one part"):
        LoaderSequence([])


def test_mixed_loader_of_any_loaders(data):
    mixed = MixedLoader(
        open_box_loader(request(data, batch_size=1)), open_semantic_loader(request(data, batch_size=3)), ()
    )
    assert mixed.num_batches == 5 and mixed.heads == ()
    assert [len(batch) for batch in mixed.epoch(0)] == [4, 4, 2, 4, 4]  # 7 = 3 + 3 + 1
