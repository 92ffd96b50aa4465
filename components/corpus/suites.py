"""What is expected of data: the suites 'raw', 'clean' and 'tokens', each expectation in words.

A suite measures its table column by column in vectorised code; Great Expectations then judges those few
columns (`validation.py`). To add an expectation: a line in its suite, and a measure if none fits.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.corpus.splits import SPLITS

Severity = Literal["block", "quarantine", "warn"]
LANGUAGES = ("zh", "en", "other")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One sentence about one measured column. A bound given as text is the dotted key of a setting.

    Texts are templates over the settings ({validation.min_documents:,}); `found` also over the totals.
    """

    name: str
    sentence: str
    severity: Severity
    column: str
    allowed: tuple[Any, ...] | None = None
    minimum: float | str | None = None
    maximum: float | str | None = None
    found: str = ""  # totals: what was found
    advice: str = "Mend the rows, or remove them, then run again"
    pretraining: bool = False  # with an imported base it only warns: fine-tuning needs no such amount


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Columns that must be there, what is measured a row and in all, and what is expected of that."""

    what: str
    columns: dict[str, Literal["string", "integer"]]
    measures: dict[str, Callable[[pa.Table], Any]]  # name -> one value a row (Arrow or numpy); null: not judged
    totals: dict[str, Callable[[pa.Table], float]]  # name -> one number, over the rows that stay
    rows: tuple[Expectation, ...]
    all: tuple[Expectation, ...] = field(default=())


# Judged before anything is measured; what fails here leaves the rest "not run".
SCHEMA = (
    Expectation(name="columns_present", sentence="Every column is there.", severity="block", column="missing", allowed=(False,),
                advice="Give a table with these columns (a renamed text column: corpus.text_field)"),
    Expectation(name="column_types", sentence="Every column has its type.", severity="block", column="wrong_type", allowed=(False,),
                advice="Convert the column to the type named"),
)

# Rows that a reader set aside already, by the expectation that they fail; they count among the rows at fault.
READER = {
    "line_is_valid_json": "Every line of a JSON Lines file is a whole JSON object.",
    "line_too_long": "No line is longer than {corpus.max_line_mb:g} MB.",
    "row_is_valid_csv": "Every row of a table can be parsed.",
    "row_matches_header": "Every row of a table has as many cells as its header.",
    "text_is_string": "The text of every row is text, not a number, a list or nothing.",
}


# --- measures ------------------------------------------------------------------------------------

def missing(column: str) -> Callable[[pa.Table], Any]:
    return lambda table: pc.equal(pc.utf8_trim_whitespace(pc.fill_null(table[column], "")), "")


def filled(column: str) -> Callable[[pa.Table], Any]:
    return lambda table: pc.fill_null(table[column], "")


def blank(table: pa.Table) -> Any:
    return pc.equal(pc.utf8_trim_whitespace(table["text"]), "")


def share_of(pattern: str, *, regex: bool) -> Callable[[pa.Table], Any]:
    """Characters of the text that match, as a share."""
    count = pc.count_substring_regex if regex else pc.count_substring

    def measure(table: pa.Table) -> Any:
        chars = pc.cast(pc.max_element_wise(pc.utf8_length(table["text"]), 1, skip_nulls=False), pa.float64())
        return pc.divide(pc.cast(count(table["text"], pattern), pa.float64()), chars)

    return measure


def later_copy(*columns: str) -> Callable[[pa.Table], np.ndarray]:
    """True for every row but the first of those that agree in `columns`; null columns agree with nothing."""
    def measure(table: pa.Table) -> np.ndarray:
        rows = table.select(columns).append_column("row", pa.array(np.arange(len(table))))
        firsts = rows.group_by(list(columns), use_threads=False).aggregate([("row", "min")])["row_min"].to_numpy()
        copies = np.ones(len(table), bool)
        copies[firsts] = False
        return copies & np.asarray(table[columns[0]].is_valid())

    return measure


def in_two_splits(table: pa.Table) -> Any:
    splits = table.group_by("id").aggregate([("split", "count_distinct")])
    return pc.is_in(table["id"], pc.filter(splits["id"], pc.greater(splits["split_count_distinct"], 1)))


def not_json_object(table: pa.Table) -> Any:
    """Metadata repeats a lot: each distinct value is parsed once."""
    def broken(value: str | None) -> bool:
        try:
            return not isinstance(json.loads(value or ""), dict)
        except (ValueError, RecursionError):
            return True

    values = pc.unique(table["metadata"])
    bad = values.filter(pa.array([broken(v) for v in values.to_pylist()], pa.bool_()))
    return pc.is_in(table["metadata"], bad)


def undecodable(table: pa.Table) -> np.ndarray:
    """Texts that are no UTF-8, which a Parquet file may carry without a word."""
    try:
        table["text"].validate(full=True)
        return np.zeros(len(table), bool)
    except pa.ArrowInvalid:
        def broken(value: bytes | None) -> bool:
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                return True
            return False

        return np.array([broken(v) for v in _bytes(table["text"]).to_pylist()], bool)


def decoded(table: pa.Table) -> pa.Table:
    """The table with U+FFFD in place of bytes that are no UTF-8, so that the other measures can run."""
    if not undecodable(table).any():
        return table
    texts = [None if v is None else v.decode(errors="replace") for v in _bytes(table["text"]).to_pylist()]
    return table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts, pa.string()))


def _bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())


def not_nfc(table: pa.Table) -> list[bool | None]:
    return [None if t is None else not unicodedata.is_normalized("NFC", t) for t in table["text"].to_pylist()]


def any_missing(table: pa.Table) -> np.ndarray:
    return np.logical_or.reduce([np.asarray(column.is_null()) for column in table.columns])


def text_bytes(table: pa.Table) -> int:
    return pc.sum(pc.binary_length(table["text"])).as_py() or 0


def share_where(test: Callable[[pa.Table], Any]) -> Callable[[pa.Table], float]:
    return lambda table: (pc.sum(test(table)).as_py() or 0) / max(len(table), 1)


def rows_of(split: str) -> Callable[[pa.Table], int]:
    return lambda table: pc.sum(pc.equal(table["split"], split)).as_py() or 0


def tokens_of(split: str) -> Callable[[pa.Table], int]:
    return lambda table: pc.sum(table["tokens"].filter(pc.equal(table["split"], split))).as_py() or 0


# --- suites --------------------------------------------------------------------------------------

CONTROL = r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x{84}\x{86}-\x{9f}]"  # NUL has an expectation of its own
ENOUGH = ("Pretraining needs at least {validation.min_documents:,} documents and {validation.min_corpus_bytes:,} bytes of text. "
          "Give more (lmworks use PRESET --corpus PATH). To fine-tune a model that you bring, a dozen documents are enough: lmworks import PATH")
AMOUNT = (
    Expectation(name="min_documents", sentence="There are at least {validation.min_documents:,} documents.", severity="block",
                column="documents", minimum="validation.min_documents", found="{documents:,} documents", advice=ENOUGH, pretraining=True),
    Expectation(name="min_corpus_bytes", sentence="There are at least {validation.min_corpus_bytes:,} bytes of text.", severity="block",
                column="bytes", minimum="validation.min_corpus_bytes", found="{bytes:,} bytes of text in {documents:,} documents",
                advice=ENOUGH, pretraining=True),
)

RAW = Suite(
    what="raw documents",
    columns=dict.fromkeys(("id", "text", "source", "language", "metadata"), "string"),
    measures={"id_missing": missing("id"), "id_copy": later_copy("id"), "text_missing": lambda t: pc.is_null(t["text"]),
              "undecodable": undecodable, "blank": blank, "nul": lambda t: pc.match_substring(t["text"], "\0"),
              "replacement_ratio": share_of("\ufffd", regex=False), "control_ratio": share_of(CONTROL, regex=True),
              "chars": lambda t: pc.utf8_length(t["text"]), "source_missing": missing("source"), "language": filled("language"),
              "metadata_broken": not_json_object},
    totals={"documents": len, "bytes": text_bytes, "unknown_language_ratio": share_where(lambda t: pc.equal(t["language"], "other")),
            "distinct_ratio": lambda t: pc.count_distinct(t["text"]).as_py() / len(t) if len(t) else 1.0},
    rows=(
        Expectation(name="id_present", sentence="Every document has an id.", severity="quarantine", column="id_missing", allowed=(False,)),
        Expectation(name="id_unique", sentence="No two documents share an id.", severity="quarantine", column="id_copy", allowed=(False,)),
        Expectation(name="text_present", sentence="Every document has a text.", severity="quarantine", column="text_missing", allowed=(False,)),
        Expectation(name="text_is_valid_utf8", sentence="Every text can be decoded as UTF-8.", severity="quarantine", column="undecodable", allowed=(False,)),
        Expectation(name="text_not_blank", sentence="Every text holds more than white space.", severity="quarantine", column="blank", allowed=(False,)),
        Expectation(name="text_has_no_nul", sentence="No text holds a NUL character (binary data).", severity="quarantine", column="nul",
                    allowed=(False,)),
        Expectation(name="few_replacement_characters", severity="quarantine", column="replacement_ratio", maximum="validation.max_replacement_char_ratio",
                    sentence="At most {validation.max_replacement_char_ratio:.1%} of a text is U+FFFD, the mark of characters lost in an earlier decoding.",
                    advice="Decode the source again from its own encoding"),
        Expectation(name="few_control_characters", severity="quarantine", column="control_ratio", maximum="validation.max_control_char_ratio",
                    sentence="At most {validation.max_control_char_ratio:.1%} of a text is control characters."),
        Expectation(name="source_present", sentence="Every document names its source.", severity="quarantine", column="source_missing", allowed=(False,)),
        Expectation(name="language_known_value", sentence="The language is zh, en or other.", severity="quarantine", column="language", allowed=LANGUAGES),
        Expectation(name="metadata_is_json", sentence="The metadata is a JSON object.", severity="quarantine", column="metadata_broken", allowed=(False,)),
        Expectation(name="text_within_limit", severity="warn", column="chars", maximum="corpus.max_document_chars",
                    sentence="No text is longer than {corpus.max_document_chars:,} characters."),
    ),
    all=(
        Expectation(name="few_rows_quarantined", severity="block", column="quarantine_ratio", maximum="validation.max_quarantine_ratio",
                    sentence="At most {validation.max_quarantine_ratio:.1%} of the rows are at fault ({validation.free_quarantine_rows} rows are always allowed).",
                    found="{quarantined:,} of {rows_read:,} rows are at fault ({breakdown})",
                    advice="Mend the source, or allow more with validation.max_quarantine_ratio"),
        *AMOUNT,
        Expectation(name="languages_known", severity="warn", column="unknown_language_ratio", maximum="validation.max_unknown_language_ratio",
                    sentence="At most {validation.max_unknown_language_ratio:.0%} of the documents are in a language other than Chinese and English.",
                    found="{unknown_language_ratio:.0%} of {documents:,} documents are in another language"),
        Expectation(name="texts_differ", severity="warn", column="distinct_ratio", minimum="validation.min_distinct_ratio",
                    sentence="At least {validation.min_distinct_ratio:.0%} of the texts are distinct.",
                    found="{distinct_ratio:.1%} of {documents:,} texts are distinct"),
    ),
)

BUG = "This is a fault of the platform, not of the data: please report it with this page"
CLEAN = Suite(
    what="clean documents",
    columns=dict.fromkeys(("id", "text", "source", "language", "metadata", "split"), "string"),
    measures={"any_missing": any_missing, "id_shape": lambda t: pc.match_substring_regex(t["id"], "^[0-9a-f]{16}$"),
              "id_copy": later_copy("id", "split"), "in_two_splits": in_two_splits, "blank": blank, "not_nfc": not_nfc,
              "control_ratio": share_of(CONTROL.replace("\\x01", "\\x00"), regex=True), "language": filled("language"), "split": filled("split"),
              "metadata_broken": not_json_object},
    totals={"documents": len, "bytes": text_bytes, **{f"{split}_documents": rows_of(split) for split in SPLITS}},
    rows=(
        Expectation(name="no_missing_values", sentence="No value is missing.", severity="block", column="any_missing", allowed=(False,), advice=BUG),
        Expectation(name="id_is_hash", sentence="Every id is 16 hexadecimal digits.", severity="block", column="id_shape", allowed=(True,), advice=BUG),
        Expectation(name="id_unique", sentence="No two documents of a split share an id.", severity="block", column="id_copy", allowed=(False,), advice=BUG),
        Expectation(name="no_overlap_of_splits", sentence="No document is in two splits: nothing held out is trained on.", severity="block",
                    column="in_two_splits", allowed=(False,), advice=BUG),
        Expectation(name="text_not_blank", sentence="Every text holds more than white space.", severity="block", column="blank", allowed=(False,), advice=BUG),
        Expectation(name="text_is_nfc", sentence="Every text is in Unicode NFC.", severity="block", column="not_nfc", allowed=(False,), advice=BUG),
        Expectation(name="no_control_characters", sentence="No text holds a control character.", severity="block", column="control_ratio", maximum=0.0,
                    advice=BUG),
        Expectation(name="language_known_value", sentence="The language is zh, en or other.", severity="block", column="language", allowed=LANGUAGES, advice=BUG),
        Expectation(name="split_known_value", sentence="The split is train, validation or test.", severity="block", column="split", allowed=SPLITS, advice=BUG),
        Expectation(name="metadata_is_json", sentence="The metadata is a JSON object.", severity="block", column="metadata_broken", allowed=(False,), advice=BUG),
    ),
    all=(
        *AMOUNT,
        *(Expectation(name=f"{split}_not_empty", sentence=f"The {split} split holds a document or more.", severity="block", minimum=1, pretraining=True,
                      column=f"{split}_documents", found=f"{{{split}_documents:,}} of {{documents:,}} documents are in it",
                      advice="Give more documents: a language with ten or more always gets one of each held-out split") for split in SPLITS),
    ),
)

TOKENS = Suite(
    what="tokens",
    columns={"split": "string", "language": "string"} | dict.fromkeys(("tokens", "bytes", "min_id", "max_id", "vocab_size"), "integer"),
    measures={"any_missing": any_missing, "split": filled("split"), "language": filled("language"), "tokens": lambda t: t["tokens"],
              "min_id": lambda t: t["min_id"], "ids_left": lambda t: pc.subtract(pc.cast(t["vocab_size"], pa.int64()), pc.cast(t["max_id"], pa.int64())),
              "excess": lambda t: pc.subtract(pc.cast(t["tokens"], pa.int64()), pc.cast(t["bytes"], pa.int64()))},
    totals={"documents": len, "tokens": lambda t: pc.sum(t["tokens"]).as_py() or 0, "bytes": lambda t: pc.sum(t["bytes"]).as_py() or 0,
            "bytes_per_token": lambda t: (pc.sum(t["bytes"]).as_py() or 0) / max(pc.sum(t["tokens"]).as_py() or 0, 1),
            **{f"{split}_tokens": tokens_of(split) for split in SPLITS}},
    rows=(
        Expectation(name="no_missing_values", sentence="No value is missing.", severity="block", column="any_missing", allowed=(False,), advice=BUG),
        Expectation(name="split_known_value", sentence="The split is train, validation or test.", severity="block", column="split", allowed=SPLITS, advice=BUG),
        Expectation(name="language_known_value", sentence="The language is zh, en or other.", severity="block", column="language", allowed=LANGUAGES, advice=BUG),
        Expectation(name="document_has_tokens", sentence="Every document has a token or more.", severity="block", column="tokens", minimum=1, advice=BUG),
        Expectation(name="ids_not_negative", sentence="No token id is negative.", severity="block", column="min_id", minimum=0, advice=BUG),
        Expectation(name="ids_in_vocabulary", sentence="Every token id is below the size of the vocabulary.", severity="block", column="ids_left", minimum=1,
                    advice="The tokenizer is not the one that made these tokens. Run: lmworks run --from tokenizer"),
        # end of text, and the space that some imported tokenizers put before the first word
        Expectation(name="tokens_at_most_bytes", sentence="No document has more tokens than bytes (two more are allowed).", severity="warn",
                    column="excess", maximum=2),
    ),
    all=(
        *(Expectation(name=f"{split}_has_tokens", sentence=f"The {split} split holds a token or more.", severity="block", minimum=1, pretraining=True,
                      column=f"{split}_tokens", found=f"{{{split}_tokens:,}} of {{tokens:,}} tokens are in it",
                      advice="Give more documents: a language with ten or more always gets one of each held-out split") for split in SPLITS),
        Expectation(name="plausible_bytes_per_token", sentence="A token stands for 0.8 to 16 bytes on average.", severity="block", column="bytes_per_token",
                    minimum=0.8, maximum=16, found="{bytes_per_token:.2f} bytes a token", pretraining=True,
                    advice="The tokenizer does not fit this text. Run: lmworks run --from tokenizer"),
    ),
)

SUITES = {"raw": RAW, "clean": CLEAN, "tokens": TOKENS}
