"""Files of every kind that a corpus may hold, broken at random: the same file for the same seed."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = ["今天的天气很好，我们一起去公园散步，然后回家吃饭。", "We walked to the park; the weather was \"fine\", that day.", "第二行\n第三行", "naïve café, 100 %", "<p>标签</p>"]


def _rows(rng: random.Random) -> list[dict[str, object]]:
    return [{"text": f"{i} {rng.choice(TEXTS)}", "标签": i % 3, "n": {"a": [i]}} for i in range(rng.randint(1, 60))]


def _jsonl(rng: random.Random) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in _rows(rng)).encode()


def _csv(rng: random.Random, delimiter: str = ",") -> bytes:
    def cell(value: object) -> str:
        return '"' + str(value).replace('"', '""') + '"'

    return "\r\n".join([delimiter.join(("text", "标签")), *(delimiter.join((cell(row["text"]), cell(row["标签"]))) for row in _rows(rng))]).encode()


def _parquet(rng: random.Random) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_rows(rng)), sink, compression=rng.choice(["snappy", "zstd", "none", "gzip"]), row_group_size=rng.choice([7, 1000]))
    return sink.getvalue()


def _text(rng: random.Random) -> bytes:
    return "\n\n".join(str(row["text"]) for row in _rows(rng)).encode()


def _html(rng: random.Random) -> bytes:
    return b"<!DOCTYPE html><html><body>" + _text(rng) + b"</body></html>"


def _zip(rng: random.Random) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("../数据.jsonl", _jsonl(rng))
    return sink.getvalue()


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "jsonl": _jsonl, "csv": _csv, "tsv": lambda rng: _csv(rng, "\t"), "parquet": _parquet, "txt": _text, "md": _text, "html": _html, "zip": _zip}
BITS = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\r", b"\n" * 50, b"[" * 1200, b'{"a":' * 1200, b"\xed\xa0\x80", b"\\ud800", b"9" * 5000, b"-Infinity", b"1e999",
        b"\x1f\x8b\x08", b"PAR1", b"\xe2\x80\xa8", b"=cmd|' /C calc'!A0", b"\t,;", b'"text"', "，".encode("gb18030"), b"\x1b[31m"]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 30])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(BITS) + data[at:]
    return data


def _recode(data: bytes, rng: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "gb18030", "latin-1", "utf-7", "big5", "utf-8-sig"]), "replace")


BREAKS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _insert, _recode, lambda data, rng: data[: rng.randrange(len(data) + 1)], lambda data, rng: data[rng.randrange(len(data) + 1):],
    lambda data, rng: data + KINDS[rng.choice(list(KINDS))](rng), lambda data, rng: rng.randbytes(rng.choice([0, 1, 3, 500])), lambda data, rng: data * 2)
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}


def malformed(seed: int) -> tuple[str, bytes]:
    """(name, bytes) of a broken file: a good one of some kind, damaged before or after it is compressed, perhaps under a false name."""
    rng = random.Random(seed)
    kind = rng.choice(list(KINDS))
    data, packed = KINDS[kind](rng), rng.choice(["", "", ".gz", ".gz", ".bz2"])
    for _ in range(rng.choice([1, 1, 2])):
        data = rng.choice(BREAKS)(data, rng)
    data = PACKED[packed](data)
    if packed and rng.random() < 0.5:
        data = rng.choice(BREAKS)(data, rng)
    named = rng.choice(list(KINDS)) if rng.random() < 0.2 else kind
    return f"坏 {seed}.{named}{packed}", data
