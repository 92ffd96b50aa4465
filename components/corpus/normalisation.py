"""The frozen normalisation behind every id.

An id is a hash of the normalised text, and splits follow the id. So this file must never change what it
returns: a change here moves documents between train and test. Version 1, the only one so far: NFKC, casefold, NFKC
again, runs of white space to one space, ends stripped. Another rule would be a version of its own, with new ids.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata

ID_HEX = 16  # digits of an id: 64 bits; two of 10^8 documents collide with a chance of 3 in 10^4


def normalise(text: str) -> str:
    """The text as ids see it: case, width (Ａ = a, ﬁ = fi) and spacing make no difference."""
    if text.isascii():  # NFKC leaves ASCII alone
        return " ".join(text.casefold().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def normalised_id(text: str) -> str:
    """The id of a text that is normalised already."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:ID_HEX]


def document_id(text: str) -> str:
    """16 hex digits of the sha256 of the normalised text; texts equal under `normalise` share their id."""
    return normalised_id(normalise(text))


def record_id(application: str, prompt: str, answer: str) -> str:
    """16 hex digits for an application record: prompts are compared normalised, answers as they are."""
    return normalised_id(json.dumps([application, normalise(prompt), answer], ensure_ascii=False))
