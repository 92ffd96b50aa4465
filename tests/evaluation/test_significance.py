"""Laws of the bootstrap intervals."""

import math

import numpy as np
import pytest

from components.evaluation import significance

pytestmark = pytest.mark.code
HOW = {"samples": 400, "confidence": 0.95, "seed": 7}


def test_estimate_is_the_weighted_mean_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(3, 1, 200), rng.integers(1, 50, 200)
    estimate, low, high = significance.interval(values, weights, **HOW)
    assert estimate == pytest.approx(np.average(values, weights=weights))
    assert low < estimate < high


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(1).random(50)
    assert significance.interval(values, **HOW) == significance.interval(values, **HOW)
    assert significance.interval(values, **HOW) != significance.interval(values, **HOW | {"seed": 8})


def test_width_agrees_with_the_normal_approximation():
    values = np.random.default_rng(2).normal(0, 1, 400)
    _, low, high = significance.interval(values, samples=4000, confidence=0.95, seed=1)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.06)


def test_pairing_sees_a_small_difference_that_two_intervals_hide():
    rng = np.random.default_rng(3)
    a = rng.normal(0, 5, 100)
    b = a + 0.2 + rng.normal(0, 0.1, 100)
    difference, low, high = significance.paired_interval(a, b, **HOW)
    assert difference == pytest.approx(np.mean(a - b)) and low <= difference <= high < 0
    assert significance.interval(a, **HOW)[2] > significance.interval(b, **HOW)[1]


def test_equal_sides_differ_by_exactly_nothing():
    values = np.random.default_rng(4).random(30)
    assert significance.paired_interval(values, values, **HOW) == (0, 0, 0)


def test_corpus_bits_per_byte_is_a_ratio_of_sums_not_a_mean_of_ratios():
    nats, bytes_ = np.array([10.0, 1000.0]), np.array([100, 500])
    estimate, _, _ = significance.corpus_bits_per_byte(nats, bytes_, **HOW)
    assert estimate == pytest.approx(1010 / 600 / math.log(2))


def test_paired_bits_per_byte_is_the_difference_of_the_two():
    rng = np.random.default_rng(5)
    bytes_ = rng.integers(50, 500, 80)
    a, b = bytes_ * rng.normal(1, 0.1, 80), bytes_ * rng.normal(1.1, 0.1, 80)
    difference, low, high = significance.paired_corpus_bits_per_byte(a, b, bytes_, **HOW)
    assert difference == pytest.approx(significance.corpus_bits_per_byte(a, bytes_, **HOW)[0] - significance.corpus_bits_per_byte(b, bytes_, **HOW)[0])
    assert low < difference < high < 0


def test_chunks_change_nothing(monkeypatch):
    values = np.random.default_rng(6).random((40, 2))
    whole = significance.resampled_sums(values, samples=100, seed=1)
    monkeypatch.setattr(significance, "CHUNK_CELLS", 40 * 100)
    assert np.array_equal(whole, significance.resampled_sums(values, samples=100, seed=1))


def test_items_that_do_not_pair_are_refused_and_no_items_give_nan():
    with pytest.raises(ValueError, match="item by item"):
        significance.paired_interval(np.zeros(3), np.zeros(4), **HOW)
    assert all(math.isnan(value) for value in significance.interval(np.zeros(0), **HOW))
