"""How sure a score is: percentile bootstrap over items, seeded, vectorised.

Items (documents, records) are drawn with replacement; a corpus figure is a ratio of sums over the drawn
items, so a long document weighs as much as its bytes (Koehn 2004, "Statistical significance tests for
machine translation evaluation"). Same input, same seed: same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Interval = tuple[float, float, float]  # estimate, low, high
CHUNK_CELLS = 4_000_000  # drawn item numbers held at once


def resampled_sums(values_NK: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Column sums of `samples` draws of N rows with replacement; shape (samples, K)."""
    values_NK = np.asarray(values_NK, dtype=np.float64)
    n = len(values_NK)
    rng = np.random.default_rng(seed)
    sums = np.empty((samples, values_NK.shape[1]))
    chunk = max(1, CHUNK_CELLS // max(n, 1))
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        sums[start : start + rows] = counts @ values_NK
    return sums


def bootstrap(
    values_NK: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Interval of a statistic of column sums; `statistic` maps sums (M, K) to values (M,).

    Without items every value is nan.
    """
    values_NK = np.asarray(values_NK, dtype=np.float64)
    if not len(values_NK):
        return (math.nan, math.nan, math.nan)
    estimate = float(statistic(values_NK.sum(axis=0, keepdims=True))[0])
    tail = (1 - confidence) / 2
    low, high = np.quantile(
        statistic(resampled_sums(values_NK, samples=samples, seed=seed)), [tail, 1 - tail]
    )
    return estimate, float(low), float(high)


def _columns(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != weights.shape:
        raise ValueError(f"{len(values)} values and {len(weights)} weights; one weight a value was expected")
    return values, weights


def interval(
    values: np.ndarray, weights: np.ndarray | None = None, *, samples: int, confidence: float, seed: int
) -> Interval:
    """The weighted mean of item scores, and where it lies."""
    values, weights = _columns(values, weights)
    return bootstrap(
        np.stack([values * weights, weights], axis=1),
        lambda s: s[:, 0] / s[:, 1],
        samples=samples,
        confidence=confidence,
        seed=seed,
    )


def paired_interval(
    a: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """(difference, low, high) of mean(a) - mean(b), both on the same items, drawn together.

    Raises ValueError when `a` and `b` are not item by item.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"paired scores must be item by item: {len(a)} and {len(b)} items were given")
    return interval(
        np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64),
        weights,
        samples=samples,
        confidence=confidence,
        seed=seed,
    )


def corpus_bits_per_byte(
    nats: np.ndarray, bytes_: np.ndarray, *, samples: int, confidence: float, seed: int
) -> Interval:
    """Sum of nats over documents / sum of UTF-8 bytes, in bits; resampled by document."""
    return bootstrap(
        np.stack([np.asarray(nats, float), np.asarray(bytes_, float)], axis=1),
        lambda s: s[:, 0] / s[:, 1] / math.log(2),
        samples=samples,
        confidence=confidence,
        seed=seed,
    )


def paired_corpus_bits_per_byte(
    nats_a: np.ndarray, nats_b: np.ndarray, bytes_: np.ndarray, *, samples: int, confidence: float, seed: int
) -> Interval:
    """(difference, low, high) of bits per byte of a minus b on the same documents.

    Raises ValueError when `nats_a` and `nats_b` are not document by document.
    """
    if np.shape(nats_a) != np.shape(nats_b):
        raise ValueError(
            f"paired scores must be item by item: {len(nats_a)} and {len(nats_b)} documents were given"
        )
    return corpus_bits_per_byte(
        np.asarray(nats_a, float) - np.asarray(nats_b, float),
        bytes_,
        samples=samples,
        confidence=confidence,
        seed=seed,
    )
