"""The applications: what each is scored by and how long its answers may be. Adding one adds a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.applications import scoring
from components.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Application:
    """One row: a name of `finetuning.applications` and how its answers are judged."""

    name: str
    metric: str  # the headline: macro_f1, or the mean of `score`
    score: Callable[[str, Sequence[str]], float]  # (answer, right answers) -> 0 to 1
    max_answer_tokens: int  # generation stops here


APPLICATIONS = {application.name: application for application in (
    Application(name="classification", metric="macro_f1", score=scoring.exact_match, max_answer_tokens=16),
    Application(name="question_answering", metric="token_f1", score=scoring.token_f1, max_answer_tokens=64),
    Application(name="translation", metric="chrf", score=scoring.chrf, max_answer_tokens=96),
    Application(name="summarisation", metric="rouge_l", score=scoring.rouge_l, max_answer_tokens=64),
    Application(name="recommendation", metric="exact_match", score=scoring.exact_match, max_answer_tokens=16),
    Application(name="text_generation", metric="chrf", score=scoring.chrf, max_answer_tokens=96),
)}


def application(name: str) -> Application:
    """Raises UserError for a name that is not in the table."""
    if name not in APPLICATIONS:
        raise UserError(f"no application {name!r}; there are {', '.join(APPLICATIONS)}")
    return APPLICATIONS[name]


def right_answers(record: Mapping[str, Any]) -> list[str]:
    """The answer of a record and, where its question has several, the others too (metadata `answers`)."""
    others = json.loads(record.get("metadata") or "{}").get("answers", [])
    return list(dict.fromkeys([record["answer"], *others]))


def labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label set of classification records, sorted."""
    return sorted({record["label"] for record in records if record["label"]})


def label_answers(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """label -> the answer that says it, e.g. {'pos': '正面'}: what a model is asked to choose among."""
    found: dict[str, str] = {}
    for record in sorted(records, key=lambda r: (r["label"], r["answer"])):
        if record["label"]:
            found.setdefault(record["label"], record["answer"])
    return found


def said_label(answer: str, answers: Mapping[str, str]) -> str:
    """The label that a free answer says: exactly, else the one that it names first, the longest first; else ''."""
    said = answer.strip().lower()
    for label, text in answers.items():
        if said == text.strip().lower():
            return label
    places = [(said.find(text.strip().lower()), -len(text), label) for label, text in answers.items() if text.strip()]
    named = [place for place in places if place[0] >= 0]
    return min(named)[2] if named else ""


def score_all(name: str, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> tuple[dict[str, float], list[float]]:
    """(scores of the whole, score of each item). The whole holds the headline metric and `exact_match` or `accuracy`."""
    kind = application(name)
    if name == "classification":
        known = label_answers(records)
        expected, said = [record["label"] for record in records], [said_label(answer, known) for answer in answers]
        whole = {"accuracy": scoring.accuracy(expected, said), "macro_f1": scoring.macro_f1(expected, said)}
        return whole, [float(a == b) for a, b in zip(expected, said, strict=True)]
    pairs = [(answer, right_answers(record)) for answer, record in zip(answers, records, strict=True)]
    items = [kind.score(answer, right) for answer, right in pairs]
    exact = [scoring.exact_match(answer, right) for answer, right in pairs]
    return {kind.metric: _mean(items), "exact_match": _mean(exact)}, items


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
