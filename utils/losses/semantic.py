"""Loss of the `semantic` head: cross-entropy of labelled pixels, auxiliary outputs, Dice and Lovasz-Softmax terms."""

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
    class_indices,
    cross_entropy_sum,
    dice_loss,
    labelled_mask,
    lovasz_softmax_loss,
    ohem_mask,
    pixel_cross_entropy,
    prob_ohem_mask,
    region_loss_sum,
)
from utils.ops.semantic_maps import BilinearUpsampler, aligned_upsampler, original_upsampler

# Defaults of `hyp.seg_threshold` and `hyp.seg_aux` for each `hyp.seg_loss`
_THRESHOLDS = {"ohem": 0.7, "prob_ohem": 0.5}
_AUX_WEIGHTS = {  # by the number of auxiliary outputs
    **{kind: {1: (0.1,), 2: (0.15, 0.05)} for kind in ("ce", "ohem", "focal")},
    "prob_ohem": {1: (0.4,), 2: (0.4, 0.4)},
}
_REGION_LOSSES: dict[str, RegionLoss] = {"dice": dice_loss, "lovasz": lovasz_softmax_loss}
_EPS = 1e-12


@LOSSES.register("semantic")
class SemanticLoss(nn.Module):
    """Semantic segmentation loss with the terms `seg` and, if enabled, `dice` and `lovasz`, gains included.

    The engine multiplies the terms by the number of labelled images (`per_image`). `hyp.seg_loss` selects the loss of
    the main and the auxiliary outputs:

    - `ce`: mean cross-entropy of the labelled pixels, weighted by class (`hyp.seg_class_weights`), with label smoothing
      (`hyp.seg_label_smoothing`).
    - `ohem`, `prob_ohem`: the same, of hard pixels only (`ohem_mask`, `prob_ohem_mask`). Hard pixels are those with a
      low probability of their class, before class weights and smoothing.
    - `focal`: as in multiyolov5, mean cross-entropy times the mean of (1 - p)^gamma, where p is the probability of the
      pixel's class. The second mean is over all pixels of labelled images, in which ignored pixels count as class 0.

    Auxiliary losses are weighted by `hyp.seg_aux`. `dice` and `lovasz` are means over labelled images, of the main
    output. In training, means are taken over the pixels and images of all ranks, so that the sum of a term over ranks
    is its value for the whole batch; only hard pixels are selected on each rank separately. In evaluation mode means
    are over this rank, and logits are aligned with the original images.

    Peak memory is that of a tile of one image (on GPUs of several small images), or of one image for `dice` and
    `lovasz`, for any batch size.

    Args:
        spec: Description of the head.
        hyp: Hyperparameters with scaled gains.

    Raises:
        UserError: If `hyp.seg_class_weights` is unknown or has another length than the number of classes.
    """

    per_image = True
    labels = "semantic"
    omitted_terms: tuple[str, ...] = ()
    training_terms: tuple[str, ...] = ()
    class_weights: Tensor | None

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        super().__init__()
        self.spec, self.hyp = spec, hyp
        self.register_buffer("class_weights", class_weights(hyp, spec.num_classes), persistent=False)
        self.extra_terms = tuple(name for name in _REGION_LOSSES if getattr(hyp, f"seg_{name}"))

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms of a batch.

        Args:
            raw: `logits` (B, C, h, w) and, optionally, `aux16` and `aux32` of other sizes. All are upsampled
                bilinearly with aligned corners to the size of the labels.
            batch: Images and semantic maps.

        Returns:
            `seg` and the enabled extra terms, float32 scalars.
        """
        logits, labels = raw["logits"], batch.semantic
        if labels is None:
            size = (len(logits), *logits.shape[2:])
            labels = torch.full(size, IGNORED_PIXEL, dtype=torch.uint8, device=logits.device)
        aux_names = sorted(name for name in raw if name.startswith("aux"))
        output_weights = dict(zip(aux_names, self._aux_weights(aux_names), strict=True)) | {"logits": 1.0}
        with autocast_disabled(logits.device.type):
            seg = torch.zeros((), device=logits.device)
            weighting = ClassWeighting(self.class_weights, self.hyp.seg_label_smoothing)
            shared = self._uniform_weights(labels) if self.hyp.seg_loss == "ce" else None  # by all outputs
            for name in ("logits", *aux_names):
                grids = self._grids(raw[name], batch, labels)
                pixel_weights = self._hard_weights(raw[name], labels, grids) if shared is None else shared
                loss = cross_entropy_sum(raw[name], labels, grids, pixel_weights, weighting)
                seg = seg + loss * output_weights[name]
            terms = {"seg": seg * self.hyp.seg}
            for name in self.extra_terms:
                gain = getattr(self.hyp, f"seg_{name}")
                terms[name] = self._region_term(logits, batch, labels, _REGION_LOSSES[name]) * (gain * self.hyp.seg)
        return terms

    def _aux_weights(self, names: list[str]) -> tuple[float, ...]:
        given = self.hyp.seg_aux
        if given is None:
            defaults = _AUX_WEIGHTS[self.hyp.seg_loss]
            return defaults.get(len(names), (defaults[1][0],) * len(names))
        weights = given if isinstance(given, tuple) else (given,) * len(names)
        if names and len(weights) != len(names):
            raise UserError(
                f"seg_aux: expected {len(names)} weights, for the auxiliary outputs {', '.join(names)}, got "
                f"{len(weights)}"
            )
        return weights[: len(names)]

    def _uniform_weights(self, labels: Tensor) -> PixelWeights:
        """Weight all labelled pixels alike, normalised over ranks."""
        known = labelled_mask(labels)
        return PixelWeights(known * self._inverse_total(self._class_weighted_sum(known, labels)))

    def _hard_weights(self, maps: Tensor, labels: Tensor, grids: list[BilinearUpsampler]) -> PixelWeights:
        """Weight pixels by their plain cross-entropy, as `hyp.seg_loss` demands."""
        kind, known = self.hyp.seg_loss, labelled_mask(labels)
        cross_entropy = pixel_cross_entropy(maps, labels, grids)
        if kind == "focal":
            return self._focal_weights(cross_entropy, known, labels)
        threshold = self.hyp.seg_threshold or _THRESHOLDS[kind]
        if kind == "ohem":
            hard = ohem_mask(cross_entropy, known, threshold)
        else:
            hard = prob_ohem_mask(cross_entropy, known, threshold, round(self.hyp.seg_min_kept))
        return PixelWeights(hard * self._inverse_total(self._class_weighted_sum(hard, labels)))

    def _focal_weights(self, cross_entropy: Tensor, known: Tensor, labels: Tensor) -> PixelWeights:
        """Weight pixels such that the sum is (mean cross-entropy) * (mean of (1 - p)^gamma).

        By the product rule the gradient has a second part: that of (1 - p)^gamma, times the mean cross-entropy.
        """
        gamma, probability = self.hyp.seg_gamma, torch.exp(-cross_entropy)
        error = (1 - probability).clamp(min=0)
        weights = known if self.class_weights is None else known * self.class_weights[class_indices(labels)]
        in_labelled_image = known.amax(dim=(1, 2), keepdim=True).expand_as(known)
        parts = (cross_entropy * weights, weights, error**gamma * in_labelled_image, in_labelled_image)
        sums = self._sum_over_ranks(torch.stack([part.sum(dtype=accumulation_dtype(known)) for part in parts]))
        losses, weight_sum, powers, pixel_count = sums.float().unbind()
        mean = losses * _safe_inverse(weight_sum)
        # d (1 - p)^gamma / d (-log p) = gamma (1 - p)^(gamma - 1) p
        derivative = gamma * error.clamp(min=_EPS) ** (gamma - 1) * probability
        extra = derivative * in_labelled_image * (mean * _safe_inverse(pixel_count))
        return PixelWeights(known * (_safe_inverse(weight_sum) * powers * _safe_inverse(pixel_count)), extra)

    def _region_term(self, maps: Tensor, batch: Batch, labels: Tensor, region_loss: RegionLoss) -> Tensor:
        images = (labels != IGNORED_PIXEL).flatten(1).any(dim=1).sum().to(accumulation_dtype(maps))
        total = region_loss_sum(maps, labels, self._grids(maps, batch, labels), region_loss)
        return total * self._inverse_total(images)

    def _class_weighted_sum(self, pixels: Tensor, labels: Tensor) -> Tensor:
        if self.class_weights is not None:
            pixels = pixels * self.class_weights[class_indices(labels)]
        return pixels.sum(dtype=accumulation_dtype(pixels))

    def _inverse_total(self, total: Tensor) -> Tensor:
        return _safe_inverse(self._sum_over_ranks(total)).float()

    def _sum_over_ranks(self, total: Tensor) -> Tensor:
        # In evaluation ranks may have different numbers of batches, so they must not wait for each other.
        return sum_over_ranks(total) if self.training else total

    def _grids(self, maps: Tensor, batch: Batch, labels: Tensor) -> list[BilinearUpsampler]:
        """Return the upsampler from the maps to the labels of each image."""
        size_hw, map_hw = (labels.shape[1], labels.shape[2]), (maps.shape[2], maps.shape[3])
        aligned = aligned_upsampler(size_hw, map_hw, maps.device)
        if self.training:
            return [aligned] * len(maps)
        grids = []
        for info in batch.info:
            if info is not None and info.geometry.original_hw == size_hw and _has_border(info.geometry):
                grids.append(original_upsampler(info.geometry, map_hw, maps.device))
            else:
                grids.append(aligned)
        return grids


def class_weights(hyp: Hyp, num_classes: int) -> Tensor | None:
    """Return the class weights that `hyp.seg_class_weights` names or lists.

    Args:
        hyp: Hyperparameters.
        num_classes: Number of classes C.

    Returns:
        (C,) float32, None without class weights.

    Raises:
        UserError: If the name is unknown or the number of weights is not C.
    """
    given = hyp.seg_class_weights
    if given is None:
        return None
    if isinstance(given, str) and given not in CLASS_WEIGHTS:
        raise UserError(
            f"seg_class_weights: unknown name {given!r}; use {', '.join(CLASS_WEIGHTS)} or list the weights"
        )
    weights = torch.tensor(CLASS_WEIGHTS[given] if isinstance(given, str) else given, dtype=torch.float32)
    if len(weights) != num_classes:
        raise UserError(f"seg_class_weights: expected {num_classes} weights, one per class, got {len(weights)}")
    return weights


def _safe_inverse(total: Tensor) -> Tensor:
    """Return 1 / total, and 0 for 0."""
    return torch.where(total > 0, 1 / total.clamp(min=_EPS), 0.0)


def _has_border(geometry: Geometry) -> bool:
    sizes = zip(geometry.original_hw, geometry.network_hw, reversed(geometry.scale_xy), strict=True)
    return any(round(original * scale) != network for original, network, scale in sizes)
