"""From items to evaluation.json and metrics.json: figures, intervals, differences, and what each word means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from components.config import Config
from components.evaluation import baselines, metrics, significance
from components.evaluation.answers import CLASSIFICATION, Group
from components.evaluation.judging import ScoredDocuments

LANGUAGES = {"zh": "Chinese", "en": "English", "other": "Other languages"}
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "precision": "Precision (macro)",
    "recall": "Recall (macro)",
    "f1": "F1 (macro)",
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "chrf": "chrF2",
    "rouge_l": "ROUGE-L",
}
SCORERS = {
    "model": "Model",
    "unigram": "Unigram",
    "kneser_ney": "Kneser–Ney",
    "kneser_ney_seen": "Kneser–Ney, as much text",
    "xz": "xz -9e",
    "majority": "Majority",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
    "nearest_question": "Nearest question",
}


def definitions(config: Config) -> dict[str, str]:
    """Each figure and baseline in words."""
    c = config.evaluation
    return {
        "bits_per_byte": "What the text costs: the sum of -log2 p over the tokens of the test documents, divided by their UTF-8 bytes. "
        "It does not depend on the tokenizer. Lower is better; the end of a document is not counted.",
        "perplexity": "e to the mean of -ln p over tokens. It depends on the tokenizer, so it compares only models that share one.",
        "context": f"Each document is scored after its <|endoftext|>, in windows of at most {c.window_tokens} tokens (fewer if the model's own "
        "context is shorter); a new window starts every half window and scores what the one before did not reach.",
        "test_documents": f"Test documents in the order of their ids, up to {c.max_test_bytes:,} bytes a language.",
        "unigram": "Each token by its share in the training text of that language, one added to every count; the model's own tokens.",
        "kneser_ney": f"Interpolated modified Kneser-Ney of order {c.ngram_order} over the model's own tokens, one model a language, trained on "
        f"all training text of that language (at most {c.ngram_max_tokens:,} tokens); its discounts are tuned on the validation split.",
        "kneser_ney_seen": "The same, trained on as many tokens as the model saw in training, shared out by language as the training text is; "
        "if the model saw every token at least once, on all of them.",
        "xz": "Bytes of `xz -9e` of the test documents alone, joined by newlines, times 8, by their bytes: a compressor that has learned nothing before.",
        "majority": "The most frequent answer of the training records, always.",
        "tfidf_logistic_regression": "Logistic regression on TF-IDF of the training records (one and two characters for Chinese, one and two words elsewhere).",
        "nearest_question": "The answer of the training record whose prompt has the highest cosine of TF-IDF vectors.",
        "accuracy": "Share of records whose label is right. The model answers with the label whose text is likeliest after the prompt.",
        "f1": "Harmonic mean of precision and recall of a label, averaged over the labels that the test records expect, each alike. "
        "Precision and recall are averaged in the same way.",
        "exact_match": "1 if the words of the answer are those of a right answer, case, punctuation and English articles aside.",
        "token_f1": "Words that answer and right answer share, as F1; Chinese by character. The best of several right answers counts.",
        "chrf": "F-score of character n-grams up to 6, recall twice as heavy (chrF2).",
        "rouge_l": "F1 of the longest common subsequence of words (ROUGE-L).",
        "interval": f"{c.confidence:.0%} percentile bootstrap, {c.bootstrap_samples:,} draws of documents or records; a difference draws both sides together.",
    }


def rounded(value: float) -> float:
    return round(float(value), 6)


def spread(interval: significance.Interval) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), map(rounded, interval), strict=True))


def _bootstrap(config: Config) -> dict[str, Any]:
    return {
        "samples": config.evaluation.bootstrap_samples,
        "confidence": config.evaluation.confidence,
        "seed": config.seed,
    }


def language(
    scored: ScoredDocuments,
    baseline_nats: dict[str, np.ndarray],
    training_tokens: dict[str, int],
    config: Config,
) -> dict[str, Any]:
    """What one language's test documents cost the model and each baseline."""
    how = _bootstrap(config)
    tokens, bytes_ = sum(len(ids) for ids in scored.tokens), int(scored.bytes_.sum())

    def figures(nats: np.ndarray) -> dict[str, Any]:
        return {
            "bits_per_byte": spread(significance.corpus_bits_per_byte(nats, scored.bytes_, **how)),
            "perplexity": rounded(math.exp(min(nats.sum() / max(tokens, 1), 700))),
        }

    found = {}
    for name, nats in baseline_nats.items():
        difference = significance.paired_corpus_bits_per_byte(scored.nats, nats, scored.bytes_, **how)
        found[name] = {
            **figures(nats),
            "model_minus_baseline": spread(difference),
            "training_tokens": training_tokens[name],
        }
    found["xz"] = {"bits_per_byte": {"value": rounded(baselines.xz_bytes(scored.texts) * 8 / bytes_)}}
    return {
        "documents": len(scored.ids),
        "tokens": tokens,
        "bytes": bytes_,
        "model": figures(scored.nats),
        "baselines": found,
    }


def application(
    group: Group,
    answers: list[str],
    baseline_answers: dict[str, list[str]],
    items: dict[str, list[dict[str, Any]]],
    config: Config,
) -> dict[str, Any]:
    """What the model and each baseline reached on one application and language. `items` by scorer."""
    how = _bootstrap(config)
    entry: dict[str, Any] = {
        "records": len(group.test),
        "training_records": len(group.train),
        "baselines": {},
    }
    if group.application == CLASSIFICATION:
        expected = [r["label"] for r in group.test]
        reached = {
            name: metrics.classification(expected, said, **how)
            for name, said in {"model": answers, **baseline_answers}.items()
        }
        model = reached.pop("model")
        entry |= {
            "headline": "f1",
            "model": _scores(model.scores),
            "labels": model.labels,
            "confusion": model.confusion.tolist(),
            "per_label": {
                label: {k: rounded(v) if isinstance(v, float) else v for k, v in row.items()}
                for label, row in model.per_label.items()
            },
        }
        for name, said in baseline_answers.items():
            entry["baselines"][name] = {
                **_scores(reached[name].scores),
                "model_minus_baseline": {"f1": spread(metrics.paired_f1(expected, answers, said, **how))},
            }
        return entry
    values = {
        name: {
            metric: np.array([row["value"] for row in rows if row["metric"] == metric])
            for metric in group.metrics
        }
        for name, rows in items.items()
    }
    entry |= {
        "headline": group.metrics[0],
        "model": {m: spread(significance.interval(v, **how)) for m, v in values["model"].items()},
    }
    for name in baseline_answers:
        entry["baselines"][name] = {
            m: spread(significance.interval(v, **how)) for m, v in values[name].items()
        } | {
            "model_minus_baseline": {
                m: spread(significance.paired_interval(values["model"][m], v, **how))
                for m, v in values[name].items()
            }
        }
    return entry


def _scores(scores: dict[str, significance.Interval]) -> dict[str, Any]:
    return {metric: spread(interval) for metric, interval in scores.items()}


def flat(evaluation: dict[str, Any]) -> dict[str, float]:
    """metrics.json: the figures that a run is compared by. Other applications than the two of the default give their headline alone."""
    found: dict[str, float] = {}
    for code, part in evaluation["language_modelling"].items():
        found[f"eval/bits_per_byte_{code}"] = part["model"]["bits_per_byte"]["value"]
        found[f"eval/perplexity_{code}"] = part["model"]["perplexity"]
        for name, baseline in part["baselines"].items():
            found[f"eval/{name}_bits_per_byte_{code}"] = baseline["bits_per_byte"]["value"]
    short = {"tfidf_logistic_regression": "tfidf", "nearest_question": "nearest", "majority": "majority"}
    for name, by_language in evaluation["applications"].items():
        for code, part in by_language.items():
            whole = name in (CLASSIFICATION, "question_answering")
            for metric, interval in part["model"].items():
                if whole or metric == part["headline"]:
                    found[f"eval/{metric}_{name}_{code}"] = interval["value"]
            for baseline, scores in part["baselines"].items():
                if whole:
                    found[f"eval/{short[baseline]}_{part['headline']}_{name}_{code}"] = scores[
                        part["headline"]
                    ]["value"]
    return found
