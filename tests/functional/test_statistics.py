"""Statistics over runs, against sums done by hand."""

import itertools

import numpy as np
import pytest

from dtune.functional.statistics import interquartile_mean, mean_and_deviation, stratified_interval


def test_the_deviation_is_of_a_sample_and_a_single_run_has_none():
    mean, deviation = mean_and_deviation([1.0, 2.0, 6.0])
    assert mean == 3
    assert deviation == pytest.approx(((4 + 1 + 9) / 2) ** 0.5)
    assert mean_and_deviation([5.0]) == (5.0, None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([100.0, 1.0, 2.0], 103 / 3),  # fewer than four: nothing is left out
        ([100.0, 1.0, 3.0, -50.0], 2.0),
        ([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 5.0),  # two of nine at each end
        ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 90.0, 99.0], 2.5),
    ],
)
def test_a_quarter_is_left_out_at_each_end(values, expected):
    assert interquartile_mean(np.array(values)) == pytest.approx(expected)


def test_rows_are_taken_by_themselves():
    rows = np.array([[4.0, 1.0, 2.0, 9.0], [0.0, 8.0, 8.0, 8.0]])
    np.testing.assert_allclose(interquartile_mean(rows), [3.0, 8.0])


def test_strata_never_mix():
    """Each stratum is constant, so every resample is the data themselves, however far apart the strata are."""
    strata = [[0.0, 0.0, 0.0], [100.0, 100.0, 100.0]]
    assert stratified_interval(strata, np.random.default_rng(0)) == (50.0, 50.0)


def test_the_interval_is_that_of_all_possible_resamples():
    """Of strata {0, 1} and {10, 14} all 16 resamples can be listed; quantiles of many draws are theirs."""
    strata = [[0.0, 1.0], [10.0, 14.0]]
    every = [
        interquartile_mean(np.array([*first, *second]))
        for first in itertools.product(strata[0], repeat=2)
        for second in itertools.product(strata[1], repeat=2)
    ]
    found = stratified_interval(strata, np.random.default_rng(1), resamples=20_000, level=0.7)
    assert found == pytest.approx(tuple(np.quantile(np.repeat(every, 1000), [0.15, 0.85])), abs=1e-9)


def test_the_same_seed_gives_the_same_interval():
    strata = [np.array([1.0, 5.0, 2.0]), np.array([3.0, 9.0])]
    first, again = (stratified_interval(strata, np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert first[0] < first[1]


def test_a_higher_level_is_wider():
    strata = [list(np.random.default_rng(5).normal(size=8))]
    narrow, wide = (stratified_interval(strata, np.random.default_rng(0), level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
