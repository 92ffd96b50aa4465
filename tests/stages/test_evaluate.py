"""The stage evaluate on a tiny bilingual corpus with random models: its outs agree with each other and repeat."""

import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from page_reading import Page

from components import files
from components.config import Config
from components.corpus import shards as token_shards
from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.evaluation import judging
from components.layout import Layout
from components.stages import evaluate
from components.training import model as models
from components.training.gpt import Shape, create
from components.training.results import copy_tokenizer

pytestmark = pytest.mark.code

CONFIG = Config.model_validate({
    "name": "tiny-test", "finetuning": {"applications": ["classification", "question_answering", "translation"], "max_row_tokens": 64},
    "evaluation": {"max_test_bytes": 1500, "max_records": 8, "window_tokens": 32, "bootstrap_samples": 100, "sample_tokens": 6, "threads": 1},
})
TEXTS = {"zh": "第{}本<b>书</b>写得很好，作者的文字非常流畅，值得每一位读者仔细阅读，推荐给大家。", "en": "Scene {}: enter the king & his men, who speak of war <i>and</i> of the long winter."}
SPLITS = {"train": 40, "validation": 6, "test": 12}
METRIC_KEYS = {f"eval/{name}_{code}" for code in TEXTS for name in (
    "bits_per_byte", "perplexity", "unigram_bits_per_byte", "kneser_ney_bits_per_byte", "kneser_ney_seen_bits_per_byte", "xz_bits_per_byte")}


def records() -> list[dict[str, str]]:
    rows = []
    for split, count in (("train", 12), ("test", 6)):
        for i in range(count):
            good = i % 2 == 0
            common = {"source": "x", "document": "", "metadata": "{}", "split": split}
            rows.append({**common, "application": "classification", "language": "zh", "prompt": f"评论：{'很好' if good else '太差'} {split} {i}",
                         "answer": "正面" if good else "负面", "label": "正面" if good else "负面"})
            rows.append({**common, "application": "question_answering", "language": "en", "prompt": f"What is the default of {split} `x{i}`?",
                         "answer": "None" if good else f"{i}.0", "label": ""})
            rows.append({**common, "application": "translation", "language": "zh", "prompt": f"译成中文：book {split} {i}", "answer": f"书 {i}", "label": ""})
    return [{"id": f"{i:016x}", **row} for i, row in enumerate(rows)]


def write_shards(layout: Layout, documents: dict[str, list[dict]]) -> None:
    tokenizer = bpe.load(layout.tokenizer)
    vocab_size, eot_id = bpe.vocab_size(tokenizer), bpe.end_of_text_id(layout.tokenizer, tokenizer)
    index = {"dtype": "uint16", "vocab_size": vocab_size, "eot_id": eot_id, "tokenizer_sha256": bpe.sha256(layout.tokenizer), "splits": {}}
    for split, rows in documents.items():
        index["splits"][split] = {}
        for language in TEXTS:
            texts = [row["text"] for row in rows if row["language"] == language]
            index["splits"][split][language], _ = token_shards.write_shard(layout.tokens, f"{split}-{language}", texts, tokenizer, eot_id, vocab_size)
    files.write_json(layout.tokens / "index.json", index)


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    root = tmp_path_factory.mktemp("evaluate")
    layout = Layout(root=root)
    for name in ("clean", "tokenizer", "tokens", "pretrained/model", "finetuned/model", "evaluation"):
        layout.out(name).mkdir(parents=True)
    documents = {split: [{"id": f"{split}{i:03d}", "text": (TEXTS[language] + " ").format(i) * (1 + i % 3), "language": language}
                         for i in range(count) for language in TEXTS] for split, count in SPLITS.items()}
    for split, rows in documents.items():
        pq.write_table(pa.Table.from_pylist(rows), layout.clean / f"{split}.parquet")
    pq.write_table(pa.Table.from_pylist(records()), layout.clean / "records.parquet")
    bpe.write(bpe.train([row["text"] for row in documents["train"]], 400), layout.tokenizer)
    write_shards(layout, documents)
    vocab_size = files.read_json(layout.tokens / "index.json")["vocab_size"]
    for folder, seed in ((layout.pretrained, 1), (layout.finetuned, 2)):
        shape = Shape(architecture="llama", vocab_size=vocab_size, n_layer=1, n_head=2, n_embd=16, n_hidden=32, context=64, tied=True)
        models.export(create(shape, seed), folder / "model")
        copy_tokenizer(layout.tokenizer, folder / "model", 64)
    files.write_json(layout.pretrained / "training.json", {"imported": False, "tokens_read": 900})
    (layout.pretrained / "curve.csv").write_text("step,train/loss,val/loss\n0,6.0,\n10,5.0,5.1\n20,4.5,4.8\n")
    return layout


@pytest.fixture(scope="module")
def report(layout: Layout):
    return evaluate.run(CONFIG, layout)


def read(layout: Layout, name: str):
    return files.read_json(layout.evaluation / name)


def test_two_runs_write_the_same_bytes(layout, report, tmp_path):
    again = Layout(root=layout.root, staged={"evaluation": tmp_path})
    evaluate.run(CONFIG, again)
    assert files.list_files(tmp_path) == files.list_files(layout.evaluation)
    for name in files.list_files(tmp_path):
        assert (tmp_path / name).read_bytes() == (layout.evaluation / name).read_bytes(), name


def test_figures_are_sums_of_the_items(layout, report):
    evaluation = read(layout, "evaluation.json")
    items = pq.read_table(layout.evaluation / "items.parquet").to_pylist()
    for code, part in evaluation["language_modelling"].items():
        for scorer, name in (("model", "base"), ("unigram", "unigram"), ("kneser_ney", "kneser_ney"), ("kneser_ney_seen", "kneser_ney_seen")):
            mine = [row for row in items if (row["model"], row["language"], row["metric"]) == (name, code, "nats")]
            bits = sum(r["value"] for r in mine) / math.log(2) / sum(r["weight"] for r in mine)
            figure = part["model"] if scorer == "model" else part["baselines"][scorer]
            assert figure["bits_per_byte"]["value"] == pytest.approx(bits, abs=1e-5)
            assert sum(r["weight"] for r in mine) == part["bytes"] <= CONFIG.evaluation.max_test_bytes
    right = [r["value"] for r in items if r["model"] == "instruct" and r["metric"] == "accuracy"]
    assert evaluation["applications"]["classification"]["zh"]["model"]["accuracy"]["value"] == pytest.approx(np.mean(right))


def test_the_ids_scored_are_those_of_the_shards(layout, report):
    judged = judging.open_model(layout.pretrained / "model", CONFIG)
    documents = pq.read_table(layout.clean / "test.parquet").to_pylist()
    scored = judging.score_documents(judged, documents, CONFIG)
    for language, part in scored.items():
        tokens, offsets = token_shards.open_split(layout.tokens, "test", language, layout.tokenizer)
        for i, ids in enumerate(part.tokens):
            assert tokens[offsets[i]:offsets[i + 1] - 1].tolist() == ids.tolist()


def test_judging_a_folder_again_gives_the_items_of_the_stage(layout, report):
    items = pq.read_table(layout.evaluation / "items.parquet")
    base = judging.judge_base(layout.pretrained / "model", pq.read_table(layout.clean / "test.parquet").to_pylist(), CONFIG)
    instruct = judging.judge_instruct(layout.finetuned / "model", pq.read_table(layout.clean / "records.parquet").to_pylist(), CONFIG)
    for table, name in ((base, "base"), (instruct, "instruct")):
        assert table.to_pylist() == [row for row in items.to_pylist() if row["model"] == name]


def test_the_random_model_loses_to_kneser_ney_and_majority_is_right_half_the_time(layout, report):
    evaluation = read(layout, "evaluation.json")
    for part in evaluation["language_modelling"].values():
        assert part["baselines"]["kneser_ney"]["bits_per_byte"]["value"] < part["baselines"]["unigram"]["bits_per_byte"]["value"]
        assert part["baselines"]["kneser_ney"]["model_minus_baseline"]["low"] > 0
        assert part["baselines"]["kneser_ney_seen"]["training_tokens"] < part["baselines"]["kneser_ney"]["training_tokens"]
    sentiment = evaluation["applications"]["classification"]["zh"]
    assert sentiment["baselines"]["majority"]["accuracy"]["value"] == 0.5
    assert sentiment["baselines"]["tfidf_logistic_regression"]["f1"]["value"] == 1.0
    assert sum(map(sum, sentiment["confusion"])) == sentiment["records"] == 6


def test_metrics_are_flat_few_and_named_as_agreed(layout, report):
    metrics = read(layout, "metrics.json")
    assert metrics.keys() >= METRIC_KEYS | {
        "eval/accuracy_classification_zh", "eval/f1_classification_zh", "eval/majority_f1_classification_zh", "eval/tfidf_f1_classification_zh",
        "eval/exact_match_question_answering_en", "eval/token_f1_question_answering_en", "eval/nearest_token_f1_question_answering_en",
        "eval/chrf_translation_zh"}
    assert len(metrics) <= 40 and all(isinstance(v, float) and math.isfinite(v) for v in metrics.values())


def test_samples_show_both_languages_and_every_application(layout, report):
    samples = read(layout, "samples.json")
    assert {(s["language"], s["temperature"]) for s in samples["continuations"]} == {(c, t) for c in TEXTS for t in (0.0, 0.7, 1.0)}
    assert {s["application"] for s in samples["answers"]} == set(CONFIG.finetuning.applications)


def test_J12_the_page_is_offline_escaped_and_shows_chinese(layout, report):
    page = (layout.evaluation / "report.html").read_text(encoding="utf-8")
    shown = Page(page)
    shown.check()
    assert "i" not in {tag for tag, _ in shown.tags}
    assert not re.search(r"@import|url\(", page)
    assert "正面" in page and "Chinese" in page and page.count("<svg") == 3
    assert "&lt;b&gt;" in page and "<b>书" not in page
    assert str(layout.root) not in page


def test_the_report_counts_and_says_the_figures(report):
    assert report.documents_in == 24 and report.documents_out <= 24
    assert report.counts == {"classification_zh_records": 6, "question_answering_en_records": 6, "translation_zh_records": 6}
    assert [note[:2] for note in report.notes] == ["en", "zh"]


def test_an_imported_base_has_no_text_seen_and_no_curve(layout, tmp_path):
    staged = {"evaluation": tmp_path / "evaluation", "pretrained": tmp_path / "pretrained"}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "model").symlink_to(layout.pretrained / "model")
    files.write_json(tmp_path / "pretrained" / "training.json", {"imported": True})
    (tmp_path / "pretrained" / "curve.csv").write_text("step,train/loss\n")
    imported = Layout(root=layout.root, staged=staged)
    evaluate.run(CONFIG, imported)
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["models"]["base"]["imported"] and "kneser_ney_seen" not in evaluation["language_modelling"]["zh"]["baselines"]
    assert "Pretraining loss" not in (tmp_path / "evaluation" / "report.html").read_text()


def test_A20_no_test_document_is_one_clear_error_and_nothing_is_written(layout, tmp_path):
    empty = Layout(root=layout.root, staged={"evaluation": tmp_path / "out", "clean": tmp_path})
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ("id", "text", "language")}), tmp_path / "test.parquet")
    with pytest.raises(UserError, match="no document"):
        evaluate.run(CONFIG, empty)
    assert not (tmp_path / "out").exists()


def test_selection_is_by_id_bounded_and_never_empty():
    documents = [{"id": f"{i}", "text": "x" * 40, "language": "en"} for i in range(9)] + [{"id": "z", "text": "好" * 99, "language": "zh"}]
    chosen = judging.select_documents(documents[::-1], 100)
    assert [d["id"] for d in chosen["en"]] == ["0", "1"]
    assert len(chosen["zh"]) == 1  # the one document of a language stays though it is longer than the bound
