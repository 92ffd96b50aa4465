"""tokenizer: learn a byte-level BPE from the train split, or pass the tokenizer of an imported base through."""

from __future__ import annotations

import pyarrow.parquet as pq

from components.config import Config
from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.files import read_json
from components.layout import Layout
from components.reporting import Report, say

MEASURED_BYTES = 500_000  # of the validation split, a language, for the note on compression


def run(config: Config, layout: Layout) -> Report:
    if read_json(layout.sources_base / "origin.json")["kind"] == "imported":
        notes = bpe.pass_through(layout.sources_base, layout.tokenizer)
        tokenizer, documents_in = bpe.load(layout.tokenizer), None
    else:
        tokenizer, documents_in, notes = _train(config, layout)
        bpe.write(tokenizer, layout.tokenizer)
    return Report(documents_in=documents_in, counts={"entries": bpe.vocab_size(tokenizer)},
                  notes=notes + _compression(tokenizer, layout))


def _train(config: Config, layout: Layout) -> tuple[bpe.Tokenizer, int, list[str]]:
    texts = pq.ParquetFile(layout.clean / "train.parquet").read(columns=["text"]).column("text").to_pylist()
    if not texts:
        raise UserError("the train split is empty, so there is nothing to learn a tokenizer from. Give more text: lmworks use PRESET --corpus PATH")
    # rows are sorted by a hash of the text, so the first ones are a fair sample of all sources
    sample = list(bpe.take_bytes(texts, config.tokenizer.max_training_mb * 1e6)) or texts[:1]
    say(f"tokenizer: learning {config.tokenizer.vocab_size:,} entries from {sum(len(t.encode()) for t in sample) / 1e6:.1f} MB")
    tokenizer = bpe.train(sample, config.tokenizer.vocab_size)
    notes = []
    entries = bpe.vocab_size(tokenizer)
    if entries < config.tokenizer.vocab_size:
        notes.append(f"the text teaches {entries:,} entries, not {config.tokenizer.vocab_size:,}: no further pair occurs twice")
    return tokenizer, len(sample), notes


def _compression(tokenizer: bpe.Tokenizer, layout: Layout) -> list[str]:
    """Bytes and characters a token on held-out text, by language."""
    table = pq.ParquetFile(layout.clean / "validation.parquet").read(columns=["text", "language"])
    by_language: dict[str, list[str]] = {}
    for text, language in zip(*(table.column(name).to_pylist() for name in ("text", "language")), strict=True):
        by_language.setdefault(language, []).append(text)
    notes = []
    for language, texts in sorted(by_language.items()):
        sample = list(bpe.take_bytes(texts, MEASURED_BYTES)) or texts[:1]
        tokens = sum(len(e.ids) for e in tokenizer.encode_batch_fast(sample, add_special_tokens=False))
        num_bytes, num_chars = sum(len(t.encode()) for t in sample), sum(map(len, sample))
        if tokens:
            notes.append(f"{language}: {num_bytes / tokens:.2f} bytes and {num_chars / tokens:.2f} characters a token (validation split)")
    return notes
