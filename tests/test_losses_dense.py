"""Anchor-free detection: candidates, task-aligned assignment, distances, decoding, loss."""

import math

import pytest
import torch
from torch import nn

from models.builder import build_network
from models.heads.dense import MAX_DETECTIONS, Dense, decode_distances, top_pairs
from models.heads.duplicate_filter import DuplicateFilter
from utils.core.contracts import Batch, Geometry, HeadSpec, ImageInfo
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.losses.dense import TOP_K, DenseLoss
from utils.losses.task_aligned import Candidates, assign, find_candidates
from utils.ops.boxes import cxcywh_to_xyxy

STRIDES = (8, 16, 32)
GRIDS = ((8, 8), (4, 4), (2, 2))  # a 64 x 64 image: 64 + 16 + 4 cells
CELLS = 84


def batch_of(boxes: list[list[float]], images: int = 1, size: int = 64) -> Batch:
    info = [ImageInfo(i, f"{i}.jpg", Geometry((size, size), (size, size))) for i in range(images)]
    table = torch.tensor(boxes, dtype=torch.float32).view(-1, 6)
    return Batch(torch.zeros(images, 3, size, size), table, info)


def find(corners, images=None, num_images=1, top_k=TOP_K) -> Candidates:
    """Find the candidates of x1, y1, x2, y2 in pixels of a 64 x 64 image."""
    corners = torch.as_tensor(corners, dtype=torch.float32)
    images = torch.zeros(len(corners)) if images is None else torch.as_tensor(images)
    centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    labels = torch.cat((images[:, None], torch.zeros(len(corners), 1), centre / 64, size / 64), dim=1)
    return find_candidates(labels, (64, 64), STRIDES, num_images, top_k)


def network_of(name: str = "polyolo-n", **changes):
    from models.architecture import read_architecture

    return build_network({**read_architecture(name), "nc": 7, **changes})


def test_candidates_are_centres_inside_the_box():
    found = find([[0.0, 0.0, 17.0, 9.0]])
    assert found.centre.tolist() == [[4.0, 4.0], [12.0, 4.0], [8.0, 8.0]]
    assert found.stride.tolist() == [8.0, 8.0, 16.0]
    assert found.cell.tolist() == [0, 1, 64]


def test_candidates_match_a_test_of_every_cell():
    corners = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 50
    boxes = torch.cat((corners, corners + 8 + torch.rand(200, 2, generator=torch.Generator().manual_seed(2)) * 40), 1)
    boxes = boxes.clamp(max=64)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) >= 8]
    found = find(boxes)
    expected = []
    for label, (x1, y1, x2, y2) in enumerate(find(boxes).boxes.tolist()):
        offset = 0
        for (rows, columns), stride in zip(GRIDS, STRIDES, strict=True):
            for cell in range(rows * columns):
                y, x = (cell // columns + 0.5) * stride, (cell % columns + 0.5) * stride
                if x1 <= x < x2 and y1 <= y < y2:
                    expected.append((label, cell + offset))
            offset += rows * columns
    assert list(zip(found.label.tolist(), found.cell.tolist(), strict=True)) == expected


@pytest.mark.parametrize("side", [2.0, 3.0, 5.0, 7.9, 8.0, 12.0])
def test_every_label_has_a_candidate(side):
    corners = torch.arange(0.0, 52.0, 1.7)
    boxes = torch.stack((corners, corners.flip(0), corners + side, corners.flip(0) + side), dim=1)
    assert set(find(boxes).label.tolist()) == set(range(len(boxes)))


def assigned(boxes, scores, ious, single=0, top_k=TOP_K):
    """Assign with a score and an IoU for some pairs of label and cell, .1 for the others; return scores by pair."""
    found = find(boxes, top_k=top_k)
    pairs = list(zip(found.label.tolist(), found.cell.tolist(), strict=True))
    score = torch.tensor([scores.get(pair, 0.1) for pair in pairs])
    iou = torch.tensor([ious.get(pair, 0.1) for pair in pairs])
    done = assign(found, score, iou, single)
    outcome = zip(done.pair.tolist(), done.positive.tolist(), done.score.tolist(), strict=True)
    return {pairs[index]: value for index, positive, value in outcome if positive}


def test_two_boxes_that_want_one_cell_go_by_iou():
    same = [0.0, 0.0, 7.0, 7.0]
    positives = assigned([same, same], {(0, 0): 0.9, (1, 0): 0.2}, {(0, 0): 0.6, (1, 0): 0.7})
    assert (1, 0) in positives and (0, 0) not in positives


def test_equal_overlaps_go_to_the_first_label():
    same = [0.0, 0.0, 7.0, 7.0]
    positives = assigned([same, same], {}, {(0, 0): 0.5, (1, 0): 0.5})
    assert (0, 0) in positives and (1, 0) not in positives


def test_target_score_is_the_best_iou_at_the_best_aligned_cell():
    positives = assigned([[0.0, 0.0, 32.0, 32.0]], {(0, 9): 0.9}, {(0, 9): 0.8}, top_k=3)
    assert len(positives) == 3 and positives[(0, 9)] == pytest.approx(0.8) == max(positives.values())
    # t = s^.5 u^6: the others have .1 in both
    expected = 0.1**6.5 / (0.9**0.5 * 0.8**6) * 0.8
    assert sorted(positives.values())[0] == pytest.approx(expected, rel=1e-4)


def test_single_assignment_takes_the_best_aligned_cell():
    box = [0.0, 0.0, 32.0, 32.0]
    positives = assigned([box], {(0, 9): 0.9, (0, 10): 0.9}, {(0, 9): 0.8, (0, 10): 0.7}, single=7)
    assert positives == {(0, 9): pytest.approx(0.8)}
    # the cell belongs to the other label by IoU, so that the second best is taken
    positives = assigned(
        [box, box],
        {(0, 9): 0.9, (0, 10): 0.9, (1, 9): 0.9},
        {(0, 9): 0.8, (0, 10): 0.7, (1, 9): 0.9},
        single=7,
    )
    assert positives == {(0, 10): pytest.approx(0.7), (1, 9): pytest.approx(0.9)}


@pytest.mark.parametrize("single", [0, 7])
def test_crowd_gives_every_cell_to_one_label_at_most(single):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 40
    found = find(torch.cat((corners, corners + 4 + torch.rand(300, 2, generator=generator) * 20), dim=1))
    scores, ious = (torch.rand(len(found.label), generator=generator) for _ in range(2))
    done = assign(found, scores, ious, single)
    chosen = done.pair[done.positive]
    cells = found.cell[chosen]
    assert len(cells) == len(cells.unique()) > 30
    assert int(torch.bincount(found.label[chosen], minlength=300).max()) <= (1 if single else TOP_K)
    assert bool((done.score[~done.positive] == 0).all()) and bool((done.score[done.positive] > 0).all())


def test_labels_of_different_images_do_not_compete():
    same = [0.0, 0.0, 7.0, 7.0]
    found = find([same, same], [0, 1], num_images=2)
    done = assign(found, torch.full((len(found.label),), 0.5), torch.full((len(found.label),), 0.5))
    assert found.image.tolist() == found.label.tolist() and bool(done.positive.all())


def test_distances_of_bins_are_means_and_of_one_bin_softplus():
    logits = torch.full((1, 64, 1, 1), -50.0)
    for side, value in enumerate((3, 0, 15, 7)):
        logits[0, side * 16 + value] = 50.0
    assert decode_distances(logits, 16).flatten().tolist() == pytest.approx([3, 0, 15, 7])
    assert torch.equal(decode_distances(logits[:, :4], 1), nn.functional.softplus(logits[:, :4]))


def test_decoding_places_boxes_around_cell_centres():
    head = Dense(2, (8, 8, 8), bins=1)
    head.configure(STRIDES)
    raw = {f"level{i}": torch.full((1, 6, *grid), -30.0) for i, grid in enumerate(GRIDS)}
    sides = torch.tensor([1.0, 2.0, 3.0, 4.0])  # strides
    raw["level0"][0, :4, 1, 2] = torch.log(torch.expm1(sides))
    raw["level0"][0, 5, 1, 2] = 2.0
    predictions = head.decode(raw)["predictions"]
    assert predictions.shape == (1, CELLS, 7)
    row = predictions[0, 1 * 8 + 2]
    x1, y1, x2, y2 = cxcywh_to_xyxy(row[None, :4])[0].tolist()
    assert (x1, y1, x2, y2) == pytest.approx((20 - 8, 12 - 16, 20 + 24, 12 + 32), abs=1e-4)
    assert float(row[4] * row[6]) == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item(), abs=1e-6)


@pytest.mark.parametrize("cells", [CELLS, 500])
def test_top_pairs_match_a_sort_of_all_scores(cells):
    logits = torch.randn(2, 5, cells, generator=torch.Generator().manual_seed(0))
    values, classes, cell = top_pairs(logits, MAX_DETECTIONS)
    assert values.shape == classes.shape == cell.shape == (2, MAX_DETECTIONS)
    for image in range(2):
        expected, order = logits[image].flatten().sort(descending=True)
        count = min(MAX_DETECTIONS, 5 * cells)
        assert torch.equal(values[image, :count], expected[:count])
        assert classes[image, :count].tolist() == (order[:count] // cells).tolist()
        assert cell[image, :count].tolist() == (order[:count] % cells).tolist()


@pytest.mark.parametrize("bins", [1, 16])
@torch.no_grad()
def test_boxes_without_nms_are_those_of_the_predictions(bins):
    torch.manual_seed(0)
    head = Dense(3, (8, 8, 8), bins=bins, end_to_end=True).double().eval()  # fp32 rounds by more than the bound
    head.configure(STRIDES)
    for parameter in head.levels.parameters():  # initial weights say little about the order of taps
        parameter.copy_(torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
    features = [torch.randn(2, 8, *grid, dtype=torch.float64) for grid in GRIDS]
    predictions = head.decode(head(features))["predictions"]
    head.use_duplicate_filter = True
    rows = head.decode(head(features))["end_to_end"]
    for found, all_boxes in zip(rows[:, : 3 * 84], cxcywh_to_xyxy(predictions[..., :4]), strict=True):
        distance = (found[:, None, :4] - all_boxes).abs().amax(dim=2)
        assert float(distance.amin(dim=1).max()) < 1e-4
        assert len(distance.argmin(dim=1).unique()) == 84  # all cells, at borders, too


@pytest.mark.parametrize("changes", [{}, {"bins": 1}, {"end_to_end": True}], ids=["bins", "direct", "filter"])
def test_loss_without_labels_is_finite_and_reaches_every_parameter(changes):
    network = network_of(**changes)
    terms = DenseLoss(network.specs["detect"], Hyp())(network(torch.rand(2, 3, 64, 64))["detect"], batch_of([], 2))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert torch.isfinite(total) and terms["box"] == 0 and terms["dfl"] == 0 and terms["cls"] > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_images_without_known_boxes_are_no_background():
    network = network_of()
    raw = network(torch.rand(2, 3, 64, 64))["detect"]
    batch = batch_of([[0, 1, 0.5, 0.5, 0.3, 0.3], [1, 1, 0.5, 0.5, 0.3, 0.3]], 2)
    loss = DenseLoss(network.specs["detect"], Hyp())
    batch.boxes_known = torch.tensor([True, False])
    first = {name: level[:1] for name, level in raw.items()}
    alone = loss(first, batch_of([[0, 1, 0.5, 0.5, 0.3, 0.3]]))
    for name, value in loss(raw, batch).items():
        torch.testing.assert_close(value, alone[name])
    batch.boxes_known = torch.tensor([False, False])
    assert all(value == 0 for value in loss(raw, batch).values())


@pytest.mark.parametrize("bins", [1, 16])
@torch.no_grad()
def test_perfect_boxes_have_no_box_loss(bins):
    spec = HeadSpec("detect", 2, STRIDES, bins=bins)
    raw = {f"level{i}": torch.full((1, 4 * bins + 2, *grid), -9.0) for i, grid in enumerate(GRIDS)}
    # a box of 32 x 32 pixels around the centre of cell (1, 1) of level 1: one stride to each side
    box = raw["level1"][0, : 4 * bins, 1, 1].view(4, bins)
    if bins == 1:
        box.fill_(torch.log(torch.expm1(torch.tensor(1.0))))
    else:
        box[:, 1] = 30.0
    raw["level1"][0, 4 * bins, 1, 1] = 9.0
    batch = batch_of([[0, 0, 24 / 64, 24 / 64, 32 / 64, 32 / 64]])
    terms = DenseLoss(spec, Hyp())(raw, batch)
    assert float(terms["box"]) == pytest.approx(0, abs=0.05)
    assert float(terms["dfl"]) == pytest.approx(0, abs=0.05)


@torch.no_grad()
def test_ious_do_not_depend_on_the_number_of_pairs():
    torch.manual_seed(0)
    loss = DenseLoss(HeadSpec("detect", 2, STRIDES, bins=4), Hyp())
    logits = loss.levels({f"level{i}": torch.randn(1, 18, *grid) for i, grid in enumerate(GRIDS)})
    box, whole_image = [0, 1, 0.4, 0.4, 0.5, 0.5], [0, 0, 0.5, 0.5, 1.0, 1.0]
    few, many = (loss.prepare(batch_of([box, *more]), (64, 64)) for more in ([], [whole_image] * 3))
    assert 0 < len(few.label) < logits.shape[1] < len(many.label)  # decoded at the pairs, decoded at every cell
    ious = [loss.detailed(logits, pairs, batch_of([box])).ious for pairs in (few, many)]
    torch.testing.assert_close(ious[0], ious[1][: len(few.label)])
    assert float(ious[0].max()) > 0


@torch.no_grad()
def test_distribution_loss_by_hand():
    loss = DenseLoss(HeadSpec("detect", 1, STRIDES, bins=4), Hyp(dense_dfl=1.0))
    raw = {f"level{i}": torch.zeros(1, 17, *grid) for i, grid in enumerate(GRIDS)}
    raw["level1"][0, 16, 1, 1] = 8.0  # the best-aligned cell
    batch = batch_of([[0, 0, 24 / 64, 24 / 64, 40 / 64, 40 / 64]])
    terms, assigned, _, total, _ = loss.detailed(loss.levels(raw), loss.prepare(batch, (64, 64)), batch)
    # equal logits give each of the 4 bins a probability of 1/4: every side costs log 4, whatever its distance
    assert float(terms["dfl"]) == pytest.approx(float(assigned.score.sum() / total) * 1.3862944, rel=1e-5)


@pytest.mark.parametrize("end_to_end", [False, True])
@torch.no_grad()
def test_equal_class_weights_change_nothing(end_to_end):
    network = network_of(end_to_end=end_to_end)
    raw = network(torch.rand(2, 3, 64, 64))["detect"]
    spec, batch = network.specs["detect"], batch_of([[0, 1, 0.5, 0.5, 0.4, 0.3], [1, 2, 0.4, 0.6, 0.4, 0.3]], 2)
    expected = DenseLoss(spec, Hyp())(raw, batch)
    found = DenseLoss(spec, Hyp(dense_class_weights=(1.0,) * spec.num_classes))(raw, batch)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


@torch.no_grad()
def test_class_weights_by_hand():
    spec = HeadSpec("detect", 2, STRIDES, bins=1)
    labels = [[0, 0, 0.25, 0.25, 0.4, 0.4], [1, 1, 0.5, 0.5, 0.4, 0.4]]
    torch.manual_seed(0)
    raw = {f"level{i}": 1 + 0.1 * torch.randn(2, 6, *grid) for i, grid in enumerate(GRIDS)}  # boxes like the labels
    sums = []
    for image in range(2):  # every class alone, in an image of its own
        only = {name: level[image : image + 1] for name, level in raw.items()}
        loss = DenseLoss(spec, Hyp())
        batch = batch_of([[0, *labels[image][1:]]])
        terms, _, _, total, _ = loss.detailed(loss.levels(only), loss.prepare(batch, (64, 64)), batch)
        sums.append((terms["box"] * total, terms["dfl"] * total, total))
    weighted = DenseLoss(spec, Hyp(dense_class_weights=(0.5, 2.0)))
    batch = batch_of(labels, 2)
    terms, _, _, total, _ = weighted.detailed(weighted.levels(raw), weighted.prepare(batch, (64, 64)), batch)
    assert min(total, sums[0][2], sums[1][2]) > 1  # the lower limit
    torch.testing.assert_close(total, 0.5 * sums[0][2] + 2 * sums[1][2])
    torch.testing.assert_close(terms["box"] * total, 0.5 * sums[0][0] + 2 * sums[1][0])
    torch.testing.assert_close(terms["dfl"] * total, 0.5 * sums[0][1] + 2 * sums[1][1])
    raw["level0"][:, 5] = 50.0  # all cells of this level claim class 1, which costs what the class weighs
    costs = [
        DenseLoss(spec, Hyp(dense_class_weights=weights))(raw, batch_of([], 2))["cls"]
        for weights in ((1.0, 1.0), (1.0, 2.0))
    ]
    assert float(costs[1] - costs[0]) == pytest.approx(0.5 * 2 * 64 * 50, rel=0.02)


def test_number_of_class_weights_is_that_of_the_classes():
    with pytest.raises(UserError, match="dense_class_weights: expected 2 weights, one per class, got 3"):
        DenseLoss(HeadSpec("detect", 2, STRIDES, bins=1), Hyp(dense_class_weights=(1.0, 1.0, 1.0)))
    for wrong in ([1, 0], [], [1, -1], 2.0, "deeplab", [1, math.nan]):
        with pytest.raises(UserError, match="dense_class_weights must be a list of weights above 0"):
            Hyp.from_dict({"dense_class_weights": wrong}, "hyp.yaml")
    assert Hyp.from_dict({"dense_class_weights": [1, 2]}, "hyp.yaml").to_dict()["dense_class_weights"] == [1, 2]


@pytest.mark.parametrize("bins", [1, 16])
@torch.no_grad()
@pytest.mark.parametrize("size", [160, 320])
@torch.no_grad()
def test_fraction_of_every_term_at_initialisation(bins, size):
    torch.manual_seed(0)
    network = network_of(bins=bins)
    boxes = [[i, i % 7, 0.3 + 0.05 * i, 0.5, 0.3, 0.2 + 0.05 * i] for i in range(8)]
    batch = batch_of(boxes, images=8, size=size)
    terms = DenseLoss(network.specs["detect"], Hyp())(network(torch.rand(8, 3, size, size))["detect"], batch)
    fractions = {name: float(value / sum(terms.values())) for name, value in terms.items()}
    assert min(fractions.values()) > 0.05 and max(fractions.values()) < 0.8, fractions


@pytest.mark.parametrize("bins", [1, 16])
@torch.no_grad()
@torch.no_grad()
def test_boxes_are_a_few_strides_wide_before_training(bins):
    torch.manual_seed(0)
    network = network_of(bins=bins)
    raw = network(torch.rand(2, 3, 64, 64))["detect"]
    for level in raw.values():
        assert 1.5 < float(decode_distances(level[:, : 4 * bins], bins).mean()) < 2.5


def test_duplicate_filter_corrects_scores_of_the_same_boxes():
    network = network_of(end_to_end=True)
    raw = network(torch.rand(2, 3, 64, 64))["detect"]
    logits = torch.cat([raw[f"level{index}"][:, 64:].flatten(2) for index in range(3)], dim=2).flatten(1)
    values = logits.gather(1, raw["places"])
    assert torch.equal(values[:, 0], logits.amax(dim=1)) and raw["places"].shape == (2, CELLS)
    assert (raw["filtered"] <= values).all() and not torch.equal(raw["filtered"], values)
    terms = DenseLoss(network.specs["detect"], Hyp())(raw, batch_of([[0, 1, 0.5, 0.5, 0.4, 0.3]], 2))
    assert terms.keys() == {"box", "cls", "dfl", "one_cls"}


def test_filter_term_by_hand():
    spec = HeadSpec("detect", 2, STRIDES, bins=1)
    raw = {f"level{i}": torch.full((1, 6, *grid), -4.0) for i, grid in enumerate(GRIDS)}
    for index in (5, 6):  # two cells of level 1 with the box that is labelled, exactly and nearly
        raw["level1"][0, :4, 1, index - 4] = torch.log(torch.expm1(torch.tensor([1.0, 1, 1, 1])))
    places = torch.tensor([[64 + 5, 64 + 6, CELLS + 64 + 5]])  # the cells for class 0, and the first for class 1
    raw |= {"places": places, "filtered": torch.tensor([[2.0, -3.0, -1.0]])}
    batch = batch_of([[0, 0, 24 / 64, 24 / 64, 32 / 64, 32 / 64]])
    loss = DenseLoss(spec, Hyp(dense_cls=0.5))
    # one positive, the cell whose box is exact, with a target of 1
    wanted = 0.5 * (math.log1p(math.exp(2)) - 2 + math.log1p(math.exp(-3)) + math.log1p(math.exp(-1)))
    assert float(loss(raw, batch)["one_cls"]) == pytest.approx(wanted, abs=1e-4)
    weighted = DenseLoss(spec, Hyp(dense_cls=0.5, dense_class_weights=(2.0, 6.0)))
    wanted += 0.5 * (6 / 2 - 1) * math.log1p(math.exp(-1))  # the last place is that of class 1
    assert float(weighted(raw, batch)["one_cls"]) == pytest.approx(wanted, abs=1e-4)
    batch.boxes_known = torch.tensor([False])
    assert float(loss(raw, batch)["one_cls"]) == 0


def test_scores_of_duplicates_fall():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9.5], [0, 0, 10, 5.5], [0, 0, 10, 10], [20, 20, 30, 30]]])
    logits, classes = torch.tensor([[2.0, 1.9, 1.8, 1.7, 1.6]]), torch.tensor([[0, 0, 0, 1, 0]])
    corrections = DuplicateFilter()(boxes, logits, classes)
    # the second overlaps the first by 0.95, the third the first two by 0.55 and 0.58; the fourth has another class
    assert corrections.tolist() == [[0, -6, -2, 0, 0]]
    with torch.no_grad():
        layer = DuplicateFilter()
        layer.output.bias.fill_(0.25)
        assert layer(boxes, logits, classes).tolist() == [[1, -5, -1, 1, 1]]


def test_duplicate_filter_leaves_other_gradients_unchanged():
    torch.manual_seed(0)
    both, dense = network_of(end_to_end=True), network_of()
    state = both.state_dict()
    dense.load_state_dict({name: state[name] for name in dense.state_dict()})
    batch = batch_of([[0, 1, 0.5, 0.5, 0.4, 0.3], [1, 2, 0.4, 0.5, 0.2, 0.3]], 2)
    images = torch.rand(2, 3, 64, 64)
    for network in (both, dense):
        terms = DenseLoss(network.specs["detect"], Hyp())(network(images)["detect"], batch)
        torch.stack(list(terms.values())).sum().backward()
    gradients = dict(both.named_parameters())
    for name, parameter in dense.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name
    extra = [p.grad for name, p in both.named_parameters() if "duplicate_filter" in name]
    assert sum(float(grad.abs().sum()) for grad in extra) > 0


def test_prepared_targets_give_the_same_loss():
    network = network_of()
    raw = network(torch.rand(2, 3, 64, 96))["detect"]
    batch = batch_of([[0, 1, 0.5, 0.5, 0.4, 0.3], [1, 2, 0.4, 0.5, 0.2, 0.3]], 2)
    loss = DenseLoss(network.specs["detect"], Hyp())
    direct = loss(raw, batch)
    batch.prepared["detect"] = loss.prepare(batch, (64, 96))
    assert all(torch.equal(value, direct[name]) for name, value in loss(raw, batch).items())


@pytest.mark.parametrize("arguments", [(3, (8,), 0), (3, (8,), 65), (3, (8,), True), (3, (8,), 16, 1)])
def test_invalid_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        Dense(*arguments)
