"""Semantic inference at several scales, mirrored, or in sliding windows; logits are averaged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.resample import map_to_pixels, pixels_to_map, resample, to_resized_image
from utils.core.contracts import HeadSpec, Outputs, Runner
from utils.core.errors import UserError

HEAD = "semantic"
MAX_SCALE = 8  # of the image


class SemanticRunner:
    """Base of the `Runner`s in this module: they wrap another one and keep its semantic head only."""

    fixed_hw: tuple[int, int] | None = None

    def __init__(self, runner: Runner) -> None:
        if HEAD not in runner.specs:
            heads = ", ".join(runner.specs) or "none"
            raise UserError(f"several scales and windows need a semantic model; the heads of this one are: {heads}")
        self.runner, self.stride = runner, runner.stride
        self.specs: dict[str, HeadSpec] = {HEAD: runner.specs[HEAD]}
        self.names = runner.specs[HEAD].names or runner.names

    def logits(self, images: Tensor) -> Tensor:
        """Compute the wrapped runner's logits (B, C, h, w)."""
        return self.runner.run(images).decoded[HEAD]["logits"]


class MultiScaleRunner(SemanticRunner):
    """`Runner` that averages logits over several scales of the image, and over the mirror image at each of them.

    The output has the size of the largest view's map.

    Args:
        runner: the runner to wrap.
        scales: of the image; each view is rounded to the stride.
        flip: also run each view mirrored.

    Raises:
        UserError: A scale is out of range, or the runner takes only one size.
    """

    def __init__(
        self, runner: Runner, scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5), flip: bool = True
    ) -> None:
        super().__init__(runner)
        if not scales or any(not 0 < scale <= MAX_SCALE for scale in scales):
            raise UserError(f"image scales must be above 0 and at most {MAX_SCALE}, got {list(scales)}")
        if runner.fixed_hw is not None:
            raise UserError(f"several scales need a model with open input sizes; this one takes only {runner.fixed_hw}")
        self.scales = tuple(sorted(scales, reverse=True))
        self.flips = (False, True) if flip else (False,)

    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        total: Tensor | None = None
        for scale, mirrored in itertools.product(self.scales, self.flips):
            view = self._view(images, scale, mirrored, None if total is None else (total.shape[2], total.shape[3]))
            total = view if total is None else total.add_(view)
        assert total is not None
        return Outputs(decoded={HEAD: {"logits": total / (len(self.scales) * len(self.flips))}})

    def _view(self, images: Tensor, scale: float, mirrored: bool, map_hw: tuple[int, int] | None) -> Tensor:
        """Compute a view's logits, resampled to the original image at the size `map_hw` (None: the view's own)."""
        height, width = images.shape[2:]
        size = [max(round(side * scale / self.stride), 1) * self.stride for side in (height, width)]
        seen = images.flip(3) if mirrored else images
        if size != [height, width]:
            seen = functional.interpolate(seen, size=size, mode="bilinear", align_corners=False)
        logits = self.logits(seen)
        own_hw = (logits.shape[2], logits.shape[3])
        target = map_hw or own_hw
        if size == [height, width] and target == own_hw:
            return logits.flip(3) if mirrored else logits.clone()
        rows, columns = (
            pixels_to_map(to_resized_image(map_to_pixels(count, side), side, used, flipped), used, own)
            for count, side, used, own, flipped in zip(
                target, (height, width), size, own_hw, (False, mirrored), strict=True
            )
        )
        return resample(logits, rows, columns)


class SlidingWindowRunner(SemanticRunner):
    """`Runner` that covers large images with windows and averages the logits where these overlap.

    An image that fits into a window gives exactly what the wrapped runner gives.

    Args:
        runner: the runner to wrap.
        window_hw: size of the windows in pixels, rounded up to the stride.
        overlap: minimum overlap of neighbouring windows, as a fraction of their side.

    Raises:
        UserError: A value is out of range, or the runner takes only another size.
    """

    def __init__(self, runner: Runner, window_hw: tuple[int, int], overlap: float = 0.25) -> None:
        super().__init__(runner)
        if min(window_hw) < 1 or not 0 <= overlap < 1:
            raise UserError(
                "windows need sides above 0 and an overlap of at least 0 and below 1, "
                f"got {window_hw} and an overlap of {overlap}"
            )
        rounded = [math.ceil(side / runner.stride) * runner.stride for side in window_hw]
        self.window_hw = (rounded[0], rounded[1])
        if runner.fixed_hw not in (None, self.window_hw):
            raise UserError(
                f"this model takes only {runner.fixed_hw}, so windows must have that size, got {self.window_hw}"
            )
        self.overlap = overlap

    def starts(self, length: int, window: int) -> list[int]:
        """Compute where windows begin, evenly spread from border to border."""
        if window >= length:
            return [0]
        count = math.ceil((length - window) / max(int(window * (1 - self.overlap)), 1)) + 1
        return [round((length - window) * index / (count - 1)) for index in range(count)]

    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images."""
        image_hw = (images.shape[2], images.shape[3])
        height, width = (min(window, side) for window, side in zip(self.window_hw, image_hw, strict=True))
        if (height, width) == image_hw:
            return Outputs(decoded={HEAD: {"logits": self.logits(images)}})
        total: Tensor | None = None
        for top, left in itertools.product(self.starts(image_hw[0], height), self.starts(image_hw[1], width)):
            logits = self.logits(images[:, :, top : top + height, left : left + width])
            if total is None:
                map_hw = [round(s * n / w) for s, n, w in zip(image_hw, logits.shape[2:], (height, width), strict=True)]
                total, counts = logits.new_zeros(*logits.shape[:2], *map_hw), logits.new_zeros(map_hw)
            (row_slice, rows), (column_slice, columns) = (
                _window_entries(map_side, side, start, window, own)
                for map_side, side, start, window, own in zip(
                    map_hw, image_hw, (top, left), (height, width), logits.shape[2:], strict=True
                )
            )
            total[:, :, row_slice, column_slice] += resample(logits, rows, columns)
            counts[row_slice, column_slice] += 1
        assert total is not None
        return Outputs(decoded={HEAD: {"logits": total / counts}})


class SemanticOverride:
    """`Runner` whose semantic maps come from another one; all other heads are those of the wrapped one.

    Args:
        runner: the runner to wrap, with a semantic head.
        semantic: computes the semantic maps, such as a `MultiScaleRunner`.
    """

    def __init__(self, runner: Runner, semantic: Runner) -> None:
        self.runner, self.semantic = runner, semantic
        self.specs, self.names = runner.specs, runner.names
        self.stride, self.fixed_hw = runner.stride, runner.fixed_hw

    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images; raw outputs stay empty."""
        decoded = self.runner.run(images).decoded
        return Outputs(decoded={**decoded, HEAD: self.semantic.run(images).decoded[HEAD]})


def _window_entries(map_side: int, side: int, start: int, window: int, own: int) -> tuple[slice, Tensor]:
    """Find the entries of the whole map that a window covers, and their coordinates in the window's own map.

    A window covers its pixels up to their outer edges, so that adjacent windows leave no gap.
    """
    pixels = map_to_pixels(map_side, side) - start
    covered = ((pixels >= -0.5) & (pixels <= window - 0.5)).nonzero().flatten()
    part = slice(int(covered[0]), int(covered[-1]) + 1)
    return part, pixels_to_map(pixels[part].clamp(0, window - 1), window, own)
