"""Token shards: one file of token ids a split and language, documents end to end, each ended by end-of-text.

    {split}-{language}.bin           little-endian uint16, uint32 above 65,536 entries
    {split}-{language}.offsets.npy   int64, the start of each document, then the end
    index.json                       dtype, vocabulary, tokenizer hash, counts and sha256 of every shard
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from components.corpus.tokenizer import sha256 as tokenizer_hash
from components.errors import Damaged, UserError
from components.files import read_json

SPLITS = ("train", "validation", "test")
ENCODED_TOGETHER_CHARS = 2_000_000  # bounds memory: a token takes far less than 100 bytes while it is encoded


class Encoded(NamedTuple):
    """What became of one document, end-of-text included."""

    tokens: int
    bytes: int  # UTF-8 bytes of the text
    min_id: int
    max_id: int


def dtype_for(vocab_size: int) -> str:
    """uint16 ends at 65,535; a larger vocabulary would wrap around without a word."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def write_shard(folder: Path, name: str, texts: Sequence[str], tokenizer: Tokenizer, end_id: int, vocab_size: int,
                progress: Callable[[int], None] = lambda n: None) -> tuple[dict[str, Any], list[Encoded]]:
    """Write NAME.bin and NAME.offsets.npy. Returns the shard's entry of index.json and a row a document."""
    dtype = np.dtype(dtype_for(vocab_size))
    rows: list[Encoded] = []
    digest = hashlib.sha256()
    with open(folder / f"{name}.bin", "wb") as f:
        for chunk in _chunks(texts):
            for text, encoding in zip(chunk, tokenizer.encode_batch_fast(chunk, add_special_tokens=False), strict=True):
                ids = np.asarray([*encoding.ids, end_id], dtype=np.int64)
                rows.append(Encoded(len(ids), len(text.encode()), int(ids.min()), int(ids.max())))
                if rows[-1].max_id >= vocab_size:
                    raise UserError(f"{name}: id {rows[-1].max_id} is outside the vocabulary of {vocab_size}; the tokenizer is inconsistent")
                data = ids.astype(dtype).tobytes()
                digest.update(data)
                f.write(data)
            progress(len(rows))
    offsets = np.concatenate([[0], np.cumsum([row.tokens for row in rows], dtype=np.int64)]).astype("<i8")
    np.save(folder / f"{name}.offsets.npy", offsets, allow_pickle=False)
    return {"documents": len(rows), "tokens": int(offsets[-1]), "bytes": sum(row.bytes for row in rows), "sha256": digest.hexdigest()}, rows


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    chars = 0
    for text in texts:
        chunk.append(text)
        chars += len(text)
        if chars >= ENCODED_TOGETHER_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def read_index(folder: Path) -> dict[str, Any]:
    """Raises UserError if there are no shards."""
    path = folder / "index.json"
    if not path.exists():
        raise UserError(f"no token shards in {folder}; index.json was expected. Run: lmworks run --from shards")
    return read_json(path)


def languages(folder: Path, split: str) -> list[str]:
    return sorted(read_index(folder)["splits"].get(split, {}))


def check_tokenizer(folder: Path, tokenizer_folder: Path) -> None:
    """Raises UserError if another tokenizer made the shards of `folder`."""
    made_by, found = read_index(folder)["tokenizer_sha256"], tokenizer_hash(tokenizer_folder)
    if made_by != found:
        raise UserError(f"the shards in {folder} were made by tokenizer {made_by[:16]}…, {tokenizer_folder} holds {found[:16]}…; "
                        "their ids mean different text. Run: lmworks run --from shards")


def open_split(folder: Path, split: str, language: str, tokenizer_folder: Path | None = None) -> tuple[np.memmap, np.ndarray]:
    """(token ids as a read-only memory map, int64 offsets) of one split and language, checked.

    Raises UserError if there is no such shard or `tokenizer_folder` holds another tokenizer than made
    it; Damaged if dtype, size, offsets or ids do not agree with index.json (what the bytes themselves
    should be is the manifest's business).
    """
    index = read_index(folder)
    if tokenizer_folder is not None:
        check_tokenizer(folder, tokenizer_folder)
    entry = index["splits"].get(split, {}).get(language)
    if entry is None:
        raise UserError(f"no {split} shard for {language!r} in {folder}; it has {', '.join(sorted(index['splits'].get(split, {}))) or 'none'}")
    name, again = f"{split}-{language}", "Run: lmworks run --from shards"
    dtype = np.dtype(dtype_for(index["vocab_size"]))
    if index["dtype"] != dtype.name:
        raise Damaged(f"{folder / 'index.json'} says {index['dtype']}; a vocabulary of {index['vocab_size']} needs {dtype.name}. {again}")
    path = folder / f"{name}.bin"
    size, wanted = path.stat().st_size if path.exists() else 0, entry["tokens"] * dtype.itemsize
    if size != wanted:
        raise Damaged(f"{path} has {size:,} bytes; {entry['tokens']:,} tokens of {dtype.name} need {wanted:,}. {again}")
    try:
        offsets = np.load(folder / f"{name}.offsets.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder / name}.offsets.npy cannot be read ({error}). {again}") from error
    if (offsets.dtype != np.int64 or offsets.shape != (entry["documents"] + 1,) or offsets[0] != 0
            or offsets[-1] != entry["tokens"] or (np.diff(offsets) <= 0).any()):
        raise Damaged(f"{folder / name}.offsets.npy does not divide {entry['tokens']:,} tokens into {entry['documents']:,} documents. {again}")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    largest = int(tokens.max())
    if largest >= index["vocab_size"]:
        raise Damaged(f"{path} holds id {largest}; the vocabulary has {index['vocab_size']} entries. {again}")
    return tokens, offsets
