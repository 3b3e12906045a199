"""The class of every pixel: exact where only mixed cells are interpolated, and never mixed with borders."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from utils.core.contracts import EvalSettings, Geometry, HeadSpec, ImageInfo, Results
from utils.core.errors import UserError
from utils.ops import semantic_maps as semantic
from utils.ops.letterbox import letterbox, letterbox_geometry
from utils.ops.semantic_maps import BilinearUpsampler, aligned_grid, class_map, original_grid
from utils.postprocess import POSTPROCESS

SPEC = HeadSpec("semantic", 4, names=("a", "b", "c", "d"))


def enlarged(logits, size_hw):
    return interpolate(logits[None].double(), size=size_hw, mode="bilinear", align_corners=True)[0]


def smooth(classes, size_hw, seed=0):
    coarse = torch.randn(1, classes, 4, 5, generator=torch.Generator().manual_seed(seed)) * 3
    return interpolate(coarse, size=size_hw, mode="bicubic", align_corners=True)[0]


def check(logits, size_hw):
    found = class_map(logits, *aligned_grid(size_hw, tuple(logits.shape[1:])))
    scores = enlarged(logits, size_hw)
    assert found.dtype == torch.uint8 and found.shape == size_hw
    best = scores.amax(dim=0)
    chosen = scores.gather(0, found.long()[None])[0]
    assert float((best - chosen).max()) < 1e-5  # scores may differ by float32 rounding
    clear = scores.topk(min(2, len(scores)), dim=0).values
    sure = (clear[0] - clear[-1] > 1e-5) if len(scores) > 1 else torch.ones(size_hw, dtype=torch.bool)
    assert torch.equal(found.long()[sure], scores.argmax(dim=0)[sure])
    return found


@pytest.mark.parametrize("size_hw", [(64, 96), (61, 100), (8, 12), (5, 7), (1, 1), (3, 200)])
@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_class_map_matches_full_interpolation(kind, classes, size_hw):
    rng = torch.Generator().manual_seed(classes)
    logits = torch.randn(classes, 8, 12, generator=rng) * 3 if kind == "random" else smooth(classes, (8, 12))
    found = check(logits, size_hw)
    if classes > 1 and min(size_hw) > 3:
        assert len(found.unique()) > 1


@pytest.mark.parametrize("map_hw", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_single_row_or_column(map_hw):
    check(torch.randn(5, *map_hw, generator=torch.Generator().manual_seed(1)), (33, 40))


def test_chunk_size_does_not_matter(monkeypatch):
    logits = torch.randn(7, 9, 11, generator=torch.Generator().manual_seed(2))
    grid = aligned_grid((70, 80), (9, 11))
    whole = class_map(logits, *grid)
    monkeypatch.setattr(semantic, "_MIXED_PIXELS", 1)
    assert torch.equal(class_map(logits, *grid), whole)


def test_memory_format_and_precision():
    logits = (torch.randn(7, 9, 11, generator=torch.Generator().manual_seed(2)) * 4).bfloat16()
    grid = aligned_grid((70, 80), (9, 11))
    wanted = class_map(logits.float(), *grid)
    assert torch.equal(class_map(logits, *grid), wanted)
    last = logits[None].to(memory_format=torch.channels_last)[0].requires_grad_()
    assert torch.equal(class_map(last, *grid), wanted)


def test_ties_take_first_class():
    assert class_map(torch.zeros(3, 4, 4), *aligned_grid((9, 9), (4, 4))).unique().tolist() == [0]
    logits = torch.zeros(3, 2, 2)
    logits[1], logits[2] = 1.0, 1.0
    assert class_map(logits, *aligned_grid((9, 9), (2, 2))).unique().tolist() == [1]
    logits[1, 0, 0] = -1.0  # now class 2 wins in that corner, and both are equal along the far sides
    found = class_map(logits, *aligned_grid((3, 3), (2, 2)))
    assert found.tolist() == [[2, 2, 1], [2, 2, 1], [1, 1, 1]]


def test_nan_scores():
    logits = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 2:4, 2:4] = float("nan")
    assert set(class_map(logits, *aligned_grid((40, 40), (6, 6))).unique().tolist()) <= {0, 1, 2, 3}
    logits[:] = float("nan")
    assert not class_map(logits, *aligned_grid((40, 40), (6, 6))).any()


def test_class_winning_between_corners():
    logits = torch.tensor([[[10.0, 0.0]], [[0.0, 10.0]], [[6.0, 6.0]]])
    assert class_map(logits, *aligned_grid((1, 5), (1, 2))).tolist() == [[0, 0, 2, 1, 1]]
    assert enlarged(logits, (1, 5)).argmax(dim=0).tolist() == [[0, 0, 2, 1, 1]]


def test_gpu_path_on_cpu(monkeypatch):
    monkeypatch.setattr(semantic, "_CPU_CHUNK", 500)
    monkeypatch.setattr(semantic, "_CPU_WIDTH", 17)
    for logits in (torch.randn(6, 8, 12, generator=torch.Generator().manual_seed(0)), smooth(6, (8, 12))):
        grid = aligned_grid((61, 90), (8, 12))
        other = semantic._class_map_by_tiles(logits, BilinearUpsampler(*grid, (8, 12), torch.device("cpu")))
        assert torch.equal(other, class_map(logits, *grid))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu():
    logits, grid = smooth(19, (64, 128)), aligned_grid((512, 1024), (64, 128))
    found = class_map(logits.cuda(), *grid)
    assert found.is_cuda and float((found.cpu() != class_map(logits, *grid)).float().mean()) < 1e-5


def test_too_many_classes():
    grid = aligned_grid((4, 4), (2, 2))
    assert int(class_map(torch.eye(255)[:, :4].reshape(255, 2, 2), *grid).max()) == 3
    with pytest.raises(UserError, match="semantic maps hold at most 255 classes, got 256"):
        class_map(torch.zeros(256, 2, 2), *grid)


def test_positions_must_increase():
    with pytest.raises(ValueError, match="non-decreasing"):
        class_map(torch.zeros(2, 3, 3), torch.tensor([2.0, 0.0]), torch.tensor([0.0]))


@pytest.mark.parametrize("tile", [(40, 7), (10**6, 10**6)])
def test_bilinear_upsampling_gradient(tile, monkeypatch):
    monkeypatch.setattr(semantic, "_CPU_CHUNK", tile[0])
    monkeypatch.setattr(semantic, "_CPU_WIDTH", tile[1])
    logits = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grid = BilinearUpsampler(*aligned_grid((23, 31), (5, 6)), (5, 6), torch.device("cpu"))
    wanted = interpolate(logits[None], size=(23, 31), mode="bilinear", align_corners=True)[0]
    slope = torch.randn(3, 23, 31, generator=torch.Generator().manual_seed(1))
    wanted.backward(slope)
    found, gathered = torch.zeros(3, 23, 31), torch.zeros(3, 5, 6)
    for part in grid.tiles(3):
        found[:, part.rows, part.columns] = grid.upsample_tile(logits.detach(), part)
        grid.accumulate_gradient(slope[:, part.rows, part.columns], part, gathered)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grid.upsample(logits.detach()), found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gathered, logits.grad, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# The original's pixels


def test_grid_corner_alignment():
    """480 x 640 into 320 x 320: 240 x 320 pixels below a border of 40; the map has a stride of 8."""
    rows, columns = original_grid(letterbox_geometry((480, 640), (320, 320)), (40, 40))
    assert (len(rows), len(columns)) == (480, 640)
    step = 39 / 319
    assert [float(rows[0]), float(rows[-1])] == pytest.approx([40 * step, 279 * step])
    assert [float(columns[0]), float(columns[-1])] == pytest.approx([0, 39])
    assert float(rows[1] - rows[0]) == pytest.approx(239 / 479 * step)


@pytest.mark.parametrize(
    ("geometry", "first", "last"),
    [
        (Geometry((100, 200), (100, 200)), (0, 0), (99, 199)),
        (Geometry((90, 200), (96, 224)), (0, 0), (89, 199)),  # padded below and right
        (Geometry((50, 50), (100, 200), (4.0, 2.0)), (0, 0), (99, 199)),  # stretched
        (Geometry((1, 9), (7, 9)), (0, 0), (0, 8)),
        (Geometry((3, 4), (8, 8), (1.0, 1.0), (2.0, 2.5)), (2, 2), (4, 5)),  # an odd border: more below
    ],
)
def test_grids_without_letterbox(geometry, first, last):
    grid = original_grid(geometry, geometry.network_hw)
    assert [float(axis[0]) for axis in grid] == pytest.approx(first)
    assert [float(axis[-1]) for axis in grid] == pytest.approx(last)


@pytest.mark.parametrize("original_hw", [(480, 640), (333, 500), (500, 333), (97, 640)])
def test_grid_matches_letterbox(original_hw):
    """A white image on black borders: the grid's ends are its first and last white rows and columns."""
    image, geometry = letterbox(np.full((*original_hw, 3), 255, np.uint8), (320, 320), color=0)
    for axis, positions in enumerate(original_grid(geometry, geometry.network_hw)):
        white = np.flatnonzero(image[:, :, 0].max(axis=1 - axis) == 255)
        assert [float(positions[0]), float(positions[-1])] == pytest.approx([white[0], white[-1]])


def info_of(geometry):
    return ImageInfo(0, "image.png", geometry)


def test_postprocess_removes_padding():
    """The border is full of class 3; the image shows class 1 left and class 2 right."""
    geometry = letterbox_geometry((60, 120), (64, 64))
    scores = torch.zeros(1, 4, 64, 64)
    scores[:, 3] = 5.0
    scores[:, 3, 16:48] = 0.0
    scores[:, 1, 16:48, :32], scores[:, 2, 16:48, 32:] = 1.0, 1.0
    results = [Results(info_of(geometry))]
    settings = EvalSettings(classes=(0,), confidence=0.9)  # neither matters
    POSTPROCESS.get("semantic")(SPEC, settings)({"logits": scores}, results)
    found = results[0].semantic
    assert found.dtype == torch.uint8 and found.shape == (60, 120)
    assert set(found[:, :59].unique().tolist()) == {1} and set(found[:, 61:].unique().tolist()) == {2}


def test_postprocess_shape_mismatch():
    post = POSTPROCESS.get("semantic")(SPEC, EvalSettings())
    results = [Results(info_of(Geometry((4, 4), (4, 4))))]
    with pytest.raises(ValueError, match="2 images"):
        post({"logits": torch.zeros(2, 4, 4, 4)}, results)
    with pytest.raises(ValueError, match="logits of 4 classes, got 3"):
        post({"logits": torch.zeros(1, 3, 4, 4)}, results)
