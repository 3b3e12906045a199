"""Anchor-free instance segmentation: loss terms, semantic branch, folding, transfer, a run from training to export."""

import importlib
from dataclasses import replace

import pytest
import torch
from helpers_run import results, same, tiny_data, weights

import export
from models.architecture import read_architecture
from models.builder import build_network
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fuse import fuse
from models.network_runner import NetworkRunner
from models.transfer import align_state, transfer
from models.tta import with_tta
from utils.backends.open_weights import open_weights
from utils.core.contracts import Batch, EvalSettings, Geometry, ImageInfo, Results
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.engine.run_setup import build_losses
from utils.losses import dense_segment, segment
from utils.losses.dense_segment import DenseSegmentLoss
from utils.postprocess import POSTPROCESS

CPU = torch.device("cpu")


def network_of(name="polyolo-n-seg", seed=0, **changes):
    torch.manual_seed(seed)
    return build_network({**read_architecture(name), "nc": 3, **changes})


def batch_of(boxes, images=2, size=64, index_map=True):
    """Build a batch whose masks are the lower right quarters of the boxes, at a quarter of the image size."""
    table, side = torch.tensor(boxes, dtype=torch.float32).view(-1, 6), size // 4
    masks = torch.zeros(len(table), side, side, dtype=torch.bool)
    for mask, (cx, cy, w, h) in zip(masks, (table[:, 2:] * side).tolist(), strict=True):
        mask[round(cy) : round(cy + h / 2), round(cx) : round(cx + w / 2)] = True
    if index_map:
        maps = torch.zeros(images, side, side, dtype=torch.uint8)
        for image in range(images):
            for number, mask in enumerate(masks[table[:, 0] == image], 1):
                maps[image][mask] = number
        masks = maps
    info = [ImageInfo(i, f"{i}.jpg", Geometry((size, size), (size, size))) for i in range(images)]
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(images, 3, size, size, generator=generator), table, info, masks=masks)


BOXES = [[0, 1, 0.3, 0.3, 0.5, 0.5], [0, 0, 0.75, 0.75, 0.375, 0.375], [1, 2, 0.5, 0.5, 0.75, 0.5]]


@pytest.fixture(scope="module")
def network():
    return network_of()


@pytest.fixture(scope="module")
def raw(network):
    return {name: tensor.detach() for name, tensor in network.train()(batch_of(BOXES).images)["segment"].items()}


def loss_of(network):
    return DenseSegmentLoss(network.specs["segment"], Hyp())


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)


@pytest.mark.parametrize("bins", [1, 16])
@torch.no_grad()
def test_fraction_of_every_term_at_initialisation(bins):
    network = network_of(bins=bins, nc=7)
    batch = batch_of([[i, i % 7, 0.3 + 0.05 * i, 0.5, 0.3, 0.2 + 0.05 * i] for i in range(8)], images=8, size=160)
    terms = loss_of(network)(network(batch.images)["segment"], batch)
    fractions = {name: float(value / sum(terms.values())) for name, value in terms.items()}
    assert fractions.keys() == {"box", "seg", "cls", "dfl", "sem"}
    assert min(fractions.values()) > 0.05 and max(fractions.values()) < 0.8, fractions


def test_index_maps_and_single_masks_give_the_same_loss(network, raw):
    loss, batch = loss_of(network), batch_of(BOXES)
    terms = loss(raw, batch)
    equal(terms, loss(raw, batch_of(BOXES, index_map=False)))
    prepared = replace(batch, prepared={"segment": loss.prepare(batch, (64, 64))})
    equal(terms, loss(raw, prepared))


@torch.no_grad()
def test_class_weights_weigh_masks(network, raw):
    def masks_sum(weights, images=(0, 1)):
        """Multiply the term by the sum that it was divided by."""
        batch = batch_of([[images.index(row[0]), *row[1:]] for row in BOXES if row[0] in images], images=len(images))
        loss = DenseSegmentLoss(network.specs["segment"], Hyp(dense_class_weights=weights))
        chosen = {name: tensor[list(images)] for name, tensor in raw.items()}
        pairs = loss.boxes.prepare(batch, (64, 64))
        total = loss.boxes.detailed(loss.boxes.levels(chosen), pairs, batch).total
        return float(loss(chosen, batch)["seg"] * total)

    more = masks_sum((1.0, 1.0, 2.0)) - masks_sum((1.0, 1.0, 1.0))
    assert more == pytest.approx(masks_sum((1.0, 1.0, 1.0), images=(1,)), rel=1e-4) and more > 0


def test_whole_maps_of_the_gpu_give_the_same_loss(network, raw, monkeypatch):
    expected = loss_of(network)(raw, batch_of(BOXES))
    monkeypatch.setattr(segment, "_sum_by_label", segment._sum_padded)
    monkeypatch.setattr(dense_segment, "_positive_pairs", lambda pairs, *_: pairs)
    equal(expected, loss_of(network)(raw, batch_of(BOXES)))


def test_semantic_labels_merge_the_objects_of_a_class(network):
    boxes = [[0, 1, 0.25, 0.25, 0.5, 0.5], [0, 1, 0.75, 0.75, 0.5, 0.5], [1, 2, 0.5, 0.5, 1, 1]]
    for index_map in (True, False):
        batch, loss = batch_of(boxes, index_map=index_map), loss_of(network)
        labels = dense_segment._semantic_labels(loss.prepare(batch, (64, 64)), batch, torch.zeros(2, 3, 8, 8))
        expected = torch.zeros(2, 3, 8, 8)
        expected[0, 1, 2:4, 2:4] = expected[0, 1, 6:8, 6:8] = expected[1, 2, 4:, 4:] = 1
        assert torch.equal(labels, expected)


def test_semantic_term_by_hand(network, raw):
    batch = batch_of([[0, 1, 0.5, 0.5, 1, 1]], images=1)  # a quarter of the pixels
    maps = {name: tensor[:1] for name, tensor in raw.items()}
    maps["semantic"] = torch.zeros(1, 3, 8, 8)
    dice = (2 * 8 + 1) / (32 + 16 + 1)
    assert float(loss_of(network)(maps, batch)["sem"]) == pytest.approx(0.693147 + 1 - dice, rel=1e-5)
    maps["semantic"] = torch.full((1, 3, 8, 8), -30.0)
    maps["semantic"][0, 1, 4:, 4:] = 30
    assert float(loss_of(network)(maps, batch)["sem"]) == pytest.approx(0, abs=1e-5)


def test_mask_term_is_the_weighted_mean_inside_the_boxes(network, raw):
    batch, loss = batch_of([[0, 1, 0.5, 0.5, 0.5, 0.5]], images=1), loss_of(network)
    maps = {name: tensor[:1].clone() for name, tensor in raw.items()}
    for index in range(3):
        maps[f"level{index}"][:, -32:] = 0
    # mask logits of 0: log 2 in every pixel of every pair, and the target scores add up to T or to less than 1
    details = loss.boxes.detailed(loss.boxes.levels(maps), loss.prepare(batch, (64, 64)).candidates, batch)
    expected = 0.693147 * float(details.assigned.score.sum() / details.total) * Hyp().dense_mask
    assert expected > 0 and float(loss(maps, batch)["seg"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("known", [None, False])
def test_loss_without_labels_reaches_every_parameter(known):
    network, batch = network_of(), batch_of([])
    batch.boxes_known = None if known is None else torch.tensor([known, known])
    terms = loss_of(network)(network(batch.images)["segment"], batch)
    torch.stack(list(terms.values())).sum().backward()
    assert terms["seg"] == 0 and bool(terms["sem"] > 0) == (known is None)
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_images_without_known_boxes_do_not_count(network, raw):
    batch, loss = batch_of(BOXES), loss_of(network)
    batch.boxes_known = torch.tensor([True, False])
    alone = loss({name: tensor[:1] for name, tensor in raw.items()}, batch_of(BOXES[:2], images=1))
    equal(loss(raw, batch), alone)


def test_folding_removes_the_semantic_branch_and_keeps_the_outputs(network, tmp_path):
    images = batch_of(BOXES).images
    before = network.eval()(images)["segment"]
    folded = fuse(network)
    assert "semantic" in network.train()(images)["segment"] and network.heads["segment"].semantic is not None
    assert not any("semantic" in name for name in folded.state_dict())
    after = folded.train()(images)["segment"]
    assert after.keys() == before.keys() == {"level0", "level1", "level2", "prototypes"}
    equal(folded.eval()(images)["segment"], before)
    save_checkpoint(tmp_path / "folded.pt", folded, {"imgsz": 64})
    loaded = load_checkpoint(tmp_path / "folded.pt").network
    assert loaded.state_dict().keys() == folded.state_dict().keys()


def test_weights_of_yolov5_masks_are_transferred():
    source, network = network_of("yolov5n-seg", seed=1), network_of()
    report = transfer(network, align_state(network, source))
    assert report.matched == sum(not name.startswith("model.24.") or ".proto." in name for name in source.state_dict())
    assert torch.equal(network.heads["segment"].proto.cv3.conv.weight, source.heads["segment"].proto.cv3.conv.weight)


@pytest.mark.parametrize(("name", "gain"), [("polyolo-n-pan", 4.0), ("yolov5n-pan", 0.1)])
def test_gain_of_semantic_maps_beside_anchor_free_boxes(name, gain):
    losses = build_losses(network_of(name), Hyp(seg=0.1), 64, CPU)
    assert losses["semantic"].hyp.seg == pytest.approx(gain)


def test_network_learns_the_masks_of_a_batch():
    network, batch = network_of(), batch_of([[0, 1, 0.4, 0.4, 0.5, 0.5], [1, 2, 0.5, 0.5, 0.75, 0.5]])
    loss, optimizer = loss_of(network), torch.optim.AdamW(network.parameters(), 2e-3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.2
    for _ in range(60):
        terms = loss(network(batch.images)["segment"], batch)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    found = [Results(info) for info in batch.info]
    decoded = NetworkRunner(network.eval(), CPU).run(batch.images).decoded["segment"]
    POSTPROCESS.get("segment")(network.specs["segment"], EvalSettings())(decoded, found)
    for image, (result, wanted) in enumerate(zip(found, (1, 2), strict=True)):
        mask, label = result.masks[0], batch.masks[image] > 0
        assert int(result.classes[0]) == wanted
        assert float((mask & label).sum() / (mask | label).sum()) > 0.5  # that of the whole box is 0.25


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=16, val=8, size=64)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    chosen = {"imgsz": [64], "batch_size": 8, "workers": 0, "noplots": True, "epochs": 2, "save_period": 1}
    program = importlib.import_module("segment.train")
    program.run(data=str(data), cfg="polyolo-n-seg", project=str(folder), name="run", **chosen)
    return folder / "run"


def test_columns_and_scores_of_a_run(trained):
    lines = (trained / "results.csv").read_text().splitlines()
    header, values = ([cell.strip() for cell in line.split(",")] for line in (lines[0], lines[-1]))
    row = dict(zip(header, values, strict=True))
    assert float(row["train/sem_loss"]) > 0 and float(row["val/seg_loss"]) > 0 and float(row["train/dfl_loss"]) > 0
    assert not {"val/sem_loss", "train/obj_loss"} & set(header)
    assert "segment/mask_map50_95" in results(trained)


def test_resume_is_bit_exact(trained):
    whole = weights(trained / "weights" / "last.pt")
    importlib.import_module("segment.train").run(resume=str(trained / "weights" / "epoch0.pt"), workers=0)
    assert same(weights(trained / "weights" / "last.pt"), whole)


def test_best_checkpoint_validates_predicts_and_exports(trained, data, tmp_path):
    best = str(trained / "weights" / "best.pt")
    scores = importlib.import_module("segment.val").run(
        weights=[best], data=str(data), imgsz=[64], batch_size=16, workers=0, noplots=True, project=str(tmp_path)
    )
    assert scores["segment/mask_map50_95"] == pytest.approx(results(trained)["segment/mask_map50_95"], abs=1e-6)
    source = data.parent / "tiny" / "images" / "val"
    importlib.import_module("segment.predict").run(
        weights=[best], source=str(source), imgsz=[64], conf_thres=0.001, project=str(tmp_path), name="predicted"
    )
    assert len(list((tmp_path / "predicted").glob("*.jpg"))) == 8
    (path,) = export.run(weights=[best], include=["torchscript"], imgsz=[64], output=str(tmp_path))
    images = batch_of(BOXES).images
    ours, theirs = (open_weights([str(file)], CPU).runner.run(images).decoded["segment"] for file in (best, path))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-3)


def test_views_have_their_own_prototypes(network):
    runner = with_tta(NetworkRunner(network.eval(), CPU))
    decoded = runner.run(batch_of(BOXES).images).decoded["segment"]
    assert runner.specs["segment"].num_masks == decoded["prototypes"].shape[1] == 96


def test_invalid_uses(data, tmp_path):
    for masks in (0, 1.5, True):
        with pytest.raises(UserError, match="masks must be a whole number"):
            rows = [*read_architecture("polyolo-n-seg")["head"]]
            rows[-1] = [[17, 20, 23], 1, "DenseSegment", ["nc", 16, masks, 256]]
            build_network({**read_architecture("polyolo-n-seg"), "head": rows})
    with pytest.raises(UserError, match="no anchor-free head of boxes alone"):
        importlib.import_module("segment.train").run(
            data=str(data), cfg="polyolo-n-seg", end_to_end=True, project=str(tmp_path)
        )
