"""Clean: raw documents and records -> mended, without duplicates, in train, validation and test."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.config import Config
from components.corpus import cleaning, dedup, normalisation, splits, validation
from components.corpus.documents import DOCUMENTS, QUARANTINE, RECORDS
from components.corpus.record_cleaning import CleanedRecords, clean_records
from components.layout import Layout
from components.reporting import Progress, Report, say

PROGRESS_DOCUMENTS = 2000
DROPPED = pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("kept_id", pa.string()), ("kind", pa.string())])


@dataclass
class CleanedDocuments:
    """N raw documents, index by index: the mended text, the id, the reason to drop ('' = it stays), who stays instead."""

    texts: list[str]
    ids: list[str]
    reasons: list[str]
    kept_ids: list[str]  # the own id of a document that stays; '' where nothing stays for it
    splits: list[str]  # '' where dropped

    def kept(self) -> list[int]:
        return sorted((i for i, reason in enumerate(self.reasons) if not reason), key=self.ids.__getitem__)


def label_of(metadata: str) -> str:
    """The class in a document's metadata, or ''."""
    return str(json.loads(metadata).get("label") or "") if '"label"' in metadata else ""


def clean_documents(texts: Sequence[str], languages: Sequence[str], metadata: Sequence[str], config: Config,
                    progress: Progress | None = None) -> CleanedDocuments:
    """Mend, filter, remove exact and near duplicates, split; every document gets a reason or stays."""
    n = len(texts)
    out = CleanedDocuments([""] * n, [""] * n, [""] * n, [""] * n, [""] * n)
    normalised = [""] * n
    for i, text in enumerate(texts):
        out.texts[i] = cleaning.mend(text, fix_mojibake=config.cleaning.fix_mojibake)
        out.reasons[i] = cleaning.reason_to_drop(out.texts[i], config.cleaning) or ""
        normalised[i] = normalisation.normalise(out.texts[i])
        out.ids[i] = normalisation.normalised_id(normalised[i])
        if progress and (i + 1) % PROGRESS_DOCUMENTS == 0:
            progress.update(i + 1)

    good = [i for i in range(n) if not out.reasons[i]]
    firsts, copies = dedup.exact_duplicates([out.ids[i] for i in good], [label_of(metadata[i]) for i in good])
    distinct = [good[k] for k in firsts]
    ids = [out.ids[i] for i in distinct]
    near = dedup.near_duplicates(ids, [normalised[i] for i in distinct], [languages[i] for i in distinct],
                                 [splits.by_share(key, config.splits) for key in ids], config.cleaning)
    stays = {key: key for key in ids} | {ids[k]: winner for k, (_, winner) in near.items()}
    for k, (reason, key) in copies.items():
        out.reasons[good[k]], out.kept_ids[good[k]] = reason, stays.get(key, "")
    for k, (reason, winner) in near.items():
        out.reasons[distinct[k]], out.kept_ids[distinct[k]] = reason, winner
    kept = out.kept()
    # after deduplication, so that the minimum counts documents that stay; what it moves has no copy left in train
    for i, split in zip(kept, splits.assign([out.ids[i] for i in kept], [languages[i] for i in kept], config.splits), strict=True):
        out.kept_ids[i], out.splits[i] = out.ids[i], split
    return out


def row_number(raw_id: str) -> int:
    """The row inside the source file: raw ids end in #ROW."""
    number = raw_id.rpartition("#")[2]
    return int(number) if number.isdecimal() else -1


def documents_table(raw: pa.Table, cleaned: CleanedDocuments) -> pa.Table:
    """The documents that stay, sorted by id: the contract's columns and `split`."""
    kept = cleaned.kept()
    table = raw.take(pa.array(kept, pa.int64()))
    columns = {"id": [cleaned.ids[i] for i in kept], "text": [cleaned.texts[i] for i in kept]}
    arrays = [pa.array(columns[name], pa.string()) if name in columns else table[name] for name in DOCUMENTS.names]
    return pa.table([*arrays, pa.array([cleaned.splits[i] for i in kept], pa.string())], schema=DOCUMENTS.append(pa.field("split", pa.string())))


def dropped_table(raw: pa.Table, cleaned: CleanedDocuments, records: CleanedRecords) -> pa.Table:
    """Every document and record that does not go on, with its reason, sorted."""
    rows = [{"source": source, "row": row_number(raw_id), "reason": reason, "kept_id": kept_id, "kind": "document"}
            for source, raw_id, reason, kept_id in zip(raw["source"].to_pylist(), raw["id"].to_pylist(), cleaned.reasons, cleaned.kept_ids,
                                                      strict=True) if reason]
    rows += [{"source": r["source"], "row": row_number(r["id"]), "reason": reason, "kept_id": kept_id, "kind": "record"}
             for r, reason, kept_id in records.dropped]
    rows.sort(key=lambda r: (r["kind"], r["source"], r["row"], r["reason"]))
    return pa.Table.from_pylist(rows, schema=DROPPED)


def account(documents: CleanedDocuments, records: CleanedRecords, records_in: int) -> dict[str, int]:
    """Counts by reason. Raises RuntimeError when in = out + dropped does not hold."""
    by_reason = Counter(documents.reasons)
    record_reasons = Counter(reason for _, reason, _ in records.dropped)
    kept = by_reason.pop("", 0)
    for what, read, left, gone in (("documents", len(documents.reasons), len(documents.kept()), by_reason.total()),
                                   ("records", records_in, len(records.kept), record_reasons.total())):
        if read != left + gone:
            raise RuntimeError(f"clean: {read} {what} in, {left} out and {gone} dropped: the counts do not add up")
    splits_of = Counter(documents.splits)
    return {"kept": kept, **{name: splits_of[name] for name in splits.SPLITS}, **dict(sorted(by_reason.items())),
            "records_in": records_in, "records_kept": len(records.kept), **{f"records_{k}": v for k, v in sorted(record_reasons.items())}}


def notes_on(documents: CleanedDocuments, raw_texts: Sequence[str], languages: Sequence[str], config: Config) -> list[str]:
    """What a person should know: texts mended, languages with few held-out documents."""
    notes = []
    mended = sum(a != b for a, b in zip(raw_texts, documents.texts, strict=True))
    if mended:
        notes.append(f"{mended:,} texts were mended (encoding, invisible characters, white space).")
    held_out = Counter((languages[i], documents.splits[i]) for i in documents.kept())
    for language in sorted({language for language, _ in held_out}):
        found = held_out[language, "test"]
        if found < config.splits.min_held_out_documents:
            notes.append(f"The test split holds {found} documents in '{language}', below splits.min_held_out_documents="
                         f"{config.splits.min_held_out_documents} (too few documents in that language): its scores will be rough.")
    return notes


def run(config: Config, layout: Layout) -> Report:
    """data/raw -> data/clean. Raises Blocked when the suite of clean documents says no."""
    raw = pq.read_table(layout.raw / "documents.parquet")
    raw_records = pq.read_table(layout.raw / "records.parquet").to_pylist()
    texts, languages = raw["text"].to_pylist(), raw["language"].to_pylist()
    with Progress("clean", len(texts)) as progress:
        cleaned = clean_documents(texts, languages, raw["metadata"].to_pylist(), config, progress)
        progress.update(len(texts))
    mend = partial(cleaning.mend, fix_mojibake=config.cleaning.fix_mojibake)
    document_of = {raw_id: kept_id for raw_id, kept_id in zip(raw["id"].to_pylist(), cleaned.kept_ids, strict=True) if kept_id}
    split_of = {cleaned.ids[i]: cleaned.splits[i] for i in cleaned.kept()}
    records = clean_records(raw_records, mend, document_of, split_of, config.splits)
    counts = account(cleaned, records, len(raw_records))
    report = Report(documents_in=len(texts), documents_out=counts["kept"], counts=counts, notes=notes_on(cleaned, texts, languages, config))
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in sorted(Counter(cleaned.reasons).items()) if reason)
    say(f"clean: {counts['kept']:,} of {len(texts):,} documents stay" + (f" (dropped: {dropped})" if dropped else ""))

    table, faults, notes = validation.check("clean", documents_table(raw, cleaned), config, layout.clean, kept=layout.blocked / "clean")
    report.notes += notes
    write(layout, table, records, dropped_table(raw, cleaned, records), faults)
    return report


def write(layout: Layout, documents: pa.Table, records: CleanedRecords, dropped: pa.Table, faults: list[dict[str, Any]]) -> None:
    tables = {split: documents.filter(pc.equal(documents["split"], split)).drop_columns(["split"]) for split in splits.SPLITS}
    tables["records"] = pa.Table.from_pylist(records.kept, schema=RECORDS.append(pa.field("split", pa.string())))
    tables |= {"dropped": dropped, "quarantine": pa.Table.from_pylist(faults, schema=QUARANTINE)}
    for name, table in tables.items():
        pq.write_table(table, layout.clean / f"{name}.parquet", compression="zstd")
