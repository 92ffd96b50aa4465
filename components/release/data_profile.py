"""The numbers behind the data report, read off the published data/{raw,clean,tokens}: nothing is judged or counted anew.

Only small columns are read whole; texts are read in batches, and only until the few that are shown are found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components import files
from components.corpus.splits import SPLITS
from components.layout import Layout

CHECKED = ("raw", "clean", "tokens")  # data stages that publish validation.json
PAIRS_SHOWN = 10
TEXT_CHARS = 200
BATCH_ROWS = 20_000
MAX_FILES = 25  # more files than this are shown by folder


@dataclass
class Source:
    """What became of the documents of one source file, or of a folder of them."""

    files: int = 1
    counts: Counter[str] = field(default_factory=Counter)  # read, quarantined, dropped, train, validation, test


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A document that was dropped because another one says nearly the same."""

    source: str
    row: int
    reason: str
    dropped: str
    kept_id: str
    kept: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that the report shows."""

    summaries: dict[str, dict[str, Any]]  # out -> its summary.json
    suites: dict[str, dict[str, Any]]  # out -> its validation.json
    raw: Counter[str]  # language -> documents that validation kept
    sources: dict[str, Source]
    quarantined: Counter[str]  # expectation -> rows, application records included
    dropped: dict[str, Counter[str]]  # 'document' | 'record' -> reason -> how many
    pairs: list[Pair]
    splits: dict[str, dict[str, dict[str, int]]]  # split -> language -> documents, tokens, bytes
    lengths: dict[str, np.ndarray]  # language -> tokens of each document that stays


def read(layout: Layout) -> Profile | None:
    """The profile of the data that lies in the checkout; None where no stage of it was published."""
    summaries = {out: files.read_json(layout.out(out) / "summary.json") for out in CHECKED if (layout.out(out) / "summary.json").exists()}
    if set(summaries) != set(CHECKED):
        return None
    documents = _columns(layout.raw / "documents.parquet", "source", "language")
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    for (kind, reason), n in _columns(layout.clean / "dropped.parquet", "kind", "reason").items():
        dropped[kind][reason] += n
    index = files.read_json(layout.tokens / "index.json")["splits"]
    raw: Counter[str] = Counter()
    for (_, language), n in documents.items():
        raw[language] += n
    return Profile(
        summaries=summaries,
        suites={out: files.read_json(layout.out(out) / "validation.json") for out in CHECKED},
        raw=raw,
        sources=_sources(layout, documents),
        quarantined=Counter({name: n for (name,), n in _columns(layout.raw / "quarantine.parquet", "expectation").items()}),
        dropped=dict(dropped),
        pairs=_pairs(layout),
        splits={split: {code: {k: entry[k] for k in ("documents", "tokens", "bytes")} for code, entry in sorted(index.get(split, {}).items())}
                for split in SPLITS},
        lengths=_lengths(layout, index))


def _columns(path: Path, *names: str) -> Counter[tuple[Any, ...]]:
    """How many rows share the values of a few columns."""
    table = pq.ParquetFile(path).read(columns=list(names))
    grouped = table.group_by(list(names), use_threads=False).aggregate([([], "count_all")])
    return Counter(dict(zip(zip(*(grouped[name].to_pylist() for name in names), strict=True), grouped["count_all"].to_pylist(), strict=True)))


def _sources(layout: Layout, documents: Counter[tuple[Any, ...]]) -> dict[str, Source]:
    """By file; by the first folder of their names where the files are many."""
    by_file: dict[str, Counter[str]] = defaultdict(Counter)
    for (source, _), n in documents.items():
        by_file[source]["read"] += n
    for (source,), n in _columns(layout.raw / "quarantine.parquet", "source").items():
        if source in by_file or (layout.sources_corpus / source).is_file():  # the others are files of application records
            by_file[source].update(read=n, quarantined=n)
    for (source, kind), n in _columns(layout.clean / "dropped.parquet", "source", "kind").items():
        if kind == "document":
            by_file[source]["dropped"] += n
    for split in SPLITS:
        for (source,), n in _columns(layout.clean / f"{split}.parquet", "source").items():
            by_file[source][split] += n
    grouped: dict[str, Source] = {}
    for name, counts in sorted(by_file.items()):
        folder = name.partition("/")[0] + "/" if "/" in name and len(by_file) > MAX_FILES else name
        entry = grouped.setdefault(folder, Source(files=0))
        entry.files += 1
        entry.counts.update(counts)
    return grouped


def _lengths(layout: Layout, index: dict[str, Any]) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for split in SPLITS:
        for code in sorted(index.get(split, {})):
            offsets = np.load(layout.tokens / f"{split}-{code}.offsets.npy", mmap_mode="r", allow_pickle=False)
            found[code].append(np.diff(offsets))
    return {code: np.concatenate(parts) for code, parts in sorted(found.items())}


def _pairs(layout: Layout) -> list[Pair]:
    """The first near-duplicates by source and row, those of a held-out document before the others, beside what stayed for them."""
    table = pq.ParquetFile(layout.clean / "dropped.parquet").read()
    table = table.filter(pc.and_(pc.equal(table["kind"], "document"), pc.starts_with(table["reason"], "near_duplicate")))
    near = sorted(table.to_pylist(), key=lambda row: (row["reason"] == "near_duplicate", row["source"], row["row"]))[:PAIRS_SHOWN]
    # the form of a raw id is SOURCE#ROW, whatever the number of digits
    wanted = {(row["source"], row["row"]) for row in near}
    dropped = {}
    for raw_id, source, text in _texts(layout.raw / "documents.parquet", ["id", "source", "text"]) if wanted else ():
        number = raw_id.rpartition("#")[2]
        if number.isdecimal() and (source, int(number)) in wanted:
            dropped[source, int(number)] = text
            if len(dropped) == len(wanted):
                break
    ids, kept = {row["kept_id"] for row in near}, {}
    for split in SPLITS if ids else ():
        for key, text in _texts(layout.clean / f"{split}.parquet", ["id", "text"]):
            if key in ids:
                kept[key] = text
    return [Pair(source=row["source"], row=row["row"], reason=row["reason"], kept_id=row["kept_id"],
                 dropped=dropped.get((row["source"], row["row"]), "")[:TEXT_CHARS], kept=kept.get(row["kept_id"], "")[:TEXT_CHARS]) for row in near]


def _texts(path: Path, columns: list[str]) -> Iterator[tuple[str, ...]]:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS, columns=columns):
        yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)
