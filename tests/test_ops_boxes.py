"""Box formats and overlaps: known values, both kinds of array, gradients."""

import math

import numpy as np
import pytest
import torch

from utils.core.contracts import Geometry
from utils.ops import boxes
from utils.ops.iou import intersection_over_area, paired_iou, pairwise_iou, pairwise_iou_numpy

KINDS = ("iou", "giou", "diou", "ciou")


@pytest.fixture(params=["numpy", "torch"])
def kind_of_array(request):
    return np.array if request.param == "numpy" else lambda values: torch.tensor(values, dtype=torch.float64)


def test_box_format_round_trip(kind_of_array):
    xyxy = kind_of_array([[10.0, 20.0, 30.0, 60.0]])
    assert boxes.xyxy_to_cxcywh(xyxy).tolist() == [[20, 40, 20, 40]]
    assert boxes.xyxy_to_xywh(xyxy).tolist() == [[10, 20, 20, 40]]
    assert boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(xyxy)).tolist() == xyxy.tolist()
    assert boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(xyxy)).tolist() == xyxy.tolist()
    normalised = boxes.xyxy_to_cxcywhn(xyxy, (100, 200))
    assert normalised.tolist() == [[0.1, 0.4, 0.1, 0.4]]
    assert boxes.cxcywhn_to_xyxy(normalised, (100, 200), (5, 7)).tolist() == [[15, 27, 35, 67]]
    assert boxes.area(xyxy).tolist() == [800]


def test_arguments_are_not_modified(kind_of_array):
    given = kind_of_array([[-5.0, -5.0, 50.0, 50.0]])
    boxes.clip_xyxy(given, (10, 10))
    boxes.to_original(given, Geometry((20, 20), (20, 20)))
    assert given.tolist() == [[-5, -5, 50, 50]]
    with pytest.raises(ValueError, match="shape"):
        boxes.cxcywh_to_xyxy(kind_of_array([[1.0, 2.0, 3.0]]))


def test_normalise_with_clip_golden_values(kind_of_array):
    result = boxes.xyxy_to_cxcywhn(kind_of_array([[-5.0, 10.0, 700.0, 320.0]]), (320, 640), clip=True, eps=0.001)
    assert result.tolist()[0] == pytest.approx([0.499999, 0.515623, 0.999998, 0.968747], abs=1e-6)


def test_geometry_round_trip(kind_of_array):
    geometry = Geometry((720, 1280), (384, 640), (0.5, 0.5), (0.0, 12.0))
    inside = kind_of_array([[10.0, 20.0, 300.0, 370.0]])
    mapped = boxes.to_original(inside, geometry)
    assert mapped.tolist() == [[20, 16, 600, 716]]
    assert boxes.to_network(mapped, geometry).tolist() == inside.tolist()
    outside = kind_of_array([[-10.0, 0.0, 700.0, 400.0]])
    assert boxes.to_original(outside, geometry).tolist() == [[0, 0, 1280, 720]]
    assert boxes.to_original(outside, geometry, clip=False).tolist() == [[-20, -24, 1400, 776]]


def test_geometry_fractional_padding():
    geometry = Geometry((100, 50), (64, 64), (0.96, 0.48), (8.5, 8.0))
    original = np.array([[3.0, 4.0, 40.0, 90.0]])
    assert boxes.to_original(boxes.to_network(original, geometry), geometry) == pytest.approx(original)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 1.0), (0.5, 0.5 / 1.5), (1.0, 0.0), (9.0, 0.0)])
def test_pairwise_iou(shift, expected):
    unit = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert pairwise_iou(unit, unit + torch.tensor([shift, 0.0, shift, 0.0])).item() == pytest.approx(expected, abs=1e-6)


def test_pairwise_iou_numpy_and_empty():
    corners = np.random.default_rng(0).random((7, 4)) * 10
    corners[:, 2:] += corners[:, :2]
    for first, second in ((corners, corners[:3]), (corners[:0], corners), (corners, corners[:0])):
        array = pairwise_iou_numpy(first, second)
        assert array.shape == (len(first), len(second))
        assert pairwise_iou(torch.tensor(first), torch.tensor(second)).numpy() == pytest.approx(array, abs=1e-12)
    with pytest.raises(ValueError, match="b_xyxy"):
        pairwise_iou(torch.zeros(2, 4), torch.zeros(2, 5))


def test_covered_fraction_golden_values():
    others = np.array([[2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 2.0, 2.0]])
    assert intersection_over_area(np.array([0.0, 0.0, 4.0, 4.0]), others) == pytest.approx([0.25, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.5, 0.5, 1, 1), (0.6, 0.7, 1.5, 0.8), (0.4666667, 0.3757575, 0.4522158, 0.4500153)),
        ((3.2, 4.1, 2, 5), (3, 5, 4, 2.5), (0.3333333, 0.0833333, 0.3126016, 0.2810295)),
        ((1, 1, 1, 1), (5, 6, 2, 1), (0, -0.9090909, -0.6188679, -0.6205574)),
    ],
)
def test_paired_iou_golden_values(first, second, expected):
    a, b = torch.tensor([first], dtype=torch.float32), torch.tensor([second], dtype=torch.float32)
    assert [paired_iou(a, b, kind).item() for kind in KINDS] == pytest.approx(expected, abs=1e-6)
    assert [paired_iou(b, a, kind).item() for kind in KINDS] == pytest.approx(expected, abs=1e-6)


def composed_ciou(a, b, constant_alpha=None):
    """CIoU from elementary operations, differentiated by autograd; alpha is held constant as the loss wants it."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = a.unbind(1), b.unbind(1)
    left, right = torch.maximum(x1 - w1 / 2, x2 - w2 / 2), torch.minimum(x1 + w1 / 2, x2 + w2 / 2)
    top, bottom = torch.maximum(y1 - h1 / 2, y2 - h2 / 2), torch.minimum(y1 + h1 / 2, y2 + h2 / 2)
    inter = (right - left).clamp(0) * (bottom - top).clamp(0)
    iou = inter / (w1 * h1 + w2 * h2 - inter + 1e-7)
    wide = torch.maximum(x1 + w1 / 2, x2 + w2 / 2) - torch.minimum(x1 - w1 / 2, x2 - w2 / 2)
    high = torch.maximum(y1 + h1 / 2, y2 + h2 / 2) - torch.minimum(y1 - h1 / 2, y2 - h2 / 2)
    v = 4 / math.pi**2 * (torch.atan(w2 / h2) - torch.atan(w1 / h1)) ** 2
    alpha = (v / (v - iou + 1 + 1e-7)).detach()
    return iou - ((x1 - x2) ** 2 + (y1 - y2) ** 2) / (wide**2 + high**2 + 1e-7) - v * alpha


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 2 + 0.1


@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_iou_gradcheck(kind):
    a, b = random_boxes(30, 1).requires_grad_(), random_boxes(30, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda first, second: paired_iou(first, second, kind), (a, b))


def test_ciou_alpha_is_constant():
    weights = torch.linspace(-1, 1, 200, dtype=torch.float64)
    grads = []
    for function in (paired_iou, composed_ciou):
        a, b = random_boxes(200, 3).requires_grad_(), random_boxes(200, 4).requires_grad_()
        (function(a, b) * weights).sum().backward()
        grads += [a.grad, b.grad]
    assert torch.allclose(grads[0], grads[2], atol=1e-12)
    assert torch.allclose(grads[1], grads[3], atol=1e-12)
    assert grads[0].abs().sum() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_boxes(kind):
    a = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 2, 0], [1, 1, 1, 1], [1, 1, 1, 1]], requires_grad=True)
    b = torch.tensor([[0.0, 0, 0, 0], [5, 5, 1, 1], [1, 1, 0, 2], [1, 1, 1, 1], [2, 1, 1, 1]])
    overlap = paired_iou(a, b, kind)
    overlap.sum().backward()
    assert overlap.isfinite().all()
    assert a.grad.isfinite().all()
    assert overlap[3].item() == pytest.approx(1)  # the same box
    assert paired_iou(a[:0], b[:0], kind).shape == (0,)


def test_iou_half_precision():
    a, b = random_boxes(50, 5).bfloat16().requires_grad_(), random_boxes(50, 6).bfloat16()
    overlap = paired_iou(a, b)
    overlap.sum().backward()
    assert overlap.dtype == torch.float32
    assert a.grad.dtype == torch.bfloat16
    assert torch.allclose(overlap, composed_ciou(a.float(), b.float()), atol=1e-6)


def test_paired_iou_invalid_arguments():
    with pytest.raises(ValueError, match="kind"):
        paired_iou(torch.zeros(1, 4), torch.zeros(1, 4), "area")
    with pytest.raises(ValueError, match="must both be"):
        paired_iou(torch.zeros(2, 4), torch.zeros(1, 4))
