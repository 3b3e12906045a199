"""Runners that average logits of pixels: several sizes and mirrored, windows, test-time augmentation, ensembles."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.add_semantic_head import with_semantic
from models.builder import build_network, classification_network, read_architecture
from models.ensemble import Ensemble
from models.kernels.resample import entries_of, in_resized, pixels_of, resample
from models.network_runner import NetworkRunner
from models.semantic_inference import MultiScale, SlidingWindow
from models.tta import VIEWS, augmented
from utils.core.contracts import HeadSpec, Outputs
from utils.core.errors import UserError

CPU = torch.device("cpu")


class Painter:
    """A runner whose logits are the image itself, looked up corner to corner at an eighth of its size."""

    def __init__(self, stride: int = 8) -> None:
        self.specs = {"semantic": HeadSpec("semantic", 3, names=("r", "g", "b"))}
        self.names, self.stride, self.fixed_hw = ("r", "g", "b"), stride, None
        self.seen: list[tuple[int, ...]] = []

    def run(self, images: Tensor) -> Outputs:
        self.seen.append(tuple(images.shape[2:]))
        size = [side // 8 for side in images.shape[2:]]
        logits = functional.interpolate(images.float(), size=size, mode="bilinear", align_corners=True)
        return Outputs(decoded={"semantic": {"logits": logits}})


def ramp(height: int, width: int) -> Tensor:
    """Return an image that rises from left to right, from top to bottom, and towards the lower left."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([columns, rows, (rows - columns + 1) / 2])[None]


def logits_of(runner, images: Tensor) -> Tensor:
    return runner.run(images).decoded["semantic"]["logits"]


def network_runner(name: str, classes: int = 3, seed: int = 0) -> NetworkRunner:
    torch.manual_seed(seed)
    network = build_network(read_architecture(name), head_names={"semantic": [f"c{i}" for i in range(classes)]})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return NetworkRunner(network.eval(), CPU)


def test_bilinear_lookup():
    maps = torch.tensor([[[[0.0, 10, 20], [30, 40, 50]]]])
    found = resample(maps, torch.tensor([-1.0, 0.5, 1.0]), torch.tensor([0.25, 2.0, 9.0]))
    assert found[0, 0].tolist() == [[2.5, 20, 20], [17.5, 35, 35], [32.5, 50, 50]]
    assert torch.equal(resample(maps, torch.arange(2), torch.arange(3)), maps)


def test_grid_follows_flip_and_resize():
    assert pixels_of(3, 9).tolist() == [0, 4, 8]
    assert entries_of(torch.tensor([0.0, 4, 8]), 9, 3).tolist() == [0, 1, 2]
    # two pixels become one: their middle is its middle; mirrored the last comes first
    assert in_resized(torch.tensor([0.5, 2.5]), 8, 4).tolist() == [0, 1]
    assert in_resized(torch.tensor([6.5, 4.5]), 8, 4, mirrored=True).tolist() == [0, 1]
    assert in_resized(torch.tensor([0.0, 7.0]), 8, 16).tolist() == [0.5, 14.5]


@pytest.mark.parametrize("size", [(160, 256), (128, 96)])
def test_semantic_tta_views(size):
    images, plain = ramp(*size), Painter(32)
    assert {view.mirrored for view in VIEWS} == {True, False}
    found = logits_of(augmented(plain), images)
    assert len(plain.seen) == len(VIEWS)
    expected = logits_of(plain, images)
    # resizing holds half a pixel; the entry beside the padding of a view stands for its neighbour as well
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=0.01, rtol=0)
    torch.testing.assert_close(found, expected, atol=0.07, rtol=0)


def test_tta_with_semantic_heads():
    images = torch.rand(2, 3, 64, 96)
    both = network_runner("yolov5n_city_seg")
    found, plain = augmented(both).run(images).decoded, both.run(images).decoded
    assert found["detect"]["predictions"].shape[1] > plain["detect"]["predictions"].shape[1]
    assert found["semantic"]["logits"].shape == plain["semantic"]["logits"].shape == (2, 3, 8, 12)
    assert not torch.equal(found["semantic"]["logits"], plain["semantic"]["logits"])
    alone = augmented(network_runner("yolov5n-sem"))
    assert logits_of(alone, images).shape == (2, 3, 8, 12)
    assert alone.specs["semantic"].names == alone.names == ("c0", "c1", "c2")
    classifier = classification_network(both.network, 2)
    whole = augmented(NetworkRunner(classifier, CPU)).run(images).decoded["classify"]["probabilities"]
    assert whole.shape == (2, 2) and torch.allclose(whole.sum(1), torch.ones(2))


def test_ensemble_averages_semantic_logits():
    first, second = network_runner("yolov5n-sem", seed=1), network_runner("yolov5n-sem", seed=2)
    images = torch.rand(1, 3, 64, 96)
    expected = (logits_of(first, images) + logits_of(second, images)) / 2
    torch.testing.assert_close(logits_of(Ensemble([first, second]), images), expected)
    coarse = network_runner_of(with_semantic(P3_AT_16, "base", 3, alone=True))
    assert logits_of(coarse, images).shape == (1, 3, 8, 12)
    small = torch.rand(1, 3, 4, 6)

    class Half(Painter):
        def run(self, _: Tensor) -> Outputs:
            return Outputs(decoded={"semantic": {"logits": small}})

    joined = logits_of(Ensemble([Painter(), Half()]), images)
    grown = functional.interpolate(small, size=(8, 12), mode="bilinear", align_corners=True)
    torch.testing.assert_close(joined, (logits_of(Painter(), images) + grown) / 2)
    with pytest.raises(UserError, match="2 and 3 classes"):
        Ensemble([first, network_runner("yolov5n-sem", 2)])
    joint = Ensemble([network_runner("yolov5n-psp", seed=s) for s in (1, 2)])
    decoded = augmented(joint).run(images).decoded
    assert decoded["semantic"]["logits"].shape == (1, 3, 8, 12) and "predictions" in decoded["detect"]
    assert joint.specs["semantic"].names == ("c0", "c1", "c2") and len(joint.names) == 80


P3_AT_16 = "nc: 2\nanchors: 1\nbackbone: [[-1, 1, Conv, [8, 3, 8]]]\nhead: [[[0], 1, Detect, [nc, anchors]]]\n"


def network_runner_of(description: dict) -> NetworkRunner:
    return NetworkRunner(build_network(description).eval(), CPU)


# ----------------------------------------------------------------------------------------------------------------------
# Several sizes


def test_single_scale_equals_plain_run():
    runner, images = network_runner("yolov5n-sem"), torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    assert torch.equal(logits_of(MultiScale(runner, (1.0,), flip=False), images), logits_of(runner, images))
    mirrored = logits_of(runner, images.flip(3)).flip(3)
    torch.testing.assert_close(
        logits_of(MultiScale(runner, (1.0,)), images), (logits_of(runner, images) + mirrored) / 2
    )


def test_multi_scale_runs_agree():
    images, plain = ramp(64, 128), Painter(32)
    found = logits_of(MultiScale(plain, (0.5, 1.0, 1.5)), images)
    assert plain.seen == [(96, 192)] * 2 + [(64, 128)] * 2 + [(32, 64)] * 2
    assert found.shape == (1, 3, 12, 24)  # of the largest view
    expected = functional.interpolate(images, size=(12, 24), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)


def test_scoring_runners_return_semantic_head_only():
    runner = network_runner("yolov5n-psp")
    for wrapped in (MultiScale(runner), SlidingWindow(runner, (64, 64))):
        assert list(wrapped.specs) == ["semantic"] and wrapped.names == ("c0", "c1", "c2")
        assert list(wrapped.run(torch.rand(1, 3, 96, 96)).decoded) == ["semantic"]
    with pytest.raises(UserError, match="class per pixel; this one's heads: detect"):
        MultiScale(NetworkRunner(build_network(read_architecture("yolov5n"), 2).eval(), CPU))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda runner: MultiScale(runner, ()),
        lambda runner: MultiScale(runner, (1.0, 0.0)),
        lambda runner: SlidingWindow(runner, (64, 0)),
        lambda runner: SlidingWindow(runner, (64, 64), 1.0),
    ],
)
def test_invalid_scoring_settings(wrong):
    with pytest.raises(UserError, match=r"factors above 0|overlap"):
        wrong(Painter())


def test_fixed_size_model_windows():
    fixed = Painter(32)
    fixed.fixed_hw = (64, 64)
    assert logits_of(SlidingWindow(fixed, (64, 64)), ramp(64, 160)).shape == (1, 3, 8, 20)
    assert set(fixed.seen) == {(64, 64)}
    with pytest.raises(UserError, match="windows have that size"):
        SlidingWindow(fixed, (96, 96))
    with pytest.raises(UserError, match="takes only"):
        MultiScale(fixed)


# ----------------------------------------------------------------------------------------------------------------------
# Windows


def test_whole_image_window_equals_plain_run():
    runner, images = network_runner("yolov5n-sem"), torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    for window in ((64, 96), (128, 128), (50, 90)):  # the last is rounded up to the stride
        assert torch.equal(logits_of(SlidingWindow(runner, window), images), logits_of(runner, images))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("window", [(64, 64), (32, 96), (64, 200)])
def test_windows_cover_the_image(window, overlap):
    images, plain = ramp(96, 200), Painter(32)
    found = logits_of(SlidingWindow(plain, window, overlap), images)
    assert len(plain.seen) > 1
    expected = logits_of(Painter(), images)
    assert found.shape == expected.shape
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_window_positions():
    sliding = SlidingWindow(Painter(32), (64, 64), 0.25)  # steps of 48 at most
    assert sliding.starts(64, 64) == [0] and sliding.starts(65, 64) == [0, 1]
    assert sliding.starts(160, 64) == [0, 48, 96]
    assert sliding.starts(200, 64) == [0, 45, 91, 136]


def test_overlapping_windows_are_averaged():
    class Counter(Painter):
        def run(self, images: Tensor) -> Outputs:
            self.seen.append(tuple(images.shape[2:]))
            size = [side // 8 for side in images.shape[2:]]
            return Outputs(decoded={"semantic": {"logits": torch.full((1, 3, *size), float(len(self.seen)))}})

    found = logits_of(SlidingWindow(Counter(32), (64, 64), 0.5), torch.zeros(1, 3, 64, 96))
    # windows at 0 and 32; entries stand for pixels 0, 8.6, 17.3, 25.9, 34.5, 43.2, 51.8, 60.5, 69.1, 77.7, 86.4, 95
    assert found[0, 0, 0].tolist() == [1] * 4 + [1.5] * 4 + [2] * 4
