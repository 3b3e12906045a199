"""Distillation: divergences by hand, the falling weight, gradients, teachers that do not fit, training and resuming."""

import importlib
import math

import pytest
import torch
from helpers_run import results, same, tiny_data, weights
from torch.nn.functional import binary_cross_entropy_with_logits, softmax

from models.architecture import read_architecture
from models.builder import build_network
from models.checkpoint import save_checkpoint
from utils.core.contracts import Batch, Geometry, HeadSpec, ImageInfo
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.train_settings import TrainSettings
from utils.engine.distillation import AnchorDivergence, DenseDivergence, DistilledLoss, distil_losses
from utils.losses.dense import DenseLoss

NAMES = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]  # of the tiny data set
STRIDES = (8, 16, 32)


def network_of(name, seed=0, names=NAMES, **changes):
    torch.manual_seed(seed)
    return build_network({**read_architecture(name), **changes}, len(names), names)


def batch_of(size=64):
    info = [ImageInfo(i, f"{i}.jpg", Geometry((size, size), (size, size))) for i in range(2)]
    images = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    return Batch(images, torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.3], [1, 2, 0.4, 0.5, 0.2, 0.3]]), info)


def raw_of(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = (4, 2, 1)
    return {f"level{i}": torch.randn(*(s if s else side for s in shape), generator=generator)
            for i, side in enumerate(sides)}  # fmt: skip


@pytest.mark.parametrize("bins", [1, 4])
def test_anchor_free_divergence_by_definition(bins):
    spec, hyp = HeadSpec("detect", 3, STRIDES, bins=bins), Hyp(dense_cls=0.5, dense_dfl=1.5)
    teacher, student = (raw_of(2, 4 * bins + 3, 0, 0, seed=seed) for seed in (1, 2))
    classes = sides = weights_sum = 0.0
    for name, wanted in teacher.items():
        given, first = student[name], 4 * bins
        p = wanted[:, first:].sigmoid()
        entropy = binary_cross_entropy_with_logits(wanted[:, first:], p, reduction="sum")
        classes += binary_cross_entropy_with_logits(given[:, first:], p, reduction="sum") - entropy
        weight = p.amax(1)
        for side in range(4):
            part = slice(side * bins, (side + 1) * bins)
            if bins == 1:
                softplus = torch.nn.functional.softplus
                found = (softplus(wanted[:, side]) - softplus(given[:, side])).abs()
            else:
                a, b = softmax(wanted[:, part], 1), softmax(given[:, part], 1)
                found = (a * (a / b).log()).sum(1)
            sides += (found * weight).sum() / 4
        weights_sum += weight.sum()
    expected = (0.5 * classes + 1.5 * sides) / weights_sum
    torch.testing.assert_close(DenseDivergence(spec, hyp)(teacher, student), expected)
    assert float(DenseDivergence(spec, hyp)(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_anchor_divergence_by_definition():
    spec, hyp = HeadSpec("detect", 3, STRIDES, num_masks=2), Hyp(obj=0.7, cls=0.3)
    teacher, student = (raw_of(2, 3, 0, 0, 10, seed=seed) for seed in (1, 2))
    objectness = classes = weights_sum = 0.0
    for balance, (name, wanted) in zip((4.0, 1.0, 0.4), teacher.items(), strict=True):
        p, given = wanted.sigmoid(), student[name]
        found = binary_cross_entropy_with_logits(given, p, reduction="none")
        found = found - binary_cross_entropy_with_logits(wanted, p, reduction="none")
        objectness += balance * found[..., 4].mean()
        classes += (found[..., 5:8].mean(-1) * p[..., 4]).sum()
        weights_sum += p[..., 4].sum()
    expected = 0.7 * objectness + 0.3 * classes / weights_sum
    torch.testing.assert_close(AnchorDivergence(spec, hyp)(teacher, student), expected)


def test_weight_falls_along_a_cosine_and_is_resumed():
    network, batch = network_of("polyolo-n"), batch_of()
    raw = {name: level.detach() for name, level in network(batch.images / 255)["detect"].items()}
    inner = DenseLoss(network.specs["detect"], Hyp())

    def wrapped():
        return DistilledLoss(inner, lambda *_: raw, lambda *_: torch.ones(()), gain=2.0, total_steps=4)

    loss = wrapped()
    found = [float(loss(raw, batch)["distill"]) for _ in range(3)]
    again = wrapped()
    again.load_state_dict(loss.state_dict())
    found += [float(again(raw, batch)["distill"]) for _ in range(3)]
    expected = [1 + math.cos(math.pi * min(step / 4, 1)) for step in range(6)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert "distill" not in again.eval()(raw, batch) and int(again.steps) == 6


@pytest.mark.parametrize("name", ["yolov5n", "polyolo-n", "polyolo-n-seg"])
def test_only_the_student_learns(name, tmp_path):
    save_checkpoint(tmp_path / "teacher.pt", network_of(name, seed=1), {})
    network, batch = network_of(name), batch_of()
    settings = TrainSettings(distill=str(tmp_path / "teacher.pt"), imgsz=(64,))
    (head, spec) = next(iter(network.specs.items()))
    losses = {head: importlib.import_module("utils.losses").LOSSES.get(spec.loss or head)(spec, Hyp())}
    loss = distil_losses(losses, network, settings, Hyp(), None, 10)[head]
    batch.masks = torch.zeros(2, 16, 16, dtype=torch.uint8)
    teacher = loss.teacher.network
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    loss(network(batch.images / 255)[head], batch)["distill"].backward()
    reached = [key for key, parameter in network.named_parameters() if parameter.grad is not None]
    assert any(key.startswith("model.0.") for key in reached)
    assert all(parameter.grad is None for parameter in teacher.parameters()) and same(before, teacher.state_dict())
    assert not teacher.training and not any("teacher" in key for key in loss.state_dict())
    larger = network(torch.nn.functional.interpolate(batch.images / 255, size=(96, 96)))[head]
    assert torch.isfinite(loss(larger, batch)["distill"])  # another size, as with --multi-scale


@pytest.mark.parametrize(
    ("student", "teacher", "changes", "message"),
    [
        ("polyolo-n", "yolov5n", {}, "has anchors, the network an anchor-free head with 16 bins"),
        ("yolov5n", "polyolo-n", {}, "has an anchor-free head with 16 bins, the network anchors"),
        ("polyolo-n", "polyolo-n-direct", {}, "has an anchor-free head with 1 bins"),
        ("polyolo-n", "polyolo-n", {"names": NAMES[::-1]}, r"has 7 classes \(crescent"),
        ("polyolo-n", "polyolo-n", {"names": NAMES[:3]}, "has 3 classes"),
        ("yolov5n", "yolov5n", {"anchors": [[9, 9] * 3] * 3}, "has other anchors"),
        ("yolov5n", "yolov5n6", {}, "has levels of stride"),
        ("yolov5n", "yolov5n-sem", {}, "has no head with boxes"),
    ],
)
def test_teachers_that_do_not_fit(student, teacher, changes, message, tmp_path):
    save_checkpoint(tmp_path / "teacher.pt", network_of(teacher, **changes), {})
    settings = TrainSettings(distill=str(tmp_path / "teacher.pt"))
    with pytest.raises(UserError, match=message):
        distil_losses({}, network_of(student), settings, Hyp(), None, 1)


def test_training_and_resuming_with_a_teacher(tmp_path):
    data = tiny_data(tmp_path, train=16, val=8, size=64)
    teacher = tmp_path / "teacher.pt"
    save_checkpoint(teacher, network_of("polyolo-s", seed=1), {})
    chosen = {"imgsz": [64], "batch_size": 8, "workers": 0, "noplots": True, "epochs": 2, "save_period": 1}
    program = importlib.import_module("train")
    program.run(data=str(data), cfg="polyolo-n", distill=str(teacher), project=str(tmp_path), name="run", **chosen)
    folder = tmp_path / "run"
    lines = (folder / "results.csv").read_text().splitlines()
    header, first, last = ([cell.strip() for cell in lines[row].split(",")] for row in (0, 1, -1))
    column = header.index("train/distill_loss")
    assert float(first[column]) > float(last[column]) > 0 and "val/distill_loss" not in header
    assert "detect/map50" in results(folder)
    last, epoch = folder / "weights" / "last.pt", folder / "weights" / "epoch0.pt"
    whole = weights(last)
    assert torch.load(epoch, weights_only=True)["training"]["losses"]["detect"].keys() == {"steps"}  # no teacher
    program.run(resume=str(epoch), workers=0)
    assert same(weights(last), whole)
    teacher.unlink()
    with pytest.raises(UserError, match="no such file; put it back to resume this run"):
        program.run(resume=str(epoch), workers=0)
