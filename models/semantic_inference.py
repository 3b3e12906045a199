"""Per-pixel classes scored with more care: at several sizes and mirrored, or window by window; logits are averaged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.resample import entries_of, in_resized, pixels_of, resample
from utils.core.contracts import HeadSpec, Outputs, Runner
from utils.core.errors import UserError

HEAD = "semantic"


def _as_floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


class PixelRunner:
    """What the runners here share: of the wrapped runner's heads they give the semantic one alone."""

    fixed_hw: tuple[int, int] | None = None

    def __init__(self, runner: Runner) -> None:
        if HEAD not in runner.specs:
            heads = ", ".join(runner.specs) or "none"
            raise UserError(
                f"several sizes and windows are for models with a class per pixel; this one's heads: {heads}"
            )
        self.runner, self.stride = runner, runner.stride
        self.specs: dict[str, HeadSpec] = {HEAD: runner.specs[HEAD]}
        self.names = runner.specs[HEAD].names or runner.names

    def logits(self, images: Tensor) -> Tensor:
        """Return the wrapped runner's logits (B, C, h, w)."""
        return self.runner.run(images).decoded[HEAD]["logits"]


class MultiScale(PixelRunner):
    """A `Runner` that averages logits over several sizes of the image, and over its mirror image at each of them.

    The result has the size of the largest view's map. Views are `scales` times the image, rounded to the stride.
    """

    def __init__(
        self, runner: Runner, scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5), flip: bool = True
    ) -> None:
        super().__init__(runner)
        if not scales or any(not 0 < scale <= 8 for scale in scales):
            raise UserError(f"image sizes are given as factors above 0, at most 8, not {list(scales)}")
        if runner.fixed_hw is not None:
            raise UserError(f"several sizes need a model that takes them; this one takes only {runner.fixed_hw}")
        self.scales = tuple(sorted(scales, reverse=True))
        self.flips = (False, True) if flip else (False,)

    def run(self, images: Tensor) -> Outputs:
        """Return decoded logits for (B, 3, H, W) uint8 or float images."""
        images = _as_floats(images)
        total: Tensor | None = None
        for scale, mirrored in itertools.product(self.scales, self.flips):
            found = self._view(images, scale, mirrored, None if total is None else (total.shape[2], total.shape[3]))
            total = found if total is None else total.add_(found)
        assert total is not None
        return Outputs(decoded={HEAD: {"logits": total / (len(self.scales) * len(self.flips))}})

    def _view(self, images: Tensor, scale: float, mirrored: bool, map_hw: tuple[int, int] | None) -> Tensor:
        """Return a view's logits as those of the image itself, at the size `map_hw`, None: the view's own."""
        height, width = images.shape[2:]
        size = [max(round(side * scale / self.stride), 1) * self.stride for side in (height, width)]
        seen = images.flip(3) if mirrored else images
        if size != [height, width]:
            seen = functional.interpolate(seen, size=size, mode="bilinear", align_corners=False)
        found = self.logits(seen)
        own_hw = (found.shape[2], found.shape[3])
        target = map_hw or own_hw
        if size == [height, width] and target == own_hw:
            return found.flip(3) if mirrored else found.clone()
        rows, columns = (
            entries_of(in_resized(pixels_of(count, side), side, used, turned), used, own)
            for count, side, used, own, turned in zip(
                target, (height, width), size, own_hw, (False, mirrored), strict=True
            )
        )
        return resample(found, rows, columns)


class SlidingWindow(PixelRunner):
    """A `Runner` that looks at large images through windows and averages the logits where these overlap.

    Windows of `window_hw` pixels (rounded up to the stride) share at least `overlap` of their side with the next one.
    An image that fits into a window gives exactly what the wrapped runner gives.
    """

    def __init__(self, runner: Runner, window_hw: tuple[int, int], overlap: float = 0.25) -> None:
        super().__init__(runner)
        if min(window_hw) < 1 or not 0 <= overlap < 1:
            raise UserError(f"windows need sides above 0 and an overlap from 0 to below 1, not {window_hw}, {overlap}")
        rounded = [math.ceil(side / runner.stride) * runner.stride for side in window_hw]
        self.window_hw = (rounded[0], rounded[1])
        if runner.fixed_hw not in (None, self.window_hw):
            raise UserError(f"this model takes only {runner.fixed_hw}, so windows have that size, not {self.window_hw}")
        self.overlap = overlap

    def starts(self, length: int, window: int) -> list[int]:
        """Return where windows begin, evenly spread, the first and the last at the borders."""
        if window >= length:
            return [0]
        count = math.ceil((length - window) / max(int(window * (1 - self.overlap)), 1)) + 1
        return [round((length - window) * index / (count - 1)) for index in range(count)]

    def run(self, images: Tensor) -> Outputs:
        """Return decoded logits for (B, 3, H, W) uint8 or float images."""
        image_hw = (images.shape[2], images.shape[3])
        height, width = (min(window, side) for window, side in zip(self.window_hw, image_hw, strict=True))
        if (height, width) == image_hw:
            return Outputs(decoded={HEAD: {"logits": self.logits(images)}})
        total: Tensor | None = None
        for top, left in itertools.product(self.starts(image_hw[0], height), self.starts(image_hw[1], width)):
            found = self.logits(images[:, :, top : top + height, left : left + width])
            if total is None:
                map_hw = [round(s * n / w) for s, n, w in zip(image_hw, found.shape[2:], (height, width), strict=True)]
                total, seen = found.new_zeros(*found.shape[:2], *map_hw), found.new_zeros(map_hw)
            places = [
                _inside(map_side, side, start, window, own)
                for map_side, side, start, window, own in zip(
                    map_hw, image_hw, (top, left), (height, width), found.shape[2:], strict=True
                )
            ]
            (row_slice, rows), (column_slice, columns) = places
            total[:, :, row_slice, column_slice] += resample(found, rows, columns)
            seen[row_slice, column_slice] += 1
        assert total is not None
        return Outputs(decoded={HEAD: {"logits": total / seen}})


def _inside(map_side: int, side: int, start: int, window: int, own: int) -> tuple[slice, Tensor]:
    """Return which entries of the whole map a window covers, and where they lie in the window's own map.

    A window covers its pixels to their outer edges, so that windows side by side leave nothing out.
    """
    places = pixels_of(map_side, side) - start
    covered = ((places >= -0.5) & (places <= window - 0.5)).nonzero().flatten()
    part = slice(int(covered[0]), int(covered[-1]) + 1)
    return part, entries_of(places[part].clamp(0, window - 1), window, own)
