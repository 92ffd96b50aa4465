"""Whatever bytes a file holds: rows, rows set aside by name, or one clear error. Never an exception of a library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.config import Config, build
from components.corpus import user_records
from components.corpus.documents import DOCUMENTS, QUARANTINE, RECORDS, to_table
from components.errors import UserError
from components.layout import Layout
from components.reporting import Report
from components.stages import ingest
from tests.corpus_checkout import Checkout
from tests.malformed import malformed

pytestmark = pytest.mark.code
CONFIG = build({"corpus.max_expanded_mb": 8.0, "corpus.max_line_mb": 1.0}, where="test")
CLASS = re.compile(r"\b(?!JSON)\w+(Error|Exception|Interrupt)\b|Traceback| at 0x")  # words of a program, not of a person


def judged(message: str, name: str) -> None:
    assert name in message and not CLASS.search(message) and len(message) < 1500, message
    assert re.search(r"(Copy|Mend|Convert|Name|Raise|save|Save|Rename|extension|unpack|extract|Run|Give|corpus)", message), message


def records(folder: Path, config: Config, report: Report) -> tuple[pa.Table, list[dict[str, Any]]]:
    rows = ingest.readable_rows(user_records.read_records, folder, config, report, faults := [])
    return to_table([record for _, record in rows], RECORDS), faults


@pytest.mark.parametrize("tens", range(0, 400, 40))
def test_any_file_becomes_rows_or_faults_or_one_clear_error(tmp_path, tens):
    folder = tmp_path / "corpus"
    folder.mkdir()
    ends = {"rows": 0, "refused": 0}
    for seed in range(tens, tens + 40):
        name, data = malformed(seed)
        (folder / name).write_bytes(data)
        for read, wanted in ((ingest.user_documents, DOCUMENTS), (records, RECORDS)):
            try:
                table, faults = read(folder, CONFIG, Report())
                ends["rows"] += 1
                for fault in faults:  # a row of the quarantine in any case
                    assert fault["source"] == name and set(fault) == set(QUARANTINE.names) and fault["detail"]
                    fault["text"].encode()
                assert table.schema == wanted and None not in table["source"].to_pylist()
                table.validate(full=True)  # every text is UTF-8, every offset inside its buffer
            except UserError as error:
                judged(str(error), name)
                ends["refused"] += 1
        (folder / name).unlink()
    assert min(ends.values()) > 5, f"the files are not broken in enough ways: {ends}"


@pytest.mark.slow
def test_forty_malformed_corpora_each_end_with_a_word_of_their_own(tmp_path):
    """From the folder to the end of ingest, as `lmworks run --to ingest` goes."""
    records = tmp_path / "records.jsonl"
    records.write_text('{"application": "classification", "prompt": "房间很好", "answer": "正面"}\n' * 5)
    codes: list[int] = []
    for seed in range(1000, 1040):
        name, data = malformed(seed)
        folder = tmp_path / str(seed)
        (folder / "语料").mkdir(parents=True)
        (folder / "语料" / name).write_bytes(data)
        (folder / "语料" / "好.txt").write_text("".join(f"{i} 今天的天气很好。\n\n" for i in range(3000)))
        made = Checkout(folder, corpus__source=str(folder / "语料"), corpus__records=str(records), validation__min_corpus_bytes=1000)
        made.update()
        made.stage("fetch")
        outcome = made.attempt("ingest")
        codes.append(outcome["exit_code"])
        assert outcome["exit_code"] in (0, 2, 3), (name, outcome)
        if outcome["exit_code"]:
            judged(outcome["message"], name)
            assert made.nothing_half_written()
        else:
            assert Layout(root=made.layout.root).raw.exists()
    assert {0, 2} <= set(codes), codes
