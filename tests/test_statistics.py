"""Paired statistics against independent references, published examples, and the coverage that they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st

from medcontext.evaluation.statistics import (
    bootstrap_interval,
    holm,
    mean_intervals,
    paired,
    rank_biserial,
    wilcoxon,
)


def test_holm_as_computed_by_hand_and_in_any_order():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6)
        rejected = set()
        for place, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - place):
                break
            rejected.add(index)
        assert {k for k, each in enumerate(holm(list(p))) if each <= 0.05} == rejected


def test_wilcoxon_of_darwins_maize():
    # Heights of 15 pairs of plants in eighths of an inch, crossed minus self-fertilised (Fisher, The Design of
    # Experiments, 1935): the negative ranks, 10 and 14 by hand, add up to 24; the exact p is 0.04126.
    differences = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)
    assert rank_biserial(differences) == pytest.approx((120 - 24 - 24) / 120)
    assert wilcoxon(differences) == pytest.approx(0.04126, abs=5e-5)


def test_wilcoxon_is_the_share_of_sign_patterns_as_extreme():
    differences = np.array([0.3, -0.1, 0.7, 1.1, 0.5, -0.2, 0.9, 1.3])
    ranks = scipy.stats.rankdata(np.abs(differences))
    observed = abs((ranks * np.sign(differences)).sum())
    sums = [abs((ranks * signs).sum()) for signs in itertools.product((-1, 1), repeat=8)]
    assert wilcoxon(differences) == pytest.approx(np.mean([each >= observed for each in sums]))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9).map(np.array), st.integers(0, 6))
@example(np.array([1, 2, 3, 4, 5]), 9)
@example(np.array([-3] * 9), 3)
def test_wilcoxon_is_that_share_with_zeros_and_ties_too(differences, zeros):
    """Ranks as they are defined, zeros among them, and every sign that the others may have (Pratt)."""
    differences = np.append(differences, np.zeros(zeros))
    sizes = np.abs(differences)
    ranks = [(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes if size > 0]
    signs = np.sign(differences[differences != 0])
    sums = [abs(np.dot(ranks, each)) for each in itertools.product((-1, 1), repeat=len(ranks))]
    assert wilcoxon(differences) == np.mean([each >= abs(np.dot(ranks, signs)) for each in sums])


@pytest.mark.parametrize("count", [1, 2, 7, 12, 13, 14, 20])
def test_wilcoxon_without_zeros_and_ties_is_scipys_exact_one(count):
    rng = np.random.default_rng(count)
    for shift in (0.0, 0.5, 2.0):
        differences = rng.normal(shift, 1.0, count)
        assert wilcoxon(differences) == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue)


@pytest.mark.parametrize(("zeros", "wins"), [(9, 5), (20, 6), (1, 13)])
def test_few_wins_beside_many_zeros_are_as_rare_as_their_signs(zeros, wins):
    """None but one sign of each of them is as extreme, and its opposite."""
    differences = np.append(np.zeros(zeros), np.linspace(0.1, 2, wins))
    assert wilcoxon(differences) == wilcoxon(-differences) == 2 / 2**wins


def test_more_differences_beside_zeros_are_taken_as_normal():
    differences = np.append(np.zeros(4), np.random.default_rng(0).normal(0.3, 1, 14))
    assert wilcoxon(differences) == scipy.stats.wilcoxon(differences, zero_method="pratt").pvalue


def test_zeros_are_ranked_and_dropped_and_alone_say_nothing():
    assert wilcoxon(np.zeros(5)) == 1.0
    assert rank_biserial(np.zeros(5)) == 0.0
    differences = np.linspace(0.1, 2, 12)
    differences[2] *= -1
    # By hand: the loss has rank 3, and of no rank, 1, 2, 3, or 1 and 2 the sum is no larger; after 6 zeros it has rank
    # 9, and of no rank, 7, 8 or 9 the sum is no larger.
    assert wilcoxon(differences) == 2 * 5 / 2**12
    assert wilcoxon(np.append(differences, np.zeros(6))) == 2 * 4 / 2**12
    assert rank_biserial(np.append(np.abs(differences), np.zeros(6))) == 1.0


@pytest.mark.parametrize("cases", [12, 60])
def test_one_seed_is_the_ordinary_bootstrap(cases):
    values = np.random.default_rng(cases).gamma(2.0, 1.0, (1, cases))
    low, high = bootstrap_interval(values, seed=0)
    reference = scipy.stats.bootstrap(values, np.mean, method="percentile", n_resamples=20_000, rng=1)
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert low == pytest.approx(reference.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(reference.confidence_interval.high, abs=0.03 * width)
    assert bootstrap_interval(values, seed=0) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_intervals_of_means_are_the_ordinary_bootstrap_for_each_label():
    values = np.random.default_rng(0).gamma(2.0, 1.0, (40, 2, 3))
    values[:, 1, 2] = np.nan
    values[0, 0, 1] = np.nan
    of_labels, of_all = mean_intervals(values)
    assert of_labels.shape == (2, 3, 2)
    for metric, label in ((0, 0), (0, 1), (1, 1)):
        expected = bootstrap_interval(values[None, :, metric, label], seed=1)
        width = expected[1] - expected[0]
        assert of_labels[metric, label] == pytest.approx(expected, abs=0.03 * width)
    assert np.isnan(of_labels[1, 2]).all()
    assert np.isfinite(of_all).all()


def test_the_interval_over_labels_resamples_cases_and_not_labels():
    """Labels that differ by more than cases do must not widen it; a case is drawn with all its labels."""
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, (30, 1)) + np.array([0.0, 10.0, 20.0])
    values[5:9, 1] = np.nan
    _, of_all = mean_intervals(values[:, None])
    drawn = rng.integers(0, 30, (20_000, 30))
    means = [np.mean(np.nanmean(values[cases], axis=0)) for cases in drawn]
    low, high = np.quantile(means, [0.025, 0.975])
    assert of_all[0] == pytest.approx((low, high), abs=0.03 * (high - low))


def test_intervals_of_means_draw_a_patient_with_all_cases():
    rng = np.random.default_rng(3)
    values = np.repeat(rng.normal(size=(8, 2, 3)), 2, axis=0)
    values[4, 0, 1] = np.nan
    whose = [f"patient {place // 2}" for place in range(16)]
    of_labels, of_all = mean_intervals(values, patients=whose)
    drawn = rng.integers(0, 8, (20_000, 8))
    cases = np.concatenate([2 * drawn, 2 * drawn + 1], axis=1)
    means = np.nanmean(values[cases], axis=1)
    for found, expected in ((of_labels, means), (of_all, means.mean(axis=2))):
        ends = np.moveaxis(np.quantile(expected, [0.025, 0.975], axis=0), 0, -1)
        assert found == pytest.approx(ends, abs=0.05)
    alone, _ = mean_intervals(values)
    assert ((of_labels[..., 1] - of_labels[..., 0]) > 1.2 * (alone[..., 1] - alone[..., 0])).all()
    of_one, of_all = mean_intervals(values, patients=["one"] * 16)
    assert np.isnan(of_one).all()
    assert np.isnan(of_all).all()


def test_one_case_has_no_interval():
    of_labels, of_all = mean_intervals(np.ones((1, 2, 3)))
    assert np.isnan(of_labels).all()
    assert np.isnan(of_all).all()
    known_once = np.full((5, 1, 2), np.nan)
    known_once[2] = 1.0
    of_labels, of_all = mean_intervals(known_once)
    assert np.isnan(of_labels).all()
    assert np.isnan(of_all).all()


def test_seeds_and_cases_are_resampled_together():
    values = np.random.default_rng(5).normal(size=(4, 7)) + np.arange(4)[:, None] + 2 * np.arange(7)
    values[2, 3] = np.nan
    rng = np.random.default_rng(9)
    means = [np.nanmean(values[np.ix_(rng.integers(0, 4, 4), rng.integers(0, 7, 7))]) for _ in range(20_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    found = bootstrap_interval(values, seed=0)
    assert found == pytest.approx((low, high), abs=0.03 * (high - low))


def test_seeds_of_cases_of_their_own_are_pooled():
    """As folds are: the interval is that of all cases, not one in which seeds vary once more."""
    values = np.full((5, 60), np.nan)
    for seed in range(5):
        values[seed, 12 * seed : 12 * seed + 12] = np.random.default_rng(seed).normal(size=12)
    pooled = np.nanmean(values, axis=0, keepdims=True)
    assert bootstrap_interval(values, seed=0) == bootstrap_interval(pooled, seed=0)
    values[0, 59] = 0.0
    assert bootstrap_interval(values, seed=0) != bootstrap_interval(np.nanmean(values, axis=0, keepdims=True), seed=0)


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_second_scan_just_like_the_first_of_each_patient_tells_nothing(seeds):
    rng = np.random.default_rng(7)
    first, second = rng.normal(0.8, 0.1, (2, seeds, 12))
    second[0, 3] = np.nan
    once = paired(first, second)
    patients = [str(k) for k in range(12)] * 2
    twice = paired(np.tile(first, 2), np.tile(second, 2), patients=patients)
    people = 12 - (seeds == 1)
    assert (once.patients, once.cases, twice.patients, twice.cases) == (people, people, people, 2 * people)
    assert twice.interval == pytest.approx(once.interval, rel=1e-12)
    assert (twice.p, twice.effect) == pytest.approx((once.p, once.effect), rel=1e-12)
    assert twice.difference == pytest.approx(once.difference)
    alone = paired(np.tile(first, 2), np.tile(second, 2))
    assert alone.interval[1] - alone.interval[0] < 0.9 * (once.interval[1] - once.interval[0])
    assert alone.p < once.p


def test_patients_are_resampled_with_all_of_their_cases():
    """Of 1 to 4 cases each, in any order; against a bootstrap that is written out."""
    patients = list("aabcccddddeefggghii")
    values = np.random.default_rng(8).normal(size=(3, len(patients)))
    values += np.array([ord(patient) % 5 for patient in patients])
    values[1, 4] = values[:, 16] = np.nan
    order = np.random.default_rng(2).permutation(len(patients))
    values, patients = values[:, order], [patients[k] for k in order]
    rng, means = np.random.default_rng(9), []
    people = sorted(set(patients) - {"h"})
    for _ in range(20_000):
        drawn = [k for each in rng.choice(people, len(people)) for k, patient in enumerate(patients) if patient == each]
        means.append(np.nanmean(values[np.ix_(rng.integers(0, 3, 3), drawn)]))
    low, high = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, seed=0, patients=patients) == pytest.approx((low, high), abs=0.03 * (high - low))
    assert bootstrap_interval(values[:, :1], seed=0, patients=patients[:1]) is None


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    cases = rng.normal(0, 0.1, (1, 40))
    alike = bootstrap_interval(np.repeat(cases, 3, axis=0), seed=0)
    apart = bootstrap_interval(cases + np.array([[-1.0], [0.0], [1.0]]), seed=0)
    assert alike == pytest.approx(bootstrap_interval(cases, seed=0), abs=0.005)
    assert apart[1] - apart[0] > 10 * (alike[1] - alike[0])


@pytest.mark.parametrize(("seeds", "least"), [(1, 0.92), (8, 0.91)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(seeds, least):
    rng = np.random.default_rng(1)
    trials, covered = 400, 0
    for trial in range(trials):
        of_seeds, of_cases = rng.normal(0, 0.5, (seeds, 1)) * (seeds > 1), rng.normal(0, 1, (1, 40))
        values = 0.3 + of_seeds + of_cases + rng.normal(0, 1, (seeds, 40))
        low, high = bootstrap_interval(values, seed=trial, resamples=500)
        covered += low <= 0.3 <= high
    assert least <= covered / trials <= 0.99


def test_a_comparison_counts_what_it_leaves_out_and_knows_which_way_is_better():
    first = np.array([[1.0, 2.0, 3.0, np.nan, 5.0, 6.0]])
    second = np.array([[2.0, 1.0, 3.0, 4.0, np.nan, 9.0]])
    found = paired(first, second)
    assert (found.cases, found.pairs, found.left_out, found.seeds) == (4, 4, 2, 1)
    assert found.first == pytest.approx(3.0)
    assert found.second == pytest.approx(3.75)
    assert found.difference == pytest.approx(0.75)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert not found.distinguishable
    lower = paired(first, second, higher_is_better=False)
    assert (lower.wins, lower.ties, lower.losses) == (1, 1, 2)
    assert lower.effect == -found.effect
    assert paired(first, np.full_like(first, np.nan)) is None


def test_wins_are_of_cases_averaged_over_the_seeds():
    first = np.zeros((2, 3))
    second = np.array([[3.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])
    found = paired(first, second)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    assert (found.seeds, found.cases, found.pairs) == (2, 3, 6)


def test_noise_is_called_noise_and_a_clear_gain_is_not():
    rng = np.random.default_rng(3)
    first = rng.normal(0.8, 0.05, (3, 50))
    assert not paired(first, first + rng.normal(0, 0.03, (1, 50)) - 0.0005).distinguishable
    assert paired(first, first + rng.normal(0.02, 0.03, (3, 50))).distinguishable
    assert paired(first[:, :1], first[:, :1] + 1).interval is None
    assert not paired(first[:, :1], first[:, :1] + 1).distinguishable


def test_folds_with_cases_of_their_own_can_be_compared():
    first = np.full((3, 6), np.nan)
    for fold in range(3):
        first[fold, 2 * fold : 2 * fold + 2] = [0.5, 0.6]
    found = paired(first, first + np.linspace(0.01, 0.02, 6))
    assert (found.cases, found.pairs, found.left_out) == (6, 6, 12)
    assert found.difference == pytest.approx(0.015)
    assert 0.01 <= found.interval[0] < 0.015 < found.interval[1] <= 0.02
