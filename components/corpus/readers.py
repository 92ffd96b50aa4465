"""Files of the user's as rows: txt, md, jsonl, csv, tsv and parquet, each also as .gz.

A row that cannot be read becomes a Fault with the name of the expectation it fails; a file that cannot
be read at all raises UserError.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from components.config import Corpus
from components.corpus import encodings
from components.corpus.documents import Fault, Row, cut, pack
from components.corpus.encodings import Line
from components.corpus.origins import kind_of
from components.errors import UserError

ROWS_BEFORE_GIVING_UP = 1000  # rows without the text column, from the first on
BATCH_ROWS = 1024  # rows of a Parquet file in memory at once
MAX_NESTING = 100  # deeper JSON no later step could read again
COLUMNS_NAMED = 12
# A row of csv: the lines of the stream, split again where a cell holds a lone carriage return.
PHYSICAL_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def read(path: Path, name: str, corpus: Corpus) -> tuple[str, Iterator[Row | Fault]]:
    """(how the file was decoded, where that is worth saying; its rows). An unknown extension is read as text.

    A row longer than corpus.max_document_chars is cut into several, numbered on. Raises UserError, here or
    while rows are drawn.
    """
    kind = kind_of(name) or "text"
    if kind == "parquet":
        return "", cut_rows(read_parquet(path, name, corpus), corpus.max_document_chars)
    encoding = encodings.detect(path, name, corpus)
    stream = encodings.open_utf8(path, name, corpus, encoding)
    if kind == "text":
        return encoding.words, read_text(stream, corpus)
    if kind == "jsonl":
        rows = read_jsonl(stream, name, corpus)
    else:
        rows = read_table(stream, name, corpus, delimiter="\t" if kind == "tsv" else ",")
    return encoding.words, cut_rows(rows, corpus.max_document_chars)


def normal_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def cut_rows(rows: Iterator[Row | Fault], max_chars: int) -> Iterator[Row | Fault]:
    """Long rows in pieces. Numbers stay those of the reader until a cut, and rise on from there."""
    last = 0
    for row in rows:
        pieces = [row.text]
        if isinstance(row, Row) and len(row.text) > max_chars:
            pieces = cut(row.text, max_chars) or [""]  # white space alone: one row still, for validation to find
        for piece in pieces:
            last = max(last + 1, row.number)
            yield row._replace(number=last, text=piece)


# --- text ----------------------------------------------------------------------------------------

def decoded(line: Line, max_line_mb: float) -> str | Fault:
    """The text of a line without its end, or why it has none."""
    if line.too_long:
        return Fault(line.number, "line_too_long", f"line {line.number}: {line.too_long:,} bytes; at most corpus.max_line_mb={max_line_mb:g} MB",
                     line.data.decode("utf-8", "ignore"))
    try:
        text = line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(line.number, "text_is_valid_utf8", f"line {line.number}: {error.reason} at byte {error.start} of the line",
                     line.data[:2048].decode("utf-8", "replace"))
    if "\0" in text:
        return Fault(line.number, "text_has_no_nul", f"line {line.number}: NUL at character {text.index(chr(0))} of the line", text.replace("\0", " "))
    return text


def read_text(stream: BinaryIO, corpus: Corpus) -> Iterator[Row | Fault]:
    """A text or Markdown file as documents (see documents.pack). Faults are numbered by line, documents on their own."""
    faults: list[Fault] = []

    def good_lines() -> Iterator[str]:
        for line in encodings.lines(stream, int(corpus.max_line_mb * 2**20)):
            text = decoded(line, corpus.max_line_mb)
            if isinstance(text, Fault):
                faults.append(text)
            else:
                text = text.rstrip("\r\n")
                if "\r" in text:  # lone carriage returns end lines too
                    yield from text.split("\r")
                else:
                    yield text

    with closing(stream):
        for number, document in enumerate(pack(good_lines(), min(corpus.text_document_chars, corpus.max_document_chars)), 1):
            yield from faults
            faults.clear()
            yield Row(number, document)
        yield from faults


# --- rows of columns -----------------------------------------------------------------------------

class MissingColumn:
    """Notices that no row has the text column (fault A2), early or at the end of the file."""

    def __init__(self, name: str, field: str):
        self.name, self.field = name, field
        self.columns: dict[str, None] = {}
        self.rows_without, self.seen = 0, False

    def without(self, columns: Any) -> None:
        self.rows_without += 1
        if len(self.columns) < 100:
            self.columns.update(dict.fromkeys(str(column) for column in columns))
        if not self.seen and self.rows_without >= ROWS_BEFORE_GIVING_UP:
            self.check()

    def check(self) -> None:
        if self.rows_without and not self.seen:
            raise no_column(self.name, self.field, list(self.columns))


def no_column(name: str, field: str, columns: list[str]) -> UserError:
    named = ", ".join(repr(column[:40]) for column in columns[:COLUMNS_NAMED]) + (", …" if len(columns) > COLUMNS_NAMED else "")
    return UserError(f"{name} has no column {field!r}; it has {named or 'none'}. "
                     f"Name the column that holds the text: lmworks use PRESET --corpus PATH --set corpus.text_field=COLUMN")


def checked(number: int, text: Any, metadata: dict[str, Any], where: str) -> Row | Fault:
    """A Row, or the Fault of a text that is no string, or none that Unicode allows (fault A7)."""
    if not isinstance(text, str):
        found = "null" if text is None else type(text).__name__
        return Fault(number, "text_is_string", f"{where}: the text is {found}", repr(text)[:2048])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Fault(number, "text_is_valid_utf8", f"{where}: no valid Unicode at character {error.start} of the text", text)
    if "\0" in text:
        return Fault(number, "text_has_no_nul", f"{where}: NUL at character {text.index(chr(0))} of the text", text.replace("\0", " "))
    return Row(number, normal_newlines(text), metadata)


def json_objects(stream: BinaryIO, corpus: Corpus) -> Iterator[tuple[int, dict[str, Any]] | Fault]:
    """(line number, object) of each line that is not blank, or its Fault (fault A3)."""
    with closing(stream):
        for line in encodings.lines(stream, int(corpus.max_line_mb * 2**20)):
            text = decoded(line, corpus.max_line_mb)
            if isinstance(text, Fault):
                yield text
                continue
            if not text.strip():
                continue
            try:
                value = json.loads(text, parse_constant=lambda _: None)
            except (ValueError, RecursionError) as error:
                detail = f"{error.msg.removesuffix(' at')} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
                yield Fault(line.number, "line_is_valid_json", f"line {line.number}: {detail}", text)
                continue
            if text.count("[") + text.count("{") > MAX_NESTING and _is_deep(value):
                yield Fault(line.number, "line_is_valid_json", f"line {line.number}: nested deeper than {MAX_NESTING}", text)
                continue
            if isinstance(value, dict):
                yield line.number, value
            else:
                yield Fault(line.number, "line_is_valid_json", f"line {line.number}: an object was expected, found {type(value).__name__}", text)


def _is_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than MAX_NESTING."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return bool(level)


def read_jsonl(stream: BinaryIO, name: str, corpus: Corpus) -> Iterator[Row | Fault]:
    """JSON lines, numbered by line. Other keys go into the metadata."""
    field, missing = corpus.text_field, MissingColumn(name, corpus.text_field)
    for item in json_objects(stream, corpus):
        if isinstance(item, Fault):
            yield item
            continue
        number, value = item
        if field not in value:
            missing.without(value)
            yield Fault(number, "text_is_string", f"line {number}: no {field!r}", json.dumps(value, ensure_ascii=False)[:2048])
            continue
        missing.seen = True
        yield checked(number, value.pop(field), value, f"line {number}")
    missing.check()


def read_table(stream: BinaryIO, name: str, corpus: Corpus, *, delimiter: str) -> Iterator[Row | Fault]:
    """csv or tsv with a header, rows numbered from 1 after it. Quoted cells may hold line ends, lone CR included.

    Raises UserError for a quote that is never closed, since it would swallow the rest of the file.
    """
    too_long: list[Fault] = []
    quoted = delimiter == "," or _closes_its_quotes(stream)

    def physical_lines() -> Iterator[str]:
        for line in encodings.lines(stream, int(corpus.max_line_mb * 2**20)):
            if line.too_long:
                too_long.append(decoded(line, corpus.max_line_mb))
            else:  # an invalid byte becomes a lone surrogate, so that `checked` finds it in its cell
                yield from PHYSICAL_LINES.findall(line.data.decode("utf-8", "surrogateescape"))

    csv.field_size_limit(int(corpus.max_line_mb * 2**20))
    rows = csv.reader(physical_lines(), delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    with closing(stream):
        header = next((row for row in _parsed(rows, name) if row), None)
        if header is None:
            return
        if isinstance(header, Fault) or corpus.text_field not in header:
            raise no_column(name, corpus.text_field, [] if isinstance(header, Fault) else header)
        column = header.index(corpus.text_field)
        number = 0
        for cells in _parsed(rows, name):
            for fault in too_long:
                number += 1
                yield fault._replace(number=number)
            too_long.clear()
            if not cells:
                continue  # a blank line
            number += 1
            if isinstance(cells, Fault):
                yield cells._replace(number=number)
            elif len(cells) != len(header):
                yield Fault(number, "row_matches_header", f"line {rows.line_num}: {len(cells)} cells, the header has {len(header)}", delimiter.join(cells))
            else:
                metadata = {key: cell for i, (key, cell) in enumerate(zip(header, cells, strict=True)) if i != column}
                yield checked(number, cells[column], metadata, f"line {rows.line_num}")
        yield from (fault._replace(number=number + i) for i, fault in enumerate(too_long, 1))


def _parsed(rows: Any, name: str) -> Iterator[list[str] | Fault]:
    """Rows of a csv reader; a malformed one as a Fault (numbered by the caller)."""
    while True:
        start = rows.line_num + 1
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise UserError(f"{name}: the quote that opens in line {start} is not closed where it should be ({error}). "
                                "Mend that line, then run again") from error
            yield Fault(0, "row_is_valid_csv", f"line {rows.line_num}: {error}", "")


def _closes_its_quotes(stream: BinaryIO) -> bool:
    """Whether the cells of a tsv that open with a quote also close with one: many programs write bare quotes."""
    head = stream.peek(encodings.CHUNK_BYTES) if hasattr(stream, "peek") else b""
    opening, closing_ = len(re.findall(rb'(?:^|[\t\n])"', head)), len(re.findall(rb'"(?:[\t\r\n]|$)', head))
    return opening == closing_


def read_parquet(path: Path, name: str, corpus: Corpus) -> Iterator[Row | Fault]:
    """A Parquet file, rows numbered from 1, a batch in memory at a time. Of its other columns those that are data of a plain kind
    become metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    field, max_bytes = corpus.text_field, corpus.max_expanded_mb * 2**20

    def too_large(size: float) -> UserError:
        return UserError(f"{name} expands to {size / 2**20:,.0f} MB; at most corpus.max_expanded_mb={corpus.max_expanded_mb:g} are read. "
                         "Raise that setting if the file is what it should be")

    try:
        with _seekable(path, name, corpus) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            columns = file.schema_arrow.names
            if field not in columns:
                raise no_column(name, field, columns)
            if columns.count(field) > 1:
                raise UserError(f"{name} has {columns.count(field)} columns named {field!r}. Rename all but the one that holds the text, then run again")
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if size > max_bytes:
                raise too_large(size)
            kept = [column.name for column in file.schema_arrow
                    if column.name == field or (columns.count(column.name) == 1 and not pa.types.is_binary(column.type))]
            number = expanded_bytes = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=kept):
                expanded_bytes += batch.nbytes  # a value that repeats is stored once, so the size above says little of it
                if expanded_bytes > max_bytes:
                    raise too_large(expanded_bytes)
                texts = _texts(batch.column(field))
                for text, row in zip(texts, _metadata(batch.drop_columns([field])), strict=True):
                    number += 1
                    yield checked(number, text, row, f"row {number}")
    except (pa.ArrowException, OSError, EOFError, ValueError, LookupError, OverflowError, TypeError) as error:  # damage has many names
        reason = re.sub(r"\bT\w+Exception: ", "", " ".join(str(error).split()))[:200].rstrip(".")  # Thrift names its classes
        raise UserError(f"{name} is not a whole Parquet file ({path.stat().st_size:,} bytes): {reason}. Copy it again, then run again") from error


@contextmanager
def _seekable(path: Path, name: str, corpus: Corpus) -> Iterator[BinaryIO]:
    """The bytes of a Parquet file, which is read from its end: one that is compressed as a whole is expanded into a temporary file."""
    with encodings.open_bytes(path, name, corpus) as stream, ExitStack() as stack:
        if name.lower().endswith(".gz"):
            try:
                expanded = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(stream, expanded, encodings.CHUNK_BYTES)
                expanded.seek(0)
            except OSError as error:
                raise UserError(f"{name} cannot be expanded in {os.environ.get('TMPDIR') or '/tmp'}: {error.strerror or error}. Give room there, or another "
                                "folder by TMPDIR, then run again") from error
            stream = expanded
        yield stream


def _metadata(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch. A column that Python has no values for is left out: dates beyond the year 9999, unknown time zones, bytes
    that are no UTF-8."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        with suppress(ValueError, LookupError, OverflowError, TypeError):
            columns[name] = column.to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] if columns else [{} for _ in range(len(batch))]


def _texts(column: Any) -> list[Any]:
    """The values of a text column; bytes that are not UTF-8 keep their place as lone surrogates."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in column.view(binary).to_pylist()]
