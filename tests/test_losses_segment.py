"""The segmentation loss: golden values, its gradient against plain autograd, and its contract with the engine."""

import dataclasses

import numpy as np
import pytest
import torch
from test_losses_detect import HYP, SPEC, TARGETS, golden_raw, level_pairs
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.core.contracts import Batch
from utils.losses import LOSSES, segment
from utils.ops.boxes import cxcywhn_to_xyxy
from utils.ops.masks import inside_boxes

MASKED = dataclasses.replace(SPEC, name="segment", num_masks=4)
GOLDEN = {"box": 0.1146992, "seg": 0.0890985, "obj": 4.0796452, "cls": 1.0926726}


def raw_of(requires_grad=False):
    prototypes = torch.cos(0.13 * torch.arange(2 * 4 * 16 * 16, dtype=torch.float64)).float().view(2, 4, 16, 16)
    return golden_raw(4, requires_grad) | {"prototypes": prototypes.requires_grad_(requires_grad)}


def rectangles(targets, size=16):
    masks = torch.zeros(len(targets), size, size, dtype=torch.bool)
    corners = (cxcywhn_to_xyxy(targets[:, 2:], (1, 1)).double() * size).int()
    for row, (x1, y1, x2, y2) in enumerate(corners.clamp(min=0).tolist()):
        masks[row, y1:y2, x1:x2] = True
    return masks


def numbered(masks, targets, dtype=torch.uint8):
    joined = torch.zeros(2, *masks.shape[1:], dtype=dtype)
    for image in range(2):
        for number, row in enumerate((targets[:, 0] == image).nonzero()[:, 0].tolist(), 1):
            joined[image][masks[row]] = number
    return joined


def batch_of(masks, targets=TARGETS, **fields):
    return Batch(torch.zeros(2, 3, 64, 64), targets, [None] * 2, masks=masks, **fields)


def loss():
    return LOSSES.get("segment")(MASKED, HYP)


@pytest.mark.parametrize("kind", ["overlap", "separate", "int32", "larger"])
def test_golden_values(kind):
    masks = rectangles(TARGETS)
    if kind == "overlap":
        masks = numbered(masks, TARGETS)
    elif kind == "int32":
        masks = numbered(masks, TARGETS, torch.int32)
    elif kind == "larger":  # nearest brings it to the size of the prototypes
        masks = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    terms = loss()(raw_of(), batch_of(masks))
    assert list(terms) == ["box", "seg", "obj", "cls"]
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(GOLDEN, rel=2e-6)
    assert float(sum(terms.values())) * 2 == pytest.approx(10.752231, rel=1e-6)


def plain(raw, batch, found):
    """Return the mask term by autograd, one pair after the other."""
    total = 0.0
    prototypes = raw["prototypes"]
    for index, rows in enumerate(found.predictions.split(list(found.assignment.pairs))):
        level = level_pairs(found.assignment, index)
        for image in range(len(batch)):
            pairs = (level.image == image).nonzero()[:, 0].tolist()
            values = []
            for pair in pairs:
                box = batch.boxes[level.target[pair], 2:]
                logits = torch.einsum("m,mhw->hw", rows[pair, 8:], prototypes[image])
                wanted = batch.masks[level.target[pair]].float()
                inside = inside_boxes(cxcywhn_to_xyxy(box[None], (16, 16)), (16, 16))[0]
                entropy = binary_cross_entropy_with_logits(logits, wanted, reduction="none") * inside
                values.append(entropy.mean() / box[2:].prod())
            if values:
                total = total + torch.stack(values).mean()
    return total * HYP.box / len(batch)


@pytest.mark.parametrize("chunk", [1, 3 * 256, 2**21])
@pytest.mark.parametrize("how", ["_sum_by_label", "_sum_padded"])
def test_gradient_matches_autograd(monkeypatch, chunk, how):
    """Label by label is how a CPU computes it, padded how a GPU does."""
    monkeypatch.setattr(segment, "_CHUNK", chunk)
    monkeypatch.setattr(segment, "_GPU_CHUNK", chunk)
    monkeypatch.setattr(segment, "_sum_by_label", getattr(segment, how))
    batch = batch_of(rectangles(TARGETS))
    first, second = raw_of(True), raw_of(True)
    ours = loss()
    (ours(first, batch)["seg"] * 3).backward()
    wanted = plain(second, batch, ours.boxes.detailed(second, batch))
    (wanted * 3).backward()
    for name in first:
        torch.testing.assert_close(first[name].grad, second[name].grad, rtol=1e-4, atol=1e-7)
    assert float(first["prototypes"].grad.abs().sum()) > 0


@pytest.mark.parametrize(
    "masks", [None, torch.zeros(0, 16, 16, dtype=torch.bool), torch.zeros(2, 16, 16, dtype=torch.uint8)]
)
def test_no_objects(masks):
    raw = raw_of(True)
    terms = loss()(raw, batch_of(masks, TARGETS[:0]))
    assert float(terms["seg"].detach()) == 0
    sum(terms.values()).backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in raw.values())


def test_images_with_unknown_boxes_are_ignored():
    batch = batch_of(rectangles(TARGETS), boxes_known=torch.tensor([True, False]))
    raw = raw_of(True)
    loss()(raw, batch)["seg"].backward()
    assert raw["prototypes"].grad[0].abs().sum() > 0 and raw["prototypes"].grad[1].abs().sum() == 0


@pytest.mark.parametrize("numbers", [False, True])
def test_padded_pairs(monkeypatch, numbers):
    """On a GPU the pairs of every image are padded to the same number."""
    masks = numbered(rectangles(TARGETS), TARGETS) if numbers else rectangles(TARGETS)
    wanted = loss()(raw_of(), batch_of(masks))
    monkeypatch.setattr(segment, "_sum_by_label", segment._sum_padded)
    found = loss()(raw_of(), batch_of(masks))
    for name in wanted:
        assert float(found[name]) == pytest.approx(float(wanted[name]), rel=1e-6)


def test_half_precision_is_widened():
    raw = {name: value.bfloat16() for name, value in raw_of().items()}
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss()(raw, batch_of(rectangles(TARGETS)))
    assert terms["seg"].dtype == torch.float32
    assert float(terms["seg"]) == pytest.approx(GOLDEN["seg"], rel=0.02)


def test_missing_masks():
    with pytest.raises(ValueError, match="no masks"):
        loss()(raw_of(), batch_of(None))


def test_rank_terms_sum_to_one_process(monkeypatch):
    """Two ranks with one image each, played one after the other, against one process with both."""
    masks = rectangles(TARGETS)
    ours = loss().train()
    whole = float(ours(raw_of(), batch_of(masks))["seg"])
    share = 0.0
    monkeypatch.setattr(segment, "sum_over_ranks", lambda images: images * 2)
    for image in range(2):
        mine = TARGETS[:, 0] == image
        rows = TARGETS[mine].clone()
        rows[:, 0] = 0
        raw = {name: value[image : image + 1] for name, value in raw_of().items()}
        batch = Batch(torch.zeros(1, 3, 64, 64), rows, [None], masks=masks[mine])
        share += float(ours(raw, batch)["seg"])
    assert share == pytest.approx(whole, rel=1e-5) and np.isfinite(share)
