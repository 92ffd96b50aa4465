"""A checkout as it is after the chain, made by hand: two tiny random models, their data and a real evaluation of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tiny_models

from components import config as settings
from components import files
from components.config import Config
from components.layout import Layout
from components.release import champion

DOCUMENTS = [("en", "To be, or not to be, that is the question, said he."), ("en", "numpy.clip limits the values of an array to bounds."),
             ("zh", "房间很干净，服务员很热情，下次还会来。"), ("zh", "这个酒店的早餐不好吃，价格也贵。")]
RECORDS = [("房间很干净。", "正面", "pos"), ("早餐不好吃。", "负面", "neg"), ("服务员很热情。", "正面", "pos"), ("价格也贵。", "负面", "neg")]


def configuration(**overrides: Any) -> Config:
    flat = {"name": "demo", "preset": "smoke", "model.context": 64, "training.row_tokens": 32, "finetuning.max_row_tokens": 48,
            "finetuning.applications": ["classification"], "evaluation.bootstrap_samples": 100, "evaluation.threads": 1,
            "evaluation.window_tokens": 32, "training.steps": 40, "gates.base": ["finite_loss", "verified_manifest", "below_unigram", "not_worse_than_champion"]}
    return settings.build(flat | overrides, where="test")


def write_clean(folder: Path) -> None:
    documents = [{"id": f"{n:016x}", "text": text, "source": "t", "language": language, "metadata": "{}"}
                 for n, (language, text) in enumerate(DOCUMENTS * 3)]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(documents), folder / "test.parquet")
    records = [{"id": f"{n:016x}", "application": "classification", "language": "zh", "prompt": prompt, "answer": answer, "label": label,
                "source": "t", "document": "", "metadata": "{}", "split": split}
               for n, (split, (prompt, answer, label)) in enumerate((s, r) for s in ("train", "test") for r in RECORDS)]
    pq.write_table(pa.Table.from_pylist(records), folder / "records.parquet")
    files.write_manifest(folder)


def write_tokens(folder: Path) -> None:
    folder.mkdir(parents=True)
    counts = {"documents": 12, "tokens": 300, "bytes": 900, "sha256": "0" * 64}
    files.write_json(folder / "index.json", {"dtype": "uint16", "vocab_size": 390, "eot_id": 0, "splits": {
        split: {"en": counts, "zh": counts} for split in ("train", "validation", "test")}})
    files.write_manifest(folder)


def write_model(out: Path, *, seed: int, scale: float = 1.0, context: int = 64) -> None:
    """A published model; `scale` multiplies its embeddings: 30 gives one that is confident and wrong."""
    shutil.rmtree(out, ignore_errors=True)
    tiny_models.make_model(out / "model", seed=seed, scale=scale, context=context)
    files.write_json(out / "metrics.json", {"train/loss": 3.5, "val/loss": 3.6, "steps": 40})
    files.write_json(out / "training.json", {"parameters": 30_000, "imported": False, "threads": 1})
    files.write_manifest(out)


def evaluate(layout: Layout, config: Config, *, unigram_above: float = 1.0, majority_f1: float = 0.0) -> None:
    """Judge both models for real; baselines are set beside them."""
    from types import SimpleNamespace

    out = layout.evaluation
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tables = [champion.judge(folder / "model", SimpleNamespace(kind=kind), config, layout)
              for kind, folder in (("base", layout.pretrained), ("instruct", layout.finetuned))]
    pq.write_table(pa.concat_tables(tables), out / "items.parquet")
    modelling = {}
    for code in ("en", "zh"):
        rows = [row for row in tables[0].to_pylist() if row["language"] == code]
        value = sum(row["value"] for row in rows) / sum(row["weight"] for row in rows) / 0.6931471805599453
        modelling[code] = {"documents": len(rows), "model": {"bits_per_byte": {"value": value, "low": value - .1, "high": value + .1}},
                           "baselines": {"unigram": {"bits_per_byte": {"value": value + unigram_above}},
                                         "xz": {"bits_per_byte": {"value": value + unigram_above}}}}
    scores = {"f1": {"value": .4, "low": .3, "high": .5}, "accuracy": {"value": .5, "low": .4, "high": .6}}
    applications = {"classification": {"zh": {"records": 4, "training_records": 4, "headline": "f1", "model": scores, "baselines": {
        "majority": {"f1": {"value": majority_f1, "low": majority_f1, "high": majority_f1}}}}}}
    models = {kind: {"weights_sha256": files.weights_sha256(folder / "model")} for kind, folder in (("base", layout.pretrained), ("instruct", layout.finetuned))}
    files.write_json(out / "evaluation.json", {"models": models, "language_modelling": modelling, "applications": applications})
    files.write_json(out / "metrics.json", {"eval/bits_per_byte_zh": modelling["zh"]["model"]["bits_per_byte"]["value"], "eval/f1_classification_zh": .4})
    files.write_json(out / "samples.json", {
        "continuations": [{"language": "zh", "document": "0", "prompt": "房间", "temperature": 0.7, "text": "很干净。"}],
        "answers": [{"application": "classification", "language": "zh", "id": "4", "prompt": "价格也贵。", "metric": "accuracy", "expected": "neg",
                     "answer": "pos", "value": 0.0}]})
    files.write_atomic(out / "report.html", "<!doctype html><title>report</title>")
    files.write_manifest(out)


def make(root: Path, config: Config, *, seed: int = 1, scale: float = 1.0, **evaluation: float) -> Layout:
    layout = Layout(root=root)
    write_clean(layout.clean)
    write_tokens(layout.tokens)
    files.write_atomic(layout.params, settings.render(config))
    retrain(layout, config, seed=seed, scale=scale, **evaluation)
    return layout


def retrain(layout: Layout, config: Config, *, seed: int, scale: float = 1.0, context: int = 64, **evaluation: float) -> None:
    write_model(layout.pretrained, seed=seed, scale=scale, context=context)
    write_model(layout.finetuned, seed=seed + 100)
    evaluate(layout, config, **evaluation)
