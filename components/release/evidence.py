"""What evaluation.json says about the things that gates and cards ask for. Its shape is known here alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from components.release.gates import language

# names of scorers as a card shows them; others appear under their own name
SCORERS = {"unigram": "unigram", "kneser_ney": "Kneser-Ney 5-gram", "kneser_ney_seen": "Kneser-Ney, as much text as the model saw",
           "xz": "xz -9e", "majority": "majority", "tfidf_logistic_regression": "TF-IDF + logistic regression",
           "nearest_question": "nearest question"}


@dataclass(frozen=True)
class Row:
    """One line of the evaluation table: the model with its interval, and what the baselines reached."""

    what: str
    language: str
    model: tuple[float, float, float]  # value, low, high
    baselines: dict[str, float]
    higher_is_better: bool
    items: int


def bits_per_byte(evaluation: dict[str, Any], baseline: str | None = None) -> dict[str, float]:
    """{language: bits per byte} of the model, or of a baseline; languages that lack it are left out."""
    found = {}
    for code, part in sorted(evaluation["language_modelling"].items()):
        scorer = part["model"] if baseline is None else part["baselines"].get(baseline)
        if scorer is not None and scorer["bits_per_byte"]["value"] is not None:
            found[code] = scorer["bits_per_byte"]["value"]
    return found


def classification_f1(evaluation: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """{'classification, Chinese': (macro-F1 of the model, of the majority class)}."""
    return {f"classification, {language(code)}": (part["model"]["f1"]["value"], part["baselines"]["majority"]["f1"]["value"])
            for code, part in sorted(evaluation["applications"].get("classification", {}).items())}


def rows(evaluation: dict[str, Any], kind: str) -> Iterator[Row]:
    """The evaluation table of a model: language modelling for a base, applications for an instruct model."""
    if kind == "base":
        for code, part in sorted(evaluation["language_modelling"].items()):
            baselines = {name: entry["bits_per_byte"]["value"] for name, entry in sorted(part["baselines"].items())}
            yield Row("bits per byte", language(code), _triple(part["model"]["bits_per_byte"]), baselines, False, part["documents"])
        return
    for application, by_language in sorted(evaluation["applications"].items()):
        for code, part in sorted(by_language.items()):
            headline = part["headline"]
            for metric in sorted(part["model"], key=lambda name: (name != headline, name)):
                baselines = {name: entry[metric]["value"] for name, entry in sorted(part["baselines"].items()) if metric in entry}
                yield Row(f"{application.replace('_', ' ')}: {metric.replace('_', ' ')}", language(code), _triple(part["model"][metric]),
                          baselines, True, part["records"])


def headlines(evaluation: dict[str, Any]) -> list[str]:
    """The keys of metrics.json that say most: bits per byte by language, then the headline of each application and language."""
    scored = [f"eval/{part['headline']}_{application}_{code}" for application, by_language in sorted(evaluation["applications"].items())
              for code, part in sorted(by_language.items())]
    return [f"eval/bits_per_byte_{code}" for code in sorted(evaluation["language_modelling"])] + scored


def _triple(spread: dict[str, float]) -> tuple[float, float, float]:
    return spread["value"], spread.get("low", spread["value"]), spread.get("high", spread["value"])


def belongs(metric: str, kind: str) -> bool:
    """Whether a key of metrics.json is a figure of the base or of the instruct model."""
    return ("bits_per_byte" in metric or "perplexity" in metric) == (kind == "base")
