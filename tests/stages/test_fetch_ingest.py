"""fetch and ingest through the runner: verified copies, one schema, counts that add up, nothing half-written."""

from __future__ import annotations

import gzip
import json

import pytest

from components import files
from components.corpus import embedded, embedded_records
from components.corpus.documents import DOCUMENTS, QUARANTINE, RECORDS
from components.errors import Blocked, UserError
from components.stages import fetch
from tests.corpus_checkout import Checkout

pytestmark = pytest.mark.code
ZH, EN = "今天的天气很好，我们一起去公园散步，然后回家吃饭。", "We walked to the park because the weather was fine that day. "
RECORD = {"application": "classification", "prompt": "房间很好", "answer": "正面"}


@pytest.fixture
def corpus(tmp_path):
    """Chinese and English, in four formats, with a broken line, a number for a text, and a row of white space."""
    folder = tmp_path / "corpus"
    (folder / "子").mkdir(parents=True)
    lines = [json.dumps({"text": f"{i} {ZH * 9}", "label": i % 2}, ensure_ascii=False) for i in range(120)]
    lines[50], lines[51] = '{"text": "cut', '{"text": 5}'
    (folder / "子" / "评论.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "novel.txt").write_bytes("\n\n".join(f"{i} {EN * 5}" for i in range(150)).encode("utf-16"))
    (folder / "rows.csv").write_text("text,n\n" + "".join(f'"{i} {EN}\nand more",{i}\n' for i in range(60)) + '"  ",60\n')
    return folder


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(json.dumps(RECORD | {"prompt": f"第{i}间房间很好"}, ensure_ascii=False) for i in range(40)))
    return path


def test_rows_read_are_rows_kept_plus_rows_quarantined(tmp_path, corpus, records, capsys):
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    report = checkout.run()
    documents, quarantine, made = (checkout.table(name) for name in ("documents", "quarantine", "records"))
    assert (documents.schema, quarantine.schema, made.schema) == (DOCUMENTS, QUARANTINE, RECORDS)
    assert report.documents_in == documents.num_rows + quarantine.num_rows and report.documents_out == documents.num_rows
    faults = {(row["source"], row["expectation"]) for row in quarantine.to_pylist()}
    assert faults == {("子/评论.jsonl.gz", "line_is_valid_json"), ("子/评论.jsonl.gz", "text_is_string"), ("rows.csv", "text_not_blank")}
    assert report.counts["line_is_valid_json"] == 1 and report.counts["quarantined"] == 3 and report.counts["records"] == 40
    assert documents["id"].to_pylist() == sorted(documents["id"].to_pylist()) and len(set(documents["id"].to_pylist())) == documents.num_rows
    row = next(row for row in documents.to_pylist() if row["id"] == "子/评论.jsonl.gz#00000001")
    assert row["language"] == "zh" and row["metadata"] == '{"label": 0}' and row["text"].startswith("0 今天")
    assert report.counts["documents_zh"] == 118
    assert any("UTF-16-LE" in note for note in report.notes) and "UTF-16-LE" in capsys.readouterr().err
    assert made["id"].to_pylist() == [f"classification:records.jsonl#{i:08d}" for i in range(1, 41)]
    for name in ("validation.json", "validation.html", "summary.json", "manifest.json"):
        assert (checkout.layout.raw / name).exists()


def test_the_same_sources_give_the_same_bytes(tmp_path, corpus, records):
    hashes = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        checkout = Checkout(tmp_path / place, corpus__source=str(corpus), corpus__records=str(records))
        checkout.run()
        hashes.append({name: files.manifest_hash(checkout.layout.out(name)) for name in ("sources/corpus", "sources/records", "raw")})
    assert hashes[0] == hashes[1]


def test_more_files_move_no_other_document(tmp_path, corpus, records):
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    checkout.run()
    before = {row["id"]: row["text"] for row in checkout.table("documents").to_pylist()}
    (corpus / "a new one.md").write_text(f"# 新\n\n{ZH}\n")
    assert checkout.update()
    checkout.stage("fetch")
    checkout.stage("ingest")
    after = {row["id"]: row["text"] for row in checkout.table("documents").to_pylist()}
    assert before.items() < after.items() and after["a new one.md#00000001"].startswith("# 新")


def test_the_embedded_records_stay_beside_a_corpus_of_the_users(tmp_path, corpus, monkeypatch):
    play = tmp_path / "play.md"
    play.write_text("To be, or not to be.")
    document = {"id": "play.md#00000000", "text": play.read_text(), "source": "play.md", "language": "en", "metadata": "{}"}
    made = {"id": "text_generation:play.md#00000000", "application": "text_generation", "language": "en", "prompt": "To be,", "answer": "or not to be.",
            "label": "", "source": "play.md", "document": document["id"], "metadata": "{}"}
    monkeypatch.setattr(embedded, "embedded_files", lambda config, layout: [("play.md", play)])
    monkeypatch.setattr(embedded, "documents", lambda folder, config: iter([document | {"text": (folder / "play.md").read_text()}]))
    monkeypatch.setattr(embedded_records, "records", lambda folder, documents, config: [made | {"answer": documents[0]["text"]}])
    checkout = Checkout(tmp_path, corpus__source=str(corpus))
    checkout.run()
    assert "play.md" not in checkout.table("documents")["source"].to_pylist()
    assert checkout.table("records").to_pylist() == [made | {"answer": "To be, or not to be.", "document": ""}]


# --- fetch refuses -------------------------------------------------------------------------------

def test_fetch_copies_every_file_under_its_name(tmp_path, corpus, records):
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    checkout.update()
    report = checkout.stage("fetch")
    copies = checkout.layout.sources_corpus
    assert files.list_files(copies) == ["novel.txt", "origin.json", "rows.csv", "summary.json", "子/评论.jsonl.gz"]
    assert (copies / "子/评论.jsonl.gz").read_bytes() == (corpus / "子/评论.jsonl.gz").read_bytes()
    assert files.read_json(copies / "origin.json") == {"kind": "user", "files": 3}
    assert files.read_json(checkout.layout.sources_base / "origin.json") == {"kind": "none", "files": 0}
    assert report.counts["corpus_files"] == 3 and str(tmp_path) not in (copies / "origin.json").read_text()


def test_A15_a_file_edited_after_it_was_listed_is_refused(tmp_path, corpus, records):
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    checkout.update()
    text = (corpus / "rows.csv").read_text()
    listed = files.sha256_file(corpus / "rows.csv")
    (corpus / "rows.csv").write_text(text.replace("fine", "good", 1))
    found = files.sha256_file(corpus / "rows.csv")
    with pytest.raises(UserError, match=rf"rows\.csv.*{found[:16]}.*{listed[:16]}.*lmworks run"):
        checkout.stage("fetch")
    (corpus / "rows.csv").write_text(text[:-10])
    with pytest.raises(UserError, match=r"rows\.csv.*differs"):
        checkout.stage("fetch")
    (corpus / "rows.csv").unlink()
    with pytest.raises(UserError, match=r"rows\.csv.*missing"):
        checkout.stage("fetch")
    assert checkout.nothing_half_written() and not checkout.layout.sources_corpus.exists()


def test_A16_a_file_that_grew_is_refused(tmp_path, corpus, records):
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    checkout.update()
    with open(corpus / "rows.csv", "a") as f:
        f.write("more,1\n")
    with pytest.raises(UserError, match=r"rows\.csv.*grew"):
        checkout.stage("fetch")


def test_A11_a_name_in_sources_yaml_never_leads_outside(tmp_path, corpus, records):
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    checkout.update()
    text = checkout.layout.sources.read_text()
    for name in ("../../escaped.csv", "/tmp/escaped.csv"):
        checkout.layout.sources.write_text(text.replace('name: "rows.csv"', f'name: "{name}"'))
        with pytest.raises(UserError, match=r"escaped\.csv"):
            checkout.stage("fetch")
    assert not list(tmp_path.rglob("escaped.csv"))
    for broken in ("", "[1]", "corpus: {digest: none}", text.replace("bytes:", "size:")):
        checkout.layout.sources.write_text(broken)
        with pytest.raises(UserError, match=r"sources\.yaml is not a list of source files"):
            fetch.listed(checkout.layout.sources)


def test_sources_of_other_settings_are_refused(tmp_path, corpus, records):
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    checkout.run()
    checkout.configure(corpus__source=str(corpus / "novel.txt"), corpus__records=str(records))
    for stage in ("fetch", "ingest"):
        with pytest.raises(UserError, match=r"params\.yaml says.*lmworks run"):
            checkout.stage(stage)


# --- ingest refuses ------------------------------------------------------------------------------

@pytest.mark.parametrize("name, content", [("a.txt", ""), ("a.txt", " \n\n \n"), ("a.jsonl", ""), ("a.csv", ""), ("a.csv", "text,n\n"), ("a.jsonl", '{"text": "cut')])
def test_A1_an_empty_corpus_is_one_clear_error(tmp_path, records, name, content):
    (tmp_path / name).write_text(content)
    checkout = Checkout(tmp_path, corpus__source=str(tmp_path / name), corpus__records=str(records))
    with pytest.raises(UserError, match=rf"no documents in .*{name}"):
        checkout.run()
    assert checkout.nothing_half_written()


def test_a_corpus_of_two_sentences_is_told_how_much_is_needed_and_what_it_is_enough_for(tmp_path, records):
    (tmp_path / "a.txt").write_text(f"{ZH}\n{EN}\n")
    checkout = Checkout(tmp_path, corpus__source=str(tmp_path / "a.txt"), corpus__records=str(records))
    with pytest.raises(Blocked, match=r"(?s)50,000 bytes.*fine-tun.*lmworks import PATH") as caught:
        checkout.run()
    assert "20 documents" in str(caught.value) and checkout.nothing_half_written()
    assert (checkout.layout.blocked / "ingest" / "validation.html").exists()


def test_A3_too_many_broken_lines_block_the_chain(tmp_path, corpus, records):
    (corpus / "broken.jsonl").write_text(f'{json.dumps({"text": EN})}\n' + '{"text": "cut\n' * 60)
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    with pytest.raises(Blocked, match=r"broken\.jsonl"):
        checkout.run()
    assert checkout.nothing_half_written()


def test_broken_records_are_quarantined_then_block_then_leave_nothing(tmp_path, corpus, records):
    good = records.read_text()
    records.write_text(good + "\n" + json.dumps(RECORD | {"application": "qa"}))
    checkout = Checkout(tmp_path, corpus__source=str(corpus), corpus__records=str(records))
    report = checkout.run()
    assert report.counts["records_quarantined"] == report.counts["application_is_known"] == 1 and report.counts["records"] == 40
    assert "records.jsonl" in checkout.table("quarantine")["source"].to_pylist()
    records.write_text(good + ("\n" + json.dumps(RECORD | {"answer": None})) * 9)
    checkout.update()
    checkout.stage("fetch")
    with pytest.raises(Blocked, match="9 of 49 application records"):
        checkout.stage("ingest")
    records.write_text('{"text": "no record"}')
    checkout.update()
    checkout.stage("fetch")
    with pytest.raises(UserError, match="no application records.*question_answering"):
        checkout.stage("ingest")
