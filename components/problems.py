"""What is wrong with settings, in words: unknown keys, values that do not fit, secrets where none belong. No value of a secret is told."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from components.masking import masked

TOLD = 20  # problems of one kind that are told one by one
KEY_CHARS = 80
HIDDEN = "(not shown: it looks like a secret)"
# pydantic's words for these say nothing to a person
RULES = {"string_pattern_mismatch": "must be 1 to 63 lower-case letters, digits, - or _, the first of them a letter or a digit",
         "string_unicode": "must be text in UTF-8. Rename the file or folder if it is the name of one"}
_whole = reprlib.Repr()
_whole.maxstring = _whole.maxother = 500  # long enough to recognise a secret that the short form would cut


def looks_secret(text: str) -> bool:
    return masked(text) != text


def shown(value: Any) -> str:
    """A value as it may be printed: short, and never a secret."""
    return HIDDEN if looks_secret(_whole.repr(value)) else reprlib.repr(value)


def unknown_keys(flat: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """A sentence for each key of `flat` (dotted) that is no setting, with the nearest one that is."""
    known = list(known)
    sections = {key.partition(".")[0] for key in known if "." in key}
    strange = [key for key in flat if key not in known]
    told = [_unknown(key, flat[key], known, sections) for key in strange[:TOLD]]
    return told + ([f"{len(strange) - TOLD:,} more unknown keys"] if len(strange) > TOLD else [])


def _unknown(key: str, value: Any, known: list[str], sections: set[str]) -> str:
    if key in sections:
        found = "nothing" if value is None else f"{type(value).__name__} {shown(value)}"
        return f"{key}: settings were expected below it, found {found}"
    if looks_secret(key):
        return f"unknown key {HIDDEN}"
    written = key.strip("'")
    if written in known:  # a dot inside a name: two spellings of one setting would hide one another
        return f"key {key}: write {written.partition('.')[2]} below {written.partition('.')[0]}:"
    near = difflib.get_close_matches(key[:KEY_CHARS], known, n=1, cutoff=0.6)
    return f"unknown key {key[:KEY_CHARS]!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def in_words(error: Mapping[str, Any]) -> str:
    """Setting, value and what is allowed, of one error of pydantic's."""
    key = ".".join(str(part) for part in error["loc"])
    rule = RULES.get(error["type"]) or re.sub(r"^(?:Input|String|List) should", "must", error["msg"])
    return f"{key}={shown(error['input'])}: {rule}"


def secrets_in(lines: Mapping[str, str]) -> list[str]:
    """A sentence for each of `lines` ({where: text}) that holds what looks like a secret."""
    if not looks_secret("\n".join(lines.values())):
        return []
    return [f"{where} holds what looks like a secret (not shown). Settings are committed, printed and logged with every run: take it out, "
            "and give secrets by environment variables alone" for where in [where for where, text in lines.items() if looks_secret(text)][:TOLD]]
