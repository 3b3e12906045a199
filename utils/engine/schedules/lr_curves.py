"""Built-in learning-rate schedules. All but one-cycle start at 1, and none exceeds 1."""

from __future__ import annotations

import math

from utils.engine.schedules import SCHEDULES, SchedulePoint

_RISE, _LOW = 0.3, 1 / 25  # one-cycle: fraction of the run with a rising rate, and its initial multiplier
_SKIP_FROM, _SKIP_FOR = 60, 120  # MindSpore's cosine_annealing_sample: first epoch and number of affected epochs


def _half_cosine(progress: float, first: float, last: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2 * (last - first) + first


@SCHEDULES.register("linear")
def linear(point: SchedulePoint) -> float:
    """Interpolate linearly from 1 to `final`."""
    return (1 - point.progress) * (1 - point.final) + point.final


@SCHEDULES.register("cosine_annealing")
@SCHEDULES.register("cosine")
def cosine(point: SchedulePoint) -> float:
    """Follow half a cosine from 1 to `final`."""
    return (1 - math.cos(math.pi * point.progress)) / 2 * (point.final - 1) + 1


@SCHEDULES.register("flat-cosine")
def flat_cosine(point: SchedulePoint) -> float:
    """Keep the multiplier at 1 for the first half, then follow half a cosine to `final` (Lyu et al. 2022, RTMDet)."""
    return 1.0 if point.progress < 0.5 else _half_cosine(2 * point.progress - 1, 1.0, point.final)


@SCHEDULES.register("constant")
def constant(point: SchedulePoint) -> float:
    """Keep the multiplier at 1."""
    return 1.0


@SCHEDULES.register("exponential")
def exponential(point: SchedulePoint) -> float:
    """Decay from 1 to `final` by the same factor in every epoch."""
    return max(point.final, 1e-8) ** point.progress


@SCHEDULES.register("polynomial")
def polynomial(point: SchedulePoint) -> float:
    """Decay as (1 - progress) ** `power` from 1 to `final`, the `poly` schedule of semantic segmentation."""
    return (1 - point.progress) ** point.power * (1 - point.final) + point.final


@SCHEDULES.register("step")
@SCHEDULES.register("multi_step")
@SCHEDULES.register("multi-step")
def multi_step(point: SchedulePoint) -> float:
    """Multiply by `gamma` at each of the epochs `steps`; `final` is not used."""
    steps = point.steps or (round(point.epochs * 220 / 300), round(point.epochs * 250 / 300))
    return point.gamma ** sum(point.epoch >= step for step in steps)


@SCHEDULES.register("cosine-restarts")
def cosine_restarts(point: SchedulePoint) -> float:
    """Repeat half a cosine from 1 to `final` for `cycles` equal periods (Loshchilov and Hutter 2017)."""
    cycle = math.modf(point.progress * point.cycles)[0]
    return _half_cosine(cycle, 1.0, point.final)


@SCHEDULES.register("one-cycle")
def one_cycle(point: SchedulePoint) -> float:
    """Rise from 1/25 to 1 in the first 30 %, then fall to `final`, along half cosines (Smith 2018)."""
    if point.progress < _RISE:
        return _half_cosine(point.progress / _RISE, _LOW, 1.0)
    return _half_cosine((point.progress - _RISE) / (1 - _RISE), 1.0, point.final)


@SCHEDULES.register("cosine_annealing_V2")
def cosine_two_parts(point: SchedulePoint) -> float:
    """Follow half a cosine for two thirds of the run, then a second one from the rate reached (MindSpore)."""
    turn = int(point.epochs * 2 / 3)
    if point.epoch < turn:
        return _half_cosine(point.progress, 1.0, point.final)
    reached = _half_cosine(max(turn - 1, 0) / point.epochs, 1.0, point.final)
    return _half_cosine((point.epoch - turn) / (point.epochs - turn), reached, point.final)


@SCHEDULES.register("cosine_annealing_sample")
def cosine_sample(point: SchedulePoint) -> float:
    """Follow half a cosine that skips every second epoch from the 60th on, 60 in total (MindSpore)."""
    skipped = min(max(point.epoch - _SKIP_FROM, 0), _SKIP_FOR / 2)
    return _half_cosine(min((point.epoch + skipped) / point.epochs, 1.0), 1.0, point.final)
