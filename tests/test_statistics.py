"""Statistics against small arrays worked by hand, published formulas written naively, scipy, and simulations of what intervals cover."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.statistics import (
    Interval,
    _expanded,
    expected_search_scores,
    hierarchical_bootstrap,
    holm,
    interquartile_mean,
    leaves_score,
    mean,
    median_interval,
    normalised_score,
    paired_difference,
    paired_p_value,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    tuning_equivalents,
)


def covered(interval: Callable[[np.random.Generator, int], Interval], truth: float, trials: int) -> float:
    """Share of simulated intervals that contain the truth."""
    generator = np.random.default_rng(0)
    intervals = [interval(generator, trial) for trial in range(trials)]
    return float(np.mean([each.low <= truth <= each.high for each in intervals]))


# Scores


def test_score_by_hand() -> None:
    losses, diverged = np.array([0.0, -0.25, -0.5, -2.0, 1.0, np.nan]), np.array([False] * 5 + [True])
    # D = 0, R = −0.5: S = (0 − c) / 0.5 = −2 c
    np.testing.assert_allclose(normalised_score(losses, 0.0, -0.5, diverged), [0, 0.5, 1, 4, -2, -1])
    np.testing.assert_allclose(normalised_score(losses, 0.0, -0.5, diverged, aggregated=True), [0, 0.5, 1, 3, -1, -1])
    for default, rival in ((0.0, 0.0), (0.0, 0.1), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="below the default"):
            normalised_score(losses, default, rival, diverged)
    with pytest.raises(ValueError, match="finite unless diverged"):
        normalised_score(losses, 0.0, -0.5, np.zeros(6, bool))
    with pytest.raises(ValueError, match="same shape"):
        normalised_score(losses, 0.0, -0.5, np.zeros(5, bool))


@pytest.mark.parametrize(
    ("default", "rival", "leaves"),
    [
        ([0.11, 0.11], [0.0, 0.0], False),  # 0.11 ≥ 0.1
        ([0.09, 0.09], [0.0, 0.0], True),  # 0.09 < 0.1
        ([0.0, 0.2], [-0.3, -0.5], False),  # both variances 0.02: √(0.02/2 + 0.02/2) = 0.1414; 0.5 ≥ 3 × 0.1414
        ([0.0, 0.2], [-0.2, -0.4], True),  # 0.4 < 0.424
    ],
)
def test_tasks_with_little_to_win_leave_the_score(default: list[float], rival: list[float], leaves: bool) -> None:
    assert leaves_score(np.array(default), np.array(rival)) is leaves


def test_aggregates_by_hand() -> None:
    scores = np.array([[7.0, 0, 5, 2], [3, 6, 1, 4]])
    assert interquartile_mean(scores) == (2 + 3 + 4 + 5) / 4  # 8 values: 2 cut at each end
    assert interquartile_mean(np.array([[0.0, 1, 2], [3, 4, 100]])) == (1 + 2 + 3 + 4) / 4  # 6 values: ⌊6/4⌋ = 1
    assert mean(scores) == 3.5
    stacked = np.stack([scores, 2 * scores])
    for statistic in (interquartile_mean, mean):
        np.testing.assert_array_equal(statistic(stacked), [statistic(scores), statistic(2 * scores)])


# Intervals


def test_widening_by_hand() -> None:
    # five units: t_4(0.025) = −2.776, × √(5/4) = −3.104; Φ(−3.104) = 0.000955
    assert _expanded(0.95, np.ones(1), 5) == pytest.approx(1 - 2 * 0.000955, abs=2e-5)
    # four equal sources of five units: 16 degrees of freedom; −2.120 × √(5/4) = −2.370; Φ = 0.00889
    assert _expanded(0.95, np.ones(4), 5) == pytest.approx(1 - 2 * 0.00889, abs=2e-4)
    # sources 3 and 1, of 5 and 20 units: 4² / (9/4 + 1/19) = 6.949 degrees of freedom; t = −2.369; × √(4 / (3 × 0.8 + 0.95)) = −2.589; Φ = 0.00482
    assert _expanded(0.95, np.array([3.0, 1.0]), np.array([5, 20])) == pytest.approx(1 - 2 * 0.00482, abs=2e-4)
    assert _expanded(0.9, np.array([1.0]), 10**7) == pytest.approx(0.9, abs=1e-6)
    assert _expanded(0.95, np.zeros(3), 5) == 0.95


def test_stratified_bootstrap_equals_its_definition() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(3, 6)) * [[1.0], [0.2], [2.0]]
    samples = []
    for _ in range(3_000):
        resampled = [task[generator.integers(6, size=6)] for task in scores]
        samples.append(stats.trim_mean(np.concatenate(resampled), 0.25))
    level = _expanded(0.8, scores.var(axis=1, ddof=1) / 6, 6)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    interval = stratified_bootstrap(scores, confidence=0.8)
    assert interval.estimate == interquartile_mean(scores)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.04)
    assert interval == stratified_bootstrap(scores, confidence=0.8) != stratified_bootstrap(scores, confidence=0.8, seed=1)
    assert stratified_bootstrap(np.ones((2, 3))) == Interval(1.0, 1.0, 1.0)
    assert stratified_bootstrap(np.array([[0.0, 1.0]])) == Interval(0.5, 0.0, 1.0)  # two seeds: all that resamples can give


def test_hierarchical_bootstrap_equals_its_definition() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(4, 1, 1)) + generator.normal(size=(1, 3, 1)) + generator.normal(size=(4, 3, 5))
    samples = []
    for _ in range(3_000):
        trained, resampled = generator.integers(3, size=3), []
        for task in generator.integers(4, size=4):
            evaluated = generator.integers(5, size=5)
            resampled += [scores[task, i, j] for i in trained for j in evaluated]
        samples.append(np.mean(resampled))
    sources = np.array([scores.mean((1, 2)).var(ddof=1) / 4, scores.mean((0, 2)).var(ddof=1) / 3])
    level = _expanded(0.6, sources, np.array([4, 3]))
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    interval = hierarchical_bootstrap(scores, mean, confidence=0.6, allow_few_tasks=True)
    assert interval.estimate == pytest.approx(scores.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.06)


def test_few_tasks_say_nothing_about_new_ones() -> None:
    with pytest.raises(ValueError, match=r"at least 20 tasks, but 19 were given.*about these"):
        hierarchical_bootstrap(np.zeros((19, 5, 10)))
    with pytest.raises(ValueError, match="1 were given"):
        hierarchical_bootstrap(np.zeros((1, 5, 10)), allow_few_tasks=True)
    untrained = np.random.default_rng(0).normal(size=(20, 1, 4))
    interval = hierarchical_bootstrap(untrained, num_resamples=500)
    assert interval.low < interval.estimate == interquartile_mean(untrained[:, 0]) < interval.high


def test_tasks_weigh_the_same_and_each_resamples_all_its_seeds() -> None:
    # repeated to 6 each: 0 0 0 12 12 12 and 2 2 4 4 6 6
    tasks = [np.array([0.0, 12.0]), np.array([2.0, 4.0, 6.0])]
    assert stratified_bootstrap(tasks, mean).estimate == pytest.approx((6 + 4) / 2)
    assert stratified_bootstrap(tasks).estimate == pytest.approx((2 + 2 + 4 + 4 + 6 + 6) / 6)  # a quarter is cut at each end
    generator = np.random.default_rng(0)
    tasks = [generator.normal(0, 3, 4), generator.normal(1, 1, 12)]
    samples = [np.mean([generator.choice(task, len(task)).mean() for task in tasks]) for _ in range(3_000)]
    variances, sizes = np.array([task.var(ddof=1) / len(task) for task in tasks]), np.array([4, 12])
    level = _expanded(0.8, variances, sizes)
    expected = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    interval = stratified_bootstrap(tasks, mean, confidence=0.8)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.12)
    several = [task[None] + np.array([[-0.5], [0.5]]) for task in tasks]
    assert hierarchical_bootstrap(several, mean, allow_few_tasks=True).estimate == pytest.approx(np.mean([task.mean() for task in tasks]))
    # of one task twice, nothing but its own seeds varies, with as many draws as it has: the mean of n draws varies by the variance over n
    same, wide = [np.array([[0.0, 1.0] * 8])] * 2, hierarchical_bootstrap([np.array([[0.0, 1.0]])] * 2, mean, allow_few_tasks=True)
    narrow = hierarchical_bootstrap(same, mean, allow_few_tasks=True)
    assert (wide.low, wide.high) == (0, 1) and 0.2 < narrow.low < narrow.high < 0.8
    profile = performance_profile([np.array([[0.0, 2.0]]), np.array([[0.0, 0.0, 2.0, 2.0, 2.0, 2.0]])], [1.0])
    assert profile.fractions == pytest.approx((1 / 2 + 4 / 6) / 2)
    improvement = probability_of_improvement([np.array([[0.0, 2.0]]), np.full((1, 3), 2.0)], [np.full((1, 5), 1.0), np.full((1, 2), 1.0)])
    assert improvement.estimate == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize(("statistic", "num_seeds"), [(mean, 3), (interquartile_mean, 5)])
def test_stratified_intervals_cover(statistic: Callable[[np.ndarray], np.ndarray], num_seeds: int) -> None:
    centres = np.linspace(0, 1, 8)[:, None]

    def interval(generator: np.random.Generator, trial: int) -> Interval:
        return stratified_bootstrap(centres + generator.normal(0, 0.3, (8, num_seeds)), statistic, trial, num_resamples=400)

    assert 0.915 < covered(interval, 0.5, 400) < 0.98  # unwidened: 0.84 and 0.91


def test_hierarchical_intervals_cover() -> None:
    def interval(generator: np.random.Generator, trial: int) -> Interval:
        scores = generator.normal(0, 0.2, (20, 1, 1)) + generator.normal(0, 0.1, (1, 5, 1)) + generator.normal(0, 0.2, (20, 5, 3))
        return hierarchical_bootstrap(scores, mean, trial, num_resamples=300)

    assert 0.92 < covered(interval, 0.0, 300) < 0.985  # training seeds drawn anew in each task would cover 0.8


def test_paired_interval_covers_the_mean() -> None:
    generator, hits = np.random.default_rng(0), 0
    for seed in range(60):
        first = generator.normal(size=40)
        difference = paired_difference(first, first - generator.normal(0.3, 1.0, size=40), seed, num_resamples=500)
        hits += difference.low <= 0.3 <= difference.high
    assert 50 <= hits <= 60
    same = paired_difference(np.ones(3), np.ones(3))
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


# Profiles, probability of improvement


def test_profile_by_hand() -> None:
    profile = performance_profile(np.array([[[0.0, 1.0]], [[1.0, 2.0]]]), [-1.0, 0.0, 1.0, 1.5, 2.0])
    np.testing.assert_array_equal(profile.fractions, [1, 0.75, 0.25, 0.25, 0])
    # above 0: both seeds of the second task, one of two of the first: resampled, that task's share is 0, ½ or 1, so the mean of both ½, ¾ or 1
    np.testing.assert_array_equal(profile.low, [1, 0.5, 0, 0, 0])
    np.testing.assert_array_equal(profile.high, [1, 1, 0.5, 0.5, 0])
    assert profile.thresholds.shape == (5,)


def test_profile_bands_cover() -> None:
    def interval(generator: np.random.Generator, trial: int) -> Interval:
        profile = performance_profile(generator.normal(0.5, 1.0, (10, 1, 10)), [-0.5, 0.0], trial, num_resamples=400)
        return Interval(float(profile.fractions[1]), float(profile.low[1]), float(profile.high[1]))

    assert 0.91 < covered(interval, float(stats.norm.cdf(0.5)), 300) < 0.985


def test_probability_of_improvement_by_hand_and_by_scipy() -> None:
    first, second = np.array([[[1.0, 3.0]], [[5.0, 5.0]]]), np.array([[[0.0, 1.0, 2.0]], [[5.0, 6.0, 4.0]]])
    # task 1: 1 beats 0, ties with 1, loses to 2: 1.5; 3 beats all: 3; (1.5 + 3) / 6 = 0.75. Task 2: each ties, loses, wins: 3 / 6 = 0.5
    assert probability_of_improvement(first, second).estimate == (0.75 + 0.5) / 2
    generator = np.random.default_rng(0)
    first, second = generator.integers(5, size=(6, 7)), generator.integers(5, size=(6, 9))
    expected = np.mean([stats.mannwhitneyu(x, y).statistic / 63 for x, y in zip(first, second, strict=True)])
    interval = probability_of_improvement(first[:, None], second[:, None])
    mirrored = probability_of_improvement(second[:, None], first[:, None])
    assert interval.estimate == pytest.approx(expected)
    assert interval.low < interval.estimate < interval.high
    assert mirrored.estimate == pytest.approx(1 - interval.estimate)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=0.02)
    samples = []
    for _ in range(3_000):
        pairs = [(x[generator.integers(7, size=7)], y[generator.integers(9, size=9)]) for x, y in zip(first, second, strict=True)]
        samples.append(np.mean([((x[:, None] > y) + (x[:, None] == y) / 2).mean() for x, y in pairs]))
    level = np.quantile(samples, [0.025, 0.975])
    assert 1 < (interval.high - interval.low) / (level[1] - level[0]) < 1.2  # widened


def test_probability_of_improvement_covers() -> None:
    def interval(generator: np.random.Generator, trial: int) -> Interval:
        return probability_of_improvement(generator.normal(0.5, 1.0, (8, 1, 5)), generator.normal(0.0, 1.0, (8, 1, 5)), trial, num_resamples=400)

    assert 0.92 < covered(interval, float(stats.norm.cdf(0.5 / math.sqrt(2))), 300) < 0.985


def trained(generator: np.random.Generator, num_trained: int = 5, sizes: tuple[int, ...] = (10,) * 8) -> list[np.ndarray]:
    """Scores whose controllers differ, on all tasks by the same, as much as their trainings do."""
    controllers = generator.normal(0.3, 0.5, (num_trained, 1))
    return [controllers + generator.normal(0, 0.5, (num_trained, size)) for size in sizes]


CHANCE = float(stats.norm.cdf(0.3 / math.sqrt(0.5**2 + 0.5**2)))
"""That one of these is above 0."""


@pytest.mark.parametrize("sizes", [(10,) * 8, (4, 10, 6, 10)])
def test_profile_bands_speak_of_new_controllers(sizes: tuple[int, ...]) -> None:
    def interval(generator: np.random.Generator, trial: int) -> Interval:
        profile = performance_profile(trained(generator, sizes=sizes), [0.0], trial, num_resamples=400)
        return Interval(float(profile.fractions[0]), float(profile.low[0]), float(profile.high[0]))

    assert 0.89 < covered(interval, CHANCE, 300) < 0.985  # with all trainings independent: 0.3


def test_probability_of_improvement_speaks_of_new_controllers() -> None:
    def interval(generator: np.random.Generator, trial: int) -> Interval:
        rival = generator.normal(0, 0.5, (8, 1, 10))
        return probability_of_improvement(trained(generator), rival, trial, num_resamples=400)

    truth = float(stats.norm.cdf(0.3 / math.sqrt(3 * 0.5**2)))
    assert 0.89 < covered(interval, truth, 300) < 0.985  # with all trainings independent: 0.4


def test_two_levels_equal_their_definition() -> None:
    generator = np.random.default_rng(0)
    first, second = trained(generator, 3, (4, 6)), [generator.normal(0, 0.5, (2, 5)) for _ in range(2)]
    samples, shares = [], []
    for _ in range(3_000):
        ours, theirs = generator.integers(3, size=3), generator.integers(2, size=2)
        wins, above = [], []
        for x, y in zip(first, second, strict=True):
            x = x[np.ix_(ours, generator.integers(x.shape[1], size=x.shape[1]))].ravel()
            y = y[np.ix_(theirs, generator.integers(5, size=5))].ravel()
            wins.append(np.mean(x[:, None] > y))
            above.append(np.mean(x > 0.2))
        samples.append(np.mean(wins))
        shares.append(np.mean(above))
    interval = probability_of_improvement(first, second, confidence=0.3)
    profile = performance_profile(first, [0.2], confidence=0.3)
    for found, (low, high) in ((samples, (interval.low, interval.high)), (shares, (profile.low[0], profile.high[0]))):
        inside = np.mean([low <= each <= high for each in found])
        assert 0.3 < inside < 0.62  # 0.3, widened
        assert np.mean(found) == pytest.approx((low + high) / 2, abs=0.1)


# Tests


def test_holm_by_hand() -> None:
    # sorted: 4 × 0.005 = 0.02; 3 × 0.01 = 0.03; 2 × 0.03 = 0.06; 1 × 0.04 = 0.04, raised to 0.06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    subsets = [subset for size in range(1, len(p_values) + 1) for subset in itertools.combinations(range(len(p_values)), size)]
    expected = [max(min(1, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in range(len(p_values))]
    np.testing.assert_allclose(holm(p_values), expected)


def test_paired_p_value_by_hand() -> None:
    # ±1 ±2 ±3: of 8 sums, only ±6 are as far from 0 as 6
    assert paired_p_value(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert paired_p_value(np.ones(4), np.ones(4)) == 1
    assert paired_p_value(np.arange(5.0), -np.ones(5)) == 2 / 2**5  # no less with five pairs


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=7))
def test_paired_p_value_counts_all_signs(differences: list[int]) -> None:
    sums = [sum(sign * each for sign, each in zip(signs, differences, strict=True)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    expected = sum(abs(each) >= abs(sum(differences)) for each in sums) / len(sums)
    assert paired_p_value(np.array(differences) / 8, np.zeros(len(differences))) == pytest.approx(expected)


def test_paired_p_value_with_many_pairs_is_sampled() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1.0, 40)
    p_value = paired_p_value(differences, np.zeros(40))
    assert p_value == paired_p_value(differences, np.zeros(40))
    assert p_value == pytest.approx(float(stats.ttest_1samp(differences, 0).pvalue), abs=0.01)


# Tuning equivalents


def searched(tuning: list[int], reports: np.ndarray, count: int) -> float:
    """Mean over all searches of so many points of what the chosen one reports; of equals, each as likely."""
    outcomes = []
    for points in itertools.combinations(range(len(tuning)), count):
        lowest = min(tuning[i] for i in points)
        outcomes.append(np.mean([reports[i].mean() for i in points if tuning[i] == lowest]))
    return float(np.mean(outcomes))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(0, 2**32 - 1))
def test_expected_search_is_the_mean_over_all_searches(tuning: list[int], seed: int) -> None:
    reports, counts = np.random.default_rng(seed).normal(size=(len(tuning), 3)), range(1, len(tuning) + 1)
    expected = [searched(tuning, reports, count) for count in counts]
    np.testing.assert_allclose(expected_search_scores(np.array(tuning), reports, counts), expected, atol=1e-12)


def test_expected_search_by_hand() -> None:
    tuning, reports = np.array([0.3, 0.1, 0.2]), np.array([[6.0, 6.0], [1.0, -1.0], [3.0, 3.0]])
    # sorted by tuning: 0, 3, 6. One point: 3. Two of three: the best is among them with chance 2/3, else the second: 1. All: 0
    np.testing.assert_allclose(expected_search_scores(tuning, reports, [1, 2, 3]), [3, 1, 0], atol=1e-12)
    large = expected_search_scores(np.arange(3_000.0), np.arange(3_000.0)[:, None], [1, 1_500, 3_000])
    np.testing.assert_allclose(large, [3_001 / (n + 1) - 1 for n in (1, 1_500, 3_000)], atol=1e-8)  # the lowest of n ranks has mean (P + 1)/(n + 1)
    for counts in ([0], [4], [1.5]):
        with pytest.raises(ValueError, match="count"):
            expected_search_scores(tuning, reports, counts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "equivalents"),
    [(4, 0), (3, 1), (2, math.sqrt(2)), (1, 2), (0.5, math.sqrt(6)), (0, 3), (-1, math.inf)],  # between 3, 1 and 0; halfway in log n is a root
)
def test_tuning_equivalents_by_hand(own: float, equivalents: float) -> None:
    tuning, reports = np.array([0.3, 0.1, 0.2]), np.array([[6.0, 6.0], [1.0, -1.0], [3.0, 3.0]])
    interval = tuning_equivalents(own + np.array([1.0, -1.0]), tuning, reports, num_resamples=200)
    assert interval.estimate == pytest.approx(equivalents)
    assert interval.low <= interval.high


def test_a_search_that_gets_worse_matches_where_it_first_does() -> None:
    # tuning misleads: reports in its order 1, 0, 4; one point: 5/3, two: 2/3 × 1 + 1/3 × 0 = 2/3, three: 1
    interval = tuning_equivalents(np.array([1.0, 1.0]), np.arange(3.0), np.array([[1.0, 1.0], [0.0, 0.0], [4.0, 4.0]]), num_resamples=200)
    assert interval.estimate == pytest.approx(2 ** (2 / 3))  # (5/3 − 1) / (5/3 − 2/3) of the way from 1 to 2


def test_equals_of_the_pool_match_it() -> None:
    interval = tuning_equivalents(np.array([0.1, 0.2, 0.3]), np.zeros(7), np.tile([0.1, 0.2, 0.3], (7, 1)), num_resamples=200)
    assert interval == Interval(1.0, 1.0, 1.0)


def test_tuning_equivalents_cover() -> None:
    def interval(generator: np.random.Generator, trial: int) -> Interval:
        # points are uniform on [0, 1], so the best of n has mean 1 / (n + 1); seeds are shared
        points, shared = generator.random(60), generator.normal(0, 0.1, 10)
        reports = points[:, None] + shared + generator.normal(0, 0.1, (60, 10))
        return tuning_equivalents(1 / 9 + shared + generator.normal(0, 0.1, 10), points, reports, trial, num_resamples=400)

    assert 0.92 < covered(interval, 8.0, 300) < 0.985  # with the pool taken as it is: 0.7


def test_median_interval_by_hand() -> None:
    # six values: all are on one side of the median with chance 2/64, so the extremes cover 0.969; five: 1 − 2/32 = 0.9375 is too little
    assert median_interval(np.array([4.0, 1, 6, 0, 5, math.inf])) == Interval(4.0, 0.0, math.inf)
    assert median_interval(np.arange(5.0)) == Interval(2.0, -math.inf, math.inf)
    # ten: second and ninth, 1 − 2 × (1 + 10)/1024 = 0.979; third and eighth, 1 − 2 × (1 + 10 + 45)/1024 = 0.891
    assert median_interval(np.arange(10.0)) == Interval(4.0, 1.0, 8.0)
    assert median_interval(np.arange(10.0), confidence=0.89) == Interval(4.0, 2.0, 7.0)


# Input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stratified_bootstrap(np.array([[1.0, math.nan]])), "scores of a task must be finite, but 1 of 2"),
        (lambda: stratified_bootstrap(np.zeros(3)), r"axes \(seeds\)"),
        (lambda: stratified_bootstrap([]), "at least 1 task"),
        (lambda: stratified_bootstrap(np.zeros((3, 1))), "at least 2 seeds"),
        (lambda: stratified_bootstrap(np.array([[1.0, 2.0]]), confidence=95), r"within \(0, 1\)"),
        (lambda: hierarchical_bootstrap(np.zeros((20, 5))), r"axes \(training seeds, evaluation seeds\)"),
        (lambda: hierarchical_bootstrap([np.zeros((2, 3)), np.zeros((3, 3))], allow_few_tasks=True), r"same training seeds on all tasks.*\[2, 3\]"),
        (lambda: performance_profile(np.zeros((2, 1, 3)), [math.inf]), "thresholds must be finite"),
        (lambda: performance_profile(np.zeros((2, 1, 3)), []), "thresholds"),
        (lambda: performance_profile(np.zeros((2, 5, 1)), [0.0]), "at least 2 evaluation seeds"),
        (lambda: probability_of_improvement(np.zeros((2, 1, 3)), np.zeros((3, 1, 3))), "2 and 3 tasks"),
        (lambda: probability_of_improvement(np.zeros((2, 1, 3)), np.full((2, 1, 3), -math.inf)), "second of a task must be finite"),
        (lambda: leaves_score(np.zeros(1), np.zeros(2)), "default_runs"),
        (lambda: holm([0.1, 1.2]), r"\[0, 1\]"),
        (lambda: holm([math.nan]), "finite"),
        (lambda: paired_difference(np.ones(3), np.ones(4)), "same length"),
        (lambda: paired_difference(np.ones(2), np.array([1.0, math.nan])), "second must be finite"),
        (lambda: paired_p_value(np.ones(1), np.ones(1)), "same length"),
        (lambda: expected_search_scores(np.zeros(2), np.zeros((3, 4)), [1]), "have 2 and 3"),
        (lambda: expected_search_scores(np.zeros(2), np.zeros(2), [1]), r"axes \(points, seeds\)"),
        (lambda: tuning_equivalents(np.zeros(3), np.zeros(2), np.zeros((2, 4))), "3 and 4 seeds"),
        (lambda: tuning_equivalents(np.zeros(3), np.zeros(1), np.zeros((1, 3))), "at least 2 points"),
        (lambda: median_interval(np.array([math.nan])), "numbers"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
