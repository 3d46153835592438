"""Statistics of paired comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap


@dataclass(frozen=True)
class Difference:
    """A mean difference with its bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, confidence: float = 0.95, num_resamples: int = 9_999) -> Difference:
    """Mean of ``first − second`` over pairs, with a percentile bootstrap interval over the pairs.

    Args:
        first: ``(N,)``.
        second: ``(N,)``, of the same trainings.
        seed: Seed of the resampling.
        confidence: Of the interval, within (0, 1).
        num_resamples: Bootstrap samples.

    Raises:
        ValueError: If the shapes differ or there are fewer than two pairs.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"Two arrays of the same length >= 2 are needed, but shapes {first.shape} and {second.shape} were given.")
    differences = first - second
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # the same controller twice: nothing to resample
        return Difference(mean, mean, mean)
    result = bootstrap(
        (differences,), np.mean, confidence_level=confidence, n_resamples=num_resamples, method="percentile", rng=np.random.default_rng(seed)
    )
    return Difference(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))
