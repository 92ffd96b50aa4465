"""What a fine-tuned model, or a baseline, answers to test records, and what each answer is worth."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from components.applications import catalogue, chat
from components.applications.scoring import exact_match
from components.config import Config
from components.evaluation import baselines, scoring
from components.evaluation.items import item
from components.training.decoding import generate, generate_batch

CLASSIFICATION = "classification"
Record = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """The records of one application and language: those asked, by id, and those that may be learned from."""

    application: str
    language: str
    test: list[Record]
    train: list[Record]

    @property
    def metrics(self) -> list[str]:
        """Names of the item scores, the headline first."""
        if self.application == CLASSIFICATION:
            return ["accuracy"]
        return list(dict.fromkeys([catalogue.application(self.application).metric, "exact_match"]))


def groups_of(records: list[Record], config: Config) -> list[Group]:
    """A group for each application of the configuration and language with test records, in order.

    Ids are hashes, so the first `evaluation.max_records` by id are a fair sample.
    """
    groups = []
    for application in sorted(config.finetuning.applications):
        mine = sorted((r for r in records if r["application"] == application), key=lambda r: r["id"])
        if application == CLASSIFICATION:
            mine = [r if r["label"] else {**r, "label": r["answer"]} for r in mine]
        for language in sorted({r["language"] for r in mine}):
            part = [r for r in mine if r["language"] == language]
            test = [r for r in part if r["split"] == "test"][: config.evaluation.max_records]
            if test:
                groups.append(Group(application, language, test, [r for r in part if r["split"] == "train"]))
    return groups


def answer(
    model: Any, tokenizer: Any, group: Group, *, max_row_tokens: int, progress: Callable[[int, int], None]
) -> list[str]:
    """The label of each record for a classification, else the greedy answer. Call inside `scoring.exact`.

    `tokenizer` is one that `applications.chat` knows.
    """
    if group.application == CLASSIFICATION:
        return _choose(model, tokenizer, group, max_row_tokens, progress)
    return _generate(model, tokenizer, group, max_row_tokens, progress)


def _choose(
    model: Any, tokenizer: Any, group: Group, max_row_tokens: int, progress: Callable[[int, int], None]
) -> list[str]:
    """The label whose answer text, end included, is likeliest after the prompt. Of equals the first."""
    texts = catalogue.label_answers(group.train or group.test)
    labels = sorted(texts)
    rows = []
    for n, record in enumerate(group.test):
        for i, label in enumerate(labels):
            row = chat.encode({"prompt": record["prompt"], "answer": texts[label]}, tokenizer, max_row_tokens)
            if not isinstance(
                row, str
            ):  # a prompt that cannot be encoded leaves every label at 0 nats: the first wins
                ids, mask = row
                rows.append(scoring.Row(np.array(ids, dtype=np.int64), mask.index(1), n * len(labels) + i))
    nats = scoring.row_nats(
        model,
        rows,
        len(group.test) * len(labels),
        vocab_size=model.shape.vocab_size,
        progress=lambda done: progress(done, len(rows)),
    )
    # rounded, so that two labels whose texts are alike do not change places by a last bit
    return [labels[int(best)] for best in nats.reshape(len(group.test), len(labels)).round(6).argmin(axis=1)]


def _generate(
    model: Any, tokenizer: Any, group: Group, max_row_tokens: int, progress: Callable[[int, int], None]
) -> list[str]:
    """Greedy answers; there is room for the longest answer of training, within the application's bound."""
    room = max(
        1,
        min(
            catalogue.application(group.application).max_answer_tokens,
            _longest_answer(tokenizer, group),
            model.shape.context // 2,
        ),
    )
    prompt_tokens = min(max(max_row_tokens - room, max_row_tokens // 2), model.shape.context - room)
    prompts = [chat.render_prompt(record["prompt"], tokenizer, prompt_tokens) for record in group.test]
    stops = chat.stop_ids(tokenizer)
    answers: list[str] = []
    rows = 64  # a fixed batch: the same records give the same bits
    for start in range(0, len(prompts), rows):
        new = generate_batch(model, prompts[start : start + rows], room, stops, rows=rows)
        answers += [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]
        progress(len(answers), len(prompts))
    return answers


def _longest_answer(tokenizer: Any, group: Group) -> int:
    """Tokens of the longest training answer, its end included; of the longest by bytes, as a bound on time."""
    longest = heapq.nlargest(32, group.train or group.test, key=lambda record: len(record["answer"].encode()))
    rows = [chat.encode({"prompt": "?", "answer": record["answer"]}, tokenizer, 10**6) for record in longest]
    return max((sum(row[1]) for row in rows if not isinstance(row, str)), default=1)


def baseline_answers(group: Group) -> dict[str, list[str]]:
    """Name of each baseline and its answers to the test records."""
    prompts, asked = [r["prompt"] for r in group.train], [r["prompt"] for r in group.test]
    if group.application == CLASSIFICATION:
        labels = [r["label"] for r in group.train]
        return {
            "majority": [baselines.majority(labels)] * len(asked),
            "tfidf_logistic_regression": baselines.tfidf_labels(prompts, labels, asked, group.language),
        }
    known = [r["answer"] for r in group.train]
    return {
        "majority": [baselines.majority(known)] * len(asked),
        "nearest_question": baselines.nearest_answers(prompts, known, asked, group.language),
    }


def grade(model: str, group: Group, answers: Sequence[str]) -> list[dict[str, Any]]:
    """Items: each answer by each metric of the group's application."""
    rows = []
    for record, said in zip(group.test, answers, strict=True):
        common = {
            "answer": said,
            "expected": record["label"] if group.application == CLASSIFICATION else record["answer"],
        }
        for metric in group.metrics:
            rows.append(
                item(
                    model,
                    group.application,
                    group.language,
                    record["id"],
                    metric,
                    _score(group, metric, said, record),
                    **common,
                )
            )
    return rows


def _score(group: Group, metric: str, said: str, record: Record) -> float:
    if group.application == CLASSIFICATION:
        return float(said == record["label"])
    score = exact_match if metric == "exact_match" else catalogue.application(group.application).score
    return score(said, catalogue.right_answers(record))


def continuations(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperatures: Sequence[float],
    seed: int,
    eot_id: int,
) -> list[list[list[int]]]:
    """For each prompt and temperature the token ids that the model goes on with; one seed, one text."""
    return [
        [
            generate(
                model,
                [eot_id, *prompt],
                max_new_tokens,
                temperature=temperature,
                stop_ids=[eot_id],
                generator=torch.Generator().manual_seed(seed),
            )
            for temperature in temperatures
        ]
        for prompt in prompts
    ]
