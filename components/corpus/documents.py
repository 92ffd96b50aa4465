"""Documents, records and quarantined rows as Arrow tables; how long text is cut into documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

DOCUMENTS = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "language", "metadata")])
RECORDS = pa.schema([(name, pa.string()) for name in (
    "id", "application", "language", "prompt", "answer", "label", "source", "document", "metadata")])
QUARANTINE = pa.schema([("source", pa.string()), ("row", pa.int64()), ("expectation", pa.string()),
                        ("detail", pa.string()), ("text", pa.string())])
APPLICATIONS = ("classification", "question_answering", "translation", "summarisation", "recommendation", "text_generation")
QUARANTINED_CHARS = 300
TABLE_ROWS = 4096  # rows gathered as Python values before they become Arrow memory


class Row(NamedTuple):
    """A row that a reader could read. `number` counts from 1 and is unique inside its file."""

    number: int
    text: str
    metadata: dict[str, Any] = {}


class Fault(NamedTuple):
    """A row that a reader could not read, under the name of the expectation it fails."""

    number: int
    expectation: str
    detail: str
    text: str

    def as_dict(self, source: str) -> dict[str, Any]:
        """A row of quarantine.parquet."""
        return {"source": source, "row": self.number, "expectation": self.expectation, "detail": self.detail,
                "text": printable(self.text[:QUARANTINED_CHARS])}


def printable(text: str) -> str:
    """Text that every Arrow and JSON writer takes: a lone surrogate becomes '?'."""
    return text.encode("utf-8", "replace").decode("utf-8")


def metadata_json(value: dict[str, Any]) -> str:
    """Metadata as JSON text: sorted keys, Han as Han."""
    return printable(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))


def row_id(source: str, number: int) -> str:
    return f"{source}#{number:08d}"


# --- cutting -------------------------------------------------------------------------------------

# After a line end; else after a sentence end, Chinese or English, with the quotes that close it; else after a space.
CUTS = (re.compile(r"\n"), re.compile("[。！？…；][”’」』）]*|[.!?;][\"')\u201d\u2019]*\\s+"), re.compile(r"\s+|[，、,]"))


def cut(text: str, max_chars: int) -> list[str]:
    """Pieces of at most `max_chars` characters, ended at the last line end that fits, else sentence end, else space.

    Nothing but white space at the cuts is lost. A cut leaves at least half a piece, so that one early
    line end does not make a tiny one. Linear in the length of the text.
    """
    pieces, start = [], 0
    while len(text) - start > max_chars:
        floor = start + max_chars // 2
        end = start + max_chars
        for pattern in CUTS:
            ends = [match.end() for match in pattern.finditer(text, floor, start + max_chars)]
            if ends:
                end = ends[-1]
                break
        pieces.append(text[start:end].strip())
        start = end
    return [piece for piece in [*pieces, text[start:].strip()] if piece]


def pack(lines: Iterable[str], max_chars: int) -> Iterator[str]:
    """Documents of at most `max_chars` characters out of the lines of a text file.

    Blocks between blank lines are packed together until the next would not fit; a block that does not
    fit by itself is cut (see `cut`). A document depends on the text before it, never on what follows
    it: appending to a file changes its last document alone.
    """
    document = ""
    for block in blocks(lines, max_chars):
        if document and len(document) + 2 + len(block) > max_chars:
            yield document
            document = ""
        document = f"{document}\n\n{block}" if document else block
    if document:
        yield document


def blocks(lines: Iterable[str], max_chars: int) -> Iterator[str]:
    """Runs of lines between blank lines, cut to `max_chars` as they grow, so that memory stays bounded."""
    gathered: list[str] = []
    size = 0

    def finished() -> str:
        text = "\n".join(gathered).strip("\n")
        gathered.clear()
        return text

    for line in lines:
        line = line.rstrip()
        fits = size + 1 + len(line) <= max_chars
        if gathered and (not line or not fits):
            yield finished()
            size = 0
        if len(line) > max_chars:
            yield from cut(line, max_chars)
        elif line:
            gathered.append(line)
            size += 1 + len(line)
    if gathered:
        yield finished()


# --- tables --------------------------------------------------------------------------------------

class TableBuilder:
    """Rows in, one Arrow table out; Python objects never pile up beyond TABLE_ROWS."""

    def __init__(self, schema: pa.Schema):
        self.schema = schema
        self.rows: list[dict[str, Any]] = []
        self.batches: list[pa.RecordBatch] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) >= TABLE_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.batches.append(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self.batches, schema=self.schema)


def to_table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    builder = TableBuilder(schema)
    for row in rows:
        builder.add(row)
    return builder.table()
