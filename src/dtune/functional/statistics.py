"""What many runs say together: means with deviations, interquartile means, bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64


def mean_and_deviation(values: Sequence[float] | Float64[np.ndarray, "runs"]) -> tuple[float, float | None]:
    """Mean x̄ = Σ xᵢ / n and sample deviation √(Σ (xᵢ - x̄)² / (n - 1)).

    Args:
        values: one number a run, at least one.

    Returns:
        Both, in the unit of `values`; the deviation is None of a single run.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None


def interquartile_mean(values: Float64[np.ndarray, "*batch runs"]) -> Float64[np.ndarray, "*batch"]:
    """Mean of what remains when the ⌊n/4⌋ lowest and the ⌊n/4⌋ highest are left out.

    With x₁ ≤ … ≤ xₙ and k = ⌊n/4⌋: Σ_{i=k+1}^{n-k} xᵢ / (n - 2k). Less moved by single runs than the mean, and
    by more of them than the median.

    Args:
        values: runs along the last axis, at least one.
    """
    cut = values.shape[-1] // 4
    ordered = np.sort(values, axis=-1)
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1))


def stratified_interval(
    strata: Sequence[Sequence[float] | Float64[np.ndarray, "_"]],
    generator: np.random.Generator,
    *,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap interval of the interquartile mean of all runs, drawn anew within each stratum.

    A resample draws from every stratum as many runs as it has, with replacement, so that no dataset gains or loses
    weight; its interquartile mean is one θ*. The interval is [q_{(1-level)/2}, q_{(1+level)/2}] of all θ*.

    Args:
        strata: the runs of each dataset: one number a seed, at least one.
        generator: draws the resamples.
        resamples: how many.
        level: share of the θ* inside, in (0, 1).

    Returns:
        Lower and upper bound, in the unit of the numbers.
    """
    drawn = []
    for stratum in strata:
        runs = np.asarray(stratum, dtype=np.float64)
        drawn.append(runs[generator.integers(0, len(runs), size=(resamples, len(runs)))])
    estimates = interquartile_mean(np.concatenate(drawn, axis=1))
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
