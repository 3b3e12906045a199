"""The loss of the `semantic` head: cross-entropy of labelled pixels, auxiliary outputs included (behaviour.md 12.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.core.contracts import IGNORED_PIXEL, Batch, Geometry, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.detect import autocast_disabled
from utils.losses.semantic_terms import (
    CLASS_WEIGHTS,
    ClassWeighting,
    PixelWeights,
    RegionLoss,
    accumulation_dtype,
    cross_entropy_sum,
    dice_loss,
    labelled_mask,
    lovasz_softmax_loss,
    ohem_mask,
    pixel_cross_entropy,
    prob_ohem_mask,
    region_loss_sum,
)
from utils.ops.semantic_maps import BilinearUpsampler, aligned_upsampler, original_grid

_THRESHOLDS = {"ohem": 0.7, "prob_ohem": 0.5}
_AUX_WEIGHTS = {  # by the number of auxiliary outputs
    **{kind: {1: (0.1,), 2: (0.15, 0.05)} for kind in ("ce", "ohem", "focal")},
    "prob_ohem": {1: (0.4,), 2: (0.4, 0.4)},
}
_MEASURES: dict[str, RegionLoss] = {"dice": dice_loss, "lovasz": lovasz_softmax_loss}


@LOSSES.register("semantic")
class SemanticLoss(nn.Module):
    """Loss terms `seg` and, when switched on, `dice` and `lovasz`; gains included, batch size not (`per_image`).

    `raw` holds `logits` (B, C, h, w) and perhaps `aux16`, `aux32`, all of which are enlarged bilinearly, corners on
    corners, to the size of `batch.semantic`. `seg` is the main output's cross-entropy plus the auxiliary ones' times
    `hyp.seg_aux`; `dice` and `lovasz` measure the main output.

    A cross-entropy is the mean over the pixels that count, weighted by `hyp.seg_class_weights` if there are any: all
    that are labelled, or for `ohem` and `prob_ohem` the hard ones. In training the mean is over all ranks' pixels: a
    rank returns its own sum over the count of all, so that ranks' terms add up to those of one process with the whole
    batch. Only *which* pixels are hard is decided on each rank by itself. Of class probabilities, thresholds mean those
    without smoothing and weights. `focal` is multiyolov5's: the mean cross-entropy times the mean of (1 - p)^gamma over
    all pixels of images with labels, where unlabelled ones stand as class 0. `dice` and `lovasz` are means over images
    with labels. In evaluation mode means are over this rank's batch, and maps are laid onto the originals' pixels.

    Memory is that of a tile of one image, whatever the batch (for `dice` and `lovasz` that of one image).
    """

    per_image = True
    labels = "semantic"
    class_weights: Tensor | None

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        super().__init__()
        self.spec, self.hyp = spec, hyp
        weights = class_weights(hyp, spec.num_classes)
        self.register_buffer("class_weights", weights, persistent=False)
        self.extra_terms = tuple(name for name in _MEASURES if getattr(hyp, f"seg_{name}"))  # besides the usual `seg`

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of one batch as float32 scalars."""
        logits, labels = raw["logits"], batch.semantic
        if labels is None:  # as if nobody had labelled_mask any pixel
            labels = torch.full(
                (len(logits), *logits.shape[2:]), IGNORED_PIXEL, dtype=torch.uint8, device=logits.device
            )
        names = sorted(name for name in raw if name.startswith("aux"))
        shares = dict(zip(names, self._aux_weights(names), strict=True)) | {"logits": 1.0}
        with autocast_disabled(logits.device.type):
            seg = torch.zeros((), device=logits.device)
            smoothing = ClassWeighting(self.class_weights, self.hyp.seg_label_smoothing)
            costs = self._plain_costs(labels) if self.hyp.seg_loss == "ce" else None  # the same for all outputs
            for name in ("logits", *names):
                grids = self._grids(raw[name], batch, labels)
                mine = costs or self._hard_costs(raw[name], labels, grids)
                seg = seg + cross_entropy_sum(raw[name], labels, grids, mine, smoothing) * shares[name]
            terms = {"seg": seg * self.hyp.seg}
            for name, measure in _MEASURES.items():
                if weight := getattr(self.hyp, f"seg_{name}"):
                    terms[name] = self._overlap(logits, batch, labels, measure) * (weight * self.hyp.seg)
        return terms

    def _aux_weights(self, names: list[str]) -> tuple[float, ...]:
        given = self.hyp.seg_aux
        if given is None:
            known = _AUX_WEIGHTS[self.hyp.seg_loss]
            return known.get(len(names), (known[1][0],) * len(names))
        weights = given if isinstance(given, tuple) else (given,) * len(names)
        if names and len(weights) != len(names):
            raise UserError(
                f"seg_aux: {len(weights)} weights for the {len(names)} auxiliary outputs {', '.join(names)}"
            )
        return weights[: len(names)]

    def _plain_costs(self, labels: Tensor) -> PixelWeights:
        """Return what each pixel counts: all labelled ones alike, divided by what all ranks have."""
        known = labelled_mask(labels)
        return PixelWeights(known * self._one_over(self._weight_of(known, labels)))

    def _hard_costs(self, maps: Tensor, labels: Tensor, grids: list[BilinearUpsampler]) -> PixelWeights:
        """Return what each pixel counts where that depends on how well its class was found."""
        kind, known = self.hyp.seg_loss, labelled_mask(labels)
        entropy = pixel_cross_entropy(maps, labels, grids)
        if kind == "focal":
            return self._focal(entropy, known, labels)
        threshold = self.hyp.seg_threshold or _THRESHOLDS[kind]
        if kind == "ohem":
            counted = ohem_mask(entropy, known, threshold)
        else:
            counted = prob_ohem_mask(entropy, known, threshold, round(self.hyp.seg_min_kept))
        return PixelWeights(counted * self._one_over(self._weight_of(counted, labels)))

    def _focal(self, entropy: Tensor, known: Tensor, labels: Tensor) -> PixelWeights:
        """Return the costs of (mean cross-entropy) x (mean of (1 - p)^gamma), whose gradient has two parts."""
        gamma, probability = self.hyp.seg_gamma, torch.exp(-entropy)
        missed = (1 - probability).clamp(min=0)
        weighed = known if self.class_weights is None else known * self.class_weights[_safe(labels)]
        shown = known.amax(dim=(1, 2), keepdim=True).expand_as(known)  # all pixels of images that have labels
        parts = (entropy * weighed, weighed, missed**gamma * shown, shown)
        sums = self._over_ranks(torch.stack([part.sum(dtype=accumulation_dtype(known)) for part in parts]))
        entropies, pixels, powers, count = sums.float().unbind()
        mean = entropies * _inverse(pixels)
        # the derivative of (1 - p)^gamma by -log p is gamma (1 - p)^(gamma - 1) p
        slope = gamma * missed.clamp(min=1e-12) ** (gamma - 1) * probability
        extra = slope * shown * (mean * _inverse(count))
        return PixelWeights(known * (_inverse(pixels) * powers * _inverse(count)), extra)

    def _overlap(self, maps: Tensor, batch: Batch, labels: Tensor, measure: RegionLoss) -> Tensor:
        images = (labels != IGNORED_PIXEL).flatten(1).any(dim=1).sum().to(accumulation_dtype(maps))
        return region_loss_sum(maps, labels, self._grids(maps, batch, labels), measure) * self._one_over(images)

    def _weight_of(self, counted: Tensor, labels: Tensor) -> Tensor:
        if self.class_weights is not None:
            counted = counted * self.class_weights[_safe(labels)]
        return counted.sum(dtype=accumulation_dtype(counted))

    def _one_over(self, total: Tensor) -> Tensor:
        return _inverse(self._over_ranks(total)).float()

    def _over_ranks(self, total: Tensor) -> Tensor:
        # in validation every rank has batches of its own, and not equally many: waiting for each other would hang
        return sum_over_ranks(total) if self.training else total

    def _grids(self, maps: Tensor, batch: Batch, labels: Tensor) -> list[BilinearUpsampler]:
        """Return where the labels' pixels lie on the maps, one per image."""
        size_hw, map_hw = (labels.shape[1], labels.shape[2]), (maps.shape[2], maps.shape[3])
        plain = aligned_upsampler(size_hw, map_hw, maps.device)
        if self.training:
            return [plain] * len(maps)
        grids = []
        for info in batch.info:
            bordered = info is not None and info.geometry.original_hw == size_hw and _has_border(info.geometry)
            grids.append(
                BilinearUpsampler(*original_grid(info.geometry, map_hw), map_hw, maps.device) if bordered else plain
            )
        return grids


def class_weights(hyp: Hyp, num_classes: int) -> Tensor | None:
    """Return the (C,) weights that `hyp.seg_class_weights` names or lists; a wrong number of them is a UserError."""
    given = hyp.seg_class_weights
    if given is None:
        return None
    if isinstance(given, str) and given not in CLASS_WEIGHTS:
        raise UserError(
            f"seg_class_weights: {given!r} is not known, choose from {', '.join(CLASS_WEIGHTS)} or list them"
        )
    weights = torch.tensor(CLASS_WEIGHTS[given] if isinstance(given, str) else given, dtype=torch.float32)
    if len(weights) != num_classes:
        raise UserError(f"seg_class_weights: {len(weights)} weights for {num_classes} classes of pixels")
    return weights


def _inverse(total: Tensor) -> Tensor:
    """Return 1 / total, and 0 for 0: a mean over nothing is nothing."""
    return torch.where(total > 0, 1 / total.clamp(min=1e-12), 0.0)


def _safe(labels: Tensor) -> Tensor:
    return torch.where(labels == IGNORED_PIXEL, 0, labels).long()


def _has_border(geometry: Geometry) -> bool:
    sizes = zip(geometry.original_hw, geometry.network_hw, reversed(geometry.scale_xy), strict=True)
    return any(round(original * scale) != network for original, network, scale in sizes)
