"""The suites: each expectation fails when it should, severity decides, and what cannot be run is no pass."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from components.config import build
from components.corpus import suites, validation, validation_judge
from components.corpus.documents import DOCUMENTS
from components.errors import Blocked

pytestmark = pytest.mark.code
LANGUAGES = ("zh", "en")
SETTINGS = {"validation.min_documents": 20, "validation.min_corpus_bytes": 400, "corpus.max_document_chars": 1000}
CONFIG = build(SETTINGS, where="test")
PLANTED = [json.loads(line) for line in Path(__file__).with_name("planted_faults.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def judge():
    return validation.great_expectations_judge()


def rows(language: str, n: int = 60) -> list[dict]:
    text = "今天第{n}次来这家店，味道不错" if language == "zh" else "Visit number {n}: the tea was warm and good"
    source = "评论.jsonl" if language == "zh" else "reviews.jsonl"
    return [{"id": f"{source}#{i:08d}", "text": text.format(n=i), "source": source, "language": language, "metadata": "{}"} for i in range(1, n + 1)]


def table(values: list[dict]) -> pa.Table:
    """Documents; `text_ends_in_byte` makes the text no UTF-8, as a damaged Parquet file would."""
    texts = [None if v["text"] is None else v["text"].encode() + bytes([v["text_ends_in_byte"]] if "text_ends_in_byte" in v else []) for v in values]
    columns = {name: pa.array([v[name] for v in values], pa.string()) for name in DOCUMENTS.names if name != "text"}
    columns["text"] = pa.array(texts, pa.binary()).view(pa.string())
    return pa.table([columns[name] for name in DOCUMENTS.names], schema=DOCUMENTS)


def plant(fault: dict) -> tuple[pa.Table, list[dict]]:
    good = rows(fault["planted"])
    if "row" in fault:
        return table([*good, fault["row"]]), []
    if "reader_fault" in fault:
        return table(good), [fault["reader_fault"]] * fault.get("reader_faults", 1)
    for i, row in enumerate(good):
        row["text"] = fault.get("all_texts", row["text"]).replace("{n}", str(i))
        row["language"] = fault.get("all_languages", row["language"])
    planted = table(good[:fault.get("keep_rows")])
    if "numbers_in" in fault:
        planted = planted.set_column(planted.column_names.index(fault["numbers_in"]), fault["numbers_in"], pa.array(range(len(planted))))
    return planted.drop_columns([fault["drop_column"]]) if "drop_column" in fault else planted, []


def failed(verdict: validation.Verdict) -> list[str]:
    return [r.name for r in verdict.results if r.state not in ("passed", "not run")]


def names(suite: suites.Suite) -> set[str]:
    return {e.name for e in (*suites.SCHEMA, *suite.rows, *suite.all)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_good_rows_pass_every_expectation(judge, language):
    verdict = validation.judge_table("raw", table(rows(language)), CONFIG, judge=judge)
    assert failed(verdict) == [] and verdict.faults == [] and len(verdict.table) == 60
    assert {r.state for r in verdict.results} == {"passed"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_planted_faults_name_every_expectation_of_the_raw_suite_once(language):
    planted = [f["expectation"] for f in PLANTED if f["planted"] == language]
    assert sorted(planted) == sorted(names(suites.RAW) | set(suites.READER))


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f"{f['planted']}-{f['expectation']}")
def test_A5_A7_each_planted_fault_fails_its_expectation_and_no_other(judge, fault):
    planted, reader_faults = plant(fault)
    verdict = validation.judge_table("raw", planted, CONFIG, reader_faults, judge=judge)
    expected = [fault["expectation"]] if "reader_faults" not in fault else ["line_is_valid_json", "few_rows_quarantined"]
    assert failed(verdict) == expected
    result = next(r for r in verdict.results if r.name == fault["expectation"])
    assert result.at_fault == 1
    severity = {e.name: e.severity for e in (*suites.SCHEMA, *suites.RAW.rows, *suites.RAW.all)}.get(fault["expectation"], "quarantine")
    assert [r.name for r in verdict.blocking] == ([fault["expectation"]] if severity == "block" else []) or "drop_column" in fault or "numbers_in" in fault
    if "row" in fault and severity == "quarantine":
        assert [f["expectation"] for f in verdict.faults] == [fault["expectation"]] and len(verdict.table) == 60


@pytest.mark.parametrize("language", LANGUAGES)
def test_A5_A7_all_planted_rows_together_fail_each_row_expectation_once_and_the_counts_add_up(judge, language):
    bad = [f["row"] for f in PLANTED if f["planted"] == language and "row" in f]
    verdict = validation.judge_table("raw", table([*rows(language), *bad]), build(SETTINGS | {"validation.max_quarantine_ratio": 0.5}, where=""), judge=judge)
    assert {r.name: r.at_fault for r in verdict.results if r.name in {e.name for e in suites.RAW.rows}} == {e.name: 1 for e in suites.RAW.rows}
    assert len(verdict.table) + len(verdict.faults) == 60 + len(bad)


def test_A21_an_expectation_that_cannot_be_run_blocks_even_if_it_would_only_warn(judge, monkeypatch):
    broken = replace(suites.RAW, measures=suites.RAW.measures | {"chars": lambda t: 1 / 0})
    monkeypatch.setitem(suites.SUITES, "raw", broken)
    verdict = validation.judge_table("raw", table(rows("zh")), CONFIG, judge=judge)
    assert [(r.name, r.state) for r in verdict.blocking] == [("text_within_limit", "could not be run")]
    assert "ZeroDivisionError" in verdict.blocking[0].detail


def test_A21_great_expectations_failing_inside_is_no_pass(judge, monkeypatch):
    broken = replace(suites.RAW, measures=suites.RAW.measures | {"chars": lambda t: t["text"]})  # text against a number
    monkeypatch.setitem(suites.SUITES, "raw", broken)
    verdict = validation.judge_table("raw", table(rows("en")), CONFIG, judge=judge)
    assert [(r.name, r.state) for r in verdict.blocking] == [("text_within_limit", "could not be run")]

    def judge_that_dies(columns, expected):
        raise MemoryError

    verdict = validation.judge_table("raw", table(rows("en")), CONFIG, judge=judge_that_dies)
    assert verdict.blocking and not any(r.success for r in verdict.results if r.name not in suites.READER)


def test_A2_a_missing_column_is_named_with_the_columns_found_and_the_rest_is_not_run(tmp_path):
    renamed = table(rows("zh")).rename_columns(["id", "txt", "source", "language", "metadata"])
    with pytest.raises(Blocked, match=r"columns_present.*'text'.*'txt'") as error:
        validation.check("raw", renamed, CONFIG, tmp_path / "out", kept=tmp_path / "kept")
    assert "not run" in str(error.value) and "could not be run" not in str(error.value)
    states = {r["name"]: r["state"] for r in json.loads((tmp_path / "kept" / "validation.json").read_text(encoding="utf-8"))["results"]}
    assert states["columns_present"] == "failed" and states["text_not_blank"] == "not run"


def test_A1_two_sentences_are_told_how_much_text_is_needed_and_what_they_are_enough_for(tmp_path):
    config = build({}, where="test")
    two = table(rows("zh", 2))
    with pytest.raises(Blocked) as error:
        validation.check("raw", two, config, tmp_path, kept=tmp_path / "kept")
    for words in ("2 documents", "50,000 bytes", "lmworks import", str(tmp_path / "kept" / "validation.html")):
        assert words in str(error.value)
    imported = build({"corpus.base": "data/imported/base"}, where="test")
    kept, _, notes = validation.check("raw", two, imported, tmp_path, kept=tmp_path / "kept")
    assert len(kept) == 2 and any("min_corpus_bytes" in note for note in notes)
    assert not (tmp_path / "kept").exists(), "a suite that passes leaves no page of an earlier block"


def test_A3_a_few_rows_at_fault_never_block_and_more_than_the_share_do(tmp_path):
    fault = next(f["reader_fault"] for f in PLANTED if f["expectation"] == "line_is_valid_json")
    kept, taken_out, notes = validation.check("raw", table(rows("zh")), CONFIG, tmp_path, [fault] * 3)
    assert len(kept) == 60 and taken_out == [] and "line_is_valid_json 3" in notes[-1]
    with pytest.raises(Blocked, match=r"few_rows_quarantined.*4 of 64 rows are at fault \(line_is_valid_json 4\).*评论.jsonl row 7"):
        validation.check("raw", table(rows("zh")), CONFIG, tmp_path, [fault] * 4)


def test_row_groups_change_no_byte_of_json_or_page(judge, monkeypatch):
    bad = table([*rows("zh"), *[f["row"] for f in PLANTED if "row" in f]])
    whole = validation.judge_table("raw", bad, CONFIG, judge=judge)
    monkeypatch.setattr(validation_judge, "ROW_GROUP", 40)
    parts = validation.judge_table("raw", bad, CONFIG, judge=judge)
    assert whole.as_dict() == parts.as_dict() and whole.faults == parts.faults
    assert validation.validation_page.render(whole.as_dict()) == validation.validation_page.render(parts.as_dict())


def test_J12_the_page_needs_no_network_escapes_what_it_shows_and_limits_examples(judge):
    bad = [{"id": f"坏.txt#{i:08d}", "text": f"<script>alert('坏{i}')</script>\0", "source": "坏.txt", "language": "zh", "metadata": "{}"} for i in range(30)]
    verdict = validation.judge_table("raw", table([*rows("zh"), *bad]), CONFIG, judge=judge)
    page = validation.validation_page.render(verdict.as_dict())
    assert page.count("<script") == 1 and "http" not in page.replace("http-equiv", "") and "\0" not in page
    assert page.count("&lt;script&gt;alert") == 2 * validation.EXAMPLES  # text_has_no_nul and few_rows_quarantined
    assert "text_has_no_nul" in page and "坏.txt" in page and "✗ blocked" in page and "✓ passed" in page


# --- clean and tokens ----------------------------------------------------------------------------

def clean_rows(n: int = 60) -> list[dict]:
    return [{"id": f"{i:016x}", "text": f"第{i}篇文章说的是一件小事", "source": "文.txt", "language": "zh", "metadata": "{}",
             "split": ("test", "validation", "train", "train")[i % 4]} for i in range(n)]


CLEAN_FAULTS = {
    "no_missing_values": {"text": None},
    "id_is_hash": {"id": "文.txt#00000007"},
    "id_unique": {"id": f"{2:016x}", "split": "train"},
    "text_not_blank": {"text": "\u3000"},
    "text_is_nfc": {"text": "Cafe\u0301 de la gare"},
    "no_control_characters": {"text": "味道\x07不错，下次再来"},
    "language_known_value": {"language": "fr"},
    "split_known_value": {"split": "dev"},
    "metadata_is_json": {"metadata": "[]"},
}


@pytest.mark.parametrize("name", CLEAN_FAULTS)
def test_each_clean_expectation_blocks(judge, name):
    bad = clean_rows()[2] | {"id": f"{77:016x}"} | CLEAN_FAULTS[name]
    schema = DOCUMENTS.append(pa.field("split", pa.string()))
    verdict = validation.judge_table("clean", pa.Table.from_pylist([*clean_rows(), bad], schema=schema), CONFIG, judge=judge)
    assert [r.name for r in verdict.blocking] == [name] and verdict.blocking[0].at_fault == 1


def test_A8_a_document_in_two_splits_blocks_and_so_does_an_empty_split(judge):
    schema = DOCUMENTS.append(pa.field("split", pa.string()))
    twice = [*clean_rows(), clean_rows()[2] | {"split": "test"}]
    verdict = validation.judge_table("clean", pa.Table.from_pylist(twice, schema=schema), CONFIG, judge=judge)
    assert [(r.name, r.at_fault) for r in verdict.blocking] == [("no_overlap_of_splits", 2)]
    for split in suites.SPLITS:
        without = [r for r in clean_rows() if r["split"] != split]
        verdict = validation.judge_table("clean", pa.Table.from_pylist(without, schema=schema), CONFIG, judge=judge)
        assert [r.name for r in verdict.blocking] == [f"{split}_not_empty"]
    assert {*CLEAN_FAULTS, "no_overlap_of_splits"} == {e.name for e in suites.CLEAN.rows}


TOKEN_FAULTS = {
    "no_missing_values": {"min_id": None, "max_id": None},
    "split_known_value": {"split": "dev"},
    "language_known_value": {"language": "xx"},
    "document_has_tokens": {"tokens": 0},
    "ids_not_negative": {"min_id": -1},
    "ids_in_vocabulary": {"max_id": 300},
    "tokens_at_most_bytes": {"tokens": 43},
}


@pytest.mark.parametrize("name", TOKEN_FAULTS)
def test_A17_each_expectation_on_tokens_fails_alone(judge, name):
    good = [{"split": s, "language": "zh", "tokens": 20, "bytes": 40, "min_id": 0, "max_id": 299, "vocab_size": 300}
            for s in ("train", "train", "validation", "test") for _ in range(10)]
    verdict = validation.judge_table("tokens", pa.Table.from_pylist(good), CONFIG, judge=judge)
    assert failed(verdict) == []
    verdict = validation.judge_table("tokens", pa.Table.from_pylist([*good, good[0] | TOKEN_FAULTS[name]]), CONFIG, judge=judge)
    assert failed(verdict) == [name]
    assert set(TOKEN_FAULTS) == {e.name for e in suites.TOKENS.rows}


def test_A20_an_empty_split_of_tokens_and_an_implausible_tokenizer_block(judge):
    train = [{"split": "train", "language": "en", "tokens": 2, "bytes": 400, "min_id": 0, "max_id": 9, "vocab_size": 300}]
    verdict = validation.judge_table("tokens", pa.Table.from_pylist(train), CONFIG, judge=judge)
    assert [r.name for r in verdict.blocking] == ["validation_has_tokens", "test_has_tokens", "plausible_bytes_per_token"]
    assert "200.00 bytes a token" in verdict.blocking[-1].detail


def test_importing_is_light_and_a_good_check_prints_nothing(tmp_path):
    code = ("import sys, pathlib; from components.corpus import validation; assert 'great_expectations' not in sys.modules; "
            "from tests_rows import table, rows, CONFIG; validation.check('raw', table(rows('zh')), CONFIG, pathlib.Path(sys.argv[1]))")
    (tmp_path / "tests_rows.py").write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_validation import CONFIG, rows, table\n")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=root, capture_output=True, text=True, timeout=120,
                          env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{root}:{tmp_path}", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["validation.html", "validation.json"]
