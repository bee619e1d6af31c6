"""What a search trains next, decided by nothing but what it has found: the same whoever asks, and after any kill.

A rate is a place on a grid of quarters of a decade: rate = 10 ** (place / 4). It is a whole number but where the rates
themselves were given.

    places      … 12 . 10 . 8 . 6 …      the grid: half decades around the method's range, at a part of the budget
    widened     while the best is at an edge, a half decade more there
    going on    the best of them, from their checkpoints to the whole budget
    neighbours  a half decade on either side of the best, whole, until both are worse: then it is at no edge
    finer       a quarter on either side of it, whole

Successive halving as by Jamieson and Talwalkar 2016 with a single halving; that neighbours go on whatever they had at
the part mends what a part of a schedule says wrongly of high rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HALF = 2  # places: half a decade, a factor of 3.2
FAILED = math.inf  # the loss of what diverged or could not be trained


def rate_at(place: float) -> float:
    """The learning rate of a place, to three digits."""
    return float(f"{10 ** (place / 4):.3g}")


def place_of(rate: float) -> float:
    """The place of a learning rate."""
    return 4 * math.log10(rate)


def grid_of(low: float, high: float, points: int) -> list[int]:
    """`points` places, half a decade apart, around the middle of a range of rates."""
    middle = 2 * round(math.log10(low * high))  # on the grid of half decades
    first = middle - HALF * ((points - 1) // 2)
    return [first + HALF * number for number in range(points)]


@dataclass(frozen=True)
class Job:
    """A training of one candidate at a place up to a step."""

    place: float
    steps: int


@dataclass(frozen=True)
class Rules:
    """How a candidate is searched."""

    whole: int  # steps of the whole budget
    part: int  # steps after which the best go on; `whole` for a search without halving
    going_on: int = 2
    widenings: int = 6  # at most so many half decades beyond the grid, at both ends together
    finer: bool = True
    fixed: bool = False  # exactly the rates of the grid, all of them whole


def next_jobs(grid: Sequence[float], rules: Rules, losses: Mapping[Job, float]) -> list[Job]:
    """The jobs that are due next, whether or not somebody is at them; none where the search is over.

    `losses` are validation losses in nats a token of all jobs that ended, `FAILED` of those that found none.
    """
    if rules.fixed:
        return _open([Job(place, rules.whole) for place in grid], losses)
    first = [Job(place, rules.part) for place in grid]
    if due := _open(first, losses):
        return due
    tried = {job.place: loss for job, loss in losses.items() if job.steps == rules.part}
    if due := _beyond_the_edge(tried, grid, rules):
        return [Job(due, rules.part)]
    order = sorted((place for place in tried if tried[place] < FAILED), key=lambda place: (tried[place], place))
    if due := _open([Job(place, rules.whole) for place in order[: rules.going_on]], losses):
        return due
    whole = {job.place: loss for job, loss in losses.items() if job.steps == rules.whole}
    coarse = {place: loss for place, loss in whole.items() if place % HALF == 0}
    best = best_of(coarse)
    if best is None:
        return _open([Job(place, rules.whole) for place in order[: rules.going_on + 1]], losses)
    beside = [place for place in (best - HALF, best + HALF) if _may(place, tried, coarse, grid, rules)]
    if due := _open([Job(place, rules.whole) for place in beside], losses):
        return due
    if not rules.finer:
        return []
    return _open([Job(best - 1, rules.whole), Job(best + 1, rules.whole)], losses)


def best_of(losses: Mapping[float, float]) -> float | None:
    """The place of the least loss; None where nothing was found."""
    found = {place: loss for place, loss in losses.items() if loss < FAILED}
    return min(found, key=lambda place: (found[place], place)) if found else None


def edge_of(place: float, grid: Sequence[float], whole: Mapping[float, float]) -> str:
    """Whether the best place is inside what was tried: "inside", "lowest" or "highest" of it."""
    if any(other > place for other in whole) and any(other < place for other in whole):
        return "inside"
    return "highest" if any(other < place for other in whole) else "lowest"


def width_of(place: float, whole: Mapping[float, float], errors: Mapping[float, float]) -> tuple[float, float]:
    """The places around the best whose loss is within one standard error of their difference to it, without a gap."""
    good = {other for other, loss in whole.items() if other == place or loss - whole[place] <= errors.get(other, 0.0)}
    tried = sorted(whole)
    low = high = tried.index(place)
    while low > 0 and tried[low - 1] in good:
        low -= 1
    while high + 1 < len(tried) and tried[high + 1] in good:
        high += 1
    return tried[low], tried[high]


def _open(jobs: Sequence[Job], losses: Mapping[Job, float]) -> list[Job]:
    return [job for job in jobs if job not in losses]


def _beyond_the_edge(tried: Mapping[float, float], grid: Sequence[float], rules: Rules) -> float | None:
    """The place to widen to, where the best is at an end of what was tried and there is room for more."""
    best, more = best_of(tried), len(tried) - len(grid)
    if best is None or more >= rules.widenings:
        return None
    return best + HALF if best == max(tried) else best - HALF if best == min(tried) else None


def _may(
    place: float, tried: Mapping[float, float], coarse: Mapping[float, float], grid: Sequence[float], rules: Rules
) -> bool:
    """Whether a neighbour is trained whole: not where it failed before, nor beyond the room for widening."""
    if place in tried:
        return tried[place] < FAILED
    return place in coarse or len({*tried, *coarse} - {*grid}) < rules.widenings
