"""Anchor-free detection head: decoupled box and class branches, distances per cell (TOOD, GFL, YOLOX, YOLOv10)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads.anchor_head import cell_indices, to_fp32
from models.heads.duplicate_filter import COMPARED, DuplicateFilter
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv, DWConv
from utils.core.contracts import Decoded, HeadSpec, Raw

OBJECTS_PER_IMAGE, IMAGE_PX = 5, 640  # initial class scores expect this many objects in an image of this size
INITIAL_DISTANCE = 2.0  # strides from a cell's centre to each side of its box before training
MAX_DETECTIONS = 300  # rows of the output without NMS
TINY = 1e-12  # keeps 0 / 0 out of the decoded scores
NO_SCORE = -1e4  # logit of missing rows, finite in half precision


def _plan(row: Row) -> Plan:
    if not 1 <= len(row.arguments) <= 3:
        raise ValueError(f"expected [nc, bins, end_to_end], got {len(row.arguments)} arguments")
    return Plan((row.arguments[0], row.channels, *row.arguments[1:]), 0)


class Branches(nn.Module):
    """Box and class branch of one level, and a third one for mask coefficients if there are any.

    Args:
        in_channels: channels of the level's feature map.
        box_width: channels inside the box branch.
        class_width: channels inside the class branch.
        box_channels: outputs of the box branch, 4 x bins.
        num_classes: outputs of the class branch.
        mask_width: channels inside the mask branch.
        num_masks: outputs of the mask branch; 0: there is none.
    """

    def __init__(
        self, in_channels: int, box_width: int, class_width: int, box_channels: int, num_classes: int,
        mask_width: int = 0, num_masks: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.box = nn.Sequential(
            Conv(in_channels, box_width, 3), Conv(box_width, box_width, 3), nn.Conv2d(box_width, box_channels, 1)
        )
        self.cls = nn.Sequential(
            DWConv(in_channels, in_channels, 3),
            Conv(in_channels, class_width),
            DWConv(class_width, class_width, 3),
            Conv(class_width, class_width),
            nn.Conv2d(class_width, num_classes, 1),
        )
        self.mask: nn.Module | None = None
        if num_masks:
            output = nn.Conv2d(mask_width, num_masks, 1)
            self.mask = nn.Sequential(Conv(in_channels, mask_width, 3), Conv(mask_width, mask_width, 3), output)

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, c, H, W) features to (B, 4 x bins + C + M, H, W) logits and mask coefficients."""
        parts = [self.box(feature), self.cls(feature)]
        return torch.cat(parts if self.mask is None else [*parts, self.mask(feature)], dim=1)

    def boxes_at(self, feature: Tensor, cells: Tensor) -> Tensor:
        """Compute the box branch at some cells only: its second 3 x 3 convolution multiplies a matrix of patches.

        Args:
            feature: (B, c, H, W).
            cells: (B, K) indices row x W + column.

        Returns:
            (B, 4 x bins, K) logits.
        """
        first, second, output = self.box
        assert isinstance(second, Conv)
        hidden = first(feature)
        images, channels, height, width = hidden.shape
        row, offset = torch.div(cells, width, rounding_mode="trunc"), torch.arange(3, device=cells.device) - 1
        rows = (row[..., None] + offset)[..., None]  # (B, K, 3, 1)
        columns = ((cells - row * width)[..., None] + offset)[..., None, :]  # (B, K, 1, 3)
        near_rows, near_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        inside = (rows == near_rows) & (columns == near_columns)  # others are zeros of the padding
        image = torch.arange(images, device=cells.device).view(-1, 1, 1, 1)
        places = (image * height + near_rows) * width + near_columns
        pixels = hidden.permute(0, 2, 3, 1).flatten(0, 2)  # (B x H x W, c)
        patches = pixels.index_select(0, places.flatten()).view(images, -1, 9, channels)
        patches = (patches * inside.flatten(2)[..., None]).flatten(2)
        kernel = second.conv.weight.permute(0, 2, 3, 1).flatten(1)
        values = functional.linear(patches, kernel, second.conv.bias).transpose(1, 2)
        return output(second.norm_act(values[..., None])).flatten(2)

    def initialise(self, bins: int) -> None:
        """Set the biases of the box branch, so that distances are about `INITIAL_DISTANCE`."""
        bias = self.box[-1].bias
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            if bins == 1:
                bias.fill_(math.log(math.expm1(INITIAL_DISTANCE)))
            else:  # a geometric distribution, which has this mean if there are infinitely many bins
                ratio = INITIAL_DISTANCE / (INITIAL_DISTANCE + 1)
                bias.copy_((torch.arange(bins) * math.log(ratio)).repeat(4))


@HEADS.register("dense")
class Dense(nn.Module):
    """Boxes and classes without anchors or objectness.

    Every cell predicts the distances from its centre to the left, top, right and bottom side of a box, in units of the
    level's stride, and one logit per class. With `bins` > 1 a distance is the mean of a distribution over the values
    0 .. bins - 1 (Generalized Focal Loss, arXiv 2006.04388); with `bins` = 1 it is the softplus of one number.

    `end_to_end` adds a layer on detached boxes and scores that is trained one-to-one (YOLOv10, arXiv 2405.14458): it
    lowers the scores of duplicates, so that its detections need no non-maximum suppression. Inference uses it after
    `network.use_end_to_end()`.

    Args:
        num_classes: number of classes C.
        in_channels: channels of every input level, finest first.
        bins: values per side; 1 for direct regression.
        end_to_end: whether to add the duplicate filter.
        num_masks: mask coefficients M of every cell.
    """

    name = "detect"
    loss = "dense"
    takes_list = True
    predicts_boxes = True
    classes_key = "nc"  # of the model YAML
    plan = staticmethod(_plan)

    def __init__(
        self, num_classes: int, in_channels: Sequence[int], bins: int = 16, end_to_end: bool = False, num_masks: int = 0
    ) -> None:
        super().__init__()
        if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 64:
            raise ValueError(f"bins must be a whole number from 1 to 64, got {bins!r}")
        if not isinstance(end_to_end, bool):
            raise ValueError(f"end_to_end must be true or false, got {end_to_end!r}")
        self.num_classes, self.bins, self.num_masks = num_classes, bins, num_masks
        self.strides: tuple[int, ...] = ()
        box_width = max(in_channels[0] // 4, 16, 4 * bins if bins > 1 else 16)
        class_width = max(in_channels[0], min(num_classes, 128))
        sizes = (box_width, class_width, 4 * bins, num_classes, max(in_channels[0] // 4, num_masks), num_masks)
        self.levels = nn.ModuleList(Branches(channels, *sizes) for channels in in_channels)
        self.duplicate_filter = DuplicateFilter() if end_to_end else None
        self.use_duplicate_filter = False  # in inference

    def configure(self, strides: tuple[int, ...]) -> None:
        """Set the strides of the inputs and the initial biases."""
        self.strides = strides
        for index, stride in enumerate(strides):
            branches, prior = self.levels[index], OBJECTS_PER_IMAGE / self.num_classes / (IMAGE_PX / stride) ** 2
            assert isinstance(branches, Branches)
            branches.initialise(self.bins)
            nn.init.constant_(branches.cls[-1].get_parameter("bias"), math.log(prior))

    @property
    def without_nms(self) -> bool:
        """Whether inference uses the duplicate filter."""
        return self.use_duplicate_filter and self.duplicate_filter is not None

    def forward(self, features: list[Tensor]) -> Raw:
        """Map feature levels to logits.

        Args:
            features: per level (B, c, H, W), finest first.

        Returns:
            `level0`, `level1`, ...: (B, 4 x bins + C + M, H, W) logits. In training with the duplicate filter also
            `filtered`: (B, K) best class logits of every image, corrected; and `places`: their class x N + cell. In
            inference with the duplicate filter only the best 300 pairs of a cell and a class: `box` (B, 4 x bins, 300)
            logits, `values` (B, 300) class logits in descending order, `classes` (B, 300), and `grid` (B, 3, 300),
            centre and stride of the cells in pixels.
        """
        if self.without_nms and not self.training:
            return self._best_cells(features)
        pairs = zip(self.levels, features, strict=True)
        raw: Raw = {f"level{index}": branches(feature) for index, (branches, feature) in enumerate(pairs)}
        if self.training and self.duplicate_filter is not None:
            with torch.no_grad():
                box, logits, grid = self._split({name: level.detach() for name, level in raw.items()})
                values, classes, cells = top_pairs(logits, min(COMPARED, logits.shape[2]))
                box = box.gather(2, cells[:, None].expand(-1, box.shape[1], -1))
                boxes = self._corners(box, grid[:, cells].transpose(0, 1)).transpose(1, 2)
            raw["filtered"] = values + self.duplicate_filter(boxes, values, classes)
            raw["places"] = classes * logits.shape[2] + cells
        return raw

    def _best_cells(self, features: list[Tensor]) -> Raw:
        """Compute the class branches everywhere, and the box branches at the cells with the best classes."""
        branches = [level for level in self.levels if isinstance(level, Branches)]
        maps = [level.cls(feature) for level, feature in zip(branches, features, strict=True)]
        logits = to_fp32(torch.cat([level.flatten(2) for level in maps], dim=2))
        values, classes, cells = top_pairs(logits, MAX_DETECTIONS)
        box: Tensor | None = None
        first = 0
        for level, feature in zip(branches, features, strict=True):
            count = feature.shape[2] * feature.shape[3]
            found = level.boxes_at(feature, (cells - first).clamp(0, count - 1))
            box = found if box is None else torch.where((cells < first)[:, None], box, found)
            first = first + count
        assert box is not None
        grid = self._grid(maps, logits)[:, cells].transpose(0, 1)
        return {"box": box, "values": values, "classes": classes, "grid": grid}

    def decode(self, raw: Raw) -> Decoded:
        """Decode logits to boxes and scores.

        Returns:
            `predictions` (B, N, 5 + C), finest level first, row by row: cxcywh in pixels, the highest class
            probability, every class's probability divided by it, and mask coefficients, if any. The product of the two
            probabilities is the class score, as with heads that predict objectness, so post-processing and exported
            files need not know the difference. Or, with the duplicate filter, `end_to_end` (B, 300, 6): x1, y1, x2, y2
            in pixels, score and class, in descending order of score.
        """
        if "grid" in raw:
            assert self.duplicate_filter is not None
            boxes = self._corners(to_fp32(raw["box"]), raw["grid"]).transpose(1, 2)
            values = raw["values"] + self.duplicate_filter(boxes, raw["values"], raw["classes"])
            return {"end_to_end": in_order(boxes, values, raw["classes"])}
        box, logits, grid = self._split(raw)
        low, high = self._corners(box, grid).chunk(2, dim=1)
        scores = logits.sigmoid()
        best = scores.amax(dim=1, keepdim=True)
        parts = [(low + high) / 2, high - low, best, scores / best.clamp(min=TINY)]
        if self.num_masks:
            maps = [to_fp32(raw[f"level{i}"])[:, -self.num_masks :].flatten(2) for i in range(len(self.strides))]
            parts.append(torch.cat(maps, dim=2))
        return {"predictions": torch.cat(parts, dim=1).transpose(1, 2)}

    def _split(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Join the levels to (B, 4 x bins, N) box logits, (B, C, N) class logits and the (3, N) grid."""
        levels = [raw[f"level{index}"] for index in range(len(self.strides))]
        first, last = 4 * self.bins, 4 * self.bins + self.num_classes
        box = to_fp32(torch.cat([level[:, :first].flatten(2) for level in levels], dim=2))
        logits = to_fp32(torch.cat([level[:, first:last].flatten(2) for level in levels], dim=2))
        return box, logits, self._grid(levels, box)

    def _grid(self, levels: Sequence[Tensor], like: Tensor) -> Tensor:
        """Compute the centres and strides of all cells in pixels, (3, N), in the type of `like`."""
        parts = []
        for level, stride in zip(levels, self.strides, strict=True):
            cells_xy = torch.stack(cell_indices(level.shape[2], level.shape[3], like)).flatten(1) + 0.5
            parts.append(torch.cat((cells_xy * stride, torch.full_like(cells_xy[:1], stride))))
        return torch.cat(parts, dim=1)

    def _corners(self, box: Tensor, grid: Tensor) -> Tensor:
        """Decode (B, 4 x bins, K) logits at (3, K) or (B, 3, K) cells to (B, 4, K) x1, y1, x2, y2."""
        centre, stride = grid[..., :2, :], grid[..., 2:, :]
        sides = decode_distances(box, self.bins) * stride
        return torch.cat((centre - sides[:, :2], centre + sides[:, 2:]), dim=1)

    @property
    def spec(self) -> HeadSpec:
        """Static description of the head."""
        return HeadSpec(
            self.name, self.num_classes, self.strides, num_masks=self.num_masks, loss=self.loss, bins=self.bins,
            end_to_end=self.without_nms,
        )  # fmt: skip


def decode_distances(logits: Tensor, bins: int) -> Tensor:
    """Decode box logits to distances.

    Args:
        logits: (B, 4 x bins, ...) in the order left, top, right, bottom.
        bins: values per side.

    Returns:
        (B, 4, ...) distances >= 0 in strides.
    """
    if bins == 1:
        return functional.softplus(logits)
    sides = []
    for part in logits.chunk(4, dim=1):
        values = torch.arange(bins, dtype=logits.dtype, device=logits.device).view(-1, *[1] * (logits.ndim - 2))
        sides.append((part.softmax(dim=1) * values).sum(dim=1, keepdim=True))
    return torch.cat(sides, dim=1)


def top_pairs(logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the pairs of a cell and a class with the highest scores.

    Args:
        logits: (B, C, N) class logits.
        limit: number of pairs per image; missing ones have the logit `NO_SCORE`.

    Returns:
        (B, limit) logits in descending order, their classes and cells.
    """
    cells = logits.shape[2]
    best = functional.pad(logits.amax(dim=1), (0, limit), value=2 * NO_SCORE)  # images may have fewer cells
    # the `limit` best scores belong to the `limit` cells with the best scores of any class
    place = best.topk(limit, dim=1).indices  # (B, limit)
    missing = (place >= cells)[:, None]
    place = place.clamp(max=cells - 1)[:, None]
    chosen = logits.gather(2, place.expand(-1, logits.shape[1], -1)).masked_fill(missing, NO_SCORE)  # (B, C, limit)
    values, flat = chosen.flatten(1).topk(limit, dim=1)
    cell = place[:, 0].gather(1, flat % limit)
    return values, torch.div(flat, limit, rounding_mode="trunc"), cell


def in_order(boxes: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
    """Join (B, K, 4) boxes, (B, K) scores and classes to (B, K, 6) rows in descending order of score."""
    values, order = logits.topk(logits.shape[1], dim=1)
    boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    return torch.cat((boxes, values.sigmoid()[:, :, None], classes.gather(1, order).to(boxes.dtype)[:, :, None]), dim=2)
