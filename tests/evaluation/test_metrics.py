"""Classification figures agree with scikit-learn and with pairing."""

import numpy as np
import pytest

from components.evaluation import metrics

pytestmark = pytest.mark.code
HOW = {"samples": 300, "confidence": 0.9, "seed": 5}
LABELS = ["正面", "负面", "history"]


def drawn(seed: int, count: int = 120) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    expected = [LABELS[i] for i in rng.integers(0, 3, count)]
    return expected, [e if rng.random() < 0.7 else LABELS[rng.integers(0, 3)] for e in expected]


def test_scores_equal_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    expected, answered = drawn(1)
    found = metrics.classification(expected, answered, **HOW)
    precision, recall, f1, _ = precision_recall_fscore_support(expected, answered, average="macro", zero_division=0)
    assert [found.scores[m][0] for m in metrics.CLASSIFICATION_METRICS] == pytest.approx([accuracy_score(expected, answered), precision, recall, f1])
    assert found.confusion.sum() == 120 and found.per_label["正面"]["support"] == expected.count("正面")
    for estimate, low, high in found.scores.values():
        assert low <= estimate <= high


def test_macro_f1_averages_over_the_labels_expected_also_for_an_answer_that_is_no_label():
    from sklearn.metrics import f1_score

    expected, answered = drawn(2)
    answered[:5] = ["", "", "?", "history", "?"]
    wanted = f1_score(expected, answered, labels=sorted(set(expected)), average="macro", zero_division=0)
    assert metrics.classification(expected, answered, **HOW).scores["f1"][0] == pytest.approx(wanted)


def test_one_label_everywhere_is_all_right():
    found = metrics.classification(["a"] * 4, ["a"] * 4, **HOW)
    assert all(interval == (1, 1, 1) for interval in found.scores.values())


def test_paired_f1_is_the_difference_of_the_two_figures():
    expected, a = drawn(3)
    b = ["正面"] * len(expected)
    difference, low, high = metrics.paired_f1(expected, a, b, **HOW)
    f1 = [metrics.classification(expected, said, **HOW).scores["f1"][0] for said in (a, b)]
    assert difference == pytest.approx(f1[0] - f1[1])
    assert 0 < low < difference < high
    assert metrics.paired_f1(expected, a, a, **HOW) == (0, 0, 0)
