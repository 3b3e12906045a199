"""Test-time augmentation: three sizes of an image, one of them mirrored.

Boxes of all views are concatenated, semantic logits and class probabilities averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from models.ensemble import Ensemble, average_outputs, concat_boxes, require_all_boxes
from models.kernels.resample import map_to_pixels, pixels_to_map, resample, resize_maps, to_resized_image
from utils.core.contracts import Decoded, HeadSpec, Outputs, Runner
from utils.core.errors import UserError

SEMANTIC = "semantic"  # the head whose maps are averaged
PADDING = 0.447  # grey of the right and bottom padding, the mean of ImageNet


@dataclass(frozen=True)
class View:
    """One augmented version of the input image."""

    scale: float
    mirrored: bool


VIEWS = (View(1.0, False), View(0.83, True), View(0.67, False))


def with_tta(runner: Runner) -> Runner:
    """Wrap a runner with test-time augmentation; for an ensemble, wrap each member."""
    if isinstance(runner, Ensemble):
        return Ensemble([with_tta(member) for member in runner.members])
    whole_images = all(spec.fit == "centre" for spec in runner.specs.values())
    return MirroredRunner(runner) if whole_images else MultiViewRunner(runner)


def rescale(images: Tensor, scale: float, stride: int) -> Tensor:
    """Resize (B, 3, H, W) images by `scale` and pad right and below to multiples of `stride`."""
    if scale == 1.0:
        return images
    height, width = images.shape[2:]
    size = (int(height * scale), int(width * scale))
    small = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    full_h, full_w = (math.ceil(side * scale / stride) * stride for side in (height, width))
    return functional.pad(small, (0, full_w - size[1], 0, full_h - size[0]), value=PADDING)


def undo_boxes(predictions: Tensor, view: View, width_px: int) -> Tensor:
    """Transform (B, N, columns) predictions of a view to the original image, which is `width_px` wide."""
    boxes = predictions[..., :4] / view.scale
    if view.mirrored:
        boxes = torch.cat((width_px - boxes[..., :1], boxes[..., 1:]), dim=-1)
    return torch.cat((boxes, predictions[..., 4:]), dim=-1)


def undo_prototypes(prototypes: Tensor, view: View, network_hw: tuple[int, int], padded_hw: tuple[int, int]) -> Tensor:
    """Transform mask prototypes of a view to the original image by bilinear sampling.

    Args:
        prototypes: (B, M, h, w).
        view: the view they belong to.
        network_hw: size of the original input in pixels.
        padded_hw: size of the view in pixels, with its padding.

    Returns:
        (B, M, h', w') prototypes that cover the original input.
    """
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
    """Transform (B, C, h, w) maps of a view, whose corners are aligned, to the original image."""
    if view.scale == 1.0 and not view.mirrored:
        return maps
    coordinates = []
    for axis in (0, 1):
        pixels, padded, own = network_hw[axis], padded_hw[axis], maps.shape[2 + axis]
        count = max(round(own * pixels / padded), 1)
        used = int(pixels * view.scale)
        seen = to_resized_image(map_to_pixels(count, pixels), pixels, used, view.mirrored and axis == 1)
        inside = (used - 1) * (own - 1) // max(padded - 1, 1)  # the last entry that no padding contributes to
        coordinates.append(pixels_to_map(seen, padded, own).clamp(max=inside))
    return resample(maps, coordinates[0], coordinates[1])


def drop_extreme_levels(views: list[Decoded], num_levels: int) -> list[Decoded]:
    """Drop the coarsest level of the largest view and the finest of the smallest.

    The other views predict objects of those sizes better.
    """
    cells = sum(4**level for level in range(num_levels))
    first, last = views[0]["predictions"], views[-1]["predictions"]
    coarsest = first.shape[1] // cells
    finest = last.shape[1] // cells * 4 ** (num_levels - 1)
    trimmed = [dict(view) for view in views]
    trimmed[0]["predictions"] = first[:, : first.shape[1] - coarsest]
    trimmed[-1]["predictions"] = last[:, finest:]
    return trimmed


class MultiViewRunner:
    """`Runner` that runs another one on every view; classification heads see the unchanged image only."""

    fixed_hw: tuple[int, int] | None = None

    def __init__(self, runner: Runner) -> None:
        require_all_boxes([runner], "test-time augmentation")
        if runner.fixed_hw is not None:
            raise UserError(f"--augment needs images of several sizes; this model takes only {runner.fixed_hw}")
        if not any(spec.strides or name == SEMANTIC for name, spec in runner.specs.items()):
            raise UserError("--augment needs a detection or segmentation model; this one has no such head")
        self.runner = runner
        self.names, self.stride = runner.names, runner.stride
        self.specs = {n: replace(s, num_masks=s.num_masks * len(VIEWS)) for n, s in runner.specs.items()}

    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images; raw outputs stay empty."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        network_hw = (scaled.shape[2], scaled.shape[3])
        views = []
        for view in VIEWS:
            seen = rescale(scaled.flip(3) if view.mirrored else scaled, view.scale, self.stride)
            decoded = self.runner.run(seen).decoded
            padded_hw = (seen.shape[2], seen.shape[3])
            views.append({name: _undo(part, view, network_hw, padded_hw) for name, part in decoded.items()})
        return Outputs(decoded={name: self._merge(name, [view[name] for view in views]) for name in views[0]})

    def _merge(self, name: str, parts: list[Decoded]) -> Decoded:
        if name == SEMANTIC:
            height, width = parts[0]["logits"].shape[2:]
            return average_outputs([{"logits": resize_maps(part["logits"], height, width)} for part in parts])
        if "predictions" not in parts[0]:
            return parts[0]
        spec: HeadSpec = self.runner.specs[name]
        return concat_boxes(drop_extreme_levels(parts, len(spec.strides)), spec)


class MirroredRunner:
    """`Runner` for classification: averages the outputs for the image and its mirror image."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.names, self.stride = runner, runner.names, runner.stride
        self.specs, self.fixed_hw = runner.specs, runner.fixed_hw

    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images; raw outputs stay empty."""
        views = [self.runner.run(seen).decoded for seen in (images, images.flip(3))]
        return Outputs(decoded={name: average_outputs([view[name] for view in views]) for name in self.specs})


def _undo(part: Decoded, view: View, network_hw: tuple[int, int], padded_hw: tuple[int, int]) -> Decoded:
    if "predictions" not in part:
        return {key: undo_map(value, view, network_hw, padded_hw) if value.ndim == 4 else value
                for key, value in part.items()}  # fmt: skip
    undone = {**part, "predictions": undo_boxes(part["predictions"], view, network_hw[1])}
    if "prototypes" in part:
        undone["prototypes"] = undo_prototypes(part["prototypes"], view, network_hw, padded_hw)
    return undone
