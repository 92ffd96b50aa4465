"""Laws of the gates and the card: pure functions, no server."""

from __future__ import annotations

import math
import random
import re

import checkout
import numpy as np
import pyarrow.parquet as pq
import pytest

from components import files
from components.evaluation import judging
from components.release import card, champion, evidence, gates, lineage

pytestmark = pytest.mark.code


def test_A21_without_evidence_nothing_passes():
    assert not gates.finite_loss({}).passed
    assert not gates.below_baseline("below_xz", "xz", {}, {}).passed
    assert not gates.below_baseline("below_xz", "xz", {"zh": 2.0, "en": 2.0}, {"en": 3.0}).passed
    assert not gates.above_majority({}).passed
    assert not gates.not_worse(gates.BITS, {}, 0.01, "1").passed
    assert not gates.not_worse(gates.SCORES, {}, 0.01, "1").passed
    assert not gates.not_judged("damaged", "m").passed
    assert not gates.passes([])


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "nan"])
def test_C13_loss_that_is_not_finite_fails_and_is_named(value):
    found = gates.finite_loss({"train/loss": 3.0, "val/loss": value})
    assert not found.passed and "val/loss" in found.sentence and "train/loss" not in found.sentence


def test_every_language_must_be_below_and_the_one_at_fault_is_named():
    found = gates.below_baseline("below_unigram", "the unigram model", {"zh": 3.0, "en": 2.0}, {"zh": 2.9, "en": 3.0})
    assert not found.passed and "Chinese 3.000 against 2.900" in found.sentence and "English" not in found.sentence
    assert gates.below_baseline("x", "b", {"zh": 2.8, "en": 2.0}, {"zh": 2.9, "en": 3.0}).passed
    assert not gates.below_baseline("x", "b", {"zh": 2.9}, {"zh": 2.9}).passed
    assert not gates.below_baseline("x", "b", {"zh": math.nan}, {"zh": 2.9}).passed


def test_every_classification_must_be_above_the_majority():
    assert gates.above_majority({"zh": (0.5, 0.4), "en": (0.6, 0.3)}).passed
    assert not gates.above_majority({"zh": (0.5, 0.4), "en": (0.3, 0.3)}).passed


def test_H8_the_upper_end_decides_for_bits_and_the_lower_end_for_scores():
    assert gates.not_worse(gates.BITS, {"zh": (0.0, -0.02, 0.01)}, 0.01, "3").passed
    assert not gates.not_worse(gates.BITS, {"zh": (0.0, -0.02, 0.011)}, 0.01, "3").passed
    assert not gates.not_worse(gates.BITS, {"zh": (-1.0, -1.1, -0.9), "en": (0.1, 0.0, 0.2)}, 0.01, "3").passed
    assert gates.not_worse(gates.SCORES, {"all": (0.0, -0.02, 0.1)}, 0.02, "3").passed
    assert not gates.not_worse(gates.SCORES, {"all": (0.05, -0.021, 0.1)}, 0.02, "3").passed
    assert not gates.not_worse(gates.BITS, {"zh": (math.nan, math.nan, math.nan)}, 0.01, "3").passed


def items(values: dict[str, float], metric: str, application: str = "language_modelling") -> dict:
    return {(application, "zh", key, metric): (value, 10.0 if metric == "nats" else 1.0) for key, value in values.items()}


def test_H8_pairs_are_made_by_id_and_the_verdict_repeats():
    config = checkout.configuration()
    ours = items({f"d{n}": float(n % 7) for n in range(40)}, "nats")
    theirs = items({f"d{n}": float(n % 7) + math.log(2) for n in range(5, 60)}, "nats")
    found = champion.bits_differences(ours, theirs, config)
    assert found == champion.bits_differences(dict(reversed(ours.items())), theirs, config)
    estimate, low, high = found["zh"]
    assert estimate == pytest.approx(-0.1) and low == pytest.approx(-0.1) and high == pytest.approx(-0.1)


def test_H8_at_the_very_margin_the_verdict_is_the_same_five_times_of_five(tmp_path):
    """Both models are judged anew each time, on the documents in another order: the rule is the end of the paired interval, not a point value."""
    config = checkout.configuration()
    layout = checkout.make(tmp_path, config, seed=1)
    checkout.write_model(tmp_path / "theirs", seed=2)
    documents = pq.read_table(layout.clean / "test.parquet", columns=["id", "text", "language"]).to_pylist()

    def intervals(round_: int) -> dict:
        random.Random(round_).shuffle(documents)
        judged = [champion.rows_of(judging.judge_base(folder / "model", documents, config), "base") for folder in (layout.pretrained, tmp_path / "theirs")]
        return champion.bits_differences(*judged, config)

    found = [intervals(round_) for round_ in range(5)]
    assert all(interval == found[0] for interval in found) and found[0]["zh"][1] < found[0]["zh"][2]
    margin = max(gates.BITS.worst(interval) for interval in found[0].values())
    assert [gates.not_worse(gates.BITS, interval, margin, "1").passed for interval in found] == [True] * 5
    assert [gates.not_worse(gates.BITS, interval, math.nextafter(margin, -1), "1").passed for interval in found] == [False] * 5


def test_only_the_applications_own_metric_is_compared():
    config = checkout.configuration()
    ours = items({"a": 1.0, "b": 1.0}, "accuracy", "classification") | items({"a": 0.0}, "exact_match", "question_answering")
    theirs = items({"a": 0.0, "b": 1.0}, "accuracy", "classification") | items({"a": 1.0}, "exact_match", "question_answering")
    found = champion.score_differences(ours, theirs, {"classification": "accuracy", "question_answering": "token_f1"}, config)
    assert list(found) == ["mean score of 2 records"] and found["mean score of 2 records"][0] == pytest.approx(0.5)
    assert np.isfinite(found["mean score of 2 records"]).all()


def test_J12_card_escapes_what_users_name():
    hostile = "<script>alert(1)</script> | [x](javascript:y) `code` *b*"
    assert "<" not in card.escape(hostile) and "|" not in card.escape(hostile).replace("\\|", "") and "\n" not in card.escape("a\n# b")
    assert card.code("a`b\nc|d").count("`") == 2 and "|" not in card.code("a|b") and "\n" not in card.code("a\nb")


def test_card_says_what_where_how_good_and_where_it_ends(tmp_path):
    config = checkout.configuration(**{"corpus.source": "my | <b>texts</b>"})
    layout = checkout.make(tmp_path, config)
    criteria = [gates.finite_loss({"val/loss": 1.0}), gates.above_majority({})]
    for subject in lineage.subjects(config, layout):
        text = card.card(subject, "7", config, layout, criteria, True, "http://127.0.0.1:5311")
        for needed in (f"# {subject.name}, version 7", "mlflow models serve", "curl", "load_model", "did not pass", "no classification was scored",
                       "was not promoted", "interval", "Licence" if subject.kind == "instruct" else "licence", subject.weights_sha256):
            assert needed in text, needed
        assert "<b>" not in re.sub(r"`[^`\n]*`", "", text) and str(tmp_path) not in text  # in a code span it is text


def test_evidence_reads_what_evaluate_writes(tmp_path):
    config = checkout.configuration()
    layout = checkout.make(tmp_path, config)
    evaluation = files.read_json(layout.evaluation / "evaluation.json")
    assert set(evidence.bits_per_byte(evaluation)) == set(evidence.bits_per_byte(evaluation, "xz")) == {"en", "zh"}
    assert evidence.bits_per_byte(evaluation, "no such baseline") == {}
    assert evidence.classification_f1(evaluation) == {"classification, Chinese": (0.4, 0.0)}
    assert {row.language for row in evidence.rows(evaluation, "base")} == {"Chinese", "English"}
    assert evidence.belongs("eval/bits_per_byte_zh", "base") and not evidence.belongs("eval/f1_classification_zh", "base")
