"""The learning-rate curves that come with the house. All start at 1 but one-cycle, and none rises above it."""

from __future__ import annotations

import math

from utils.engine.schedules import SCHEDULES, Moment

_RISE, _LOW = 0.3, 1 / 25  # of one-cycle: the share of the run in which the rate rises, and from what
_SKIP_FROM, _SKIP_FOR = 60, 120  # MindSpore's cosine_annealing_sample (behaviour.md 13.7)


def _half_cosine(progress: float, first: float, last: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2 * (last - first) + first


@SCHEDULES.register("linear")
def linear(now: Moment) -> float:
    """Return the multiplier on a straight line from 1 to `final` (behaviour.md 3.4)."""
    return (1 - now.progress) * (1 - now.final) + now.final


@SCHEDULES.register("cosine_annealing")
@SCHEDULES.register("cosine")
def cosine(now: Moment) -> float:
    """Return the multiplier on half a cosine from 1 to `final`."""
    return (1 - math.cos(math.pi * now.progress)) / 2 * (now.final - 1) + 1


@SCHEDULES.register("constant")
def constant(now: Moment) -> float:
    """Return 1 in every epoch."""
    return 1.0


@SCHEDULES.register("exponential")
def exponential(now: Moment) -> float:
    """Return the multiplier that falls from 1 to `final` by the same factor in every epoch."""
    return max(now.final, 1e-8) ** now.progress


@SCHEDULES.register("polynomial")
def polynomial(now: Moment) -> float:
    """Return (1 - progress) to the `power`, from 1 to `final`: the `poly` curve of semantic segmentation."""
    return (1 - now.progress) ** now.power * (1 - now.final) + now.final


@SCHEDULES.register("step")
@SCHEDULES.register("multi_step")
@SCHEDULES.register("multi-step")
def multi_step(now: Moment) -> float:
    """Return `gamma` to the number of `steps` that are over (behaviour.md 13.7); `final` plays no part."""
    steps = now.steps or (round(now.epochs * 220 / 300), round(now.epochs * 250 / 300))
    return now.gamma ** sum(now.epoch >= step for step in steps)


@SCHEDULES.register("cosine-restarts")
def cosine_restarts(now: Moment) -> float:
    """Return half cosines from 1 to `final`, `cycles` of equal length (Loshchilov and Hutter 2017)."""
    cycle = math.modf(now.progress * now.cycles)[0]
    return _half_cosine(cycle, 1.0, now.final)


@SCHEDULES.register("one-cycle")
def one_cycle(now: Moment) -> float:
    """Return a rise from 1/25 to 1 in 30 % of the run, then a fall to `final`, both half cosines (Smith 2018)."""
    if now.progress < _RISE:
        return _half_cosine(now.progress / _RISE, _LOW, 1.0)
    return _half_cosine((now.progress - _RISE) / (1 - _RISE), 1.0, now.final)


@SCHEDULES.register("cosine_annealing_V2")
def cosine_two_parts(now: Moment) -> float:
    """Return a half cosine for two thirds of the run, then a whole one from the rate reached (behaviour.md 13.7)."""
    turn = int(now.epochs * 2 / 3)
    if now.epoch < turn:
        return _half_cosine(now.progress, 1.0, now.final)
    reached = _half_cosine(max(turn - 1, 0) / now.epochs, 1.0, now.final)
    return _half_cosine((now.epoch - turn) / (now.epochs - turn), reached, now.final)


@SCHEDULES.register("cosine_annealing_sample")
def cosine_sample(now: Moment) -> float:
    """Return a half cosine that leaves out every second epoch from the 60th on, 60 in all (behaviour.md 13.7)."""
    skipped = min(max(now.epoch - _SKIP_FROM, 0), _SKIP_FOR / 2)
    return _half_cosine(min((now.epoch + skipped) / now.epochs, 1.0), 1.0, now.final)
