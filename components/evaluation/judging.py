"""A model folder judged with its own tokenizer: the one path for the stage and for a champion at release.

So the figures of a stage and those of `judge_base` or `judge_instruct` of the same folder are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from components.config import Config
from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.evaluation import answers, items, scoring
from components.training.model import load_any

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Judged:
    """A model, ready to be judged. `window` is the context that a document's tokens are scored with."""

    model: Any
    tokenizer: Tokenizer
    folder: Path
    eot_id: int
    window: int

    @property
    def vocab_size(self) -> int:
        return self.model.shape.vocab_size


@dataclass(frozen=True)
class ScoredDocuments:
    """Documents of one language, in id order, and what each cost the model."""

    ids: list[str]
    texts: list[str]
    tokens: list[np.ndarray]
    bytes_: np.ndarray
    nats: np.ndarray


def open_model(folder: Path, config: Config) -> Judged:
    """Raises UserError without the device asked for; UserError or Damaged as `load_any` and the tokenizer do."""
    if config.evaluation.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "evaluation.device is 'cuda', but torch finds no GPU. Run: lmworks use PRESET --set evaluation.device=cpu"
        )
    model = load_any(folder)
    model.to(config.evaluation.device)
    tokenizer = bpe.load(folder)
    return Judged(
        model=model,
        tokenizer=tokenizer,
        folder=folder,
        eot_id=bpe.end_of_text_id(folder, tokenizer),
        window=min(config.evaluation.window_tokens, model.shape.context),
    )


def select_documents(documents: list[dict[str, Any]], max_bytes: int) -> dict[str, list[dict[str, Any]]]:
    """By language, in id order, documents up to `max_bytes` of UTF-8 text, at least one."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    used: dict[str, int] = {}
    for document in sorted(documents, key=lambda d: d["id"]):
        language, size = document["language"], len(document["text"].encode())
        if language in chosen and used[language] + size > max_bytes:
            used[language] = max_bytes  # no later, shorter document slips in
            continue
        chosen.setdefault(language, []).append(document)
        used[language] = used.get(language, 0) + size
    return dict(sorted(chosen.items()))


def bits_per_byte(
    judged: Judged, texts: list[str], progress: Progress = silent
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """(token ids, nats, UTF-8 bytes) of each text. Call inside `scoring.exact`."""
    tokens = [
        np.array(e.ids, dtype=np.int64)
        for e in judged.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]
    nats = scoring.document_nats(
        judged.model,
        tokens,
        eot_id=judged.eot_id,
        window=judged.window,
        vocab_size=judged.vocab_size,
        progress=progress,
    )
    return tokens, nats, np.array([len(text.encode()) for text in texts])


def score_documents(
    judged: Judged, documents: list[dict[str, Any]], config: Config, progress: Progress = silent
) -> dict[str, ScoredDocuments]:
    """Documents (id, text, language) as `select_documents` chooses them, scored, by language."""
    scored = {}
    with scoring.exact(config.evaluation.threads):
        for language, chosen in select_documents(documents, config.evaluation.max_test_bytes).items():
            texts = [d["text"] for d in chosen]
            tokens, nats, bytes_ = bits_per_byte(judged, texts, progress)
            scored[language] = ScoredDocuments([d["id"] for d in chosen], texts, tokens, bytes_, nats)
    return scored


def judge_base(
    model_folder: Path, documents: list[dict[str, Any]], config: Config, progress: Progress = silent
) -> pa.Table:
    """Items (metric 'nats') of a language model on test documents (id, text, language)."""
    scored = score_documents(open_model(model_folder, config), documents, config, progress)
    return items.table(
        row
        for language, part in scored.items()
        for row in items.document_items("base", language, part.ids, part.nats, part.bytes_)
    )


def judge_instruct(
    model_folder: Path, records: list[dict[str, Any]], config: Config, progress: Progress = silent
) -> pa.Table:
    """Items of a fine-tuned model on the test records among `records` (rows of records.parquet, all splits).

    The labels of a classification and the room for an answer are those of the train records.
    """
    judged = open_model(model_folder, config)
    groups = answers.groups_of(records, config)
    return items.table(
        row
        for group in groups
        for row in answers.grade("instruct", group, answer_group(judged, group, config, progress))
    )


def answer_group(
    judged: Judged, group: answers.Group, config: Config, progress: Progress = silent
) -> list[str]:
    """What the model answers to each test record of one application and language."""
    with scoring.exact(config.evaluation.threads):
        return answers.answer(
            judged.model,
            bpe.load_for_chat(judged.folder),
            group,
            max_row_tokens=config.finetuning.max_row_tokens,
            progress=progress,
        )
