"""What a benchmark claims, and how sure it is: scores, aggregates, intervals, tests and tuning equivalents.

*Losses* are log10 of a loss, so that their means are geometric means, and lower is better; *scores* are those of :func:`normalised_score`, and higher
is better. Intervals are percentile bootstraps, seeded, of the stated confidence; but for :func:`paired_difference`'s, they are widened for few units
by :func:`_expanded`. Formulas of aggregates are those of Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical
Precipice".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats

from lr_env.checks import positive_integer

Statistic: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Aggregates the last two axes, ``(…, tasks, seeds)`` to ``(…)``, as :func:`interquartile_mean` does."""

LOWEST_SCORE, HIGHEST_SCORE = -1.0, 3.0
"""A diverged training's score; scores are clipped to both where they are aggregated."""

FEWEST_TASKS = 20
"""Tasks without which nothing is claimed about new tasks."""


@dataclass(frozen=True)
class Difference:
    """A mean difference with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Profile:
    """A performance profile with its pointwise band.

    Attributes:
        thresholds: ``(T,)``.
        fractions: Of trainings whose score is above each threshold, ``(T,)``.
        low: ``(T,)``.
        high: ``(T,)``.
    """

    thresholds: np.ndarray
    fractions: np.ndarray
    low: np.ndarray
    high: np.ndarray


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, confidence: float = 0.95, num_resamples: int = 9_999) -> Difference:
    """Mean of ``first − second`` over pairs, with a percentile bootstrap interval over the pairs.

    It isn't widened for few pairs: simulated 95 % intervals of normal differences cover 83 % with 5 pairs, 89 % with 10, 92 % with 20. Those of
    :func:`stratified_bootstrap` for ``(first − second)[None]`` and :func:`mean` cover 91 % and 93 % with 5 and 10.

    Args:
        first: ``(N,)``.
        second: ``(N,)``, of the same trainings.
        seed: Seed of the resampling.
        confidence: Of the interval, within (0, 1).
        num_resamples: Bootstrap samples.

    Raises:
        ValueError: If the shapes differ, there are fewer than two pairs, or something isn't finite.
    """
    differences = _differences(first, second)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # the same controller twice: nothing to resample
        return Difference(mean, mean, mean)
    result = stats.bootstrap(
        (differences,), np.mean, confidence_level=confidence, n_resamples=num_resamples, method="percentile", rng=np.random.default_rng(seed)
    )
    return Difference(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_p_value(first: np.ndarray, second: np.ndarray, seed: int = 0, num_resamples: int = 49_999) -> float:
    """Two-sided p-value of ``mean(first − second) = 0``: the sign-flip permutation test (Fisher 1935).

    It tests the mean, which :func:`paired_difference` estimates. All 2^N signs are tried where they are no more than ``num_resamples``, random ones
    else. N pairs give no p below 2^(1 − N): five give 0.0625. Random ones give none below ``2 / (num_resamples + 1)``, which is to be far below
    0.05 after :func:`holm` too.

    Args:
        first: ``(N,)``; pairs must be independent of each other: means per task where tasks are compared, or per training seed.
        second: ``(N,)``.
        seed: Seed of random signs.
        num_resamples: Sign vectors.

    Raises:
        ValueError: If the shapes differ, there are fewer than two pairs, or something isn't finite.
    """
    differences = _differences(first, second)
    result = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=num_resamples, rng=np.random.default_rng(seed)
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values adjusted for how many there are: the step-down of Holm (1979), which bounds the chance of any false claim.

    The i-th smallest of m becomes ``max over j ≤ i of min(1, (m − j + 1) p_j)``.

    Args:
        p_values: ``(m,)``.

    Returns:
        ``(m,)``, in the given order.

    Raises:
        ValueError: If one is outside [0, 1].
    """
    given = _array("p_values", p_values, "comparisons")
    if given.min() < 0 or given.max() > 1:
        raise ValueError(f"p_values must be within [0, 1], but {given.tolist()} were given.")
    order = np.argsort(given)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1)
    return adjusted


def normalised_score(losses: np.ndarray, default: float, rival: float, diverged: np.ndarray, aggregated: bool = False) -> np.ndarray:
    """``S = (D − c) / (D − R)``: 0 is the default rate's loss, 1 the tuned rival's; −1 where the training diverged.

    Args:
        losses: c, of any shape.
        default: D, mean of the optimizer at its default rate.
        rival: R, mean of the rival tuned for the task.
        diverged: Of the shape of ``losses``, booleans; losses of diverged trainings aren't looked at.
        aggregated: Clips to [−1, 3], as aggregates of scores need.

    Raises:
        ValueError: If shapes differ, a loss that counts isn't finite, or R isn't below D; see :func:`leaves_score`.
    """
    losses, diverged = np.asarray(losses, float), np.asarray(diverged, bool)
    if losses.shape != diverged.shape or not np.isfinite(losses[~diverged]).all():
        raise ValueError(
            f"losses, finite unless diverged, and diverged need the same shape, but {losses.tolist()} of shape {losses.shape} and "
            f"{diverged.tolist()} of shape {diverged.shape} were given."
        )
    if not (np.isfinite(default) and np.isfinite(rival) and rival < default):
        raise ValueError(f"The rival's loss must be below the default's, but {rival} and {default} were given: leave this task out of the score.")
    scores = np.full(losses.shape, LOWEST_SCORE)
    scores[~diverged] = (default - losses[~diverged]) / (default - rival)
    return scores.clip(LOWEST_SCORE, HIGHEST_SCORE) if aggregated else scores


def leaves_score(default_runs: np.ndarray, rival_runs: np.ndarray) -> bool:
    """Whether a task has too little to win for a score: ``D − R < max(0.1, 3 standard errors of D − R)``.

    The standard error is that of independent runs, ``√(s_D²/N_D + s_R²/N_R)``; runs with the same seeds have a smaller one.

    Args:
        default_runs: Losses of the optimizer at its default rate, ``(N_D,)``.
        rival_runs: Losses of the rival tuned for the task, ``(N_R,)``.

    Raises:
        ValueError: If there are fewer than two runs of one, or something isn't finite.
    """
    runs = [_array(name, values, "seeds", fewest=2) for name, values in (("default_runs", default_runs), ("rival_runs", rival_runs))]
    error = np.sqrt(sum(each.var(ddof=1) / len(each) for each in runs))
    return bool(runs[0].mean() - runs[1].mean() < max(0.1, 3 * error))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all trainings of all tasks: ``⌊n/4⌋`` of n are cut at each end.

    Args:
        scores: ``(…, tasks, seeds)``.

    Returns:
        ``(…)``.
    """
    flat = np.asarray(scores).reshape(*np.shape(scores)[:-2], -1)
    return np.asarray(stats.trim_mean(flat, 0.25, axis=-1))


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over tasks and seeds, ``(…, tasks, seeds)`` to ``(…)``."""
    return np.asarray(np.mean(scores, axis=(-2, -1)))


def check_sample(name: str, count: int) -> int:
    """The number of trainings, if there are enough for intervals.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below 2.
    """
    if positive_integer(name, count) < 2:
        raise ValueError(f"{name} must be at least 2, so that there are intervals, but {count} was given.")
    return count


def stratified_bootstrap(
    scores: Sequence[np.ndarray] | np.ndarray,
    statistic: Statistic = interquartile_mean,
    seed: int = 0,
    confidence: float = 0.95,
    num_resamples: int = 9_999,
) -> Interval:
    """A statistic with its interval on *these* tasks: seeds are resampled within each task (Agarwal et al. 2021, section 4.1).

    Simulated 95 % intervals of normal scores cover 94 % for 10 tasks of 5 seeds (89 % unwidened) and 94 to 95 % for 20 of 10; for 4 tasks of 3 seeds,
    94 % for :func:`mean` and 89 % for :func:`interquartile_mean`.

    Args:
        scores: Of each task ``(seeds,)``, where numbers of seeds may differ: tasks weigh the same, each resamples its own. Seeds must be independent,
            so several controllers' are averaged over one of the two kinds of seeds first. A row of paired differences is a task too.
        statistic: Of arrays ``(…, tasks, seeds)``, giving ``(…)``.
        seed: Seed of the resampling.
        confidence: Of the interval, within (0, 1).
        num_resamples: Bootstrap samples.

    Raises:
        ValueError: If the scores have another shape, fewer than two seeds, or something isn't finite.
    """
    tasks = _tasks("scores", scores, "seeds", fewest=2)
    sizes = np.array([len(task) for task in tasks])
    result = stats.bootstrap(
        tuple(tasks),
        lambda *resampled, axis: statistic(_evenly(resampled)),
        vectorized=True,
        confidence_level=_expanded(confidence, np.array([task.var(ddof=1) for task in tasks]) / sizes, sizes),
        n_resamples=num_resamples,
        batch=1_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(float(statistic(_evenly(tasks))), float(result.confidence_interval.low), float(result.confidence_interval.high))


def hierarchical_bootstrap(
    scores: Sequence[np.ndarray] | np.ndarray,
    statistic: Statistic = interquartile_mean,
    seed: int = 0,
    confidence: float = 0.95,
    num_resamples: int = 9_999,
    allow_few_tasks: bool = False,
) -> Interval:
    """A statistic with its interval on *new* tasks, by newly trained controllers: tasks, training seeds and evaluation seeds are resampled.

    Each training seed is one controller, met by every task; so tasks and training seeds are resampled apart from each other, as rows and columns (the
    pigeonhole bootstrap, Owen 2007), and evaluation seeds within each drawn task, the same for all its controllers.

    Simulated 95 % intervals of normal scores cover 95 to 96 % for 20 tasks, 5 training and 10 evaluation seeds, where tasks or training seeds matter
    (90 to 93 % unwidened; 53 to 87 % if each task drew training seeds of its own), and all but 100 % where only evaluation seeds do. With few tasks
    and one training seed they cover less: 94 % with 20 tasks, 93 % with 5, 78 % with 3.

    Args:
        scores: Of each task ``(training seeds, evaluation seeds)``; one training seed for what isn't trained. Numbers of evaluation seeds may differ:
            tasks weigh the same, and each resamples its own.
        statistic: Of arrays ``(…, tasks, seeds)``, giving ``(…)``; a task's seeds are all pairs of its training and evaluation seeds.
        seed: Seed of the resampling.
        confidence: Of the interval, within (0, 1).
        num_resamples: Bootstrap samples.
        allow_few_tasks: Accepts fewer than 20 tasks.

    Raises:
        ValueError: If the scores have another shape, fewer tasks than 20 (or than 2), or something isn't finite.
    """
    by_task = _tasks("scores", scores, "training seeds", "evaluation seeds")
    num_tasks, num_trained, counts = len(by_task), len(by_task[0]), np.array([task.shape[1] for task in by_task])
    if num_tasks < (2 if allow_few_tasks else FEWEST_TASKS):
        raise ValueError(
            f"A claim about new tasks needs at least {FEWEST_TASKS} tasks, but {num_tasks} were given: stratified_bootstrap makes one about these; "
            "allow_few_tasks=True accepts 2 and more."
        )
    even = _evenly(by_task, axis=0)
    positions = np.arange(even.shape[-1])
    generator = np.random.default_rng(seed)

    def resampled(size: int) -> np.ndarray:
        tasks = generator.integers(num_tasks, size=(size, num_tasks, 1, 1))
        trained = generator.integers(num_trained, size=(size, 1, num_trained, 1))
        drawn = generator.integers(counts[tasks], size=(size, num_tasks, 1, len(positions)))
        evaluated = np.take_along_axis(drawn, positions % counts[tasks], axis=-1)  # a task draws as many as it has, which then repeat
        return statistic(even[tasks, trained, evaluated].reshape(size, num_tasks, -1))

    samples = np.concatenate([resampled(size) for size in _batches(num_resamples, even.size)])
    of_tasks, of_trained = np.array([task.mean() for task in by_task]), np.mean([task.mean(axis=1) for task in by_task], axis=0)
    levels = [each for each in (of_tasks, of_trained) if len(each) > 1]
    sizes = np.array([len(each) for each in levels])
    level = _expanded(confidence, np.array([each.var(ddof=1) for each in levels]) / sizes, sizes)
    return Interval(float(statistic(even.reshape(num_tasks, -1))), *_percentiles(samples, level))


def performance_profile(
    scores: Sequence[np.ndarray] | np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    seed: int = 0,
    confidence: float = 0.95,
    num_resamples: int = 9_999,
) -> Profile:
    """Fraction of trainings that score above each threshold, ``1/K Σ_k 1/N_k Σ_n 1[x_kn > τ]``, with a pointwise band on *these* tasks.

    See Agarwal et al. (2021), section 4.2. Controllers are resampled, the same ones for all tasks, and apart from them evaluation seeds within each
    task, the same ones for all its controllers; so the band is about newly trained controllers. Where all trainings of each task are on the same
    side, it has no width. Simulated 95 % bands cover 93 % for 10 tasks of 5 seeds and one controller; for 8 tasks of 10 seeds, where controllers
    differ as much as trainings do, 94 to 95 % with 5 and 10 controllers, 87 % with 3, and 71 % with 2.

    Args:
        scores: Of each task ``(training seeds, evaluation seeds)``; one training seed for what isn't trained. Numbers of evaluation seeds may differ:
            tasks weigh the same.
        thresholds: ``(T,)``.
        seed: Seed of the resampling.
        confidence: Of the band at each threshold, within (0, 1).
        num_resamples: Bootstrap samples.

    Raises:
        ValueError: If an array has another shape, there are fewer than two evaluation seeds, or something isn't finite.
    """
    tasks = _tasks("scores", scores, "training seeds", "evaluation seeds", fewest=2)
    thresholds = _array("thresholds", thresholds, "thresholds")
    above = [(task[..., None] > thresholds).astype(float) for task in tasks]  # each (J, N_k, T)
    samples = np.zeros((num_resamples, len(thresholds)))
    for shares, task in zip(_two_level_shares(np.random.default_rng(seed), num_resamples, tasks), above, strict=True):
        samples += shares @ task.reshape(-1, len(thresholds)) / len(tasks)
    variances, sizes = _two_level_variances(above)
    bands = [_percentiles(sample, _expanded(confidence, variance, sizes)) for sample, variance in zip(samples.T, variances.T, strict=True)]
    low, high = np.array(bands).T
    return Profile(thresholds, np.mean([task.mean(axis=(0, 1)) for task in above], axis=0), low, high)


def probability_of_improvement(
    first: Sequence[np.ndarray] | np.ndarray,
    second: Sequence[np.ndarray] | np.ndarray,
    seed: int = 0,
    confidence: float = 0.95,
    num_resamples: int = 9_999,
) -> Interval:
    """Chance that a training of ``first`` scores above one of ``second`` on the same task, a tie counting half, averaged over tasks.

    ``1/K Σ_k U_k / (N_k M_k)``, where U_k is the Mann–Whitney statistic (Agarwal et al. 2021, section 4.3), with an interval on *these* tasks. Both
    contestants are resampled apart from each other: their controllers, the same ones for all tasks, and evaluation seeds within each task, the same
    ones for all its controllers; so the interval is about newly trained controllers. Simulated 95 % intervals cover 95 to
    96 % where nothing is trained, 99 % where both share their trainings' seeds; where controllers differ as much as trainings do, 93 to 95 % with 5
    and 10 controllers, 87 % with 3, and 76 % with 2.

    Args:
        first: Scores of each task, ``(training seeds, evaluation seeds)``; one training seed for what isn't trained. Numbers of evaluation seeds may
            differ: tasks weigh the same.
        second: Scores, likewise.
        seed: Seed of the resampling.
        confidence: Of the interval, within (0, 1).
        num_resamples: Bootstrap samples.

    Raises:
        ValueError: If an array has another shape or other tasks, there are fewer than two evaluation seeds, or something isn't finite.
    """
    ours, theirs = (_tasks(name, scores, "training seeds", "evaluation seeds", fewest=2) for name, scores in (("first", first), ("second", second)))
    if len(ours) != len(theirs):
        raise ValueError(f"first and second must be of the same tasks, but have {len(ours)} and {len(theirs)} tasks.")
    wins = [(1 + np.sign(x[:, :, None, None] - y)) / 2 for x, y in zip(ours, theirs, strict=True)]  # each (J, N_k, J', M_k)
    generator = np.random.default_rng(seed)
    shares = zip(*(_two_level_shares(generator, num_resamples, tasks) for tasks in (ours, theirs)), strict=True)
    samples = np.zeros(num_resamples)
    for (own, other), task in zip(shares, wins, strict=True):
        samples += (own @ task.reshape(own.shape[1], -1) * other).sum(axis=1) / len(wins)
    sources = [_two_level_variances([task.mean(axis=axes)[..., None] for task in wins]) for axes in ((2, 3), (0, 1))]  # DeLong et al. (1988)
    variances, sizes = (np.concatenate(parts) for parts in zip(*sources, strict=True))
    estimate = float(np.mean([task.mean() for task in wins]))
    return Interval(estimate, *_percentiles(samples, _expanded(confidence, variances[:, 0], sizes)))


def expected_search_scores(tuning: np.ndarray, reports: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Expected reported loss of a random search's choice: of n points drawn without replacement from P, the one with the lowest tuning loss.

    Exact: with points sorted by tuning loss, the i-th is chosen if it is drawn and none of the i − 1 better ones is, so

        E_n = Σ_i [H_n(i − 1) − H_n(i)] r_i,   H_n(i) = C(P − i, n) / C(P, n),

    where r_i is the i-th point's mean reported loss. Of points with equal tuning losses each is as likely to be chosen.

    Args:
        tuning: Losses that the search chooses by, ``(P,)``.
        reports: Losses of the same points on the reporting seeds, ``(P, seeds)``.
        counts: Each n, ``(C,)``, within [1, P]. A point that was tuned on several trainings costs as many.

    Returns:
        ``(C,)``.

    Raises:
        ValueError: If shapes don't fit, a count isn't within [1, P], or something isn't finite.
    """
    pool = _sorted_pool(tuning, reports)
    wrong = [count for count in counts if positive_integer("A count", count) > len(pool)]
    if wrong:
        raise ValueError(f"counts must be within [1, {len(pool)}], the number of points, but {wrong} were given.")
    return np.asarray(_chances(len(pool), np.asarray(counts)) @ pool.mean(axis=1))


def tuning_equivalents(
    own: np.ndarray, tuning: np.ndarray, reports: np.ndarray, seed: int = 0, confidence: float = 0.95, num_resamples: int = 9_999
) -> Interval:
    """How many points a random search must try until its expected reported loss is as low as the controller's; the smallest where there are several.

    Between whole numbers, :func:`expected_search_scores` is interpolated in log n. 0: even a search of one point is better ("less than one").
    Infinity: a search of the whole pool is worse.

    Both the points and the seeds are resampled, the latter jointly for all. Repeated points make a resampled search worse, so its curves are shifted
    to the observed curve, which is unbiased (Efron & Tibshirani 1993, chapter 10). Simulated 95 % intervals cover 93 to 97 % up to a third of the
    pool, 91 % at 0.7 of it, where they err towards too many.

    Args:
        own: Losses of the controller, ``(seeds,)``.
        tuning: Losses that the search chooses by, ``(P,)``.
        reports: Losses of the points on the same trainings as ``own``, ``(P, seeds)``.
        seed: Seed of the resampling.
        confidence: Of the interval, within (0, 1).
        num_resamples: Bootstrap samples.

    Raises:
        ValueError: If shapes don't fit, there are fewer than two seeds or points, or something isn't finite.
    """
    own, pool = _array("own", own, "seeds", fewest=2), _sorted_pool(tuning, reports)
    num_points, num_seeds = pool.shape
    if len(own) != num_seeds:
        raise ValueError(f"own and reports must be of the same trainings, but have {len(own)} and {num_seeds} seeds.")
    if num_points < 2:
        raise ValueError("A search needs at least 2 points, but 1 was given.")
    chances = _chances(num_points, np.arange(1, num_points + 1)).T
    gap = pool.mean(axis=1) @ chances - own.mean()
    estimate = float(_first_match(gap[None])[0])
    generator = np.random.default_rng(seed)
    points = np.sort(generator.integers(num_points, size=(num_resamples, num_points)), axis=1)
    shares = _resampling_shares(generator, num_resamples, num_seeds)
    gaps = np.take_along_axis(shares @ pool.T, points, axis=1) @ chances - (shares @ own)[:, None]
    gaps += gap - gaps.mean(axis=0)
    at = round(min(max(estimate, 1), num_points)) - 1
    seeds_variance = (own - chances[:, at] @ pool).var(ddof=1) / num_seeds
    variances = np.array([seeds_variance, max(gaps[:, at].var() - seeds_variance, 0)])
    level = _expanded(confidence, variances, np.array([num_seeds, num_points]))
    return Interval(estimate, *_percentiles(_first_match(gaps), level))


def median_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Median of independent values, such as tasks' tuning equivalents, with its exact interval from order statistics, which is that of the sign test.

    With few values no two order statistics are far enough apart, and an end is infinite: 95 % need six values. Of an even number, the estimate is the
    lower of both middle ones.

    Args:
        values: ``(N,)``; infinity is allowed.
        confidence: At least, within (0, 1).

    Raises:
        ValueError: If there are none, or one isn't a number.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(f"values must be numbers along one axis, but {values.tolist()} were given.")
    low, high = stats.quantile_test(values, p=0.5).confidence_interval(confidence)
    return Interval(
        float(np.sort(values)[(len(values) - 1) // 2]), *(float(edge if np.isnan(end) else end) for end, edge in ((low, -np.inf), (high, np.inf)))
    )


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``first − second``, ``(N,)``, after checks."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"Two arrays of the same length >= 2 are needed, but shapes {first.shape} and {second.shape} were given.")
    return np.asarray(_array("first", first, "pairs") - _array("second", second, "pairs"))


def _array(name: str, values: object, *axes: str, fewest: int = 1) -> np.ndarray:
    """``values`` as an array of floats with these axes, all finite, the last axis no shorter than ``fewest``, the others not empty."""
    array = np.asarray(values, float)
    if array.ndim != len(axes) or 0 in array.shape or array.shape[-1] < fewest:
        raise ValueError(f"{name} must have the axes ({', '.join(axes)}), at least {fewest} {axes[-1]}, but the shape {array.shape} was given.")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite, but {(~np.isfinite(array)).sum()} of {array.size} values aren't: leave them out, or give them a penalty."
        )
    return array


def _tasks(name: str, scores: Sequence[np.ndarray] | np.ndarray, *axes: str, fewest: int = 1) -> list[np.ndarray]:
    """Each task's scores with these axes, checked as by :func:`_array`; of the same training seeds where there are two axes."""
    if len(scores) == 0:
        raise ValueError(f"{name} must be of at least 1 task, but none was given.")
    tasks = [_array(f"{name} of a task", task, *axes, fewest=fewest) for task in scores]
    trained = {len(task) for task in tasks}
    if len(axes) > 1 and len(trained) > 1:
        raise ValueError(f"{name} must have the same training seeds on all tasks, but have {sorted(trained)}.")
    return tasks


def _evenly(tasks: Sequence[np.ndarray], axis: int = -2) -> np.ndarray:
    """Tasks, each ``(…, seeds)``, in one array with tasks along ``axis``; where numbers of seeds differ, each repeats its own until they are equal.

    So tasks weigh the same, and a statistic of arrays is one of unequal numbers too.
    """
    number = np.lcm.reduce([task.shape[-1] for task in tasks])
    return np.stack([np.concatenate([task] * (number // task.shape[-1]), axis=-1) for task in tasks], axis=axis)


def _two_level_shares(generator: np.random.Generator, num_resamples: int, tasks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Share of each training in each resample of each task ``(J, S_k)``, in turn, ``(B, J S_k)``: controllers are drawn once for all tasks."""
    trained = _resampling_shares(generator, num_resamples, len(tasks[0]))
    for task in tasks:
        evaluated = _resampling_shares(generator, num_resamples, task.shape[1])
        yield (trained[:, :, None] * evaluated[:, None, :]).reshape(num_resamples, -1)


def _two_level_variances(tasks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Variances of the mean over tasks ``(J, S_k, T)`` from controllers, where there are several, and from each task's seeds, ``(sources, T)``.

    The second result is the number of units of each source, ``(sources,)``; see :func:`_expanded`.
    """
    sizes = np.array([task.shape[1] for task in tasks])
    variances = np.stack([task.mean(axis=0).var(axis=0, ddof=1) for task in tasks]) / sizes[:, None] / len(tasks) ** 2
    num_trained = len(tasks[0])
    if num_trained == 1:
        return variances, sizes
    of_trained = np.mean([task.mean(axis=1) for task in tasks], axis=0).var(axis=0, ddof=1) / num_trained
    return np.concatenate([of_trained[None], variances]), np.concatenate([[num_trained], sizes])


def _expanded(confidence: float, variances: np.ndarray, sizes: int | np.ndarray) -> float:
    """The confidence to ask of a percentile bootstrap so that the interval of few units isn't too narrow.

    Resampled, n units vary by (n − 1)/n of what they should, and percentiles act as though the variance was known: Hesterberg (2015), "What Teachers
    Should Know About the Bootstrap", widens to the quantile ``Φ(−√(n/(n − 1)) t_{n−1})``. Here the variance of the estimate has several sources v_i,
    of n_i units each, so that the factor is ``√(Σ v_i / Σ v_i (n_i − 1)/n_i)``, and the degrees of freedom are those of Welch (1947),
    ``(Σ v_i)² / Σ v_i²/(n_i − 1)``.

    Args:
        confidence: Within (0, 1).
        variances: Of the mean, from each source.
        sizes: Units of each source, ≥ 2, of the same shape or one for all.

    Raises:
        ValueError: If the confidence is outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be within (0, 1), but {confidence} was given.")
    if not variances.any():  # nothing to widen
        return confidence
    parts = variances / variances.sum()
    freedom = 1 / (parts**2 / (sizes - 1)).sum()
    factor = 1 / np.sqrt((parts * (sizes - 1) / sizes).sum())
    return float(1 - 2 * stats.norm.cdf(factor * stats.t.ppf((1 - confidence) / 2, freedom)))


def _percentiles(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """Both ends of the middle ``confidence`` of samples, ``(B,)``; always samples themselves, so that infinity can be among them."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return float(low), float(high)


def _resampling_shares(generator: np.random.Generator, num_resamples: int, num_units: int) -> np.ndarray:
    """Share of each unit in each resample, ``(B, units)``: all that linear statistics need to know of a resample."""
    return generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples) / num_units


def _batches(number: int, size: int) -> Iterator[int]:
    """Splits so many samples of this size into batches of at most a few megabytes."""
    batch = max(1_000_000 // size, 1)
    yield from (min(batch, number - done) for done in range(0, number, batch))


def _sorted_pool(tuning: np.ndarray, reports: np.ndarray) -> np.ndarray:
    """Reports in the order of their tuning losses, ``(P, seeds)``; of equal tuning losses, each the mean of all, as any of them may come first."""
    tuning, reports = _array("tuning", tuning, "points"), _array("reports", reports, "points", "seeds")
    if len(tuning) != len(reports):
        raise ValueError(f"tuning and reports must be of the same points, but have {len(tuning)} and {len(reports)}.")
    _, groups, sizes = np.unique(tuning, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), reports.shape[1]))
    np.add.at(sums, groups, reports)
    return np.repeat(sums / sizes[:, None], sizes, axis=0)


def _chances(num_points: int, counts: np.ndarray) -> np.ndarray:
    """Chance that the i-th of P sorted points is the first among n that are drawn without replacement, ``(counts, P)``."""
    none_of_the_first = stats.hypergeom.pmf(0, num_points, np.arange(num_points + 1), counts[:, None])
    return np.asarray(-np.diff(none_of_the_first, axis=1))


def _first_match(gaps: np.ndarray) -> np.ndarray:
    """The n at which curves over n = 1 … P, less what they are to match, ``(B, P)``, first come down to 0; see :func:`tuning_equivalents`."""
    gaps = np.round(gaps, 12)  # what is equal must be equal after sums, too
    rows, after = np.arange(len(gaps)), (gaps <= 0).argmax(axis=1)
    before = np.maximum(after - 1, 0)
    above, below = gaps[rows, before], gaps[rows, after]
    shares = np.divide(above, above - below, out=np.ones(len(gaps)), where=after > 0)
    matches = (before + 1) * ((after + 1) / (before + 1)) ** shares
    matches[gaps[:, 0] < 0] = 0
    matches[(gaps > 0).all(axis=1)] = np.inf
    return np.asarray(matches)
