"""evaluate: what the models are worth on the test split, beside baselines, item by item, and as a page."""

from __future__ import annotations

import contextlib
import csv
from io import StringIO
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components import files
from components.config import Config
from components.corpus import shards
from components.errors import UserError
from components.evaluation import answers, baselines, continuations, items, judging, ngram, report, summary
from components.layout import Layout
from components.reporting import Progress, Report, say

ANSWERS_SHOWN = 5  # a group


def run(config: Config, layout: Layout) -> Report:
    documents = pq.ParquetFile(layout.clean / "test.parquet").read(columns=["id", "text", "language"]).to_pylist()
    if not documents:
        raise UserError(
            f"{layout.clean / 'test.parquet'} has no document, so nothing can be measured. Give more text, or raise splits.test_share"
        )
    rows: list[dict[str, Any]] = []
    base, language_modelling, continued, notes = _language_modelling(config, layout, documents, rows)
    applications, shown = _applications(config, layout, rows)
    evaluation = {
        "models": {
            "base": base,
            "instruct": {"weights_sha256": files.weights_sha256(layout.finetuned / "model")},
        },
        "settings": {**config.evaluation.model_dump(mode="json"), "seed": config.seed},
        "language_modelling": language_modelling,
        "applications": applications,
        "definitions": summary.definitions(config),
    }
    samples = {"continuations": continued, "answers": shown}
    flat = summary.flat(evaluation)
    table = items.table(rows)
    files.write_json(layout.evaluation / "evaluation.json", evaluation)
    files.write_json(layout.evaluation / "samples.json", samples)
    files.write_json(layout.evaluation / "metrics.json", flat)
    pq.write_table(table, layout.evaluation / "items.parquet", compression="zstd")
    _write_plots(layout, evaluation)
    curve = _curve(layout)
    files.write_atomic(
        layout.evaluation / "report.html", report.render(config.name, evaluation, samples, curve)
    )
    counts = {
        f"{application}_{code}_records": part["records"]
        for application, by_language in applications.items()
        for code, part in by_language.items()
    }
    return Report(
        documents_in=len(documents),
        documents_out=sum(part["documents"] for part in language_modelling.values()),
        tokens=sum(part["tokens"] for part in language_modelling.values()),
        counts=counts,
        notes=notes,
    )


# --- language modelling ----------------------------------------------------------------------------


def _language_modelling(
    config: Config, layout: Layout, documents: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], list[str]]:
    """(the base model, figures by language, samples, notes); items are appended to `rows`."""
    folder = layout.pretrained / "model"
    judged = judging.open_model(folder, config)
    with contextlib.ExitStack() as bars:
        scored = judging.score_documents(judged, documents, config, _following(bars, "documents"))
    training = _training(layout)
    found, notes = {}, []
    for language, part in scored.items():
        nats, tokens = _baselines(config, layout, language, part, training.get("tokens_read"))
        found[language] = summary.language(part, nats, tokens, config)
        for name, values in {"base": part.nats, **nats}.items():
            rows += items.document_items(name, language, part.ids, values, part.bytes_)
        bits = {
            name: figures["bits_per_byte"]["value"]
            for name, figures in {"model": found[language]["model"], **found[language]["baselines"]}.items()
        }
        notes.append(
            f"{language}: {bits.pop('model'):.3f} bits per byte; "
            + ", ".join(f"{summary.SCORERS[name]} {value:.3f}" for name, value in bits.items())
        )
        say(f"evaluate: {notes[-1]}")
    base = {
        "imported": bool(training.get("imported")),
        "parameters": sum(p.numel() for p in judged.model.parameters()),
        "tokens_seen": training.get("tokens_read"),
        "window_tokens": judged.window,
        "weights_sha256": files.weights_sha256(folder),
    }
    return base, found, continuations.sample(config, judged, scored), notes


def _following(bars: contextlib.ExitStack, what: str) -> judging.Progress:
    """Progress of work whose size shows only when it starts: a bar for each total."""
    shown: list[Progress] = []

    def advance(done: int, total: int) -> None:
        if not shown or shown[-1].total != total:
            shown.append(bars.enter_context(Progress("evaluate", total)))
        shown[-1].update(done, what)

    return advance


def _training(layout: Layout) -> dict[str, Any]:
    """What pretraining says of itself; `tokens_read` is absent where the base was imported."""
    facts: dict[str, Any] = {}
    for name in ("metrics.json", "training.json"):
        if (layout.pretrained / name).is_file():
            facts |= files.read_json(layout.pretrained / name)
    if facts.get("imported"):
        facts.pop("tokens_read", None)
    return facts


def _documents(layout: Layout, split: str, language: str) -> list[np.ndarray]:
    """Token ids of each document of a shard, its `<|endoftext|>` left off; none if there is no such shard."""
    if language not in shards.languages(layout.tokens, split):
        return []
    tokens, offsets = shards.open_split(layout.tokens, split, language, layout.tokenizer)
    return [np.asarray(tokens[start : end - 1]) for start, end in zip(offsets[:-1], offsets[1:], strict=True)]


def _baselines(
    config: Config, layout: Layout, language: str, part: judging.ScoredDocuments, tokens_seen: int | None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Nats of each document by baseline, and how many tokens each learned from."""
    index = shards.read_index(layout.tokens)
    training = _documents(layout, "train", language)
    held_out = _documents(layout, "validation", language)
    available = sum(map(len, training)) + len(training)
    nats = {"unigram": baselines.unigram_nats(training, part.tokens, index["vocab_size"])}
    tokens = {"unigram": available}

    def kneser_ney(limit: int) -> np.ndarray:
        model = ngram.train(
            ngram.take_tokens(training, limit),
            order=config.evaluation.ngram_order,
            vocab_size=index["vocab_size"],
            eot_id=index["eot_id"],
        )
        return ngram.document_nats(ngram.tune(model, held_out), part.tokens)

    tokens["kneser_ney"] = min(available, config.evaluation.ngram_max_tokens)
    nats["kneser_ney"] = kneser_ney(tokens["kneser_ney"])
    if tokens_seen:
        whole = sum(entry["tokens"] for entry in index["splits"]["train"].values())
        # shared out by language as the training text is; more than one pass sees nothing new
        tokens["kneser_ney_seen"] = min(tokens["kneser_ney"], round(tokens_seen * available / whole))
        same = tokens["kneser_ney_seen"] == tokens["kneser_ney"]
        nats["kneser_ney_seen"] = nats["kneser_ney"] if same else kneser_ney(tokens["kneser_ney_seen"])
    return nats, tokens


# --- applications ----------------------------------------------------------------------------------


def _applications(
    config: Config, layout: Layout, rows: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(figures by application and language, answers to show); items are appended to `rows`."""
    records = pq.ParquetFile(layout.clean / "records.parquet").read().to_pylist()
    groups = answers.groups_of(records, config)
    found: dict[str, Any] = {}
    shown: list[dict[str, Any]] = []
    judged = judging.open_model(layout.finetuned / "model", config) if groups else None
    for group in groups:
        with contextlib.ExitStack() as bars:
            said = judging.answer_group(
                judged,
                group,
                config,
                _following(bars, f"{group.application.replace('_', ' ')} {group.language}"),
            )
        others = answers.baseline_answers(group)
        graded = {
            "model": answers.grade("instruct", group, said),
            **{n: answers.grade(n, group, a) for n, a in others.items()},
        }
        for part in graded.values():
            rows += part
        found.setdefault(group.application, {})[group.language] = summary.application(
            group, said, others, graded, config
        )
        shown += _shown(group, graded["model"])
    return found, shown


def _shown(group: answers.Group, graded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = {row["id"]: row for row in graded if row["metric"] == group.metrics[0]}
    return [
        {
            "application": group.application,
            "language": group.language,
            "id": record["id"],
            "prompt": record["prompt"],
            "metric": group.metrics[0],
            **{k: values[record["id"]][k] for k in ("expected", "answer", "value")},
        }
        for record in group.test[:ANSWERS_SHOWN]
    ]


# --- files -----------------------------------------------------------------------------------------


def _curve(layout: Layout) -> list[dict[str, str]]:
    path = layout.pretrained / "curve.csv"
    return list(csv.DictReader(StringIO(path.read_text(encoding="utf-8")))) if path.is_file() else []


def _write_plots(layout: Layout, evaluation: dict[str, Any]) -> None:
    """The numbers behind the pictures, for `dvc plots` and other tools."""
    rows = [
        (
            code,
            name,
            scores["bits_per_byte"]["value"],
            scores["bits_per_byte"].get("low", ""),
            scores["bits_per_byte"].get("high", ""),
        )
        for code, part in evaluation["language_modelling"].items()
        for name, scores in {"model": part["model"], **part["baselines"]}.items()
    ]
    _write_csv(layout, "bits_per_byte.csv", ("language", "scorer", "bits_per_byte", "low", "high"), rows)
    for code, part in evaluation["applications"].get(answers.CLASSIFICATION, {}).items():
        _write_csv(
            layout,
            f"confusion_{code}.csv",
            ("expected", "answered", "records"),
            [
                (e, a, n)
                for e, counts in zip(part["labels"], part["confusion"], strict=True)
                for a, n in zip(part["labels"], counts, strict=True)
            ],
        )


def _cell(value: Any) -> Any:
    """A label of the user's as a spreadsheet shows it: one that begins like a formula is no formula (J12)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_csv(layout: Layout, name: str, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *([_cell(value) for value in row] for row in rows)])
    files.write_atomic(layout.evaluation / "plots" / name, text.getvalue())
