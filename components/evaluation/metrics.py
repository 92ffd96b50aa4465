"""Scores of answers: accuracy, precision, recall and F1 of labels, with bootstrap intervals.

Each record counts once; an interval draws records with replacement. Macro figures are the mean over the
labels that the records expect; a label that a draw lacks counts 0 there, as in scikit-learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from components.evaluation.significance import Interval, bootstrap

CLASSIFICATION_METRICS = ("accuracy", "precision", "recall", "f1")


def labels_of(expected: list[str], *answers: list[str]) -> list[str]:
    """The labels that count, sorted."""
    return sorted({*expected, *(a for answer in answers for a in answer)})


def confusion(expected: list[str], answered: list[str], labels: list[str]) -> np.ndarray:
    """Counts of (expected, answered); shape (L, L), labels in the order given."""
    place = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for e, a in zip(expected, answered, strict=True):
        matrix[place[e], place[a]] += 1
    return matrix


def _cells(expected: list[str], answered: list[str], labels: list[str]) -> np.ndarray:
    """One row a record: its cell of the confusion matrix, one-hot; shape (N, L * L)."""
    place = {label: i for i, label in enumerate(labels)}
    cells = np.zeros((len(expected), len(labels) ** 2))
    cells[
        np.arange(len(expected)),
        [place[e] * len(labels) + place[a] for e, a in zip(expected, answered, strict=True)],
    ] = 1
    return cells


def _safe_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def by_label(cells_MLL: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each label, shape (M, L), from confusion matrices."""
    hit = np.diagonal(cells_MLL, axis1=1, axis2=2).astype(float)
    answered, expected = cells_MLL.sum(axis=1).astype(float), cells_MLL.sum(axis=2).astype(float)
    return {
        "precision": _safe_ratio(hit, answered),
        "recall": _safe_ratio(hit, expected),
        "f1": _safe_ratio(2 * hit, answered + expected),
    }


def _macro(sums_MK: np.ndarray, metric: str, wanted: list[int]) -> np.ndarray:
    size = math.isqrt(sums_MK.shape[1])
    cells = sums_MK.reshape(-1, size, size)
    if metric == "accuracy":
        return np.trace(cells, axis1=1, axis2=2) / cells.sum(axis=(1, 2))
    return by_label(cells)[metric][:, wanted].mean(axis=1)


def _wanted(expected: list[str], labels: list[str]) -> list[int]:
    return [i for i, label in enumerate(labels) if label in set(expected)]


@dataclass(frozen=True)
class Classification:
    """What a classifier reached on N records."""

    scores: dict[str, Interval]  # accuracy, macro precision, recall and f1
    labels: list[str]
    confusion: np.ndarray  # (L, L): rows expected, columns answered
    per_label: dict[str, dict[str, float]]  # label -> precision, recall, f1, support


def classification(
    expected: list[str], answered: list[str], *, samples: int, confidence: float, seed: int
) -> Classification:
    """Score labels answered against labels expected, record by record."""
    labels = labels_of(expected, answered)
    cells, wanted = _cells(expected, answered, labels), _wanted(expected, labels)
    scores = {
        metric: bootstrap(
            cells,
            lambda sums, m=metric: _macro(sums, m, wanted),
            samples=samples,
            confidence=confidence,
            seed=seed,
        )
        for metric in CLASSIFICATION_METRICS
    }
    matrix = confusion(expected, answered, labels)
    single = by_label(matrix[None])
    per_label = {
        label: {**{m: float(single[m][0, i]) for m in single}, "support": int(matrix[i].sum())}
        for i, label in enumerate(labels)
    }
    return Classification(scores, labels, matrix, per_label)


def paired_f1(
    expected: list[str], a: list[str], b: list[str], *, samples: int, confidence: float, seed: int
) -> Interval:
    """(difference, low, high) of macro-F1 of answers `a` minus that of `b` on the same records, drawn together."""
    labels = labels_of(expected, a, b)
    cells, wanted = (
        np.concatenate([_cells(expected, a, labels), _cells(expected, b, labels)], axis=1),
        _wanted(expected, labels),
    )
    half = len(labels) ** 2

    def difference(sums: np.ndarray) -> np.ndarray:
        return _macro(sums[:, :half], "f1", wanted) - _macro(sums[:, half:], "f1", wanted)

    return bootstrap(cells, difference, samples=samples, confidence=confidence, seed=seed)
