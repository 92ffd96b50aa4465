"""A line of 200 MB and a million documents of one character: what ingest makes of them, and the memory that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.layout import ROOT

pytestmark = [pytest.mark.code, pytest.mark.slow]
MB = 2**20
CHILD = """
import json, resource, sys
from collections import Counter
from pathlib import Path
from tests.corpus_checkout import Checkout

def ingested(name):
    folder = Path(sys.argv[1]) / name
    made = Checkout(folder, corpus__source=str(folder / "corpus"), corpus__records=str(folder.parent / "records.jsonl"), validation__min_corpus_bytes=1000)
    report = made.run()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mb": peak_mb, "documents": report.documents_out, "notes": report.notes, "faults": made.table("quarantine").to_pylist()}

small = ingested("small")  # libraries and all: what follows is on top of it
print(json.dumps({"small": small, "odd": ingested("odd")}))
"""


def grown(folder: Path, name: str, content: bytes) -> tuple[float, dict[str, Any]]:
    """(MB that a process grew by over what an ordinary corpus takes, what became of the file)."""
    (folder / "records.jsonl").write_text('{"application": "classification", "prompt": "房间很好", "answer": "正面"}\n' * 3)
    for kind in ("small", "odd"):
        (folder / kind / "corpus").mkdir(parents=True)
        (folder / kind / "corpus" / "好.txt").write_text("".join(f"{i} 今天的天气很好。\n\n" for i in range(5000)))
    (folder / "odd" / "corpus" / name).write_bytes(content)
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], cwd=ROOT, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    return told["odd"]["peak_mb"] - told["small"]["peak_mb"], told["odd"]


@pytest.mark.parametrize("name, head, tail", [("一行.jsonl", '{"text": "', '"}\n'), ("一行.csv", 'text\n"', '"\n')])
def test_A6_a_line_of_200_mb_is_set_aside_in_less_memory_than_three_such_lines(tmp_path: Path, name: str, head: str, tail: str):
    line = head.encode() + "长".encode() * (200 * MB // 3) + tail.encode()
    mb, told = grown(tmp_path, name, line)
    (fault,) = told["faults"]
    assert (fault["source"], fault["expectation"]) == (name, "line_too_long") and "bytes; at most corpus.max_line_mb=64 MB" in fault["detail"]
    assert mb < 3 * 200, mb


def test_A6_a_million_documents_of_one_character_are_ingested_in_bounded_memory(tmp_path: Path):
    mb, told = grown(tmp_path, "百万.jsonl", '{"text": "好"}\n'.encode() * 1_000_000)
    assert told["documents"] > 1_000_000 and not told["faults"]
    assert any("texts_differ" in note for note in told["notes"])
    assert mb < 1500, mb
