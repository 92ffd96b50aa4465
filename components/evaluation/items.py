"""Item by item scores: one row a document or record, scorer and metric. What intervals and gates are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

LANGUAGE_MODELLING = "language_modelling"
SCHEMA = pa.schema(
    [
        ("model", pa.string()),  # 'base' or 'instruct', or the name of a baseline
        ("application", pa.string()),  # LANGUAGE_MODELLING or an application
        ("language", pa.string()),
        ("id", pa.string()),  # of the document or record
        ("metric", pa.string()),  # 'nats', 'accuracy', 'exact_match', 'token_f1', …
        ("value", pa.float64()),
        ("weight", pa.float64()),  # UTF-8 bytes of a document; 1 for a record
        ("answer", pa.string()),
        ("expected", pa.string()),
    ]
)
ORDER = ("application", "language", "model", "metric", "id")


def item(
    model: str,
    application: str,
    language: str,
    item_id: str,
    metric: str,
    value: float,
    *,
    weight: float = 1.0,
    answer: str = "",
    expected: str = "",
) -> dict[str, Any]:
    """One row of SCHEMA; the value is rounded to 6 decimals, so that no library's last bit shows."""
    return {
        "model": model,
        "application": application,
        "language": language,
        "id": item_id,
        "metric": metric,
        "value": round(float(value), 6),
        "weight": float(weight),
        "answer": answer,
        "expected": expected,
    }


def document_items(
    model: str, language: str, ids: list[str], nats: np.ndarray, bytes_: np.ndarray
) -> list[dict[str, Any]]:
    """The nats of every document, its bytes as weight."""
    return [
        item(model, LANGUAGE_MODELLING, language, i, "nats", n, weight=b)
        for i, n, b in zip(ids, nats, bytes_, strict=True)
    ]


def table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows in one order, whoever made them."""
    return pa.Table.from_pylist(
        sorted(rows, key=lambda row: tuple(row[name] for name in ORDER)), schema=SCHEMA
    )
