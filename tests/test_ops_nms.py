"""NMS: its rules one by one, and equal results with and without torchvision."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.core.contracts import EvalSettings
from utils.ops import nms

SETTINGS = EvalSettings(confidence=0.25, iou=0.5, multi_label=False)


def prediction(*rows):
    return torch.tensor([rows], dtype=torch.float32)


def test_confidence_and_overlap():
    predictions = prediction(
        (50, 50, 20, 20, 0.9, 0.8, 0.1),
        (51, 50, 20, 20, 0.8, 0.8, 0.1),  # overlaps the first, same class
        (50, 50, 20, 20, 0.7, 0.1, 0.8),  # the same place, other class
        (90, 90, 10, 10, 0.2, 1.0, 0.0),  # weak objectness
        (20, 20, 10, 10, 0.5, 0.5, 0.0),  # 0.25 is not above 0.25
    )
    rows = nms.batched_nms(predictions, 2, SETTINGS).rows[0]
    expected = [[40, 40, 60, 60, 0.72, 0], [40, 40, 60, 60, 0.56, 1]]
    assert torch.allclose(rows, torch.tensor(expected), atol=1e-6)
    agnostic = nms.batched_nms(predictions, 2, dataclasses.replace(SETTINGS, agnostic=True)).rows[0]
    assert torch.allclose(agnostic, torch.tensor(expected[:1]), atol=1e-6)


def test_iou_equal_to_threshold():
    predictions = prediction((10, 10, 20, 20, 0.9, 1.0), (10, 15, 20, 10, 0.8, 1.0))  # IoU 200 / 400
    assert len(nms.batched_nms(predictions, 1, SETTINGS).rows[0]) == 2
    assert len(nms.batched_nms(predictions, 1, dataclasses.replace(SETTINGS, iou=0.49)).rows[0]) == 1


def test_multi_label_and_class_filter():
    predictions = prediction((50, 50, 20, 20, 1.0, 0.6, 0.3, 0.2))
    several = dataclasses.replace(SETTINGS, multi_label=True)
    assert nms.batched_nms(predictions, 3, several).rows[0][:, 5].tolist() == [0, 1]
    assert nms.batched_nms(predictions, 3, dataclasses.replace(several, classes=(1, 2))).rows[0][:, 5].tolist() == [1]
    # without multi-label the best class is chosen first, then filtered
    assert len(nms.batched_nms(predictions, 3, dataclasses.replace(SETTINGS, classes=(1, 2, 77))).rows[0]) == 0


def test_mask_coefficients():
    predictions = prediction((50, 50, 20, 20, 0.5, 0.9, 2.0, -4.0), (90, 90, 20, 20, 1.0, 0.9, 1.0, 1.0))
    rows = nms.batched_nms(predictions, 1, SETTINGS).rows[0]
    assert rows[:, 6:].tolist() == [[1, 1], [1, -2]]


def test_limits_per_image():
    predictions = torch.zeros(3, 40, 6)
    predictions[..., :2] = torch.arange(40)[:, None] * 30.0
    predictions[..., 2:4], predictions[..., 5] = 10, 1
    predictions[0, :, 4] = torch.linspace(0.3, 0.9, 40)
    predictions[2, :5, 4] = 0.9
    settings = dataclasses.replace(SETTINGS, max_detections=7, max_candidates=10)
    result = nms.batched_nms(predictions, 1, settings)
    assert [len(rows) for rows in result.rows] == [7, 0, 5]
    assert result.truncated == [True, False, False]
    assert result.rows[0][:, 4].tolist() == pytest.approx(predictions[0, :, 4].flip(0)[:7].tolist())


def test_empty_and_nan():
    result = nms.batched_nms(torch.full((2, 4, 9), float("nan")), 2, SETTINGS)
    assert [tuple(rows.shape) for rows in result.rows] == [(0, 8), (0, 8)]
    assert nms.batched_nms(torch.zeros(1, 0, 7), 2, SETTINGS).rows[0].shape == (0, 6)
    with pytest.raises(ValueError, match="predictions"):
        nms.batched_nms(torch.zeros(1, 5, 6), 2, SETTINGS)


def test_half_precision_and_many_classes():
    predictions = torch.zeros(1, 1, 5 + 2000)
    predictions[0, 0, :5] = torch.tensor([100.25, 50.5, 20, 10, 1.0])
    predictions[0, 0, -1] = 1
    for kind in (torch.float32, torch.bfloat16):
        row = nms.batched_nms(predictions.to(kind), 2000, SETTINGS).rows[0]
        assert row.dtype == torch.float32
        assert row[0, 5].item() == 1999


def random_candidates(count, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(40, 4, generator=generator) * 300
    boxes = centres[torch.randint(40, (count,), generator=generator)] + torch.randn(count, 4, generator=generator) * 8
    boxes = (boxes * 2).round() / 2  # coarse, so that equal overlaps and equal scores are common
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].abs() % 60
    return boxes, (torch.rand(count, generator=generator) * 30).round() / 30


@pytest.mark.parametrize("iou", [0.0, 1 / 3, 0.45, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [None, 30])
def test_blockwise_nms_matches_torchvision(monkeypatch, iou, dtype, limit):
    reference = pytest.importorskip("torchvision.ops", exc_type=ImportError).nms
    for seed, count in enumerate((0, 1, 7, 255, 256, 257, 1300)):
        boxes, scores = random_candidates(count, seed)
        boxes = boxes.to(dtype)
        expected = reference(boxes, scores.to(dtype), iou)[:limit]
        assert torch.equal(nms.non_maximum_suppression(boxes, scores.to(dtype), iou, limit), expected)
        with monkeypatch.context() as patch:
            patch.setattr(nms, "_torchvision_nms", lambda: None)
            assert torch.equal(nms.non_maximum_suppression(boxes, scores.to(dtype), iou, limit), expected)


def test_nms_operator_needs_no_import_of_torchvision():
    """Importing torchvision imports its models and torch's compiler, which takes seconds."""
    pytest.importorskip("torchvision", exc_type=ImportError)
    code = (
        "import sys; from utils.ops.nms import _torchvision_nms; assert _torchvision_nms() is not None; "
        "assert 'torchvision' not in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("error", [ValueError("none"), OSError("undefined symbol"), AttributeError("no operator nms")])
def test_broken_torchvision(monkeypatch, error):
    def broken(name):
        raise error

    monkeypatch.setattr(nms.importlib.util, "find_spec", broken)
    nms._torchvision_nms.cache_clear()
    try:
        predictions = prediction((50, 50, 20, 20, 0.9, 0.8), (51, 50, 20, 20, 0.8, 0.8))
        assert len(nms.batched_nms(predictions, 1, SETTINGS).rows[0]) == 1
        assert nms._torchvision_nms() is None
    finally:
        nms._torchvision_nms.cache_clear()
