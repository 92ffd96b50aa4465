"""How an answer is scored against the right ones. Every score is between 0 and 1, item by item."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# a Han character is a word of its own; a number keeps its sign and its point: -1 is not 1
WORDS = re.compile(rf"[{HAN}]|(?<!\w)-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)|[^\W{HAN}]+")
CHRF_ORDER, CHRF_BETA = 6, 2


def words(text: str) -> list[str]:
    """Words of lower-case NFKC text without punctuation; Chinese by character."""
    return WORDS.findall(unicodedata.normalize("NFKC", text).lower())


def without_articles(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if token not in {"a", "an", "the"}]


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 if the words agree with one of the right answers (SQuAD 1.1, Rajpurkar et al. 2016)."""
    found = without_articles(words(answer))
    return float(any(found == without_articles(words(one)) for one in right))


def token_f1(answer: str, right: Sequence[str]) -> float:
    """The best F1 of shared words (SQuAD 1.1); Chinese by character, as in CMRC 2018 (Cui et al. 2019)."""
    return max(_f1(without_articles(words(answer)), without_articles(words(one))) for one in right)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def rouge_l(answer: str, right: Sequence[str]) -> float:
    """The best F1 of the longest common subsequence of words (ROUGE-L, Lin 2004)."""
    return max(_rouge_l(words(answer), words(one)) for one in right)


def _rouge_l(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    lengths = [0] * (len(wanted) + 1)  # longest common subsequence so far, by prefix of `wanted`
    for token in found:
        diagonal = 0
        for i, other in enumerate(wanted, start=1):
            diagonal, lengths[i] = lengths[i], diagonal + 1 if token == other else max(lengths[i], lengths[i - 1])
    return 2 * lengths[-1] / (len(found) + len(wanted))


def chrf(answer: str, right: Sequence[str]) -> float:
    """The best chrF2: F-score of character n-grams to order 6, recall twice as heavy (Popović 2015).

    Spaces are left out, and orders longer than either text do not count, as in sacrebleu.
    """
    return max(_chrf(answer, one) for one in right)


def _chrf(found: str, wanted: str) -> float:
    found, wanted = "".join(found.split()), "".join(wanted.split())
    precisions, recalls = [], []
    for n in range(1, CHRF_ORDER + 1):
        a, b = (Counter(text[i:i + n] for i in range(len(text) - n + 1)) for text in (found, wanted))
        if a and b:
            shared = sum((a & b).values())
            precisions.append(shared / a.total())
            recalls.append(shared / b.total())
    if not precisions:
        return float(found == wanted)
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    weight = CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0
