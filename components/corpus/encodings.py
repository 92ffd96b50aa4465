"""Bytes of a text file as lines of UTF-8, whatever they were written in; bounded memory throughout."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from components.config import Corpus
from components.errors import UserError

CHUNK_BYTES = 2**18
HEAD_BYTES = 2**20  # what is looked at for NULs
SAMPLE_CHARS = 100_000  # what is looked at to tell GB18030 from other encodings
MAX_NUL_RATIO = 0.001  # more NULs than this: no text
MAGIC = {
    b"PK\x03\x04": "a ZIP archive (unpack it first)", b"\x1f\x8b": "gzip (give it the extension .gz)",
    b"PAR1": "Parquet (give it the extension .parquet)", b"%PDF-": "a PDF (extract its text first)", b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image", b"\x7fELF": "a program", b"BZh": "bzip2 (unpack it first)", b"\xfd7zXZ": "xz (unpack it first)",
    b"\x28\xb5\x2f\xfd": "zstd (unpack it first)", b"7z\xbc\xaf": "7-Zip (unpack it first)", b"Rar!": "RAR (unpack it first)",
    b"SQLite format 3": "an SQLite database", b"\xd0\xcf\x11\xe0": "an Office document (save it as text first)",
    b"\x89HDF": "HDF5", b"\x93NUMPY": "a NumPy array", b"GIF8": "a GIF image",
}
BOMS = (  # the longer first: UTF-32 begins like UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# The 60 characters that are most frequent in modern and in classical Chinese, simplified and traditional.
FREQUENT = set("的一是不了人在有我他这個个們们中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着下自之年过過其所与與无無者")
MIN_FREQUENT_SHARE = 0.08  # of the characters beyond ASCII; prose has 0.2 to 0.4, mojibake under 0.03
MIN_COMMON_SHARE = 0.8
NOT_TEXT = b"\xff"  # stands for bytes that cannot be decoded: it is valid nowhere in UTF-8


class Encoding(NamedTuple):
    """How a file is to be decoded; `words` says so to a person where it is not plain UTF-8."""

    codec: str
    bom_bytes: int = 0
    words: str = ""


class Line(NamedTuple):
    """One line of bytes, its end kept. Beyond the limit only its head is kept and `too_long` says its length."""

    number: int  # from 1
    data: bytes
    too_long: int = 0  # bytes


class Gunzipped(io.RawIOBase):
    """The expanded bytes of a .gz. Raises UserError for damage (fault A9) and past the allowed size (A10)."""

    def __init__(self, path: Path, name: str, max_bytes: float):
        super().__init__()
        self.name, self.max_bytes, self.count = name, max_bytes, 0
        self.file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self.expanded = gzip.GzipFile(fileobj=self.file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self.expanded.read(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{self.name} is not a whole gzip file: {error} (at byte {self.file.tell():,} of it, {self.count:,} bytes expanded). "
                            "Copy it again, then run again") from error
        if not data and not self.file.tell():  # Python's gzip takes it for the end of a file; the smallest there is has 20 bytes
            raise UserError(f"{self.name} is not a whole gzip file: it has 0 bytes. Copy it again, then run again")
        self.count += len(data)
        if self.count > self.max_bytes:
            raise UserError(f"{self.name} expands to more than corpus.max_expanded_mb={self.max_bytes / 2**20:g} MB. "
                            "Raise that setting if the file is what it should be")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.expanded.close()
        self.file.close()
        super().close()


class Transcoded(io.RawIOBase):
    """A stream in another encoding as UTF-8; what cannot be decoded becomes NOT_TEXT, so that its line is quarantined."""

    def __init__(self, source: BinaryIO, codec: str):
        super().__init__()
        self.source, self.decoder, self.ready = source, codecs.getincrementaldecoder(codec)("strict"), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.ready:
            chunk = self.source.read(CHUNK_BYTES)
            self.ready = self._decode(chunk)
            if not chunk:
                break
        part, self.ready = self.ready[: len(buffer)], self.ready[len(buffer):]
        buffer[: len(part)] = part
        return len(part)

    def _decode(self, chunk: bytes) -> bytes:
        out, final = [], not chunk
        while True:
            try:
                out.append(self.decoder.decode(chunk, final).encode("utf-8", "surrogatepass"))
                return b"".join(out)
            except UnicodeDecodeError as error:
                out += [error.object[: error.start].decode(error.encoding, "replace").encode(), NOT_TEXT]
                chunk = error.object[error.end:]
                self.decoder.reset()

    def close(self) -> None:
        self.source.close()
        super().close()


def open_bytes(path: Path, name: str, corpus: Corpus) -> BinaryIO:
    """The bytes of a file, expanded if it ends in .gz."""
    if name.lower().endswith(".gz"):
        return io.BufferedReader(Gunzipped(path, name, corpus.max_expanded_mb * 2**20), CHUNK_BYTES)
    return open(path, "rb")


def open_utf8(path: Path, name: str, corpus: Corpus, encoding: Encoding) -> BinaryIO:
    """The text of a file as a stream of UTF-8 without a byte order mark."""
    stream = open_bytes(path, name, corpus)
    stream.read(encoding.bom_bytes)
    return stream if encoding.codec == "utf-8" else io.BufferedReader(Transcoded(stream, encoding.codec), CHUNK_BYTES)


def lines(stream: BinaryIO, max_bytes: int) -> Iterator[Line]:
    """The lines of a stream, split at \\n alone; of one beyond `max_bytes` only the head is kept (fault A6)."""
    number = 0
    while data := stream.readline(max_bytes + 1):
        number += 1
        size = len(data)
        if size <= max_bytes or data.endswith(b"\n"):
            yield Line(number, data)
            continue
        head = data[:2048]
        del data
        while rest := stream.readline(CHUNK_BYTES):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        yield Line(number, head, too_long=size)


# --- which encoding ------------------------------------------------------------------------------

def detect(path: Path, name: str, corpus: Corpus) -> Encoding:
    """UTF-8, a byte order mark, GB18030 if it reads as Chinese, or UTF-8 with few bad lines, in this order.

    Raises UserError for a binary file, and for text in an encoding that cannot be told.
    """
    with open_bytes(path, name, corpus) as stream:
        head = stream.read(HEAD_BYTES)
    for mark, codec in BOMS:
        if head.startswith(mark):
            words = f"{codec.upper()} with a byte order mark" if codec != "utf-8" else "UTF-8 with a byte order mark (removed)"
            return Encoding(codec, len(mark), words)
    refuse_binary(head, name)
    if _is_whole(path, name, corpus, "utf-8"):
        return Encoding("utf-8")
    if _is_whole(path, name, corpus, "gb18030") and reads_as_chinese(_sample(path, name, corpus)):
        return Encoding("gb18030", 0, "GB18030")
    bad, total, first = _undecodable_lines(path, name, corpus)
    if bad <= max(1, corpus.max_undecodable_line_ratio * total) and bad < total:
        return Encoding("utf-8")
    raise UserError(f"{name} is neither UTF-8, UTF-16 with a byte order mark, nor GB18030: {bad:,} of {total:,} lines are not valid UTF-8, "
                    f"the first is line {first}. Convert it first: iconv -f ITS_ENCODING -t UTF-8 {Path(name).name} > converted.txt")


def refuse_binary(head: bytes, name: str) -> None:
    """Raises UserError where the first bytes are those of a known format, or many are NUL."""
    for magic, words in MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"{name} is not text: it begins like {words}")
    if (nuls := head.count(0)) > MAX_NUL_RATIO * len(head) and nuls > 1:
        raise UserError(f"{name} is not text: {nuls:,} of its first {len(head):,} bytes are NUL. "
                        "If it is UTF-16, save it with a byte order mark or as UTF-8; a binary file is no corpus")


def _is_whole(path: Path, name: str, corpus: Corpus, codec: str) -> bool:
    """Whether a file decodes without an error; GB18030 may be cut inside its last character."""
    decoder = codecs.getincrementaldecoder(codec)("strict")
    with open_bytes(path, name, corpus) as stream:
        try:
            while chunk := stream.read(CHUNK_BYTES):
                decoder.decode(chunk)
            if codec == "utf-8":
                decoder.decode(b"", True)
        except UnicodeDecodeError:
            return False
    return True


def _sample(path: Path, name: str, corpus: Corpus) -> str:
    """The first characters beyond ASCII of a file that decodes as GB18030."""
    decoder = codecs.getincrementaldecoder("gb18030")("strict")
    found = ""
    with open_bytes(path, name, corpus) as stream:
        while len(found) < SAMPLE_CHARS and (chunk := stream.read(CHUNK_BYTES)):
            found += "".join(character for character in decoder.decode(chunk) if character > "\x7f")
    return found


@lru_cache(maxsize=1)
def common_characters() -> frozenset[str]:
    """The 3,755 Han of level 1 of GB 2312, and its punctuation."""
    level_1 = bytes(byte for lead in range(0xB0, 0xD8) for trail in range(0xA1, 0xFF) for byte in (lead, trail))
    symbols = bytes(byte for lead in (0xA1, 0xA3) for trail in range(0xA1, 0xFF) for byte in (lead, trail))
    return frozenset((level_1 + symbols).decode("gb2312", "ignore"))


def reads_as_chinese(characters: str) -> bool:
    """Whether text decoded as GB18030 is Chinese and no accident: Latin-1, Big5, EUC-KR and EUC-JP often decode too."""
    if not characters:
        return False
    common = common_characters()
    common_share = sum(character in common for character in characters) / len(characters)
    frequent_share = sum(character in FREQUENT for character in characters) / len(characters)
    return common_share >= MIN_COMMON_SHARE and frequent_share >= MIN_FREQUENT_SHARE


def _undecodable_lines(path: Path, name: str, corpus: Corpus) -> tuple[int, int, int]:
    """(lines that are not valid UTF-8, lines, number of the first such line)."""
    bad = total = first = 0
    with open_bytes(path, name, corpus) as stream:
        for line in lines(stream, int(corpus.max_line_mb * 2**20)):
            total += 1
            try:
                line.data.decode("utf-8", "ignore" if line.too_long else "strict")
            except UnicodeDecodeError:
                bad += 1
                first = first or line.number
    return bad, total, first
