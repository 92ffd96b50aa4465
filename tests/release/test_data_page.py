"""The data report: every number is that of the published tables, and the page works wherever it is opened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from page_reading import Page

from components import files
from components.corpus.documents import DOCUMENTS, QUARANTINE
from components.errors import Damaged
from components.layout import Layout
from components.release import data_page, data_profile
from components.stages.clean import DROPPED

pytestmark = pytest.mark.code

ZH, EN = "评论/<b>好</b>.jsonl", "play.md"
SENTENCE = "今天第{}次来这家店，味道不错，下次还会再来"


def suite(out: str, what: str, rows: int, kept: int, *results: dict) -> dict:
    fine = {"name": f"{out}_fine", "sentence": "All is well.", "severity": "block", "state": "passed", "success": True, "blocks": False,
            "checked": rows, "at_fault": 0, "detail": "", "advice": "", "examples": []}
    return {"suite": out, "what": what, "success": True, "rows": rows, "rows_kept": kept, "results": [fine, *results]}


def write(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def documents(source: str, language: str, numbers: range, text: str) -> list[dict]:
    return [{"id": f"{source}#{n:08d}", "text": text.format(n), "source": source, "language": language, "metadata": "{}"} for n in numbers]


def write_tables(layout: Layout) -> None:
    """30 Chinese and 10 English documents read, 2 of them set aside, 5 dropped; 1 application record at fault."""
    raw = [*documents(ZH, "zh", range(1, 29), SENTENCE), *documents(EN, "en", range(1, 11), "Scene {}: enter the king")]
    write(layout.raw / "documents.parquet", raw, DOCUMENTS)
    fault = {"source": ZH, "row": 29, "expectation": "text_not_blank", "detail": "blank", "text": " "}
    write(layout.raw / "quarantine.parquet", [fault, fault | {"row": 30}, fault | {"source": "records.jsonl", "expectation": "line_is_valid_json"}], QUARANTINE)
    dropped = [{"source": ZH, "row": n, "reason": "exact_duplicate", "kept_id": "0" * 16, "kind": "document"} for n in (26, 27, 28)]
    dropped += [{"source": ZH, "row": 25, "reason": "near_duplicate", "kept_id": f"{1:016x}", "kind": "document"},
                {"source": EN, "row": 10, "reason": "near_duplicate_of_test", "kept_id": f"{90:016x}", "kind": "document"},
                {"source": "records.jsonl", "row": 3, "reason": "conflicting_labels", "kept_id": "", "kind": "record"}]
    write(layout.clean / "dropped.parquet", dropped, DROPPED)
    kept = [*((f"{n:016x}", d) for n, d in enumerate(raw[:24])), *((f"{90 + n:016x}", d) for n, d in enumerate(raw[28:37]))]
    splits = {"train": kept[:20] + kept[25:31], "validation": kept[20:22] + kept[31:], "test": kept[22:25]}
    index: dict = {"splits": {}}
    for split, rows in splits.items():
        write(layout.clean / f"{split}.parquet", [d | {"id": key} for key, d in rows], DOCUMENTS)
        for code in ("en", "zh"):
            lengths = [10 + 5 * n for n, (_, d) in enumerate(rows) if d["language"] == code]
            layout.tokens.mkdir(parents=True, exist_ok=True)
            np.save(layout.tokens / f"{split}-{code}.offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"), allow_pickle=False)
            index["splits"].setdefault(split, {})[code] = {"documents": len(lengths), "tokens": sum(lengths), "bytes": 3 * sum(lengths), "sha256": "0" * 64}
    files.write_json(layout.tokens / "index.json", index)


@pytest.fixture
def layout(tmp_path):
    layout = Layout(root=tmp_path)
    write_tables(layout)
    aside = {"name": "text_not_blank", "sentence": "Every text holds more than white space.", "severity": "quarantine", "state": "failed", "success": False,
             "blocks": False, "checked": 40, "at_fault": 2, "detail": "", "advice": "Mend the rows",
             "examples": [{"source": ZH, "row": 29, "detail": "blank", "text": "<script>alert(1)</script>"}]}
    files.write_json(layout.raw / "validation.json", suite("raw", "raw documents", 40, 38, aside))
    files.write_json(layout.clean / "validation.json", suite("clean", "clean documents", 33, 33))
    files.write_json(layout.tokens / "validation.json", suite("tokens", "tokens", 33, 33))
    files.write_json(layout.raw / "summary.json", {"stage": "ingest", "documents_in": 40, "documents_out": 38, "notes": ["decoded from <gbk>: 坏.txt"]})
    files.write_json(layout.clean / "summary.json", {"stage": "clean", "documents_in": 38, "documents_out": 33})
    tokens = sum(e["tokens"] for s in json.loads((layout.tokens / "index.json").read_text())["splits"].values() for e in s.values())
    files.write_json(layout.tokens / "summary.json", {"stage": "shards", "documents_in": 33, "documents_out": 33, "tokens": tokens})
    return layout


def test_the_numbers_are_those_of_the_tables(layout):
    profile = data_profile.read(layout)
    read = Page(data_page.render(layout))
    train, total = (sum(e["tokens"] for s in names for e in profile.splits[s].values()) for names in (("train",), profile.splits))
    assert f"40 documents read, 2 quarantined, 5 dropped by cleaning; 33 documents became {total:,} tokens, {train:,} of them to train on." in read.words
    assert read.row("raw: documents that validation kept")[1:] == ["10", "28", "38"]
    assert read.row("dropped by cleaning")[1:] == ["1", "4", "5"] and read.row("clean: documents")[1:] == ["9", "24", "33"]
    assert read.row(ZH) == [ZH, "1", "30", "2", "4", "20", "2", "2"]
    assert read.row(EN) == [EN, "1", "10", "0", "1", "6", "2", "1"]
    assert read.row("exact_duplicate")[2:] == ["3", "0"] and read.row("conflicting_labels")[2:] == ["0", "1"]
    assert read.row("line_is_valid_json")[2] == "1" and read.row("text_not_blank") == ["text_not_blank", "Every text holds more than white space.", "2"]
    sources = [source.counts for source in profile.sources.values()]
    assert all(c["read"] == c["quarantined"] + c["dropped"] + c["train"] + c["validation"] + c["test"] for c in sources)
    lengths = profile.lengths["en"]
    assert read.row("English", nth=1) == ["English", "9", str(int(np.median(lengths))), str(int(np.quantile(lengths, 0.9))), str(int(lengths.max()))]


def test_a_near_duplicate_stands_beside_what_stayed_the_held_out_ones_first(layout):
    read = Page(data_page.render(layout))
    first = read.row("near_duplicate_of_test")  # in the table of reasons
    assert first[2] == "1"
    pairs = data_profile.read(layout).pairs
    assert [(p.source, p.row, p.reason) for p in pairs] == [(EN, 10, "near_duplicate_of_test"), (ZH, 25, "near_duplicate")]
    assert pairs[0].dropped == "Scene 10: enter the king" and pairs[0].kept == "Scene 1: enter the king"
    assert pairs[1].dropped == SENTENCE.format(25) and pairs[1].kept == SENTENCE.format(2)
    assert [lang for text, lang in read.cells if text == SENTENCE.format(25)] == [{"class": "t", "lang": "zh"}]


def test_J12_nothing_comes_alive_no_link_is_dead_and_the_picture_has_a_name(layout):
    html = data_page.render(layout)
    read = Page(html)
    read.check()
    assert html.count("<script") == 1 and "<b>好" not in html and "<gbk>" not in html and "://" not in html.replace("http://www.w3.org/2000/svg", "")
    for anchor in ("raw", "clean", "tokens", "raw-text_not_blank", "summary", "near-duplicates"):
        assert anchor in read.ids
    assert [attrs["aria-label"] for tag, attrs in read.tags if tag == "svg"] == ["Tokens a document, by language"]
    assert "⊘ quarantined" in read.words and "decoded from <gbk>: 坏.txt" in read.words


def test_the_same_data_give_the_same_bytes(layout, tmp_path):
    other = Layout(root=tmp_path / "elsewhere")
    other.root.mkdir()
    (layout.root / "data").rename(other.root / "data")
    moved = data_page.render(other)
    (other.root / "data").rename(layout.root / "data")
    assert moved == data_page.render(layout) and str(tmp_path) not in moved


def test_many_files_are_shown_by_folder(layout):
    many = [d for n in range(30) for d in documents(f"小说/{n}.txt", "zh", range(1, 3), SENTENCE)]
    write(layout.raw / "documents.parquet", [*pq.read_table(layout.raw / "documents.parquet").to_pylist(), *many], DOCUMENTS)
    assert Page(data_page.render(layout)).row("小说/")[:3] == ["小说/", "30", "60"]


def test_without_published_data_there_is_no_page_and_damage_is_named(layout, tmp_path):
    assert data_page.render(Layout(root=tmp_path / "nothing")) is None
    (layout.raw / "validation.json").write_text("{")
    with pytest.raises(Damaged, match=r"raw/validation\.json"):
        data_page.render(layout)
