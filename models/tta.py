"""Test-time augmentation: three sizes of an image, one of them mirrored (behaviour.md 2.5, 12.9b).

Boxes are put side by side, a pixel's logits averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from models.ensemble import Ensemble, join_boxes, mean
from models.kernels.resample import entries_of, in_resized, pixels_of, resample, resized
from utils.core.contracts import Decoded, HeadSpec, Outputs, Runner
from utils.core.errors import UserError

PIXELS = "semantic"  # the head whose maps are averaged
BORDER = 0.447  # of the right and bottom rim, ImageNet's mean


@dataclass(frozen=True)
class View:
    """How the network sees the image in one pass."""

    scale: float
    mirrored: bool


VIEWS = (View(1.0, False), View(0.83, True), View(0.67, False))


def augmented(runner: Runner) -> Runner:
    """Return a runner that looks at every image several times; of an ensemble, each member does."""
    if isinstance(runner, Ensemble):
        return Ensemble([augmented(member) for member in runner.members])
    return Mirrored(runner) if all(spec.fit == "centre" for spec in runner.specs.values()) else Augmented(runner)


def rescaled(images: Tensor, scale: float, stride: int) -> Tensor:
    """Return (B, 3, H, W) images resized by `scale`, then padded right and below to multiples of `stride`."""
    if scale == 1.0:
        return images
    height, width = images.shape[2:]
    size = (int(height * scale), int(width * scale))
    small = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    full_h, full_w = (math.ceil(side * scale / stride) * stride for side in (height, width))
    return functional.pad(small, (0, full_w - size[1], 0, full_h - size[0]), value=BORDER)


def undo_boxes(predictions: Tensor, view: View, width_px: int) -> Tensor:
    """Return (B, N, columns) predictions in pixels of the original image of `width_px`."""
    boxes = predictions[..., :4] / view.scale
    if view.mirrored:
        boxes = torch.cat((width_px - boxes[..., :1], boxes[..., 1:]), dim=-1)
    return torch.cat((boxes, predictions[..., 4:]), dim=-1)


def undo_prototypes(prototypes: Tensor, view: View, network_hw: tuple[int, int], padded_hw: tuple[int, int]) -> Tensor:
    """Return (B, M, h, w) prototypes of a view as those of the original image of `network_hw`, by bilinear lookup."""
    if view.scale == 1.0 and not view.mirrored:
        return prototypes
    batch, masks = prototypes.shape[:2]
    height = round(prototypes.shape[2] * network_hw[0] / padded_hw[0])
    width = round(prototypes.shape[3] * network_hw[1] / padded_hw[1])
    used_y, used_x = (int(side * view.scale) / full for side, full in zip(network_hw, padded_hw, strict=True))
    sign = -1.0 if view.mirrored else 1.0
    rows = [[sign * used_x, 0.0, used_x - 1.0], [0.0, used_y, used_y - 1.0]]
    transform = torch.tensor(rows, device=prototypes.device, dtype=prototypes.dtype).expand(batch, 2, 3)
    grid = functional.affine_grid(transform, [batch, masks, height, width], align_corners=False)
    return functional.grid_sample(prototypes, grid, padding_mode="border", align_corners=False)


def undo_map(maps: Tensor, view: View, network_hw: tuple[int, int], padded_hw: tuple[int, int]) -> Tensor:
    """Return (B, C, h, w) maps of a view, whose corners are those of its pixels, as maps of the original image."""
    if view.scale == 1.0 and not view.mirrored:
        return maps
    places = []
    for axis in (0, 1):
        pixels, padded, own = network_hw[axis], padded_hw[axis], maps.shape[2 + axis]
        count = max(round(own * pixels / padded), 1)
        used = int(pixels * view.scale)
        seen = in_resized(pixels_of(count, pixels), pixels, used, view.mirrored and axis == 1)
        inside = (used - 1) * (own - 1) // max(padded - 1, 1)  # the last entry without a share of the padding
        places.append(entries_of(seen, padded, own).clamp(max=inside))
    return resample(maps, places[0], places[1])


def without_tails(passes: list[Decoded], num_levels: int) -> list[Decoded]:
    """Drop the coarsest level of the first pass and the finest of the last: other passes see those sizes better."""
    cells = sum(4**level for level in range(num_levels))
    first, last = passes[0]["predictions"], passes[-1]["predictions"]
    coarsest = first.shape[1] // cells
    finest = last.shape[1] // cells * 4 ** (num_levels - 1)
    trimmed = [dict(part) for part in passes]
    trimmed[0]["predictions"] = first[:, : first.shape[1] - coarsest]
    trimmed[-1]["predictions"] = last[:, finest:]
    return trimmed


class Augmented:
    """A `Runner` that runs another one on every view. Heads of whole images give what the unchanged image gives."""

    fixed_hw: tuple[int, int] | None = None

    def __init__(self, runner: Runner) -> None:
        if runner.fixed_hw is not None:
            raise UserError(f"--augment needs images of several sizes; this model takes only {runner.fixed_hw}")
        if not any(spec.strides or name == PIXELS for name, spec in runner.specs.items()):
            raise UserError("--augment is for models that find boxes or classes of pixels; this one does not")
        self.runner = runner
        self.names, self.stride = runner.names, runner.stride
        self.specs = {n: replace(s, num_masks=s.num_masks * len(VIEWS)) for n, s in runner.specs.items()}

    def run(self, images: Tensor) -> Outputs:
        """Return decoded outputs for (B, 3, H, W) uint8 or float images; there are no raw ones to speak of."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        network_hw = (scaled.shape[2], scaled.shape[3])
        passes = []
        for view in VIEWS:
            seen = rescaled(scaled.flip(3) if view.mirrored else scaled, view.scale, self.stride)
            decoded = self.runner.run(seen).decoded
            padded_hw = (seen.shape[2], seen.shape[3])
            passes.append({name: _undo(part, view, network_hw, padded_hw) for name, part in decoded.items()})
        return Outputs(decoded={name: self._join(name, [part[name] for part in passes]) for name in passes[0]})

    def _join(self, name: str, parts: list[Decoded]) -> Decoded:
        if name == PIXELS:
            height, width = parts[0]["logits"].shape[2:]
            return mean([{"logits": resized(part["logits"], height, width)} for part in parts])
        if "predictions" not in parts[0]:
            return parts[0]
        spec: HeadSpec = self.runner.specs[name]
        return join_boxes(without_tails(parts, len(spec.strides)), spec)


class Mirrored:
    """A `Runner` for classes of whole images: the mean of what it says to the image and to its mirror image."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.names, self.stride = runner, runner.names, runner.stride
        self.specs, self.fixed_hw = runner.specs, runner.fixed_hw

    def run(self, images: Tensor) -> Outputs:
        """Return decoded outputs for (B, 3, H, W) uint8 or float images; there are no raw ones to speak of."""
        views = [self.runner.run(seen).decoded for seen in (images, images.flip(3))]
        return Outputs(decoded={name: mean([view[name] for view in views]) for name in self.specs})


def _undo(part: Decoded, view: View, network_hw: tuple[int, int], padded_hw: tuple[int, int]) -> Decoded:
    if "predictions" not in part:
        return {key: undo_map(value, view, network_hw, padded_hw) if value.ndim == 4 else value
                for key, value in part.items()}  # fmt: skip
    undone = {**part, "predictions": undo_boxes(part["predictions"], view, network_hw[1])}
    if "prototypes" in part:
        undone["prototypes"] = undo_prototypes(part["prototypes"], view, network_hw, padded_hw)
    return undone
