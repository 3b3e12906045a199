"""Validation on a GPU: batched NMS, masks and semantic maps, few waits and launches, the numbers of a CPU."""

import json
from dataclasses import replace

import pytest
import simulated_gpu
import torch

from utils.core.contracts import Batch, EvalSettings, Geometry, ImageInfo, Results
from utils.core.timing import Stopwatch
from utils.losses import semantic_terms
from utils.metrics.segment import batch_overlaps, label_masks, mask_overlaps
from utils.metrics.semantic import joint_histogram, joint_histograms
from utils.ops import batch_masks, masks, nms, padded_nms, semantic_maps

needs_simulation = pytest.mark.skipif(bool(simulated_gpu.available()), reason=simulated_gpu.available() or "available")
BATCH, WAITS, LAUNCHES = 32, 8, 15  # images of a batch, waits per batch, launches per image
SETTINGS = EvalSettings(confidence=0.1, iou=0.5, max_detections=20)


def crowded(images=3, boxes=400, classes=3, columns=2):
    """Predictions in clusters, of which many suppress each other, some without candidates."""
    generator = torch.Generator().manual_seed(0)
    predictions = torch.rand((images, boxes, 5 + classes + columns), generator=generator)
    predictions[..., :2] = (predictions[..., :2] * 6).round() * 15 + predictions[..., 2:4] * 8
    predictions[..., 2:4] = predictions[..., 2:4] * 8 + 12
    predictions[..., 5 : 5 + classes] = (predictions[..., 5 : 5 + classes] * 20).round() / 20  # equal scores
    predictions[1, :, 4] = 0
    predictions[2, :390, 4] = 0
    return predictions


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"agnostic": True, "iou": 0.2},
        {"multi_label": False, "classes": (0, 2)},
        {"max_candidates": 50, "max_detections": 300},
        {"max_detections": 3},
        {"confidence": 2.0},
    ],
    ids=["plain", "agnostic", "classes", "cut", "few", "none"],
)
def test_padded_nms_equals_nms_of_single_images(monkeypatch, changes):
    monkeypatch.setattr(padded_nms, "_BLOCK", (1, 32))
    settings, predictions = replace(SETTINGS, **changes), crowded()
    expected = nms.batched_nms(predictions, 3, settings)
    found = nms.padded_nms(predictions, 3, settings)
    assert found.truncated == expected.truncated
    for image, rows in enumerate(expected.rows):
        assert torch.equal(found.host_rows[image], rows[:, :6])
        assert torch.equal(found.rows[image, : len(rows)], rows)
        assert not found.rows[image, len(rows) :].any()


def test_padded_nms_decides_long_chains(monkeypatch):
    """Every box overlaps the next: as many rounds as boxes are needed."""
    monkeypatch.setattr(padded_nms, "_FIRST_ROUNDS", 2)
    predictions = torch.full((1, 40, 6), 0.9)
    predictions[0, :, 0], predictions[0, :, 1], predictions[0, :, 2:4] = torch.arange(40.0) * 3, 50.0, 10.0
    predictions[0, :, 4] = torch.linspace(0.9, 0.5, 40)
    settings = replace(SETTINGS, iou=0.4)
    (rows,) = nms.batched_nms(predictions, 1, settings).rows
    assert len(rows) == 20 and torch.equal(nms.padded_nms(predictions, 1, settings).host_rows[0], rows)


def test_padded_nms_with_thousands_of_classes():
    predictions = torch.zeros(1, 2, 5 + 3000)
    predictions[..., :5] = torch.tensor([500.0, 500.0, 100.0, 100.0, 1.0])
    predictions[0, 0, 5 + 2999], predictions[0, 1, 5 + 2998] = 0.9, 0.8
    assert len(nms.padded_nms(predictions, 3000, SETTINGS).host_rows[0]) == 2


def test_masks_of_a_batch_equal_those_of_single_images(monkeypatch):
    monkeypatch.setattr(batch_masks, "_GPU_CHUNK", 2 * 5 * 24 * 32)
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn((3, 4, 24, 32), generator=generator)
    coefficients = torch.randn((3, 5, 4), generator=generator)
    low = torch.rand((3, 5, 2), generator=generator) * 60
    boxes = torch.cat((low, low + 40), dim=2)
    boxes[1, 3:] = 0  # padding
    found = batch_masks.batch_prototype_masks(prototypes, coefficients, boxes, (96, 128))
    for image in range(3):
        expected = masks.prototype_masks(prototypes[image], coefficients[image], boxes[image], (96, 128))
        assert torch.equal(found[image], expected)
    overlaps = batch_masks.batch_mask_iou(found[:, :2], found)
    for image in range(3):
        assert torch.equal(overlaps[image], masks.mask_iou(found[image, :2], found[image]))


def test_masks_of_a_batch_without_detections():
    prototypes, nothing = torch.randn(2, 4, 24, 32), torch.zeros(2, 0, 4)
    found = batch_masks.batch_prototype_masks(prototypes, nothing, nothing, (96, 128))
    assert found.shape == (2, 0, 24, 32) and found.dtype == torch.bool
    assert batch_masks.batch_mask_iou(torch.ones(2, 3, 24, 32, dtype=torch.bool), found).shape == (2, 3, 0)


@pytest.mark.parametrize("indexed", [True, False], ids=["map", "masks"])
@pytest.mark.parametrize("scale", [1, 2])
def test_mask_overlaps_of_a_batch_equal_those_of_single_images(indexed, scale):
    generator = torch.Generator().manual_seed(0)
    counts, found = (3, 0, 2), (4, 2, 0)
    boxes = torch.zeros(sum(counts), 6)
    boxes[:, 0] = torch.tensor([0, 0, 0, 2, 2])
    size = (12 * scale, 16 * scale)
    if indexed:
        labels = torch.randint(0, 3, (3, *size), generator=generator).to(torch.uint8)
    else:
        labels = torch.rand((5, *size), generator=generator) > 0.5
    info = [ImageInfo(index, f"{index}.jpg", Geometry((48, 64), (48, 64))) for index in range(3)]
    batch = Batch(torch.zeros(3, 3, 48, 64), boxes, info, masks=labels)
    padded = torch.rand((3, 4, 12, 16), generator=generator) > 0.5
    results = []
    for index, count in enumerate(found):
        padded[index, count:] = False
        classes = torch.zeros(count, dtype=torch.int64)
        results.append(Results(info[index], classes=classes, masks=padded[index, :count], batch_masks=padded))
    overlaps = batch_overlaps(results, batch)
    for index, result in enumerate(results):
        assert overlaps[index].shape == (counts[index], found[index])
        assert torch.equal(overlaps[index], mask_overlaps(label_masks(batch, index), result))
    assert float(overlaps[0].max()) > 0.1


def geometry(width=40):
    return Geometry((24, width), (32, 64), (1.0, 1.0), (12.0, 4.0))


def test_semantic_maps_and_losses_of_several_images_at_once(monkeypatch):
    """GPUs upsample the successive images of one geometry together, CPUs one by one."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((4, 5, 8, 16), generator=generator, dtype=torch.float32)
    labels = torch.randint(0, 5, (4, 24, 40), generator=generator).to(torch.uint8)
    labels[0, :4], labels[2] = 255, 255
    cpu = torch.device("cpu")
    grids = [semantic_maps.original_upsampler(geometry(), (8, 16), cpu)] * 3
    grids += [semantic_maps.aligned_upsampler((24, 40), (8, 16), cpu)]

    def compute():
        maps = logits.clone().requires_grad_()
        weights = semantic_terms.PixelWeights((labels != 255).float() / 100)
        weighting = semantic_terms.ClassWeighting(torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0]), 0.1)
        total = semantic_terms.cross_entropy_sum(maps, labels, grids, weights, weighting)
        total.backward()
        return total.detach(), maps.grad, semantic_terms.pixel_cross_entropy(maps, labels, grids[:2])

    single = [torch.stack([*semantic_maps.class_maps(logits[:3], [geometry()] * 3)]), *compute()]
    monkeypatch.setattr(semantic_maps.BilinearUpsampler, "images_per_pass", lambda *_: 3)
    assert [images for images, _ in semantic_maps.image_groups(grids, 5)] == [slice(0, 3), slice(3, 4)]
    joined = [semantic_maps._class_map_by_tiles(logits[:3], grids[0]), *compute()]
    for one, other in zip(single, joined, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-5, atol=1e-6)


def test_upsamplers_are_built_once_per_geometry():
    cpu = torch.device("cpu")
    first = semantic_maps.original_upsampler(geometry(), (8, 16), cpu)
    assert semantic_maps.original_upsampler(geometry(), (8, 16), cpu) is first
    assert semantic_maps.original_upsampler(geometry(30), (8, 16), cpu) is not first


def test_pixel_counts_of_a_batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 256, (3, 9, 7), generator=generator).to(torch.uint8)
    predicted = torch.randint(0, 4, (3, 9, 7), generator=generator).to(torch.uint8)
    found = joint_histograms(labels, predicted, 4)
    for image in range(3):
        expected = joint_histogram(labels[image].numpy(), predicted[image].numpy())
        assert (found[image] == expected[:, :4]).all()


class FakeEvent:
    """CUDA event of a device that is 1 s later at every record."""

    clock = synchronised = 0

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self, stream):
        FakeEvent.clock += 1
        self.time = FakeEvent.clock

    def synchronize(self):
        FakeEvent.synchronised += 1

    def elapsed_time(self, end):
        return (end.time - self.time) * 1000


def test_stopwatch_waits_for_a_gpu_only_when_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waits for the device"))
    watch = Stopwatch(torch.device("cuda", 0))
    for _ in range(3):
        with watch:
            pass
    assert FakeEvent.synchronised == 0
    assert watch.seconds == 3 and watch.last == 1 and FakeEvent.synchronised == 3


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Evaluations of every task on both devices, in one process."""
    folder = tmp_path_factory.mktemp("evaluations")
    done, record = simulated_gpu.run_simulated(["tests/gpu_evaluations.py", folder, BATCH], strict=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert record["mixed"] == {}
    return json.loads((folder / "report.json").read_text())


@needs_simulation
@pytest.mark.parametrize("task", ["detect", "segment", "classify", "semantic"])
def test_waits_and_launches_of_a_validation_batch(evaluations, task):
    (batch,) = evaluations[task]["batches"]
    assert batch["images"] == BATCH
    assert sum(batch["waits"].values()) <= WAITS, batch["waits"]
    assert 10 < batch["launches"] <= LAUNCHES * BATCH


@needs_simulation
@pytest.mark.parametrize("task", ["detect", "segment", "classify", "semantic"])
def test_validation_on_a_gpu_equals_a_cpu(evaluations, task):
    cpu, gpu = evaluations[task]["cpu"], evaluations[task]["gpu"]
    assert cpu.keys() == gpu.keys() and any(0 < value < 1 for value in cpu.values())
    for name, value in cpu.items():
        assert gpu[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
