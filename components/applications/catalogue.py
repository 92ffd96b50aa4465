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


def label_answers(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """label -> the answer that says it, e.g. {'pos': '正面'}: what a model is asked to choose among."""
    found: dict[str, str] = {}
    for record in sorted(records, key=lambda r: (r["label"], r["answer"])):
        if record["label"]:
            found.setdefault(record["label"], record["answer"])
    return found
