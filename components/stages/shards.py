"""shards: encode every split into memory-mapped token files and check them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.config import Config
from components.corpus import shards, validation
from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.files import write_json
from components.layout import Layout
from components.reporting import Progress, Report

COLUMNS = {"source": pa.string(), "row": pa.int64(), "split": pa.string(), "language": pa.string(), "tokens": pa.int64(),
           "bytes": pa.int64(), "min_id": pa.int64(), "max_id": pa.int64(), "vocab_size": pa.int64()}


def run(config: Config, layout: Layout) -> Report:
    tokenizer = bpe.load(layout.tokenizer)
    end_id, vocab_size = bpe.end_of_text_id(layout.tokenizer, tokenizer), bpe.vocab_size(tokenizer)
    tables = {split: pq.read_table(layout.clean / f"{split}.parquet", columns=["id", "text", "language"]) for split in shards.SPLITS}
    documents = sum(table.num_rows for table in tables.values())
    index: dict[str, Any] = {"dtype": shards.np.dtype(shards.dtype_for(vocab_size)).name, "vocab_size": vocab_size, "eot_id": end_id,
                             "tokenizer_sha256": bpe.sha256(layout.tokenizer), "splits": {}}
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    with Progress("shards", documents) as progress:
        for split, table in tables.items():
            index["splits"][split] = _write_split(layout, split, table, tokenizer, end_id, vocab_size, columns, progress)
    _enough(config, index)
    write_json(layout.tokens / "index.json", index)
    _, faults, notes = validation.check("tokens", pa.table(columns, schema=pa.schema(COLUMNS)), config, folder=layout.tokens,
                                        kept=layout.blocked / "shards")
    tokens = sum(entry["tokens"] for split in index["splits"].values() for entry in split.values())
    counts = {f"{split}_{language}_tokens": entry["tokens"] for split, entries in index["splits"].items() for language, entry in entries.items()}
    return Report(documents_in=documents, documents_out=documents, tokens=tokens, counts=counts, notes=[*notes, *_compression(index)])


def _write_split(layout: Layout, split: str, table: pa.Table, tokenizer: bpe.Tokenizer, end_id: int, vocab_size: int,
                 columns: dict[str, list[Any]], progress: Progress) -> dict[str, Any]:
    """One shard a language; what became of each document is appended to `columns`."""
    entries: dict[str, Any] = {}
    rows_of: dict[str, list[int]] = {}
    for row, language in enumerate(table.column("language").to_pylist()):
        rows_of.setdefault(language, []).append(row)
    for language, rows in sorted(rows_of.items()):
        part = table.take(rows)
        done = len(columns["row"])
        entries[language], encoded = shards.write_shard(
            layout.tokens, f"{split}-{language}", part.column("text").to_pylist(), tokenizer, end_id, vocab_size,
            progress=lambda n, done=done: progress.update(done + n, split))
        columns["source"] += part.column("id").to_pylist()
        columns["row"] += rows
        columns["split"] += [split] * len(rows)
        columns["language"] += [language] * len(rows)
        columns["vocab_size"] += [vocab_size] * len(rows)
        for name in shards.Encoded._fields:
            columns[name] += [getattr(item, name) for item in encoded]
    return entries


def _enough(config: Config, index: dict[str, Any]) -> None:
    """Raises UserError if nothing is held out, or train does not fill one batch (an imported base is not pretrained)."""
    counts = {split: sum(entry["tokens"] for entry in entries.values()) for split, entries in index["splits"].items()}
    needed = config.training.rows * config.training.row_tokens
    if config.corpus.base == "none" and counts["train"] < needed:
        raise UserError(f"the train split has {counts['train']:,} tokens; one batch needs {needed:,} (training.rows {config.training.rows} x "
                        f"training.row_tokens {config.training.row_tokens}). Give more text, make the batch smaller, "
                        "or fine-tune a base of your own: lmworks import PATH")
    for split in ("validation", "test"):
        if not counts[split]:
            documents = sum(entry["documents"] for entry in index["splits"]["train"].values())
            raise UserError(f"the {split} split has 0 tokens, at least 1 document is needed; train has {documents:,} documents. "
                            f"Give more text, or raise splits.{split}_share")


def _compression(index: dict[str, Any]) -> list[str]:
    return [f"{language}: {entry['tokens']:,} tokens to train on, {entry['bytes'] / entry['tokens']:.2f} bytes a token"
            for language, entry in sorted(index["splits"]["train"].items())]
