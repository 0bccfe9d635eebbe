"""Intervals and paired comparisons. The unit is always the prompt: frames of one clip are not independent."""

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def wilson(successes: int, trials: int, z: float = 1.959964) -> Interval:
    """95 % interval of a share."""
    if trials == 0:
        raise ValueError("a share of nothing has no interval")
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap(values: Sequence[float] | np.ndarray, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean over prompts with its 95 % percentile interval. NaN marks a prompt that the metric does not apply to."""
    kept = np.asarray(values, float)
    kept = kept[~np.isnan(kept)]
    if len(kept) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    means = resampled_means(kept[:, None], resamples, seed)[:, 0]
    return Interval(float(kept.mean()), *middle(means))


def middle(draws: np.ndarray) -> tuple[float, float]:
    """Between which 95 % of them lie; draws that there are no values for (NaN) do not count."""
    kept = draws[~np.isnan(draws)]
    if len(kept) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)


def resampled_means(rows: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[prompts, columns] -> [resamples, columns]; every column sees the same prompts, so differences stay paired."""
    rng = np.random.default_rng(seed)
    count = len(rows)
    out = np.empty((resamples, rows.shape[1]))
    for start in range(0, resamples, 500):
        size = min(500, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size) / count
        out[start : start + size] = weights @ rows
    return out


def paired_bootstrap(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of a - b over the same prompts, with its 95 % interval."""
    left, right = np.asarray(a, float), np.asarray(b, float)
    if left.shape != right.shape:
        raise ValueError(f"pairs need the same prompts: {left.shape} against {right.shape}")
    return bootstrap(left - right, resamples, seed)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p-value that two systems pass the same prompts equally often."""
    left = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    right = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n = left + right
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(min(left, right) + 1)) / 2**n
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values for several comparisons (Holm)."""
    order = np.argsort(p_values)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def survival(lifetimes: Sequence[float], died: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Kaplan-Meier: times [n] and the share still alive after each; clips that outlive the video are censored."""
    life, dead = np.asarray(lifetimes, float), np.asarray(died, bool)
    times = np.unique(life[dead])
    share, shares = 1.0, []
    for time in times:
        at_risk = (life >= time).sum()
        share *= 1 - ((life == time) & dead).sum() / at_risk
        shares.append(share)
    return times, np.array(shares)
