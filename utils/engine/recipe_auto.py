"""`--recipe auto`: optimizer, learning rate, batch, warm-up, EMA, mosaic, patience and class weights that fit the data.

YOLOv5's defaults are made for COCO: 64 images per optimizer step, three epochs of warm-up, and an EMA over thousands of
steps. On a few hundred images they make so few steps that the network has hardly learned anything at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.engine.recipe_facts import LARGEST_STEP, Facts

RAREST_WEIGHT = 4.0  # largest weight of a class; that of the objects is 1 on average
MAX_CLOSED = 10  # last epochs without mosaic
_MIN_PATIENCE, _MAX_PATIENCE = 20, 100


@dataclass(frozen=True)
class RecipeChoice:
    """Values that replace options and hyperparameters, and why."""

    settings: dict[str, Any]
    hyp: dict[str, Any]
    reasons: tuple[str, ...]


def class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weight classes by 1 / sqrt(number of objects), so that scores averaged over classes do not depend on one only.

    Args:
        counts: objects per class.

    Returns:
        A weight per class, at most `RAREST_WEIGHT`; their mean over objects is 1 unless some are limited. Classes
        without objects have 1. Empty for fewer than two classes with objects.
    """
    if sum(count > 0 for count in counts) < 2:
        return ()
    scale = sum(counts) / sum(count**0.5 for count in counts)
    return tuple(round(min(scale / count**0.5, RAREST_WEIGHT), 3) if count else 1.0 for count in counts)


def closed_epochs(epochs: int) -> int:
    """Return the number of last epochs without mosaic: half of the run, at most 10."""
    return min(epochs // 2, MAX_CLOSED) if epochs > 2 else 0


def choose(facts: Facts) -> RecipeChoice:
    """Choose the recipe for a data set and a length of training."""
    patience = min(max(facts.epochs // 3, _MIN_PATIENCE), _MAX_PATIENCE)
    settings: dict[str, Any] = {"patience": patience}
    closed = closed_epochs(facts.epochs)
    hyp: dict[str, Any] = {"close_mosaic": float(closed)}
    common = (
        f"patience {patience}: a third of {facts.epochs} epochs, from {_MIN_PATIENCE} to {_MAX_PATIENCE}",
        f"mosaic off in the last {closed} epochs: the network ends on images as they are",
    )
    if not facts.is_small:
        why = f"SGD, 64 images per step: {facts.default_steps} steps are enough for YOLOv5's defaults"
        return RecipeChoice(settings, hyp, (why, *common))
    batch = facts.batch
    step = min(batch, LARGEST_STEP)
    steps = max(facts.images * facts.epochs // batch, 1)
    rate = 0.001 if facts.pretrained else 0.004
    rate = round(rate * (step / 16) ** 0.5, 6)
    warmup = round(min(3.0, facts.epochs / 10), 2)
    decay = round(1 - min(20 / steps, 0.5), 6)
    settings |= {"optimizer": "AdamW", "schedule": "flat-cosine"}
    smaller: tuple[str, ...] = ()
    if batch < facts.batch_size:
        settings["batch_size"] = batch
        smaller = (f"batch size {batch}: more steps than with {facts.batch_size}",)
    hyp |= {
        "lr0": rate, "lrf": 0.01, "momentum": 0.9, "weight_decay": 0.01, "nominal_batch": float(batch),
        "warmup_epochs": warmup, "warmup_min_steps": 10.0, "warmup_momentum": 0.9, "warmup_bias_lr": 0.0,
        "ema_decay": min(decay, 0.9999), "ema_ramp": float(min(max(steps // 10, 1), 2000)),
    }  # fmt: skip
    balanced: tuple[str, ...] = ()
    if weights := class_weights(facts.class_counts):
        hyp["dense_class_weights"] = weights
        shares = f"from {min(weights):g} for the most frequent to {max(weights):g}"
        balanced = (f"class weights {shares}: 1 / sqrt(objects), so that rare classes are learned as well",)
    start = "given weights" if facts.pretrained else "nothing"
    return RecipeChoice(
        settings,
        hyp,
        (
            f"AdamW, a step per batch ({steps} in all): {facts.images} images with {facts.objects} objects would get "
            f"{facts.default_steps} steps of 64",
            *smaller,
            f"lr0 {rate:g}, flat, then cosine: training starts from {start}, {step} images per step",
            f"warm-up {warmup:g} epochs: a tenth of the run",
            f"EMA {hyp['ema_decay']:g}: an average over a twentieth of the steps",
            *balanced,
            *common,
        ),
    )
