"""A model's answers and samples as tables that MLflow's page lays side by side with another model's, row by row.

Every table has the same columns in every run, base or instruct. Written as `log_table` writes them, and without it: that
would append to what an earlier release left, and warns about text columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components import files
from components.config import Config
from components.layout import Layout

ANSWERS, SAMPLES = "tables/answers.json", "tables/samples.json"
# the page groups rows by the first column and lays the second of each run side by side, before anybody has chosen anything
ANSWER_COLUMNS = ("prompt", "answer", "expected", "correct", "score", "metric", "application", "language", "id")
SAMPLE_COLUMNS = ("sample", "text", "language", "prompt", "temperature", "seed")
LOGGED = "mlflow.loggedArtifacts"  # the tag by which the page knows which artifacts are tables
MAX_ROWS = 200
MAX_CELL_CHARS = 1000
OPENING_CHARS = 200
WHOLE_MATCH = ("accuracy", "exact_match")  # item metrics that say whether an answer is right


def write(folder: Path, kind: str, config: Config, layout: Layout) -> None:
    """Both tables into `folder`, where the artifacts of a run are gathered."""
    (folder / ANSWERS).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / ANSWERS, as_table(ANSWER_COLUMNS, graded(kind, layout)))
    files.write_json(folder / SAMPLES, as_table(SAMPLE_COLUMNS, samples(kind, config, layout)))


def logged_tag(before: str | None) -> str:
    """The value of the tag LOGGED with our tables in it; what others logged stays."""
    known = json.loads(before or "[]")
    return json.dumps(known + [entry for path in (ANSWERS, SAMPLES) if (entry := {"path": path, "type": "table"}) not in known])


def as_table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """pandas' `split` form, which MLflow's page reads."""
    return {"columns": list(columns), "data": [[_cell(row[name]) for name in columns] for row in rows]}


def _cell(value: Any) -> Any:
    return value[:MAX_CELL_CHARS] + "…" if isinstance(value, str) and len(value) > MAX_CELL_CHARS else value


def graded(kind: str, layout: Layout, limit: int = MAX_ROWS) -> list[dict[str, Any]]:
    """What the model answered and what each answer is worth: ANSWER_COLUMNS of at most `limit` items, as many of each application
    and language as of every other, the first by id (ids are hashes: a fair sample, and the same for every model).

    A base answers nothing; its items are the test documents, by bits per byte (lower is better).
    """
    by_id: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in _items(kind, layout):
        by_id.setdefault((row["application"], row["language"], row["id"]), {})[row["metric"]] = row
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    make = _document(layout) if kind == "base" else _record(layout)
    for (application, language, item_id), metrics in sorted(by_id.items()):
        groups.setdefault((application, language), []).append(
            {"id": item_id, "application": application, "language": language, **make(application, item_id, metrics)})
    share = max(limit // max(len(groups), 1), 1)
    return [row for rows in groups.values() for row in rows[:share]]


def _items(kind: str, layout: Layout) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(layout.evaluation / "items.parquet", filters=[("model", "=", kind)]).to_pylist()


def _document(layout: Layout) -> Callable[[str, str, dict[str, Any]], dict[str, Any]]:
    import pyarrow.parquet as pq

    texts = {row["id"]: row["text"] for row in pq.read_table(layout.clean / "test.parquet", columns=["id", "text"]).to_pylist()}

    def make(_application: str, item_id: str, metrics: dict[str, Any]) -> dict[str, Any]:
        nats = metrics["nats"]
        bits = round(nats["value"] / max(nats["weight"], 1) / math.log(2), 6)
        return {"prompt": texts.get(item_id, "")[:OPENING_CHARS], "expected": "", "answer": f"{bits:.3f} bits per byte", "metric": "bits_per_byte",
                "score": bits, "correct": ""}

    return make


def _record(layout: Layout) -> Callable[[str, str, dict[str, Any]], dict[str, Any]]:
    import pyarrow.parquet as pq

    from components.applications.catalogue import APPLICATIONS

    prompts = {(row["application"], row["id"]): row["prompt"]
               for row in pq.read_table(layout.clean / "records.parquet", columns=["application", "id", "prompt"]).to_pylist()}

    def make(application: str, item_id: str, metrics: dict[str, Any]) -> dict[str, Any]:
        headline = APPLICATIONS[application].metric if application in APPLICATIONS else ""
        metric = headline if headline in metrics else min(metrics)  # of a classification each item has its accuracy alone
        row = metrics[metric]
        right = next((metrics[name]["value"] == 1 for name in WHOLE_MATCH if name in metrics), None)
        return {"prompt": prompts.get((application, item_id), ""), "expected": row["expected"], "answer": row["answer"], "metric": metric,
                "score": row["value"], "correct": "" if right is None else "yes" if right else "no"}

    return make


def samples(kind: str, config: Config, layout: Layout) -> list[dict[str, Any]]:
    """SAMPLE_COLUMNS: how a base goes on with the openings of test documents, or what an instruct model answers to a few records."""
    told = files.read_json(layout.evaluation / "samples.json")
    greedy = [{"language": row["language"], "prompt": row["prompt"], "temperature": 0.0, "text": row["answer"]} for row in told["answers"]]
    rows = told["continuations"] if kind == "base" else greedy
    # one prompt is asked at several temperatures, so that alone it names no row
    return [{**row, "seed": config.seed, "sample": f"{row['prompt']} (temperature {row['temperature']:g})"} for row in rows]
