"""Which language a text is in, by counting scripts: 'zh', 'en' or 'other'."""

from __future__ import annotations

import re

import numpy as np

LANGUAGES = ("zh", "en", "other")

# Inclusive code point ranges. The middle dot and the long vowel mark of kana occur in Chinese too: left out.
HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
KANA = ((0x3041, 0x30FA),)
LATIN = ((0x41, 0x5A), (0x61, 0x7A))
LATIN_EXTENDED = ((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x1E00, 0x1EFF))
OTHER_LETTERS = ((0x370, 0x1DFF), (0xA000, 0xD7FF))  # Greek to the scripts of Africa and South Asia; Hangul

LATIN_LETTERS_A_WORD = 4  # a Han character carries about as much as a short Latin word

ENGLISH_WORDS = "the of and to is that it with for as are this have from or by not but which you they be if at in"
# Words that are frequent in their language and are rare in English text and code.
NEIGHBOUR_WORDS = """
der und das ist nicht ein eine mit von den dem zu sich auf
le la les des et est une dans que qui pas du sur au
el las una del su como il di che della gli sono nel
het een van dat niet zijn voor op
az egy hogy nem os uma nao na och att det jest nie sie
"""
ENGLISH = frozenset(ENGLISH_WORDS.split())
NEIGHBOURS = frozenset(NEIGHBOUR_WORDS.split())
WORD = re.compile(r"[a-zà-ÿ]+")
WORDS_LOOKED_AT = 400


def _count(points: np.ndarray, ranges: tuple[tuple[int, int], ...]) -> int:
    return sum(int(np.count_nonzero((points >= low) & (points <= high))) for low, high in ranges)


def language_of(text: str) -> str:
    """'zh' | 'en' | 'other' ('other' also where there is no letter at all).

    Chinese: Han outweighs Latin, and less than a tenth of it is kana (else Japanese). English: Latin
    letters, few with accents, and no more stop-words of its neighbours than of its own; so a title
    or a line of code without any stop-word counts as English.
    """
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")
    han, latin = _count(points, HAN), _count(points, LATIN)
    extended, others = _count(points, LATIN_EXTENDED), _count(points, OTHER_LETTERS)
    kana = _count(points, KANA)
    letters = (latin + extended + others) / LATIN_LETTERS_A_WORD + han + kana
    if not letters:
        return "other"
    if han + kana >= letters / 2:
        return "other" if kana > 0.1 * (han + kana) else "zh"
    if others > latin or kana > latin or extended > 0.08 * (latin + extended):
        return "other"
    words = WORD.findall(text[: WORDS_LOOKED_AT * 12].lower())[:WORDS_LOOKED_AT]
    english = sum(word in ENGLISH for word in words)
    neighbours = sum(word in NEIGHBOURS for word in words)
    return "other" if neighbours > english else "en"
