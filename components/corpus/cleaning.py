"""What is mended in a document, and why a document is dropped. Pure functions on one text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from components.config import Cleaning

# Zero-width and direction marks, the soft hyphen and the byte order mark: nobody sees them, a tokenizer does.
# U+200C and U+200D stay: Persian, Indic scripts and emoji are spelt with them.
INVISIBLE = "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f"
_REMOVED = re.compile(f"[{CONTROL}{INVISIBLE}]+")
_LINE_END = re.compile("\r\n?|[\x85\u2028\u2029]")
_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")  # U+3000 stays: it indents Chinese paragraphs
_LINE_TAIL = re.compile(r"[ \t\u3000]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_SENTENCE = re.compile(r"[^\n。！？!?.;；]+")


def _mend_mojibake(text: str) -> str:
    """UTF-8 that was read as Latin-1 or a Windows code page, line by line ('schÃ¶n' -> 'schön')."""
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    # A line ends at \n alone: mojibake of Chinese holds U+0085 as a letter, so splitlines() would cut characters
    return "\n".join(line if line.isascii() or not is_bad(line) else fix_encoding(line) for line in text.split("\n"))


def mend(text: str, *, fix_mojibake: bool) -> str:
    """The text in NFC, with its encoding mended, invisible characters removed and white space in order.

    Indentation and single line breaks stay: code and verse live by them. Mending twice changes nothing more.
    """
    if not text.isascii():
        if fix_mojibake:  # first: what it mends holds control characters that the next steps would remove
            text = _mend_mojibake(text)
        text = _LINE_END.sub("\n", text)
        text = _SPACE.sub(" ", _REMOVED.sub("", text))
        text = unicodedata.normalize("NFC", text)  # quick where nothing is to do
    elif "\r" in text or _REMOVED.search(text):
        text = _REMOVED.sub("", _LINE_END.sub("\n", text))
    text = _BLANK_LINES.sub("\n\n", _LINE_TAIL.sub("", text)).strip("\n").rstrip()
    return text if "\n" in text else text.strip()


# --- reasons to drop -----------------------------------------------------------------------------

def empty(text: str, cleaning: Cleaning) -> str | None:
    return None if text.strip() else "empty"


def too_short(text: str, cleaning: Cleaning) -> str | None:
    return "too_short" if len(text) < cleaning.min_chars else None


def low_letter_ratio(text: str, cleaning: Cleaning) -> str | None:
    """Letters of any script (Han too) among the characters that are not white space."""
    visible = "".join(text.split())
    letters = sum(map(str.isalpha, visible))
    return "low_letter_ratio" if letters < cleaning.min_letter_ratio * len(visible) else None


def too_repetitive(text: str, cleaning: Cleaning) -> str | None:
    """Lines that were there before (sentences, where there is one line), or one character over and over.

    After the repetition filters of Gopher (Rae et al. 2021, table A1), for short texts.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if len(lines) < 2:
        lines = [s for s in map(str.strip, _SENTENCE.findall(text)) if s]
    if len(lines) > 1 and (len(lines) - len(set(lines))) > cleaning.max_repeated_line_ratio * len(lines):
        return "too_repetitive"
    visible = "".join(text.split())
    if visible and Counter(visible).most_common(1)[0][1] > cleaning.max_one_char_ratio * len(visible):
        return "too_repetitive"
    return None


# In this order; the first reason counts. To add a filter: write the function, add its line.
FILTERS: dict[str, Callable[[str, Cleaning], str | None]] = {
    "empty": empty,
    "too_short": too_short,
    "low_letter_ratio": low_letter_ratio,
    "too_repetitive": too_repetitive,
}


def reason_to_drop(text: str, cleaning: Cleaning) -> str | None:
    """The first reason of FILTERS, or None: the document stays."""
    for judge in FILTERS.values():
        reason = judge(text, cleaning)
        if reason:
            return reason
    return None
