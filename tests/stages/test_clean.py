"""The stage clean: what goes in comes out or is dropped with a reason, twice with the same bytes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import files
from components.config import build
from components.corpus.documents import DOCUMENTS, RECORDS
from components.corpus.normalisation import document_id, normalise
from components.errors import Blocked
from components.layout import Layout
from components.stages import clean

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SPLITS = ("train", "validation", "test")


def document(n: int, text: str, source: str = "a.jsonl", language: str = "zh", **metadata: str) -> dict:
    return {"id": f"{source}#{n:08d}", "text": text, "source": source, "language": language, "metadata": json.dumps(metadata, sort_keys=True)}


def run(root: Path, documents: list[dict], records: list[dict] = (), name: str = "out", **settings):
    """Returns the report and the tables of data/clean as lists of rows."""
    raw, out = root / "data" / "raw", root / name
    raw.mkdir(parents=True, exist_ok=True)
    out.mkdir()
    pq.write_table(pa.Table.from_pylist(documents, schema=DOCUMENTS).sort_by("id"), raw / "documents.parquet")
    pq.write_table(pa.Table.from_pylist(list(records), schema=RECORDS).sort_by("id"), raw / "records.parquet")
    config = build({"validation.min_documents": 3, "validation.min_corpus_bytes": 100} | settings, where="test")
    report = clean.run(config, Layout(root=root, staged={"clean": out}))
    return report, {path.stem: pq.read_table(path).to_pylist() for path in sorted(out.glob("*.parquet"))}


def corpus() -> list[dict]:
    zh = [document(i, f"第{i}回说的是第{i * 7}个故事，讲到第{i * i}章才算完结", kind="story") for i in range(40)]
    en = [document(i, f"Chapter {i} tells the story of house {i * 7} and of its {i * i} rooms", "b.md", "en") for i in range(40)]
    review = "房间很干净，服务员的态度也非常好，早餐种类丰富，离地铁站走路只要五分钟，下次还会选择这里入住"
    return [*zh, *en, document(100, zh[3]["text"].replace("，", "，\u200b") + "  "), document(101, "好"), document(102, "1234567890 5555"),
            document(103, review), document(104, review + "！！"), document(105, "味道好极了，值得再来。", label="pos"),
            document(106, "味道好极了，值得再来。", label="neg"), document(107, "SchÃ¶ne GrÃ¼ÃŸe aus MÃ¼nchen", language="other")]


@pytest.mark.code
def test_A8_counts_add_up_and_every_drop_has_a_reason(tmp_path):
    documents = corpus()
    report, out = run(tmp_path, documents)
    assert report.documents_in == len(documents) == report.documents_out + len(out["dropped"])
    assert report.documents_out == sum(len(out[s]) for s in SPLITS)
    reasons = Counter(r["reason"] for r in out["dropped"])
    near = next(r for r in reasons if r.startswith("near_duplicate"))
    assert reasons == {"exact_duplicate": 1, "too_short": 1, "low_letter_ratio": 1, near: 1, "conflicting_labels": 2}
    assert {k: report.counts[k] for k in reasons} == dict(reasons)
    kept = {r["id"] for s in SPLITS for r in out[s]}
    assert all(r["kept_id"] in kept for r in out["dropped"] if "duplicate" in r["reason"])
    assert [r["row"] for r in out["dropped"] if r["reason"] == "exact_duplicate"] == [100]


@pytest.mark.code
def test_the_tables_keep_the_contract(tmp_path):
    _, out = run(tmp_path, corpus())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "dropped.parquet", "quarantine.parquet", "records.parquet", "test.parquet", "train.parquet", "validation.html", "validation.json",
        "validation.parquet"]
    for split in SPLITS:
        assert out[split] and [r["id"] for r in out[split]] == sorted(r["id"] for r in out[split])
        assert all(r["id"] == document_id(r["text"]) for r in out[split])
        assert pq.read_schema(tmp_path / "out" / f"{split}.parquet").remove_metadata() == DOCUMENTS
    assert pq.read_schema(tmp_path / "out" / "records.parquet").names == [*RECORDS.names, "split"]
    assert any(r["text"] == "Schöne Grüße aus München" for s in SPLITS for r in out[s])


@pytest.mark.code
def test_two_runs_write_the_same_bytes(tmp_path):
    run(tmp_path, corpus(), name="one")
    run(tmp_path, corpus(), name="two")
    assert files.manifest_of(tmp_path / "one") == files.manifest_of(tmp_path / "two")


@pytest.mark.code
def test_growing_the_corpus_moves_no_other_document(tmp_path):
    def grown(n: int) -> dict[str, str]:
        documents = [document(i, f"第{i}回说的是第{i * 7}个故事，讲到第{i * i}章才算完结", f"{i % 7}.txt") for i in range(n)]
        _, out = run(tmp_path, documents, name=str(n))
        return {r["id"]: s for s in SPLITS for r in out[s]}

    before, after = grown(700), grown(1000)
    assert len(before) == 700 and len(after) == 1000 and {k: after[k] for k in before} == before


@pytest.mark.code
def test_records_inherit_the_split_also_through_a_duplicate(tmp_path):
    documents = corpus()
    records = [{"id": f"summarisation:a.jsonl#{i:08d}", "application": "summarisation", "language": "zh", "prompt": f"概括：{d['text']} {i}", "answer": f"故事{i}",
                "label": "", "source": "a.jsonl", "document": d["id"], "metadata": "{}"} for i, d in enumerate(documents)]
    report, out = run(tmp_path, documents, records)
    split_of = {r["id"]: s for s in SPLITS for r in out[s]}
    by_answer = {r["answer"]: r for r in out["records"]}
    assert report.counts["records_in"] == len(records) == len(out["records"])
    for i, d in enumerate(documents[:80]):
        assert by_answer[f"故事{i}"]["split"] == split_of[document_id(d["text"])]
    assert by_answer["故事80"]["split"] == by_answer["故事3"]["split"] and by_answer["故事80"]["document"] == by_answer["故事3"]["document"]
    assert by_answer["故事81"]["document"] == "", "its document was too short"


@pytest.mark.code
@pytest.mark.parametrize("language", ["zh", "en"])
def test_A8_nothing_but_copies_is_blocked_and_the_page_is_kept(tmp_path, language):
    text = "同一句话说了又说，没有一个字不同" if language == "zh" else "the very same sentence over and over again"
    with pytest.raises(Blocked, match="min_documents.*1 documents") as error:
        run(tmp_path, [document(i, text, language=language) for i in range(50)])
    page = tmp_path / ".lmworks" / "blocked" / "clean" / "validation.html"
    assert str(page) in str(error.value) and page.exists()
    assert not (tmp_path / "out" / "train.parquet").exists()


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="development data is not here")
def test_real_reviews_and_articles(tmp_path):
    with open(DATA / "waimai-10k" / "waimai_10k.csv", encoding="utf-8-sig", newline="") as f:
        reviews = list(csv.reader(f))[1:]
    documents = [document(i, text, "waimai.csv", label=label) for i, (label, text) in enumerate(reviews)]
    lines = [line for name in ("valid.txt", "test.txt") for line in (DATA / "wikitext-2" / name).read_text(encoding="utf-8").split("\n") if len(line) > 100]
    documents += [document(i, line, "wiki.txt", "en") for i, line in enumerate(lines)]
    with open(DATA / "dialogsum" / "dialogsum.dev.jsonl", encoding="utf-8") as f:
        dialogues = [json.loads(line) for line in f]
    documents += [document(i, d["dialogue"], "dialogsum.jsonl", "en") for i, d in enumerate(dialogues)]
    records = [{"id": f"summarisation:dialogsum.jsonl#{i:08d}", "application": "summarisation", "language": "en", "prompt": d["dialogue"],
                "answer": d["summary"], "label": "", "source": "dialogsum.jsonl", "document": f"dialogsum.jsonl#{i:08d}", "metadata": "{}"}
               for i, d in enumerate(dialogues)]
    records += [{"id": f"classification:waimai.csv#{i:08d}", "application": "classification", "language": "zh", "prompt": text, "answer": label, "label": label,
                 "source": "waimai.csv", "document": f"waimai.csv#{i:08d}", "metadata": "{}"} for i, (label, text) in enumerate(reviews)]
    report, out = run(tmp_path, documents, records)
    assert report.documents_in == len(documents) == report.documents_out + sum(r["kind"] == "document" for r in out["dropped"])
    assert report.counts["near_duplicate"] > 10 and report.counts["exact_duplicate"] > 0
    prompts = {}
    for r in out["records"]:
        assert prompts.setdefault(normalise(r["prompt"]), r["split"]) == r["split"]
    split_of = {r["id"]: s for s in SPLITS for r in out[s]}
    assert all(split_of[r["document"]] == r["split"] for r in out["records"] if r["document"])
    held_out = Counter((r["language"], s) for s in ("validation", "test") for r in out[s])
    assert min(held_out.values()) >= 20 and len(held_out) == 4
