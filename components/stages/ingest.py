"""ingest: every source file as documents and application records of one schema, validated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components import files
from components.config import Config
from components.corpus import embedded, embedded_records, readers, validation
from components.corpus.documents import (
    DOCUMENTS,
    QUARANTINE,
    RECORDS,
    Fault,
    TableBuilder,
    metadata_json,
    row_id,
    to_table,
)
from components.corpus.language import language_of
from components.corpus.origins import GROUPS, ORIGIN, RESERVED
from components.corpus.user_records import read_records
from components.errors import Blocked, UserError
from components.layout import Layout
from components.reporting import Progress, Report, say

EMBEDDED = "embedded"
NAMES_SAID = 5
MEND = "Run: lmworks run (it brings sources.yaml up to date)"


def run(config: Config, layout: Layout) -> Report:
    """data/sources/{corpus,records} -> documents.parquet, records.parquet, quarantine.parquet and the raw suite's pages.

    Raises UserError for a corpus without documents or a file that cannot be read, Blocked where validation says no.
    """
    check_sources(config, layout)
    report = Report()
    if config.corpus.source == EMBEDDED:
        documents, faults = to_table(embedded.documents(layout.sources_corpus, config), DOCUMENTS), []
    else:
        documents, faults = user_documents(layout.sources_corpus, config, report)
    if not documents.num_rows:
        first = f"; the first of {len(faults):,} rows at fault: {faults[0]['source']}, {faults[0]['detail']}" if faults else ""
        names = source_names(layout.sources_corpus)
        held = f"{names[0]} holds" if len(names) == 1 else f"its {len(names):,} files hold"
        raise UserError(f"no documents in {config.corpus.source}: {held} no rows of text{first}. {needed(config)}")
    records, record_faults = all_records(documents, config, layout, report)

    kept, found, notes = validation.check("raw", documents, config, layout.raw, reader_faults=faults, kept=layout.blocked / "ingest")
    report.notes += notes
    at_fault = [*faults, *found]
    quarantine = sorted([*at_fault, *record_faults], key=lambda f: (f["source"], f["row"], f["expectation"]))
    write(kept.sort_by("id"), layout.raw / "documents.parquet")
    write(records.sort_by("id"), layout.raw / "records.parquet")
    write(pa.Table.from_pylist(quarantine, schema=QUARANTINE), layout.raw / "quarantine.parquet")

    report.documents_in, report.documents_out = documents.num_rows + len(faults), kept.num_rows
    if report.documents_in != report.documents_out + len(at_fault):
        raise RuntimeError(f"{report.documents_in} rows read, {report.documents_out} kept, {len(at_fault)} quarantined: the counts do not add up")
    languages = Counter(kept["language"].to_pylist())
    report.counts = {**{f"documents_{language}": n for language, n in sorted(languages.items())}, "records": records.num_rows,
                     "quarantined": len(at_fault), "records_quarantined": len(record_faults),
                     **dict(sorted(Counter(fault["expectation"] for fault in quarantine).items()))}
    return report


def check_sources(config: Config, layout: Layout) -> None:
    """The snapshot must be the one that params.yaml asks for. Raises UserError otherwise."""
    kinds = {name: files.read_json(folder / ORIGIN)["kind"] for name, folder in (
        ("corpus", layout.sources_corpus), ("records", layout.sources_records))}
    wanted = {"corpus": EMBEDDED if config.corpus.source == EMBEDDED else "user",
              "records": "user" if config.corpus.records != EMBEDDED else "none" if config.corpus.source == EMBEDDED else EMBEDDED}
    recorded = files.load_yaml(layout.sources) if layout.sources.exists() else {}
    settings = {"corpus": config.corpus.source, "records": config.corpus.records}
    for name in GROUPS[:2]:
        group = recorded.get(name) if isinstance(recorded, dict) else None
        source = group.get("source", settings[name]) if isinstance(group, dict) else settings[name]
        if kinds[name] != wanted[name] or source != settings[name]:
            raise UserError(f"the {name} in data/sources is of {source!r} ({kinds[name]}), params.yaml says {settings[name]!r}. {MEND}")


def needed(config: Config) -> str:
    return (f"Pretraining needs at least validation.min_documents={config.validation.min_documents:,} documents and "
            f"validation.min_corpus_bytes={config.validation.min_corpus_bytes:,} bytes of text: lmworks use PRESET --corpus PATH")


def source_names(folder: Path) -> list[str]:
    """The copies that fetch made, in the order of the ids that their rows get."""
    return sorted((name for name in files.list_files(folder) if name not in RESERVED), key=lambda name: f"{name}#")


# --- what the user brought -----------------------------------------------------------------------

Reader = Callable[[Path, str, Any], tuple[str, Iterable[Any]]]  # (file, its name, settings) -> (how it was decoded, its rows)


def readable_rows(read: Reader, folder: Path, config: Config, report: Report, faults: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(file, row) of every row that `read` could read; the others are added to `faults`. Encodings that had to be found and files
    without a row are said in the notes."""
    names, noticed = source_names(folder), {}
    with Progress("ingest (files)", len(names)) as progress:
        for n, name in enumerate(names, 1):
            words, rows = read(folder / name, name, config.corpus)
            if words:
                noticed.setdefault(f"decoded from {words}", []).append(name)
            empty = True
            for row in rows:
                empty = False
                if isinstance(row, Fault):
                    faults.append(row.as_dict(name))
                else:
                    yield name, row
            if empty:
                noticed.setdefault("without a row", []).append(name)
            progress.update(n, name)
    note(noticed, report)


def user_documents(folder: Path, config: Config, report: Report) -> tuple[pa.Table, list[dict[str, Any]]]:
    """(documents, rows that could not be read) of every file in the snapshot."""
    builder, faults = TableBuilder(DOCUMENTS), []
    for name, row in readable_rows(readers.read, folder, config, report, faults):
        builder.add({"id": row_id(name, row.number), "text": row.text, "source": name,
                     "language": language_of(row.text), "metadata": metadata_json(row.metadata)})
    return builder.table(), faults


def note(noticed: dict[str, list[str]], report: Report) -> None:
    for words, names in sorted(noticed.items()):
        more = f" and {len(names) - NAMES_SAID} more" if len(names) > NAMES_SAID else ""
        report.notes.append(f"{words}: {', '.join(names[:NAMES_SAID])}{more}")
        say(f"ingest: {report.notes[-1]}")


def user_records(folder: Path, config: Config, report: Report) -> tuple[Iterable[dict[str, str]], list[dict[str, Any]]]:
    """(records, rows at fault). Raises UserError if none is left, Blocked if too many are at fault."""
    faults: list[dict[str, Any]] = []
    records = [record for _, record in readable_rows(read_records, folder, config, report, faults)]
    first = f"{faults[0]['source']}, {faults[0]['detail']}" if faults else "the files are empty"
    example = 'One JSON object a line is needed: {"application": "classification", "prompt": "…", "answer": "…"}'
    if not records:
        raise UserError(f"no application records in {config.corpus.records}: {first}. {example}")
    ratio = len(faults) / (len(faults) + len(records))
    if len(faults) > config.validation.free_quarantine_rows and ratio > config.validation.max_quarantine_ratio:
        raise Blocked(f"{config.corpus.records}: {len(faults):,} of {len(faults) + len(records):,} application records are at fault ({ratio:.1%}; "
                      f"at most validation.max_quarantine_ratio={config.validation.max_quarantine_ratio:g}). The first: {first}. {example}")
    return records, faults


def all_records(documents: pa.Table, config: Config, layout: Layout, report: Report) -> tuple[pa.Table, list[dict[str, Any]]]:
    """(records, rows at fault): the user's, or the embedded ones, which stay beside a corpus of the user's."""
    if config.corpus.records != EMBEDDED:
        records, faults = user_records(layout.sources_records, config, report)
        return to_table(records, RECORDS), faults
    if config.corpus.source == EMBEDDED:
        return to_table(embedded_records.records(layout.sources_corpus, documents.to_pylist(), config), RECORDS), []
    beside = list(embedded.documents(layout.sources_records, config))
    records = embedded_records.records(layout.sources_records, beside, config)
    # Their documents are no part of this corpus, so there is no split to inherit.
    return to_table(({**record, "document": ""} for record in records), RECORDS), []


def write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")
