"""What is new in a version against the champion of that moment, in three lines: data, settings and code, scores."""

from __future__ import annotations

from typing import Any

from components.errors import UserError
from components.release import comparison, gates, registry
from components.release.gates import language

Lines = list[tuple[str, str]]  # (label, plain words)
MAX_LINE_CHARS = 700
MAX_KEYS = 8
FIRST = "first version, nothing to compare"


def lines(url: str, name: str, version: Any, champion: Any | None, criteria: list[gates.Criterion]) -> Lines:
    """The three lines of a version whose run is complete; those that stand when it is the champion itself. Never raises UserError."""
    if champion is not None and str(champion.version) == str(version.version) or champion is None and registry.CHANGED in version.tags:
        return parsed(version.tags.get(registry.CHANGED, ""))
    if champion is None:
        return [("Changes", FIRST if str(version.version) == "1" else "there was no champion, so there is nothing to compare")]
    try:
        theirs, ours = (comparison.read(url, name, str(one.version)) for one in (champion, version))
    except UserError as error:
        return [("Changes", _cut(f"not known: {error}"))]
    told = comparison.compare(theirs, ours)
    return [(f"Data, since champion version {champion.version}", _cut(data(told, ours))),
            ("Settings and code", _cut(f"{settings(told)}; {code(told, ours)}")),
            ("Scores", _cut(scores(told, criteria)))]


def text_of(found: Lines) -> str:
    """As the tag lmworks.changed holds them: one a line."""
    return "\n".join(f"{label}: {words}" for label, words in found)


def parsed(text: str) -> Lines:
    pairs = (line.partition(": ") for line in text.splitlines() if ": " in line)
    return [(label, words) for label, _, words in pairs]


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_LINE_CHARS else flat[:MAX_LINE_CHARS - 1] + "…"


def _short(digest: Any) -> str:
    return str(digest)[:12] if digest is not None else "none"


# --- the three -----------------------------------------------------------------------------------

def data(told: dict[str, Any], ours: dict[str, Any]) -> str:
    """'corpus 1a… → 2b…; train: English +12 documents, +3,400 tokens'."""
    if told["data"] is None:
        return f"not known ({'; '.join(told['unknown'])})"
    parts = [f"{row['what']} {_short(row['a'])} → {_short(row['b'])}" for row in told["data"]["digests"]]
    for row in told["data"]["splits"]:
        before, after = row["a"] or {}, row["b"] or {}
        counts = [f"{after.get(what, 0) - before.get(what, 0):+,} {what}" for what in ("documents", "tokens")
                  if after.get(what, 0) != before.get(what, 0)]
        if counts:
            parts.append(f"{row['split']}, {language(row['language'])}: {', '.join(counts)}")
    return "; ".join(parts) or f"the same ({_short((ours['data'] or {'digests': {}})['digests'].get('tokens'))})"


def settings(told: dict[str, Any]) -> str:
    """'training.steps 600 → 800, and 2 more'."""
    if told["settings"] is None:
        return "settings not known (the run of one of the two holds no settings/params.yaml)"
    rows = told["settings"]
    if not rows:
        return "settings the same"
    shown = [f"{row['key']} {_value(row['a'])} → {_value(row['b'])}" for row in rows[:MAX_KEYS]]
    return ", ".join(shown) + (f" and {len(rows) - MAX_KEYS} more" if len(rows) > MAX_KEYS else "")


def _value(value: Any) -> str:
    text = "not there" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def code(told: dict[str, Any], ours: dict[str, Any]) -> str:
    """'code commit 1a… → 2b…, 3 files, torch 2.12 → 2.13'."""
    if told["code"] is None:
        return "code not known (the run of one of the two is gone)"
    parts = []
    for row in told["code"]["git"]:
        if row["what"] == "commit":
            parts.append(f"commit {_short(row['a'])} → {_short(row['b'])}")
        else:
            parts.append(f"uncommitted changes {_short(row['a'])} → {_short(row['b'])}")
    changed = len(told["code"]["files"])
    parts += [f"{changed} file{'s' if changed > 1 else ''} of the stages"] if changed else []
    parts += [f"{row['package']} {_value(row['a'])} → {_value(row['b'])}" for row in told["code"]["versions"]]
    commit = (ours["code"] or {}).get("commit")
    return f"code {', '.join(parts)}" if parts else f"code the same{f' (commit {_short(commit)})' if commit else ''}"


def scores(told: dict[str, Any], criteria: list[gates.Criterion]) -> str:
    """The headline figure of each language or application, old → new with intervals; then the difference that the gate measured in pairs."""
    parts: list[str] = []
    seen: set[tuple[str, str]] = set()
    for row in told["scores"] or []:
        key = (row["what"].partition(":")[0], row["language"])
        if key not in seen:  # the first metric of an application is its headline
            seen.add(key)
            parts.append(f"{row['what']}, {row['language']} {_figure(row['a'])} → {_figure(row['b'])}")
    paired = next((c.observed for c in criteria if c.criterion == "not_worse_than_champion" and "[" in c.observed), None)
    # first, as it is what decides; the line may be cut
    lead = [f"on the same items (this - champion) {paired}"] if paired else []
    if told["same_weights"]:  # the run is the same one, too, so it holds one of the two evaluations
        return "the weights are the champion's, evaluated again"
    if told["scores"] is None:
        lead.append("old and new are not known: " + ("; ".join(why for why in told["unknown"] if "scores" in why or "gone" in why) or "no evaluation"))
    return "; ".join(lead + parts) or "no figure was measured"


def _figure(figure: dict[str, Any] | None) -> str:
    return "not measured" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
