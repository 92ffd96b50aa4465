"""What people's data folders hold on a bad day, from the file to the end of a stage: named and stopped, or set aside and counted."""

from __future__ import annotations

import gzip
import io
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import failpoints, files
from components.corpus import tokenizer as bpe
from components.corpus import validation
from components.errors import UserError
from tests.corpus_checkout import Checkout

pytestmark = pytest.mark.code
ZH, EN = "今天的天气很好，我们一起去公园散步，然后回家吃饭。", "We walked to the park because the weather was fine that day."
HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈剑号巨阙珠称夜光果珍李柰菜重芥姜海咸河淡鳞潜羽翔"
WORDS = ["the", "king", "of", "rivers", "and", "winter", "said", "that", "long", "roads", "are", "not", "for", "him", "but", "with", "her", "song", "they", "came", "to", "this", "old", "house", "by", "the", "sea"]
SMALL = {"validation__min_corpus_bytes": 1000, "tokenizer__vocab_size": 420, "training__rows": 2, "training__row_tokens": 64, "model__context": 64,
         "finetuning__max_row_tokens": 64}


def stories(n: int, seed: int = 0) -> list[str]:
    """Texts in both languages that resemble one another in nothing but their characters."""
    rng = random.Random(seed)
    return ["".join(rng.choice(HAN) for _ in range(60)) + "。" if i % 2 else " ".join(rng.choice(WORDS) for _ in range(30)) + "." for i in range(n)]


def jsonl(texts: list[Any]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def parquet(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def checkout(folder: Path, held: dict[str, str | bytes], **flat: Any) -> Checkout:
    """A checkout whose corpus is a folder of these files, fetched."""
    corpus = folder / "我的 语料"
    corpus.mkdir()
    for name, content in held.items():
        (corpus / name).write_bytes(content.encode() if isinstance(content, str) else content)
    records = folder / "records.jsonl"
    records.write_text("".join(json.dumps({"application": "classification", "prompt": f"第{i}间房间很好", "answer": "正面"}) + "\n" for i in range(40)))
    made = Checkout(folder, **{"corpus__source": str(corpus), "corpus__records": str(records)} | SMALL | flat)
    made.update()
    made.stage("fetch")
    return made


def refused(made: Checkout, stage: str, code: int) -> str:
    """The message of a stage that must end with `code`, by what is wrong with its input."""
    outcome = made.attempt(stage)
    assert outcome["exit_code"] == code, outcome
    assert "Traceback" not in outcome["message"] and made.nothing_half_written()
    return outcome["message"]


# --- rows ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, content", [("空.parquet", parquet({"text": pa.array([], pa.string())})), ("空.jsonl.gz", gzip.compress(b"", mtime=0)),
                                           ("空.tsv", "text\tn\n"), ("空.md", "\ufeff"), ("空.txt", b"")])
def test_A1_a_file_without_rows_stops_the_chain_by_its_name(tmp_path, name, content):
    made = checkout(tmp_path, {name: content})
    message = refused(made, "ingest", 2)
    assert "no documents in" in message and f"{name} holds no rows of text" in message and "lmworks use PRESET --corpus PATH" in message


def test_A1_an_empty_file_among_good_ones_is_noted(tmp_path, capsys):
    made = checkout(tmp_path, {"好.jsonl": jsonl(stories(120)), "空.jsonl": "", "也空.csv": "text\n"})
    report = made.stage("ingest")
    assert report.documents_out == 120 and "without a row: 也空.csv, 空.jsonl" in report.notes
    assert "without a row: 也空.csv, 空.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["数据.jsonl", "数据.csv", "数据.tsv", "数据.parquet"])
def test_A2_a_renamed_field_is_told_with_the_columns_found_and_can_be_named(tmp_path, name):
    texts = stories(120)
    content = {"jsonl": "".join(json.dumps({"正文": text, "标签": 1}, ensure_ascii=False) + "\n" for text in texts),
               "csv": "正文,标签\n" + "".join(f'"{text}",1\n' for text in texts), "tsv": "正文\t标签\n" + "".join(f"{text}\t1\n" for text in texts),
               "parquet": parquet({"正文": texts, "标签": [1] * len(texts)})}[name.rpartition(".")[2]]
    made = checkout(tmp_path, {name: content})
    message = refused(made, "ingest", 2)
    assert f"{name} has no column 'text'; it has '正文', '标签'" in message and "--set corpus.text_field=COLUMN" in message
    made.configure(**{"corpus__source": made.config.corpus.source, "corpus__records": made.config.corpus.records, "corpus__text_field": "正文"} | SMALL)
    assert made.stage("ingest").documents_out == 120


def test_A3_line_5001_is_named_and_set_aside(tmp_path):
    lines = jsonl([f"{i} {ZH}" for i in range(6000)]).splitlines()
    lines[5000] = '{"text": "a'
    made = checkout(tmp_path, {"评论.jsonl": "\n".join(lines)})
    report = made.stage("ingest")
    (fault,) = made.table("quarantine").to_pylist()
    assert (fault["source"], fault["row"], fault["expectation"]) == ("评论.jsonl", 5001, "line_is_valid_json")
    assert fault["detail"] == "line 5001: Invalid control character at character 11" and fault["text"].strip() == lines[5000]
    assert report.documents_out == 5999 and any("1 of 6,000 rows were quarantined (line_is_valid_json 1)" in note for note in report.notes)


def test_A3_broken_lines_beyond_the_share_stop_the_chain_with_an_example(tmp_path):
    lines = jsonl(stories(200)).splitlines()
    for number in range(5, 205, 20):
        lines[number - 1] = '{"text": 坏'
    made = checkout(tmp_path, {"评论.jsonl": "\n".join(lines)})
    message = refused(made, "ingest", 3)
    assert "10 of 200 rows are at fault (line_is_valid_json 10)" in message and "评论.jsonl row 5" in message and "max_quarantine_ratio" in message
    assert (made.layout.blocked / "ingest" / "validation.html").exists()


def test_A4_each_kind_of_broken_encoding_has_a_name_and_a_count(tmp_path):
    lines = [f"{i} {ZH}" for i in range(60)]
    held = {"bom.txt": "\ufeff" + "\r\n".join(lines), "十六.txt": "\n".join(lines).encode("utf-16"), "国标.txt": "\n".join(lines).encode("gb18030"),
            "坏字节.txt": "\n".join(lines).encode() + b"\nbad \xff\xfe\x00 bytes\n", "nul.txt": "\n".join(lines).encode() + b"\na\x00b\n",
            "代理.jsonl": jsonl(lines) + '{"text": "half \\ud800 a pair"}\n', "三字节.txt": b"\xff\xfe\x00"}
    made = checkout(tmp_path, held, validation__max_quarantine_ratio=0.5)
    report = made.stage("ingest")
    named = {(fault["source"], fault["expectation"]) for fault in made.table("quarantine").to_pylist()}
    assert named == {("坏字节.txt", "text_is_valid_utf8"), ("nul.txt", "text_has_no_nul"), ("代理.jsonl", "text_is_valid_utf8"), ("三字节.txt", "text_is_valid_utf8")}
    assert (report.counts["text_is_valid_utf8"], report.counts["text_has_no_nul"], report.counts["quarantined"]) == (3, 1, 4)
    said = "\n".join(report.notes)
    assert "decoded from GB18030: 国标.txt" in said and "decoded from UTF-8 with a byte order mark (removed): bom.txt" in said
    assert "UTF-16-LE with a byte order mark: 三字节.txt, 十六.txt" in said
    texts = made.table("documents")["text"].to_pylist()
    assert not any(sign in text for text in texts for sign in "\r\ufeff\0")
    for source in ("bom.txt", "十六.txt", "国标.txt"):
        text = "\n".join(row["text"] for row in made.table("documents").to_pylist() if row["source"] == source)
        assert text.split("\n") == lines


def test_A5_white_space_and_lost_characters_fail_by_name(tmp_path):
    made = checkout(tmp_path, {"空白.jsonl": jsonl([*stories(100), *["\u3000 \u2003\n"] * 5, *["\ufffd" * 20] * 5])})
    message = refused(made, "ingest", 3)
    assert "10 of 110 rows are at fault" in message and "text_not_blank 5" in message and "few_replacement_characters 5" in message


@pytest.mark.parametrize("column, found", [
    (list(range(30)), "int"), ([["a"]] * 30, "list"), ([{"a": "b"}] * 30, "dict"), (pa.nulls(30), "null"), (pa.array([b"a"] * 30, pa.binary()), "bytes"),
    (pa.array([2**62] * 30, pa.timestamp("us")), "not a whole Parquet file"), (pa.array(["a"] * 30).dictionary_encode(), "")])
def test_A7_a_text_column_of_another_type_is_told(tmp_path, column, found):
    made = checkout(tmp_path, {"类型.parquet": parquet({"text": column})})
    if not found:  # strings, stored as a dictionary
        assert "min_corpus_bytes" in refused(made, "ingest", 3)
        return
    message = refused(made, "ingest", 2)
    assert "类型.parquet" in message and (found in message if " " in found else f"row 1: the text is {found}" in message)


def test_A7_mixed_types_are_set_aside_one_by_one(tmp_path):
    made = checkout(tmp_path, {"混.jsonl": jsonl([*stories(150), 5, None, ["a"]])})
    report = made.stage("ingest")
    assert (report.documents_out, report.counts["text_is_string"]) == (150, 3)
    assert [fault["detail"] for fault in made.table("quarantine").to_pylist()] == [
        f"line {n}: the text is {kind}" for n, kind in ((151, "int"), (152, "null"), (153, "list"))]


def test_columns_that_python_has_no_values_for_cost_no_row(tmp_path):
    texts = stories(120)
    strange = {"text": texts, "when": pa.array([2**62] * 120, pa.timestamp("us")), "day": pa.array([2**30] * 120, pa.date32()),
               "where": pa.array([0] * 120, pa.timestamp("us", tz="Mars/Phobos")), "n": list(range(120)),
               "raw": pa.array([b"\xff"] * 120, pa.binary()).view(pa.string())}
    made = checkout(tmp_path, {"列.parquet": parquet(strange)})
    assert made.stage("ingest").documents_out == 120
    assert json.loads(made.table("documents")["metadata"][0].as_py())["n"] == 0


def test_A8_nothing_but_copies_is_reported_as_a_share_and_blocked(tmp_path):
    made = checkout(tmp_path, {"抄.jsonl": jsonl(stories(2)[1:] * 200)})
    report = made.stage("ingest")
    assert any("texts_differ" in note and "0.5% of 200 texts are distinct" in note for note in report.notes)
    outcome = made.attempt("clean")
    assert outcome["exit_code"] == 3 and "min_documents" in outcome["message"] and "1 documents" in outcome["message"]


def test_A8_nothing_that_is_held_out_is_trained_on_nor_anything_like_it(tmp_path):
    texts = [text for story in stories(300) for text in (story, story + ("了" if "。" in story else " indeed"))]
    made = checkout(tmp_path, {"近.jsonl": jsonl([*texts, *texts[:40]])})
    made.stage("ingest")
    report = made.stage("clean")
    near = sum(n for reason, n in report.counts.items() if reason.startswith("near_duplicate"))
    assert near == 300 and report.counts["exact_duplicate"] == 40 and report.documents_out == 300
    split_of = {row["text"][:40]: split for split in ("train", "validation", "test") for row in pq.read_table(made.layout.clean / f"{split}.parquet").to_pylist()}
    assert len(split_of) == 300 and set(split_of.values()) == {"train", "validation", "test"}


# --- files ---------------------------------------------------------------------------------------

WHOLE = jsonl(stories(400)).encode()
TABLE = parquet({"text": stories(400)})
CUT = {
    "剪断.jsonl.gz": gzip.compress(WHOLE)[:-900], "尾巴.jsonl.gz": gzip.compress(WHOLE)[:-1], "空.jsonl.gz": b"", "假.jsonl.gz": WHOLE,
    "两半.jsonl.gz": gzip.compress(WHOLE) + gzip.compress(WHOLE)[:200], "剪断.parquet": TABLE[:-100], "半.parquet": TABLE[: len(TABLE) // 2], "假.parquet": WHOLE,
    "空.parquet": b"", "剪断.parquet.gz": gzip.compress(TABLE)[:-50],
}


@pytest.mark.parametrize("name", CUT)
def test_A9_a_cut_or_false_file_beside_good_ones_is_never_taken_for_the_end_of_the_data(tmp_path, name):
    made = checkout(tmp_path, {"好.jsonl": jsonl(stories(120)), name: CUT[name]})
    message = refused(made, "ingest", 2)
    kind = "Parquet" if name.endswith(".parquet") else "gzip"
    assert f"{name} is not a whole {kind} file" in message and "byte" in message and "Copy it again" in message


def edited(path: Path) -> tuple[str, str]:
    """One more row in a data file. Returns its hash before and after."""
    before = files.sha256_file(path)
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
    else:
        path.write_text(path.read_text() + json.dumps({"text": "one more"}) + "\n")
    return before, files.sha256_file(path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Checkout:
    """Everything up to the shards is made."""
    made = checkout(tmp_path_factory.mktemp("ready"), {"故事.jsonl": jsonl(stories(300))})
    for stage in ("ingest", "clean", "tokenizer", "shards"):
        made.stage(stage)
    return made


@pytest.mark.parametrize("suite, stage, path", [("raw", "ingest", "sources/corpus/故事.jsonl"), ("clean", "clean", "raw/documents.parquet"),
                                                ("tokens", "shards", "clean/train.parquet")])
def test_A15_a_file_edited_right_after_its_validation_goes_no_further(ready, monkeypatch, suite, stage, path):
    path = ready.layout.root / "data" / path
    good, before = path.read_bytes(), files.manifest_hash(ready.layout.out(ready_out := {"ingest": "raw", "clean": "clean", "shards": "tokens"}[stage]))
    hashes = []
    monkeypatch.setattr(failpoints, "hit", lambda name, where=None: hashes.append(edited(path)) if (name, where) == ("validate.done", suite) else None)
    try:
        outcome = ready.attempt(stage)
        ((was, is_),) = hashes
        assert outcome["exit_code"] == 4 and "an input changed while the stage ran" in outcome["message"]
        assert str(path) in outcome["message"] and was[:16] in outcome["message"] and is_[:16] in outcome["message"]
        assert files.manifest_hash(ready.layout.out(ready_out)) == before, "what was published before is still there"
        monkeypatch.undo()
        outcome = ready.attempt(stage)  # and the next stage that leans on it refuses before it begins
        assert outcome["exit_code"] == 4 and is_[:16] in outcome["message"] and "lmworks run" in outcome["message"]
    finally:
        path.write_bytes(good)


def test_A15_a_file_edited_before_tokenising_is_named_with_both_hashes(ready):
    path = ready.layout.clean / "train.parquet"
    good = path.read_bytes()
    try:
        was, is_ = edited(path)
        for stage in ("tokenizer", "shards"):
            outcome = ready.attempt(stage)
            assert outcome["exit_code"] == 4 and f"{path} is damaged: sha256 {is_[:16]}… found, {was[:16]}… written" in outcome["message"]
    finally:
        path.write_bytes(good)


def test_A16_a_file_that_somebody_appends_to_all_the_time_is_refused(tmp_path):
    made = checkout(tmp_path, {"长.jsonl": jsonl(stories(20_000))})
    path, stop, written = tmp_path / "我的 语料" / "长.jsonl", threading.Event(), threading.Event()

    def append() -> None:
        with open(path, "a", buffering=1) as f:
            while not stop.is_set():
                f.write('{"text": "more"}\n')
                written.set()

    writer = threading.Thread(target=append)
    writer.start()
    try:
        written.wait()
        with pytest.raises(UserError, match=r"长\.jsonl.*(changed while it was being read|grew).*run"):
            made.update()
            made.stage("fetch")
    finally:
        stop.set()
        writer.join()
    made.update()
    made.stage("fetch")  # at rest it is taken


class Never:
    """A stage module that must not be reached."""

    @staticmethod
    def run(*_: Any) -> None:
        raise AssertionError("the stage began")


def flipped(data: bytes) -> bytes:
    return data[:41] + bytes([data[41] ^ 4]) + data[42:]


@pytest.mark.parametrize("name, damage", [("train-zh.bin", flipped), ("train-en.bin", lambda data: data[:-2]), ("train-zh.offsets.npy", lambda data: data[:-8]),
                                          ("index.json", lambda data: data.replace(b"uint16", b"uint32"))])
def test_A17_a_damaged_shard_is_refused_before_the_first_step(ready, name: str, damage: Callable[[bytes], bytes]):
    path = ready.layout.tokens / name
    good = path.read_bytes()
    try:
        path.write_bytes(damage(good))
        with pytest.raises(UserError, match=rf"{name} is damaged: sha256 {files.sha256_file(path)[:16]}… found, {files.sha256_bytes(good)[:16]}… written"):
            ready.stage("pretrain", Never)
    finally:
        path.write_bytes(good)


def test_A18_a_tokenizer_that_did_not_make_the_shards_is_named_and_nothing_is_trained(ready):
    folder = ready.layout.tokenizer
    good = {name: (folder / name).read_bytes() for name in [*files.list_files(folder), files.MANIFEST]}
    try:
        bpe.write(bpe.train([ZH, EN] * 3, 300), folder)
        files.write_manifest(folder)  # whoever swapped it made a whole folder of it
        with pytest.raises(UserError, match=rf"made by tokenizer {files.sha256_bytes(good['tokenizer.json'])[:16]}….* holds {bpe.sha256(folder)[:16]}….*lmworks run"):
            ready.stage("pretrain")
        assert not ready.layout.pretrained.exists()
    finally:
        for name, content in good.items():
            (folder / name).write_bytes(content)


def test_A21_a_validation_tool_that_does_not_start_is_a_failed_gate(tmp_path, monkeypatch):
    def broken() -> None:
        raise ImportError("cannot import name 'gx'")

    made = checkout(tmp_path, {"好.jsonl": jsonl(stories(120))})
    monkeypatch.setattr(validation, "great_expectations_judge", broken)
    message = refused(made, "ingest", 3)
    assert "columns_present" in message and "could not be run: ImportError: cannot import name 'gx'" in message and "stopped the chain" in message
