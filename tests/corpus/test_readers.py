"""Files of every kind and encoding become rows; what cannot be read is named, never lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.applications import catalogue
from components.config import Corpus
from components.corpus import readers
from components.corpus.documents import Fault, Row, cut, metadata_json, pack
from components.corpus.language import language_of
from components.corpus.readers import read
from components.corpus.user_records import read_records, to_record
from components.errors import UserError

pytestmark = pytest.mark.code
DATA = Path(__file__).parents[2].parent / "shared" / "data"
SENTENCE_ZH, SENTENCE_EN = "今天的天气很好，我们一起去公园散步。", "We walked to the park because the weather was fine. "


def rows_of(path: Path, **settings):
    words, rows = read(path, path.name, Corpus(**settings))
    rows = list(rows)
    return words, [r for r in rows if isinstance(r, Row)], [r for r in rows if isinstance(r, Fault)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


# --- text ----------------------------------------------------------------------------------------

def test_blocks_are_packed_and_nothing_but_white_space_is_lost():
    text = "\n\n".join(f"{i} {SENTENCE_EN * (i % 7)}\n{SENTENCE_ZH * (i % 5)}" for i in range(40))
    documents = list(pack(text.split("\n"), 300))
    assert all(0 < len(document) <= 300 for document in documents)
    assert "".join("".join(documents).split()) == "".join(text.split())


def test_a_file_that_grows_changes_its_last_document_alone():
    lines = [line for i in range(50) for line in (f"{i} {SENTENCE_ZH}", "")]
    before, after = list(pack(lines, 200)), list(pack([*lines, "追加的一行。"], 200))
    assert after[: len(before) - 1] == before[:-1]


def test_a_cut_prefers_line_ends_then_sentence_ends_of_both_languages():
    assert cut("一二三四五六\n七八九十。一二", 10) == ["一二三四五六", "七八九十。一二"]
    assert cut("一二三四五六七。”八九十一二", 10) == ["一二三四五六七。”", "八九十一二"]
    assert cut("One two. Three four five", 12) == ["One two.", "Three four", "five"]
    assert cut("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert cut(" \n ", 1) == []


@pytest.mark.parametrize("encoding, words", [("utf-8", ""), ("utf-8-sig", "byte order mark"), ("utf-16", "UTF-16-LE"), ("gb18030", "GB18030")])
@pytest.mark.parametrize("name", ["a.txt", "a.md.gz"])
def test_A4_every_known_encoding_gives_the_same_text_and_says_so(tmp_path, encoding, words, name):
    text = "\r\n".join([SENTENCE_ZH, "", SENTENCE_EN.strip(), "", "的是不了人在有我他这"] * 20)
    said, rows, faults = rows_of(written(tmp_path, name, text.encode(encoding)))
    assert (words in said) if words else said == ""
    assert not faults
    assert "\n".join(row.text for row in rows).split() == text.split()
    assert not any("\r" in row.text or "\ufeff" in row.text for row in rows)


def test_A4_a_few_invalid_lines_are_quarantined_with_their_number(tmp_path):
    lines = [SENTENCE_ZH.encode()] * 100
    lines[41] = b"bad \xff\xfe bytes"
    lines[60] = b"nul \x00 byte"
    _, rows, faults = rows_of(written(tmp_path, "a.txt", b"\n".join(lines)))
    assert [(fault.number, fault.expectation) for fault in faults] == [(42, "text_is_valid_utf8"), (61, "text_has_no_nul")]
    assert "line 42" in faults[0].detail
    assert sum(row.text.count(SENTENCE_ZH) for row in rows) == 98


@pytest.mark.parametrize("encoding, text", [("latin-1", "Déclaration universelle des droits de l'homme à l'été\n"), ("cp1251", "Всеобщая декларация прав человека\n"),
                                            ("euc-jp", "すべての人間は、生れながらにして自由である\n"), ("euc-kr", "모든 인간은 태어날 때부터 자유로우며\n"),
                                            ("big5", "人人生而自由，在尊嚴和權利上一律平等\n")])
def test_A4_text_in_another_encoding_is_refused_and_never_read_as_chinese(tmp_path, encoding, text):
    with pytest.raises(UserError, match=r"neither UTF-8.*iconv"):
        rows_of(written(tmp_path, "a.txt", (text * 30).encode(encoding)))


@pytest.mark.parametrize("content", [b"PK\x03\x04rest", bytes(range(256)) * 20, b"\x1f\x8b\x08rest", b"PAR1rest", "no mark".encode("utf-16-le") * 100])
def test_A9_a_binary_file_named_txt_is_one_clear_error(tmp_path, content):
    with pytest.raises(UserError, match="is not text"):
        rows_of(written(tmp_path, "a.txt", content))


def test_A6_a_line_above_the_limit_is_quarantined_a_long_one_below_it_is_cut(tmp_path):
    long = SENTENCE_EN * 40_000  # 2 MB
    _, rows, faults = rows_of(written(tmp_path, "a.txt", f"before\n{long}\nafter\n"), max_line_mb=1.0)
    assert [fault.expectation for fault in faults] == ["line_too_long"] and "line 2" in faults[0].detail and len(faults[0].text) < 3000
    assert [row.text for row in rows] == ["before\nafter"]
    _, rows, faults = rows_of(written(tmp_path, "a.txt", long))
    assert not faults and len(rows) > 1000
    assert all(len(row.text) <= 2000 and row.text.endswith(".") for row in rows)


# --- jsonl ---------------------------------------------------------------------------------------

def test_A3_a_broken_json_line_is_quarantined_and_reading_goes_on(tmp_path):
    lines = [json.dumps({"text": f"{SENTENCE_ZH}{i}", "n": i, "b": [1, None]}, ensure_ascii=False) for i in range(30)]
    lines[10] = '{"text": "a'
    lines[11] = "[1, 2]"
    lines[12] = "[" * 100_000
    lines[13] = ""
    _, rows, faults = rows_of(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert [(fault.number, fault.expectation) for fault in faults] == [(11, "line_is_valid_json"), (12, "line_is_valid_json"), (13, "line_is_valid_json")]
    assert "line 11" in faults[0].detail and len(rows) == 26
    assert rows[0] == Row(1, f"{SENTENCE_ZH}0", {"n": 0, "b": [1, None]}) and rows[-1].number == 30
    assert metadata_json(rows[0].metadata) == '{"b": [1, null], "n": 0}'


def test_A7_texts_that_are_no_strings_and_lone_surrogates_are_quarantined(tmp_path):
    values = [5, None, ["a"], {"a": 1}, True, "fine"]
    lines = [json.dumps({"text": value}) for value in values] + ['{"text": "\\ud800"}', '{"text": "a\\u0000b"}', '{"other": NaN}']
    _, rows, faults = rows_of(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert [row.text for row in rows] == ["fine"]
    assert [fault.expectation for fault in faults] == ["text_is_string"] * 5 + ["text_is_valid_utf8", "text_has_no_nul", "text_is_string"]
    assert all(pa.array([fault.as_dict("a")["text"]], pa.string()) is not None for fault in faults)


@pytest.mark.parametrize("name, content", [("a.jsonl", '{"body": "x", "title": "y"}\n' * 3), ("a.csv", "body,title\nx,y\n"), ("a.tsv", "body\ttitle\nx\ty\n")])
def test_A2_a_missing_text_column_names_the_columns_found(tmp_path, name, content):
    with pytest.raises(UserError, match=rf"{name} has no column 'text'; it has 'body', 'title'.*corpus\.text_field"):
        rows_of(written(tmp_path, name, content))


def test_a_line_separator_of_unicode_inside_json_ends_no_line(tmp_path):
    _, rows, faults = rows_of(written(tmp_path, "a.jsonl", '{"text": "a\x85b\u2028c"}\n{"text": "d"}'))
    assert [row.text for row in rows] == ["a\x85b\u2028c", "d"] and not faults


def test_a_long_row_is_cut_into_documents_with_numbers_of_their_own(tmp_path):
    lines = [json.dumps({"text": text}) for text in (SENTENCE_ZH, SENTENCE_EN * 100, SENTENCE_ZH, " " * 3000)]
    _, rows, _ = rows_of(written(tmp_path, "a.jsonl", "\n".join(lines)), max_document_chars=2000)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1)) and len(rows) > 5
    assert "".join("".join(row.text for row in rows).split()) == "".join((SENTENCE_ZH + SENTENCE_EN * 100 + SENTENCE_ZH).split())


# --- csv and tsv ---------------------------------------------------------------------------------

def test_quoted_cells_may_hold_line_ends_of_every_kind(tmp_path):
    content = 'label,text\r\n1,"第一行\n第二行"\r\n0,"a\rb\r\nc ""q"", d"\r\n\r\n1,plain\r\n'
    _, rows, faults = rows_of(written(tmp_path, "a.csv", content))
    assert rows == [Row(1, "第一行\n第二行", {"label": "1"}), Row(2, 'a\nb\nc "q", d', {"label": "0"}), Row(3, "plain", {"label": "1"})]
    assert not faults


def test_rows_that_do_not_match_the_header_are_quarantined(tmp_path):
    content = b'text,n\nfine,1\nshort\na,b,c\n"x"y,1\nbad \xff,1\nlast,2\n'
    _, rows, faults = rows_of(written(tmp_path, "a.csv", content), max_undecodable_line_ratio=0.5)
    assert [row.text for row in rows] == ["fine", "last"]
    assert [(f.number, f.expectation) for f in faults] == [(2, "row_matches_header"), (3, "row_matches_header"), (4, "row_is_valid_csv"), (5, "text_is_valid_utf8")]


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path):
    with pytest.raises(UserError, match="quote that opens in line 3 is not closed"):
        rows_of(written(tmp_path, "a.csv", 'text\nfine\n"open\n' + "more\n" * 50))


def test_a_tsv_with_bare_quotes_is_read_without_quoting(tmp_path):
    _, rows, _ = rows_of(written(tmp_path, "a.tsv", 'text\tn\n"open quote\t1\nnext\t2\n'))
    assert [row.text for row in rows] == ['"open quote', "next"]
    _, rows, _ = rows_of(written(tmp_path, "a.tsv", 'text\tn\n"two\nlines"\t1\nnext\t2\n'))
    assert [row.text for row in rows] == ["two\nlines", "next"]


# --- compressed and columnar ---------------------------------------------------------------------

@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.csv.gz", "a.parquet", "a.parquet.gz"])
def test_A9_a_truncated_or_damaged_file_is_named(tmp_path, name):
    body = "text\n" + "".join(f'{{"text": "{i * 7919}"}}\n' for i in range(3000))
    if "parquet" in name:
        pq.write_table(pa.table({"text": [f"{i * 7919}" for i in range(3000)]}), tmp_path / "whole")
        path = written(tmp_path, name, (tmp_path / "whole").read_bytes())
    else:
        path = written(tmp_path, name, body)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"nothing like it " * 100, whole[:-1] if "parquet" in name else whole[:-5]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name} is not a whole"):
            rows_of(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.parquet.gz"])
def test_A10_a_gzip_bomb_stops_at_the_configured_size(tmp_path, name):
    with pytest.raises(UserError, match="max_expanded_mb=1"):
        rows_of(written(tmp_path, name, b"\n" * 5_000_000), max_expanded_mb=1.0)


def test_parquet_rows_carry_their_other_columns(tmp_path):
    table = pa.table({"text": ["一", None, "three\r\n"], "n": [1, 2, 3], "image": [b"\xff", b"", b""], "tags": [["a"], [], None]})
    pq.write_table(table, tmp_path / "a.parquet")
    _, rows, faults = rows_of(tmp_path / "a.parquet")
    assert rows == [Row(1, "一", {"n": 1, "tags": ["a"]}), Row(3, "three\n", {"n": 3, "tags": None})]
    assert [(fault.number, fault.expectation) for fault in faults] == [(2, "text_is_string")]
    pq.write_table(pa.table({"text": ["only"]}), tmp_path / "b.parquet")
    assert rows_of(tmp_path / "b.parquet")[1] == [Row(1, "only", {})]
    with pytest.raises(UserError, match="has no column 'body'; it has 'text'"):
        rows_of(tmp_path / "b.parquet", text_field="body")


def test_A4_parquet_bytes_that_are_no_utf8_are_quarantined(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine", b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    _, rows, faults = rows_of(tmp_path / "a.parquet")
    assert [row.text for row in rows] == ["fine"] and [fault.expectation for fault in faults] == ["text_is_valid_utf8"]


# --- records, languages, real files --------------------------------------------------------------

def test_application_records_are_checked_one_by_one(tmp_path):
    good = {"application": "classification", "prompt": "房间很好", "answer": "正面", "origin": "hotel"}
    lines = [good, good | {"label": "pos", "language": "en"}, good | {"application": "qa"}, good | {"prompt": 5}, good | {"answer": " "},
             good | {"language": "de"}, good | {"label": 1}]
    path = written(tmp_path, "r.jsonl", "\n".join(json.dumps(line) for line in lines) + "\nbroken")
    records = list(read_records(path, "r.jsonl", Corpus())[1])
    assert records[0] == {"id": "classification:r.jsonl#00000001", "application": "classification", "language": "zh", "prompt": "房间很好", "answer": "正面",
                          "label": "正面", "source": "r.jsonl", "document": "", "metadata": '{"origin": "hotel"}'}
    assert (records[1]["label"], records[1]["language"]) == ("pos", "en")
    assert [fault.expectation for fault in records[2:]] == ["application_is_known", "prompt_is_string", "answer_is_not_blank", "language_is_known",
                                                            "label_is_string", "line_is_valid_json"]
    assert "question_answering" in records[2].detail


@pytest.mark.parametrize(("given", "wrong"), [
    ({"answers": "上午九点"}, "answers_are_strings"), ({"answers": 5}, "answers_are_strings"), ({"answers": [1870]}, "answers_are_strings"),
    ({"answers": [{"text": "9 am"}]}, "answers_are_strings"), ({"answers": ["", "9 am"]}, "answers_is_not_blank"), ({"answers": ["\ud83d"]}, "text_is_valid_utf8"),
    ({"label": "\ud83d"}, "text_is_valid_utf8"), ({"label": " "}, "label_is_not_blank"), ({"label": 0}, "label_is_string"), ({"language": ["en"]}, "language_is_known")])
def test_A7_what_would_end_or_bend_the_evaluation_hours_later_is_a_quarantined_row(given, wrong):
    """A string is a sequence of right answers, too: each of its characters would be one."""
    fault = to_record(7, {"application": "question_answering", "prompt": "几点开门？", "answer": "九点"} | given, "r.jsonl")
    assert isinstance(fault, Fault) and (fault.number, fault.expectation) == (7, wrong) and fault.detail.startswith("line 7")
    pa.table({key: [value] for key, value in fault.as_dict("r.jsonl").items()})


@pytest.mark.parametrize("empty", [None, "", []])
def test_an_empty_cell_of_an_optional_key_is_as_if_the_key_were_not_there(empty):
    given = {"application": "question_answering", "prompt": "几点开门？", "answer": "九点"}
    beside = {"answers": empty} | ({} if empty == [] else {"label": empty, "language": empty})
    assert to_record(1, given | beside, "r.jsonl") == to_record(1, given, "r.jsonl")
    several = to_record(1, given | {"answers": ["九点", " 上午九点\r\n"]}, "r.jsonl")
    assert isinstance(several, dict) and catalogue.right_answers(several) == ["九点", "上午九点"]


@pytest.mark.parametrize("text, language", [
    (SENTENCE_ZH, "zh"), (SENTENCE_EN, "en"), ("很好 OK thanks", "zh"), ("Return x.", "en"), ("def f(x): return x", "en"), ("", "other"), ("3, 4!", "other"),
    ("今日はとても良い天気ですね", "other"), ("오늘 날씨가 좋다", "other"), ("Сегодня хорошая погода", "other"), ("Der Hund ist nicht auf dem Tisch", "other"),
    ("Le chat est sur la table et il dort", "other"), ("使用 numpy 计算数组的平均值 (mean) 与标准差", "zh"), ("The word 天气 means weather in Chinese.", "en"), ("\ud800", "other")])
def test_the_language_is_told_by_script_and_stop_words(text, language):
    assert language_of(text) == language


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="the development data are not there")
@pytest.mark.parametrize("name, field, words, language, count", [
    ("traps/encodings-udhr/Chinese_Mandarin-GB2312", "text", "GB18030", "zh", 4), ("traps/encodings-udhr/Chinese_Mandarin-UTF8", "text", "mark", "zh", 3),
    ("traps/encodings-udhr/Hungarian_Magyar-Unicode", "text", "UTF-16-LE", "other", 3), ("thucnews-titles/dev.txt", "text", "", "zh", 112),
    ("chnsenticorp-htl/ChnSentiCorp_htl_all.csv", "review", "", "zh", 7766), ("hh-rlhf/harmless-base-test.jsonl.gz", "chosen", "", "en", 2312),
    ("parquet-sample/data.parquet", "text", "", "en", 20), ("fairytaleqa/section-stories/train/habetrot-the-spinstress-story.csv", "text", "", "en", 23),
    ("eval-gauntlet/world_knowledge/triviaqa_sm_sub.jsonl", "context", "", "en", 3000)])
def test_real_files(name, field, words, language, count):
    said, rows, faults = rows_of(DATA / name, text_field=field)
    languages = [language_of(row.text) for row in rows]
    assert words in said and len(faults) <= 1
    assert languages.count(language) >= 0.9 * len(rows) and len(rows) == count


def test_reading_is_lazy_about_the_number_of_rows_without_a_text(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS_BEFORE_GIVING_UP", 5)
    path = written(tmp_path, "a.jsonl", '{"body": 1}\n' * 6 + "\n" * 10)
    _, rows = read(path, path.name, Corpus())
    drawn = []
    with pytest.raises(UserError, match="no column 'text'"):
        drawn.extend(iter(lambda: next(rows), None))
    assert len(drawn) <= 4
