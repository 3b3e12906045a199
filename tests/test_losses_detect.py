"""The detection loss: golden values, its contract with the engine, and every path to the same numbers."""

import dataclasses
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.core.contracts import Batch, HeadSpec
from utils.core.hyp import Hyp
from utils.losses import LOSSES, detect
from utils.losses.anchor_assignment import assign
from utils.losses.focal import binary_focal_loss

P5 = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))
SPEC = HeadSpec("detect", 3, (8, 16, 32), P5)
HYP = Hyp(box=0.05, cls=0.5, obj=1.0)
TARGETS = torch.tensor(
    [
        (0, 0, 0.30, 0.40, 0.20, 0.30),
        (0, 2, 0.75, 0.25, 0.10, 0.15),
        (1, 1, 0.50, 0.50, 0.90, 0.80),
        (1, 0, 0.02, 0.98, 0.04, 0.03),
    ]
)


def golden_raw(extra=0, requires_grad=False):
    """Return the maps of the golden values; `extra` columns more of the same kind."""
    maps = {}
    for level, size in enumerate((8, 4, 2)):
        shape = (2, 3, size, size, 8 + extra)
        index = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        maps[f"level{level}"] = torch.sin(0.37 * index + 0.11 * level).float().view(shape).requires_grad_(requires_grad)
    return maps


def batch_of(targets, images=2, known=None):
    return Batch(torch.zeros(images, 3, 64, 64), targets, [None] * images, boxes_known=known)


def make(spec=SPEC, hyp=HYP, **options):
    return LOSSES.get("detect")(spec, hyp, **options)


def values(terms):
    return {name: float(term.detach()) for name, term in terms.items()}


@pytest.mark.parametrize(
    ("changes", "total", "items"),
    [
        ({}, 10.728614, (0.1252129, 4.0798578, 1.1592360)),
        ({"label_smoothing": 0.1}, 10.725542, (0.1252129, 4.0798578, 1.1577003)),
        ({"fl_gamma": 1.5}, 3.6432433, (0.1252129, 1.3669707, 0.3294380)),
        ({"cls_pw": 0.5, "obj_pw": 2.0}, 10.479873, None),
    ],
)
def test_golden_values(changes, total, items):
    terms = values(make(hyp=dataclasses.replace(HYP, **changes))(golden_raw(), batch_of(TARGETS)))
    assert sum(terms.values()) * 2 == pytest.approx(total, rel=1e-6)
    if items:
        assert [terms["box"], terms["obj"], terms["cls"]] == pytest.approx(items, rel=1e-6)


def test_golden_value_without_targets():
    terms = values(make()(golden_raw(), batch_of(TARGETS[:0])))
    assert terms == {"box": 0, "cls": 0, "obj": pytest.approx(4.0853739, rel=1e-6)}
    assert sum(terms.values()) * 2 == pytest.approx(8.1707478, rel=1e-6)


def test_golden_assignment_order():
    found = make().detailed(golden_raw(), batch_of(TARGETS))
    first = found.assignment
    assert first.pairs == (29, 18, 2)
    cells = [(int(first.image[i]), int(first.anchor[i]), int(first.row[i]), int(first.column[i])) for i in range(3)]
    assert cells == [(0, 0, 3, 2), (0, 0, 2, 6), (0, 1, 3, 2)]
    assert first.boxes[0].tolist() == pytest.approx([0.4, 0.2, 1.6, 2.4], abs=1e-6)


def assign_one(x, y):
    """Assign one box of 10x10 cells on a grid of 10x10, centre at (x, y) cells; return its (row, column) cells."""
    target = torch.tensor([[0, 0, x / 10, y / 10, 0.5, 0.5]])
    found = assign(target, torch.tensor([[[5.0, 5.0]]]), [(10, 10)], 4.0, 1)
    return list(zip(found.row.tolist(), found.column.tolist(), strict=True)), found


def test_neighbour_cells():
    assert assign_one(4.25, 4.75)[0] == [(4, 4), (4, 3), (5, 4)]  # centre, left, down
    assert assign_one(0.25, 9.75)[0] == [(9, 0)]
    assert assign_one(0.75, 4.25)[0] == [(4, 0), (3, 0), (4, 1)]  # centre, up, right


def test_centre_on_integer_matches_own_cell_twice():
    cells, found = assign_one(5.0, 4.25)
    assert cells == [(4, 5), (4, 4), (3, 5), (4, 5)]  # centre, left, up, and right truncating to the centre's cell
    assert found.boxes[0].tolist() == pytest.approx(found.boxes[3].tolist())


def test_centre_on_far_edge_is_clamped():
    cells, found = assign_one(10.0, 10.0)
    assert cells[0] == (9, 9)
    assert found.boxes[0, :2].tolist() == pytest.approx([1, 1])


def test_anchor_ratio_limit():
    anchors = torch.tensor([[[1.0, 1.0]]])
    for side, count in ((3.9, 3), (4.0, 0), (0.26, 3), (0.25, 0), (0.0, 0)):
        target = torch.tensor([[0, 0, 0.53, 0.53, side / 8, 1 / 8]])
        assert len(assign(target, anchors, [(8, 8)], 4.0, 1)) == count


def many_targets(count=60, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 6, generator=generator)
    targets[:, 0] = torch.arange(count) % images
    targets[:, 1] = (targets[:, 1] * 3).floor()
    targets[::5, 2:4] = (targets[::5, 2:4] * 8).round() / 8  # on cell borders
    return targets


def gradients(targets, known=None, **options):
    raw = golden_raw(requires_grad=True)
    terms = make(**options)(raw, batch_of(targets, known=known))
    sum(terms.values()).backward()
    return values(terms), [level.grad for level in raw.values()]


@pytest.mark.parametrize("count", [0, 4, 60])
@pytest.mark.parametrize("known", [None, torch.tensor([True, False])])
def test_prepared_targets_change_nothing(count, known):
    batch = batch_of(many_targets(count), known=known)
    loss, raw = make(), golden_raw()
    prepared = replace(batch, prepared={"detect": loss.prepare(batch, (64, 64))})
    assert values(loss(raw, prepared)) == values(loss(raw, batch))


def test_loss_has_no_device_sync():
    """A meta tensor has no values: reading one, or a shape that depends on one, raises."""
    raw = {name: level.detach().to("meta").requires_grad_() for name, level in golden_raw().items()}
    loss = make(hyp=dataclasses.replace(HYP, fl_gamma=1.5, cls_pw=2.0), autobalance=True, class_weights=[1, 2, 3])
    batch = Batch(torch.zeros(2, 3, 64, 64), TARGETS, [None] * 2, boxes_known=torch.tensor([True, False]))
    batch = replace(batch, prepared={"detect": loss.prepare(batch, (64, 64))}).to(torch.device("meta"))
    terms = loss.to("meta")(raw, batch)
    sum(terms.values()).backward()
    assert raw["level0"].grad.shape == raw["level0"].shape


def test_gradients_match_autograd():
    """An independent route for objectness and classes: dense targets, plain indexing, autograd."""
    raw = golden_raw(requires_grad=True)
    loss = make()
    found = loss.detailed(raw, batch_of(many_targets()))
    checked = found.terms["obj"] + found.terms["cls"]
    checked.backward()
    copies = golden_raw(requires_grad=True)
    total = 0
    for index, level in enumerate(copies.values()):
        pairs = level_pairs(found.assignment, index)
        at = (pairs.image, pairs.anchor, pairs.row, pairs.column)
        wanted = torch.zeros_like(level[..., 4])
        rows = level[at].detach()
        for pair in range(len(pairs.image)):  # one after the other: the last of a cell stays
            wanted[tuple(place[pair] for place in at)] = ciou_of(
                rows[pair], pairs.boxes[pair], loss, index, pairs.anchor[pair]
            )
        cells = binary_cross_entropy_with_logits(level[..., 4], wanted)
        hot = torch.nn.functional.one_hot(pairs.classes, 3).float()
        total = total + cells * (4, 1, 0.4)[index] + 0.5 * binary_cross_entropy_with_logits(level[at][:, 5:], hot)
    total.backward()
    assert checked.item() == pytest.approx(total.item(), rel=1e-6)
    for one, other in zip(raw.values(), copies.values(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-7)


def ciou_of(row, box, loss, level, anchor):
    size = (row[2:4].sigmoid() * 2) ** 2 * loss.anchors[level][anchor]
    predicted = torch.cat((row[:2].sigmoid() * 2 - 0.5, size))
    return detect.paired_iou(predicted[None], box[None])[0].clamp(min=0)


def level_pairs(assignment, level):
    """Return the pairs of one level, by the names of the assignment."""
    at = assignment.level == level
    names = ("image", "anchor", "row", "column", "target", "classes", "boxes")
    return SimpleNamespace(**{name: getattr(assignment, name)[at] for name in names})


def test_last_pair_sets_objectness():
    pairs = assign(TARGETS[:1].repeat(2, 1), torch.tensor([[[1.6, 2.4]]]), [(8, 8)], 4.0, 2)
    assert len(pairs) == 2 * len(pairs.predictor)  # both labels have the same predictors
    assert pairs.multiplicity.tolist() == [2] * len(pairs.predictor)
    own_cell = pairs.predictor.tolist().index(3 * 8 + 2)
    assert int(pairs.last[own_cell]) == 1  # of pairs 0 and 1, the two labels' centres
    cells = pairs.row * 8 + pairs.column
    assert torch.equal(cells[pairs.last], pairs.predictor)
    assert torch.equal(cells[pairs.by_predictor], pairs.predictor.repeat_interleave(2))


@pytest.mark.parametrize("targets", [TARGETS[:0], torch.tensor([[0, 0, 0.5, 0.5, 1e-4, 1e-4]])])
@pytest.mark.parametrize("classes", [1, 3])
def test_no_pairs(targets, classes):
    head = torch.nn.Conv2d(4, 3 * (5 + classes), 1)
    loss = make(HeadSpec("detect", classes, (8,), P5[:1]))
    raw = head(torch.rand(2, 4, 8, 8)).view(2, 3, 5 + classes, 8, 8).permute(0, 1, 3, 4, 2)
    for name in ("box", "cls", "obj"):
        head.zero_grad()
        terms = loss({"level0": raw}, batch_of(targets))
        terms[name].backward(retain_graph=True)
        assert (terms[name].item() == 0) == (name != "obj")
        assert head.weight.grad.isfinite().all()
        assert head.bias.grad.isfinite().all()


def test_single_class_has_no_class_loss():
    raw = {name: level[..., :6] for name, level in golden_raw().items()}
    targets = TARGETS.clone()
    targets[:, 1] = 0
    terms = values(make(HeadSpec("detect", 1, (8, 16, 32), P5))(raw, batch_of(targets)))
    assert terms["cls"] == 0
    assert terms["box"] > 0


def test_images_with_unknown_boxes_are_ignored():
    known = torch.tensor([True, False])
    expected, _ = gradients(TARGETS[TARGETS[:, 0] == 0])
    raw = {name: level[:1].clone().requires_grad_() for name, level in golden_raw().items()}
    alone = values(make()(raw, batch_of(TARGETS[TARGETS[:, 0] == 0], images=1)))
    found, grads = gradients(TARGETS, known)
    assert found == pytest.approx(alone, rel=1e-6)
    assert found != pytest.approx(expected, rel=1e-6)  # as background the second image would count
    assert all(grad[1].abs().sum() == 0 for grad in grads)
    nothing, grads = gradients(TARGETS, torch.tensor([False, False]))
    assert nothing == {"box": 0, "obj": 0, "cls": 0}
    assert all(grad.abs().sum() == 0 for grad in grads)


def test_loss_is_float32_under_autocast():
    raw = {name: level.bfloat16().requires_grad_() for name, level in golden_raw().items()}
    exact = values(make()({name: level.float() for name, level in raw.items()}, batch_of(TARGETS)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = make()(raw, batch_of(TARGETS))
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert values(terms) == pytest.approx(exact, rel=1e-6)
    sum(terms.values()).backward()
    assert raw["level0"].grad.dtype == torch.bfloat16


def test_gradients_keep_memory_format():
    output = torch.randn(2, 24, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    raw = output.view(2, 3, 8, 8, 8).permute(0, 1, 3, 4, 2)
    loss = make(HeadSpec("detect", 3, (8,), P5[:1]))
    sum(loss({"level0": raw}, batch_of(TARGETS)).values()).backward()
    assert output.grad.is_contiguous(memory_format=torch.channels_last)


def test_inference_mode():
    with torch.inference_mode():
        terms = make().eval()(golden_raw(), batch_of(TARGETS))
    assert values(terms) == values(make()(golden_raw(), batch_of(TARGETS)))


def test_mask_coefficients_are_ignored():
    raw = golden_raw(extra=4)
    plain = {name: level[..., :8] for name, level in raw.items()}
    assert values(make()(raw, batch_of(TARGETS))) == values(make()(plain, batch_of(TARGETS)))


def test_class_weights():
    plain = values(make()(golden_raw(), batch_of(TARGETS)))
    assert values(make(class_weights=[2, 2, 2])(golden_raw(), batch_of(TARGETS)))["cls"] == pytest.approx(
        2 * plain["cls"]
    )
    parts = [values(make(class_weights=row)(golden_raw(), batch_of(TARGETS)))["cls"] for row in torch.eye(3).tolist()]
    assert sum(parts) == pytest.approx(plain["cls"])
    with pytest.raises(ValueError, match="class_weights"):
        make(class_weights=[1, 2])


def test_autobalance():
    loss = make(autobalance=True)
    loss.eval()(golden_raw(), batch_of(TARGETS))
    assert loss.balance.tolist() == pytest.approx([4, 1, 0.4])
    loss.train()
    used = loss(golden_raw(), batch_of(TARGETS))["obj"]
    weights, cells = torch.tensor([4, 1, 0.4]), objectness_per_level()
    assert used.item() == pytest.approx((weights * cells).sum().item(), rel=1e-6)  # moved only afterwards
    moved = weights * 0.9999 + 0.0001 / cells
    assert loss.balance.tolist() == pytest.approx((moved / moved[1]).tolist(), rel=1e-6)
    assert "balance" in loss.state_dict()
    assert "balance" not in make().state_dict()


def objectness_per_level():
    """Return each level's mean objectness loss, from losses that weigh one level only."""
    found = []
    for level in range(3):
        loss = make()
        loss.balance = torch.eye(3)[level]
        found.append(loss(golden_raw(), batch_of(TARGETS))["obj"])
    return torch.stack(found)


def test_level_balance():
    assert make(HeadSpec("detect", 3, (8, 16), P5[:2])).balance.tolist() == pytest.approx([4, 1])
    four = HeadSpec("detect", 3, (8, 16, 32, 64), (*P5, P5[2]))
    assert make(four).balance.tolist() == pytest.approx([4, 1, 0.25, 0.06])
    with pytest.raises(ValueError, match="levels"):
        make(HeadSpec("detect", 3, (), ()))


def test_focal_gradient_is_finite():
    logits = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    binary_focal_loss(logits, torch.tensor([1.0, 0.0, 1.0]), gamma=0.5).sum().backward()
    assert logits.grad.isfinite().all()


def reference_batch(folder, names):
    from utils.ops.boxes import cxcywhn_to_xyxy, to_network, xyxy_to_cxcywhn
    from utils.ops.letterbox import letterbox

    cv2 = pytest.importorskip("cv2")
    images, rows = [], []
    for index, name in enumerate(names):
        image = np.ascontiguousarray(cv2.imread(str(folder / "images" / "train2017" / name))[:, :, ::-1])
        height, width = image.shape[:2]
        scale = 640 / max(height, width)
        if scale != 1:  # sides are truncated, as in the data loader
            image = cv2.resize(image, (int(width * scale), int(height * scale)), interpolation=cv2.INTER_LINEAR)
        inside, geometry = letterbox(image, (640, 640))
        images.append(torch.from_numpy(inside.copy()).permute(2, 0, 1).float() / 255)
        labels = np.loadtxt(folder / "labels" / "train2017" / f"{name[:-4]}.txt", ndmin=2)
        corners = to_network(cxcywhn_to_xyxy(labels[:, 1:], geometry.original_hw), geometry)
        boxes = xyxy_to_cxcywhn(corners, geometry.network_hw)
        rows.append(np.column_stack((np.full(len(labels), index), labels[:, 0], boxes)))
    return Batch(torch.stack(images), torch.from_numpy(np.concatenate(rows)).float(), [None] * len(names))


def test_official_loss_terms(shared, coco128):
    checkpoint = pytest.importorskip("models.checkpoint")
    reference = json.loads((shared / "reference" / "detect_loss_yolov5n_coco128_first8.json").read_text())
    network = checkpoint.load_checkpoint(shared / "weights" / "yolov5n.pt").network.float().eval()
    batch = reference_batch(coco128, reference["images"])
    assert len(batch.boxes) == reference["targets"]
    with torch.no_grad():
        raw = network(batch.images)["detect"]
    for smoothing in (0.0, 0.1):
        for gamma in (0.0, 1.5):
            expected = reference[f"label_smoothing={smoothing},fl_gamma={gamma}"]
            hyp = dataclasses.replace(Hyp(), label_smoothing=smoothing, fl_gamma=gamma).scaled(3, 80, 640)
            found = make(network.specs["detect"], hyp).detailed(raw, batch)
            assert list(found.assignment.pairs) == reference["matched_per_layer"]
            terms = values(found.terms)
            assert terms == pytest.approx({name: expected[name] for name in terms}, rel=1e-4)
            assert sum(terms.values()) * 8 == pytest.approx(expected["total_times_batch"], rel=1e-4)
