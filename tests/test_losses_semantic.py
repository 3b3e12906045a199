"""The semantic loss: golden values, gradients against plain autograd, and its contract with the engine."""

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import interpolate

from benchmarks import plain
from utils.core.contracts import Batch, Geometry, HeadSpec, ImageInfo
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.losses import LOSSES, semantic
from utils.losses import semantic_terms as pixels
from utils.ops import semantic_maps as maps_of_classes
from utils.ops.semantic_maps import BilinearUpsampler, aligned_upsampler, image_groups, original_upsampler

SPEC = HeadSpec("semantic", 19, names=tuple(f"class{index}" for index in range(19)))
HYP = Hyp(seg=1.0)


def golden_scores(offset):
    values = torch.arange(2 * 19 * 8 * 8, dtype=torch.float64)
    return (3 * torch.sin(0.7 * values + offset)).float().view(2, 19, 8, 8)


def golden_labels():
    labels = (7 * torch.arange(2 * 8 * 8) % 19).to(torch.uint8).view(2, 8, 8)
    labels[:, :2] = 255
    return labels


def batch_of(labels, info=None, size=64):
    count = 2 if labels is None else len(labels)
    return Batch(torch.zeros(count, 3, size, size), torch.zeros(0, 6), info or [None] * count, semantic=labels)


def make(spec=SPEC, hyp=HYP, **changes):
    return LOSSES.get("semantic")(spec, dataclasses.replace(hyp, **changes))


AUX = {"aux16": 0.5, "aux32": 1.0}


@pytest.mark.parametrize(
    ("changes", "aux", "wanted"),
    [
        ({}, (), 4.369271),
        ({}, ("aux16", "aux32"), 5.250340),
        ({}, ("aux16",), 4.808468),
        ({"seg_aux": (0.15, 0.05)}, ("aux16", "aux32"), 5.250340),
        ({"seg_loss": "ohem", "seg_threshold": 0.7}, (), 4.369271),
        ({"seg_loss": "ohem"}, (), 4.369271),
        ({"seg_loss": "ohem", "seg_threshold": 1e-4}, (), 7.554739),
        ({"seg_loss": "focal"}, (), 3.941769),
        ({"seg_loss": "prob_ohem", "seg_min_kept": 16}, ("aux16", "aux32"), 7.904247),
    ],
)
def test_golden_values(changes, aux, wanted):
    raw = {"logits": golden_scores(0.0)} | {name: golden_scores(AUX[name]) for name in aux}
    terms = make(**changes)(raw, batch_of(golden_labels()))
    assert list(terms) == ["seg"] and terms["seg"].dtype == torch.float32
    assert float(terms["seg"]) == pytest.approx(wanted, abs=1e-5)


def test_gain():
    assert float(make(hyp=Hyp())({"logits": golden_scores(0.0)}, batch_of(golden_labels()))["seg"]) == pytest.approx(
        0.35 * 4.369271, abs=1e-5
    )


def random_case(classes=5, images=2, small=(5, 7), large=(34, 51), seed=0):
    rng = torch.Generator().manual_seed(seed)
    raw = {
        "logits": torch.randn(images, classes, *small, generator=rng) * 2,
        "aux16": torch.randn(images, classes, *small, generator=rng),
        "aux32": torch.randn(images, classes, 3, 4, generator=rng),
    }
    labels = torch.randint(0, classes, (images, *large), generator=rng).to(torch.uint8)
    labels[0, :9], labels[1, :, 40:] = 255, 255
    return raw, labels


def spec_of(classes):
    return HeadSpec("semantic", classes, names=tuple(map(str, range(classes))))


WEIGHTS = (0.5, 1.0, 2.0, 0.25, 1.5)
KINDS = {
    "ce": ({}, lambda maps, labels: plain.plain_entropy(maps, labels)),
    "weighted": (
        {"seg_class_weights": WEIGHTS},
        lambda maps, labels: plain.plain_entropy(maps, labels, torch.tensor(WEIGHTS)),
    ),
    "smoothed": (
        {"seg_class_weights": WEIGHTS, "seg_label_smoothing": 0.1},
        lambda maps, labels: plain.plain_entropy(maps, labels, torch.tensor(WEIGHTS), 0.1),
    ),
    "ohem": ({"seg_loss": "ohem", "seg_threshold": 0.2}, lambda maps, labels: plain.plain_ohem(maps, labels, 0.2)),
    "few": ({"seg_loss": "ohem", "seg_threshold": 1e-9}, lambda maps, labels: plain.plain_ohem(maps, labels, 1e-9)),
    "prob_ohem": (
        {"seg_loss": "prob_ohem", "seg_threshold": 0.01, "seg_min_kept": 700},
        lambda maps, labels: plain.plain_prob_ohem(maps, labels, 0.01, 700),
    ),
    "focal": ({"seg_loss": "focal"}, lambda maps, labels: plain.plain_focal(maps, labels, 2.0)),
    "focal3": ({"seg_loss": "focal", "seg_gamma": 3.0}, lambda maps, labels: plain.plain_focal(maps, labels, 3.0)),
}


@pytest.mark.parametrize("chunk", [600, 2**18])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_match_autograd(kind, chunk, monkeypatch):
    monkeypatch.setattr(maps_of_classes, "_CPU_CHUNK", chunk)
    monkeypatch.setattr(maps_of_classes, "_CPU_WIDTH", chunk // 30)
    changes, reference = KINDS[kind]
    raw, labels = random_case()
    first, second = ({name: value.clone().requires_grad_() for name, value in raw.items()} for _ in range(2))
    ours = make(spec_of(5), seg_aux=(0.3, 0.2), **changes)(first, batch_of(labels))["seg"]
    wanted = sum(w * reference(second[n], labels) for n, w in (("logits", 1.0), ("aux16", 0.3), ("aux32", 0.2)))
    assert float(ours.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    (ours * 3).backward()
    (wanted * 3).backward()
    for name in raw:
        torch.testing.assert_close(first[name].grad, second[name].grad, rtol=1e-4, atol=1e-7)
        assert float(first[name].grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["smoothed", "ohem", "focal"])
def test_images_in_groups(kind, monkeypatch):
    """On GPUs several images are computed at once, which changes no value."""
    raw, labels = random_case(images=5)
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(BilinearUpsampler, "images_per_pass", lambda self, channels, count=count: count)
        maps = {name: value.clone().requires_grad_() for name, value in raw.items()}
        loss = make(spec_of(5), **KINDS[kind][0])(maps, batch_of(labels))["seg"]
        loss.backward()
        found.append([loss.detach(), *(value.grad for value in maps.values())])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-9)


def test_groups_of_images_fit_into_a_tile():
    first, second = (aligned_upsampler((64, 64), (8, side), torch.device("meta")) for side in (8, 9))
    per_pass = maps_of_classes._GPU_CHUNK // (64 * 64 * 1024)
    grids = [first] * (per_pass + 1) + [second]
    assert [images for images, _ in image_groups(grids, 1024)] == [
        slice(0, per_pass), slice(per_pass, per_pass + 1), slice(per_pass + 1, per_pass + 2),
    ]  # fmt: skip
    assert [grid for _, grid in image_groups(grids, 1024)] == [first, first, second]
    assert [images for images, _ in image_groups([first], 10**6)] == [slice(0, 1)]


def test_matrices_of_equal_letterboxes_are_built_once():
    geometry = Geometry((30, 40), (64, 64), (1.6, 1.6), (0.0, 8.0))
    first, again = (
        original_upsampler(one, (8, 8), torch.device("cpu")) for one in (geometry, dataclasses.replace(geometry))
    )
    assert first is again


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("changes", [{}, {"seg_loss": "ohem"}, {"seg_loss": "prob_ohem"}, {"seg_loss": "focal"}])
@pytest.mark.parametrize("labels", [None, torch.full((2, 40, 48), 255, dtype=torch.uint8)])
def test_no_labels(changes, labels, on_gpu, monkeypatch):
    if on_gpu:
        monkeypatch.setattr(pixels, "_is_on_host", lambda tensor: False)
    raw = {name: value.requires_grad_() for name, value in random_case()[0].items()}
    changes = {"seg_dice": 1.0, "seg_lovasz": 1.0, "seg_class_weights": WEIGHTS, **changes}
    terms = make(spec_of(5), **changes)(raw, batch_of(labels))
    assert {name: float(value.detach()) for name, value in terms.items()} == {"seg": 0, "dice": 0, "lovasz": 0}
    sum(terms.values()).backward()
    for value in raw.values():
        assert value.grad is not None and float(value.grad.abs().sum()) == 0


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_unlabelled_image_does_not_affect_others(kind, on_gpu, monkeypatch):
    """Mixed batches hold images that have boxes only. On a GPU these are computed as well, to no avail."""
    if on_gpu:
        monkeypatch.setattr(pixels, "_is_on_host", lambda tensor: False)
    raw, labels = random_case()
    labels[1] = 255
    loss = make(spec_of(5), **KINDS[kind][0])
    raw["logits"].requires_grad_()
    loss(raw, batch_of(labels))["seg"].backward()
    assert raw["logits"].grad[1].abs().sum() == 0 < raw["logits"].grad[0].abs().sum()
    both = loss(raw, batch_of(labels))["seg"]
    alone = loss({name: value[:1] for name, value in raw.items()}, batch_of(labels[:1]))["seg"]
    assert float(both.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)


@pytest.mark.parametrize("kind", ["ce", "weighted", "smoothed", "focal", "dice"])
def test_ranks_match_one_process(kind, monkeypatch):
    """Two ranks with one image each, simulated one after the other: each receives the sums of both."""
    changes = KINDS[kind][0] if kind in KINDS else {"seg_dice": 1.0}
    raw, labels = random_case()
    ours = make(spec_of(5), **changes).train()
    one = {name: value.clone().requires_grad_() for name, value in raw.items()}
    terms = ours(one, batch_of(labels))
    sum(terms.values()).backward()

    parts: list[list[torch.Tensor]] = [[], []]
    for rank in range(2):  # first hear what each rank would sum up
        monkeypatch.setattr(semantic, "sum_over_ranks", lambda value, r=rank: parts[r].append(value) or value)
        ours({name: value[rank : rank + 1] for name, value in raw.items()}, batch_of(labels[rank : rank + 1]))
    sums = [a + b for a, b in zip(*parts, strict=True)]
    total = 0.0
    for rank in range(2):
        answers = iter(sums)
        monkeypatch.setattr(semantic, "sum_over_ranks", lambda value, a=answers: next(a))
        mine = {name: value[rank : rank + 1].clone().requires_grad_() for name, value in raw.items()}
        found = ours(mine, batch_of(labels[rank : rank + 1]))
        sum(found.values()).backward()
        total += float(sum(found.values()).detach())
        for name, value in mine.items():
            torch.testing.assert_close(value.grad[0], one[name].grad[rank], rtol=1e-4, atol=1e-8)
    assert total == pytest.approx(float(sum(terms.values()).detach()), rel=1e-5)


def test_evaluation_has_no_collectives(monkeypatch):
    monkeypatch.setattr(semantic, "sum_over_ranks", lambda value: pytest.fail("asked the other ranks"))
    raw, labels = random_case()
    with torch.inference_mode():
        terms = make(spec_of(5), seg_dice=1.0, seg_lovasz=1.0).eval()({"logits": raw["logits"]}, batch_of(labels))
    assert float(terms["seg"]) == pytest.approx(float(plain.plain_entropy(raw["logits"], labels)), rel=1e-5)


def test_training_after_evaluation():
    """Interpolation weights cached in inference mode must not be used by autograd."""
    raw, labels = random_case(large=(37, 53), seed=4)
    loss = make(spec_of(5), seg_dice=1.0, seg_lovasz=1.0)
    with torch.inference_mode():
        wanted = {name: float(value) for name, value in loss.eval()(raw, batch_of(labels)).items()}
    found = loss.train()({name: value.requires_grad_() for name, value in raw.items()}, batch_of(labels))
    sum(found.values()).backward()
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(wanted, rel=1e-6)


def test_evaluation_loss_ignores_padding():
    """An image of 20 x 60 lies in the middle of 64 x 64; its labels have its own size."""
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 64, 64, generator=rng)
    labels = torch.randint(0, 3, (1, 20, 60), generator=rng).to(torch.uint8)
    geometry = Geometry((20, 60), (64, 64), (1.0, 1.0), (2.0, 22.0))
    found = make(spec_of(3)).eval()({"logits": logits}, batch_of(labels, [ImageInfo(0, "a.png", geometry)]))
    inside = logits[:, :, 22:42, 2:62]
    assert float(found["seg"]) == pytest.approx(float(plain.plain_entropy(inside, labels)), rel=1e-5)


@pytest.mark.parametrize("mode", ["autocast", "half"])
def test_loss_is_float32_under_autocast(mode):
    raw, labels = random_case()
    raw = {name: value.bfloat16().requires_grad_() for name, value in raw.items()}
    wanted = make(spec_of(5))({name: value.float() for name, value in raw.items()}, batch_of(labels))["seg"]
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        found = make(spec_of(5))(raw, batch_of(labels))["seg"]
    found.backward()
    assert found.dtype == torch.float32 and float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert raw["logits"].grad.dtype == torch.bfloat16


def test_channels_last():
    raw, labels = random_case()
    last = {name: value.to(memory_format=torch.channels_last) for name, value in raw.items()}
    first, second = (float(make(spec_of(5))(maps, batch_of(labels))["seg"]) for maps in (raw, last))
    assert first == pytest.approx(second, rel=1e-6)


def test_dice():
    """Two pixels of class 0, one of class 1: by hand (smoothed by 1)."""
    probabilities = torch.tensor([[0.9, 0.6, 0.3], [0.1, 0.4, 0.7], [0.0, 0.0, 0.0]])
    first, second = (2 * 1.5 + 1) / (1.8 + 2 + 1), (2 * 0.7 + 1) / (1.2 + 1 + 1)
    found = pixels.dice_loss(probabilities, torch.tensor([0, 0, 1]))
    assert float(found) == pytest.approx(1 - (first + second) / 2)


def jaccard_extension(errors, wanted):
    """Return the Lovasz extension by its definition: sorted errors times the growth of the set loss."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    size, total, before = sum(wanted), 0.0, 0.0
    for count in range(1, len(order) + 1):
        wrong = set(order[:count])
        kept = sum(wanted[i] for i in range(len(wanted)) if i not in wrong)
        union = size + sum(1 for i in wrong if not wanted[i])
        set_loss = 1 - kept / union
        total += errors[order[count - 1]] * (set_loss - before)
        before = set_loss
    return total


def test_lovasz():
    rng = torch.Generator().manual_seed(3)
    probabilities = torch.rand(4, 9, generator=rng).softmax(dim=0)
    classes = torch.tensor([0, 0, 1, 1, 1, 3, 3, 0, 1])
    wanted = []
    for label in (0, 1, 3):
        truth = [int(value == label) for value in classes.tolist()]
        errors = [abs(t - p) for t, p in zip(truth, probabilities[label].tolist(), strict=True)]
        wanted.append(jaccard_extension(errors, truth))
    assert float(pixels.lovasz_softmax_loss(probabilities, classes)) == pytest.approx(sum(wanted) / 3, rel=1e-5)


@pytest.mark.parametrize("unlabelled", [False, True], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize(
    "changes",
    [
        {"seg_loss": "ohem", "seg_threshold": 0.2},
        {"seg_loss": "ohem", "seg_threshold": 1e-9},
        {"seg_dice": 1.0},
        {"seg_lovasz": 1.0},
    ],
    ids=["ohem", "few", "dice", "lovasz"],
)
def test_losses_without_host_waits(monkeypatch, changes, unlabelled):
    """Terms and gradients of the GPU path equal those of the CPU path."""
    found = []
    for on_host in (True, False):
        monkeypatch.setattr(pixels, "_is_on_host", lambda _, on_host=on_host: on_host)
        raw, labels = random_case()
        labels[1 if not unlabelled else slice(None)] = 255
        logits = raw["logits"].clone().requires_grad_()
        terms = make(spec_of(5), **changes)({"logits": logits}, batch_of(labels))
        sum(terms.values()).backward()
        found.append((torch.stack(list(terms.values())).detach(), logits.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-9)
    assert bool(found[0][0].any()) != unlabelled


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_overlap_terms_gradient(name):
    raw, labels = random_case()
    labels[1] = 255
    first, second = (raw["logits"].clone().requires_grad_() for _ in range(2))
    term = make(spec_of(5), **{f"seg_{name}": 0.5})({"logits": first}, batch_of(labels))[name]
    known = labels[0] != 255
    large = interpolate(second, size=labels.shape[1:], mode="bilinear", align_corners=True)[0]
    region_loss = {"dice": pixels.dice_loss, "lovasz": pixels.lovasz_softmax_loss}[name]
    wanted = region_loss(large[:, known].softmax(dim=0), labels[0][known].long()) * 0.5
    assert float(term.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    term.backward()
    wanted.backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-8)


def test_perfect_prediction():
    labels = torch.randint(0, 5, (1, 9, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    logits = 60 * torch.nn.functional.one_hot(labels.long(), 5).permute(0, 3, 1, 2).float()
    for kind in ("ce", "ohem", "prob_ohem", "focal"):
        maps = logits.clone().requires_grad_()
        terms = make(spec_of(5), seg_loss=kind, seg_dice=1.0, seg_lovasz=1.0)({"logits": maps}, batch_of(labels))
        sum(terms.values()).backward()
        assert all(0 <= float(value.detach()) < 1e-5 for value in terms.values())
        assert torch.isfinite(maps.grad).all()


def test_class_weights():
    assert semantic.class_weights(Hyp(seg_class_weights="deeplab"), 19).tolist() == pytest.approx(
        [0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116,
         0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507]
    )  # fmt: skip
    assert semantic.class_weights(Hyp(), 19) is None
    for given, message in (
        ("deplab", "unknown name 'deplab'; use deeplab"),
        ((1.0, 2.0), "expected 19 weights.*, got 2"),
    ):
        with pytest.raises(UserError, match=message):
            make(seg_class_weights=given)


def test_auxiliary_weights_count():
    raw, labels = random_case()
    with pytest.raises(UserError, match=r"seg_aux: expected 2 weights, for the auxiliary outputs aux16, aux32, got 3"):
        make(spec_of(5), seg_aux=(1.0, 1.0, 1.0))(raw, batch_of(labels))
    one = float(make(spec_of(5), seg_aux=0.5)(raw, batch_of(labels))["seg"])
    assert one == pytest.approx(float(make(spec_of(5), seg_aux=(0.5, 0.5))(raw, batch_of(labels))["seg"]))
    assert make(spec_of(5), seg_aux=(0.5, 0.5))({"logits": raw["logits"]}, batch_of(labels))["seg"] > 0  # eval: no aux


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seg_loss": "ohme"}, "seg_loss must be one of ce, ohem, prob_ohem, focal, got 'ohme'"),
        ({"seg_loss": 1}, "seg_loss must be one of"),
        ({"seg": -1}, "seg must not be negative"),
        ({"det": "x"}, "det must be a number"),
        ({"seg_aux": "much"}, "seg_aux must be a number or a list"),
        ({"seg_aux": []}, "seg_aux must be"),
        ({"seg_aux": [0.1, -1]}, "seg_aux must be"),
        ({"seg_aux": [True]}, "seg_aux must be"),
        ({"seg_class_weights": 3}, "seg_class_weights must be a name or a list"),
        ({"seg_class_weights": [0, 0.0]}, "all weights are 0"),
        ({"seg_class_weights": [1, math.nan]}, "seg_class_weights must be"),
        ({"seg_threshold": 1.0}, "seg_threshold is a probability"),
        ({"seg_min_kept": 0}, "seg_min_kept must lie between 1"),
        ({"seg_gamma": 0.5}, "seg_gamma must lie between 1"),
        ({"seg_label_smoothing": 1}, "seg_label_smoothing must lie"),
        ({"seg_loss": "focal", "seg_label_smoothing": 0.1}, "is not supported by"),
        ({"seggain": 0.35}, "unknown key 'seggain'"),
    ],
)
def test_invalid_options(values, message):
    with pytest.raises(UserError, match=message) as caught:
        Hyp.from_dict(values, "hyp.yaml")
    assert str(caught.value).startswith("hyp.yaml: ") and "\n" not in str(caught.value)


def test_options_round_trip(tmp_path):
    from utils.core.yaml_file import write_yaml

    hyp = Hyp(seg_loss="ohem", seg_aux=(0.15, 0.05), seg_class_weights="deeplab", seg_threshold=0.6)
    path = tmp_path / "hyp.yaml"
    write_yaml(path, hyp.to_dict())
    assert Hyp.from_file(path) == hyp
    weights = dataclasses.replace(hyp, seg_class_weights=(1.0, 2.0), seg_aux=0.4)
    assert Hyp.from_dict(weights.to_dict(), "checkpoint") == weights
