"""Who moved the champion, when, why and from which version: entries that lie as tags on the registered model, so that they
outlive every version. Pure functions on {"aliases": {alias: version}, "tags": {…}}, as `registry.registered` gives it."""

from __future__ import annotations

import json
from typing import Any

from components.markdown import escape, table

HISTORY = "lmworks.history."  # tags of the registered model, numbered
DONE = "lmworks.history_done"  # number of the last entry whose move was made: each is written before its move
BY_HAND = "moved by hand in the registry; no gate decided"
ROLLBACK = "rollback: "  # how the reason of such a move begins
MAX_WHY_CHARS = 600
SHOWN, SHOWN_WHY_CHARS = 10, 160


def history(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Every move of the champion that was made, oldest first: {"when" (ISO, UTC), "who", "from", "to" (version or None), "why",
    "left_weights" (sha256 of what a rollback left, else None)}."""
    return [entry for _, entry in _made(model)]


def key(number: int) -> str:
    """The tag of an entry."""
    return f"{HISTORY}{number:06d}"


def _numbered(model: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for key, value in model["tags"].items():
        number = key.removeprefix(HISTORY)
        if key.startswith(HISTORY) and number.isdigit():
            found.append((int(number), _entry(value)))
    return sorted(found, key=lambda pair: pair[0])


def _entry(value: str) -> dict[str, Any]:
    """A tag can be edited in the page; what cannot be read any more still is an entry."""
    try:
        entry = json.loads(value)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        entry = {"why": "this entry was edited by hand and cannot be read"}
    return {"when": str(entry.get("when") or "1970-01-01T00:00:00+00:00"), "who": str(entry.get("who") or "unknown"),
            "from": entry.get("from") and str(entry["from"]), "to": entry.get("to") and str(entry["to"]), "why": str(entry.get("why") or "not said"),
            "left_weights": entry.get("left_weights")}


def _made(model: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The entries whose move was made: a kill between the last one and its move leaves the alias where that entry starts.

    With it goes the entry of a move by hand that was found and written down on the same occasion.
    """
    moves = _numbered(model)
    said = model["tags"].get(DONE, "0")
    done = int(said) if said.isdigit() else 0
    if moves and moves[-1][0] > done and model["aliases"].get("champion") == moves[-1][1]["from"]:
        moves.pop()
        if moves and moves[-1][0] > done and moves[-1][1]["why"].startswith(BY_HAND):
            moves.pop()
    return moves


def unmade(model: dict[str, Any]) -> list[int]:
    """Numbers of the entries whose move never was made, in the order in which they can be removed one by one."""
    made = len(_made(model))
    return [number for number, _ in _numbered(model)[made:]]


def recorded(model: dict[str, Any]) -> str | None:
    """The version that a gate made champion last; None before the first."""
    moves = _made(model)
    return moves[-1][1]["to"] if moves else None


def champions(model: dict[str, Any]) -> list[str]:
    """Versions that a gate or a rollback made champion, each once, the latest reign first."""
    return list(dict.fromkeys(entry["to"] for _, entry in reversed(_made(model)) if entry["to"] and not entry["why"].startswith(BY_HAND)))


def left_behind(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{version: the move that left it} of the versions that were rolled back from and not brought back by a rollback since."""
    left: dict[str, dict[str, Any]] = {}
    for _, entry in _made(model):
        if entry["why"].startswith(ROLLBACK) and left.pop(entry["to"], None) is None and entry["from"]:
            left[entry["from"]] = entry
    return left


def was_rolled_back(model: dict[str, Any]) -> bool:
    return any(entry["why"].startswith(ROLLBACK) for _, entry in _made(model))


def by_hand(model: dict[str, Any]) -> str | None:
    """In words, that the alias is not where the last recorded promotion put it; None when it is."""
    last, champion = recorded(model), model["aliases"].get("champion")
    if champion == last:
        return None
    known = f"the last recorded promotion is of version {last}" if last else "no promotion is recorded"
    if champion is None:
        return f"the alias champion was removed by hand, or its version was deleted: {known}"
    return f"not gated: the alias champion was moved by hand to version {champion}; {known}"


def planned(model: dict[str, Any], *, to: str, who: str, when: str, why: str, left_weights: str | None = None) -> dict[int, dict[str, Any]]:
    """Entries to write before the alias moves to version `to`; a move that somebody made by hand before gets its own."""
    moves, champion = _made(model), model["aliases"].get("champion")
    number, last = moves[-1][0] if moves else 0, recorded(model)
    entries = []
    if champion != last:
        entries.append({"when": when, "who": "unknown", "from": last, "to": champion, "why": f"{BY_HAND} (found at the next promotion)"})
    entries.append({"when": when, "who": who, "from": champion, "to": to, "why": why[:MAX_WHY_CHARS]} | ({"left_weights": left_weights} if left_weights else {}))
    return dict(enumerate(entries, start=number + 1))


def page(model: dict[str, Any]) -> str:
    """The last moves as a table in Markdown, newest first."""
    moves = history(model)
    if not moves:
        return "No version was champion yet."
    body = [[escape(move["when"].replace("T", " ").replace("+00:00", " UTC")), escape(move["who"]), escape(move["from"] or "none"),
             escape(move["to"] or "none"), escape(_short(move["why"]))] for move in reversed(moves[-SHOWN:])]
    earlier = f"\n\n{len(moves) - SHOWN} earlier moves stand in the tags `{HISTORY}…`." if len(moves) > SHOWN else ""
    return table(["When", "Who", "From version", "To version", "Why"], body) + earlier


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_WHY_CHARS else text[:SHOWN_WHY_CHARS - 1] + "…"
