"""What a run learned from and was judged on, as MLflow's datasets; and the figures that a model reached on each of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from components import files
from components.layout import Layout
from components.release import evidence

CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}
JUDGED_ON = {"base": "tokens/test", "instruct": "records/test"}  # where the figures of `eval/…` come from
RECORD_COLUMNS = ("id", "application", "language", "prompt", "answer", "label")


def out_digest(layout: Layout, out: Path) -> str:
    """What DVC calls a published folder: its md5 in dvc.lock; without one, the first 32 digits of its manifest's hash."""
    if layout.dvc_lock.exists():
        path = out.relative_to(layout.root).as_posix()
        for stage in ((files.load_yaml(layout.dvc_lock) or {}).get("stages") or {}).values():
            for known in stage.get("outs") or []:
                if known["path"] == path and known.get("md5"):
                    return str(known["md5"])
    return files.manifest_hash(out)[:32]


def data_digest(layout: Layout) -> str:
    """What DVC calls data/tokens."""
    return out_digest(layout, layout.tokens)


def inputs(kind: str, layout: Layout) -> list[Any]:
    """tokens/train, tokens/validation and tokens/test for `log_inputs`, before them records/… for a model that was fine-tuned; each
    with digest, context, columns and counts. One name a split, or MLflow drops all but one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = (_records(layout) if kind == "instruct" else []) + _tokens(layout)
    return [DatasetInput(
        Dataset(name=name, digest=digest, source_type="code", source=json.dumps({"tags": {"path": path}}),
                schema=json.dumps({"mlflow_colspec": columns}), profile=json.dumps(profile)),
        [InputTag("mlflow.data.context", CONTEXTS[name.rpartition("/")[2]])]) for name, digest, path, columns, profile in known]


Described = tuple[str, str, str, list[dict[str, Any]], dict[str, Any]]  # name, digest, path, columns, profile


def _column(name: str, kind: str) -> dict[str, Any]:
    return {"type": kind, "name": name, "required": True}


def _tokens(layout: Layout) -> list[Described]:
    index = files.read_json(layout.tokens / "index.json")
    digest, path = data_digest(layout), layout.tokens.relative_to(layout.root).as_posix()
    found = []
    for split in CONTEXTS:
        by_language = index["splits"].get(split) or {}
        profile = {f"{what}_{language}": counts[what] for language, counts in sorted(by_language.items()) for what in ("documents", "tokens", "bytes")}
        columns = [_column(f"{split}-{language}.bin: token ids, {index['dtype']}", "integer") for language in sorted(by_language)]
        found.append((f"tokens/{split}", digest, path, columns, {**profile, "vocab_size": index["vocab_size"]}))
    return found


def _records(layout: Layout) -> list[Described]:
    import pyarrow.parquet as pq

    rows = pq.read_table(layout.clean / "records.parquet", columns=["application", "language", "split"]).to_pylist()
    digest, path = out_digest(layout, layout.clean), (layout.clean / "records.parquet").relative_to(layout.root).as_posix()
    columns = [_column(name, "string") for name in RECORD_COLUMNS]
    found = []
    for split in CONTEXTS:
        counts = Counter(f"{row['application']}_{row['language']}" for row in rows if row["split"] == split)
        if counts:
            found.append((f"records/{split}", digest, path, columns, {"records": counts.total(), **dict(sorted(counts.items()))}))
    return found


def measure(client: Any, run_id: str, kind: str, layout: Layout, model_id: str) -> None:
    """The figures of the evaluation into the run and the logged model at once, each with the dataset that it was measured on, so that
    `search_logged_models` orders models by it. Saying it again changes nothing: the points carry the model's own time."""
    from mlflow.entities import LoggedModelOutput, Metric

    model = client.get_logged_model(model_id)
    name = JUDGED_ON[kind]
    digest = data_digest(layout) if name.startswith("tokens/") else out_digest(layout, layout.clean)
    figures = {key: float(value) for key, value in sorted(files.read_json(layout.evaluation / "metrics.json").items())
               if isinstance(value, int | float) and math.isfinite(value) and evidence.belongs(key, kind)}
    told = {(metric.key, metric.dataset_digest) for metric in model.metrics or [] if metric.run_id == run_id}
    if not {(key, digest) for key in figures} <= told:
        client.log_batch(run_id, metrics=[
            Metric(key, value, model.creation_timestamp, 0, model_id=model_id, dataset_name=name, dataset_digest=digest, run_id=run_id)
            for key, value in figures.items()])
    outputs = client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, models=[LoggedModelOutput(model_id, 0)])  # the column Models of the page
