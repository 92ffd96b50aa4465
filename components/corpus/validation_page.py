"""What a suite found, for people: the page that opens without network, the message of a blocked chain, the notes.

The page is made from the dictionary of validation.json alone, so a report can show the same results again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.corpus.page import BADGES, Html, badge, contents, count, page, shown, table

if TYPE_CHECKING:
    from components.corpus.validation import Result, Verdict

MEANINGS = {
    "block": "the chain stops here",
    "could not be run": "not judged, so the chain stops here",
    "quarantine": "the rows are set aside, the rest goes on",
    "warn": "a note, everything goes on",
    "not run": "waiting for what failed before it",
    "passed": "as expected",
}


def kind_of(result: dict[str, Any]) -> str:
    """The badge of a result: what became of it where it failed, else how it ended."""
    return result["state"] if result["state"] != "failed" else result["severity"]


def headline(told: dict[str, Any]) -> tuple[str, str]:
    """(badge, the verdict of a suite in one sentence)."""
    results = told["results"]
    blocking = [r["name"] for r in results if r["blocks"] and r["state"] != "not run"]
    if blocking:
        return "block", f"The chain stops here: {count(len(blocking), 'expectation')} of {len(results)} said no ({', '.join(blocking)})."
    kinds = Counter(map(kind_of, results))
    aside = [count(told["rows"] - told["rows_kept"], "row") + " set aside"] if told["rows"] > told["rows_kept"] else []
    aside += [count(kinds["warn"], "warning")] if kinds["warn"] else []
    return "passed", f"The chain may go on{', with ' + ' and '.join(aside) if aside else ': every expectation holds'}."


def _findings(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What did not pass and was judged, in the order of BADGES."""
    order = list(BADGES)
    return sorted((r for r in told["results"] if kind_of(r) not in ("passed", "not run")), key=lambda r: order.index(kind_of(r)))


def _summary(told: dict[str, Any]) -> str:
    kinds = Counter(map(kind_of, told["results"]))
    tiles = "".join(f"<li>{badge(kind)} {count(kinds[kind], 'expectation')}: {MEANINGS[kind]}</li>" for kind in BADGES
                    if kinds[kind] or kind in ("block", "quarantine", "warn", "passed"))
    kind, sentence = headline(told)
    rows = table("Rows of the table", ["read", "quarantined", "kept"], [[told["rows"], told["rows"] - told["rows_kept"], told["rows_kept"]]],
                 ("read", "quarantined", "kept"))
    return (f'<p class="verdict" style="border-color:{BADGES[kind].colour}">{badge(kind)} {shown(sentence)}</p>'
            f'<ul class="tiles">{tiles}</ul>\n{rows}')


def _finding(result: dict[str, Any], anchor: str, level: int) -> str:
    """One expectation that failed, in words, with up to ten rows at fault beside it."""
    found = f"{result['at_fault']:,} of {result['checked']:,} rows are at fault." if result["state"] == "failed" and result["checked"] > 1 else ""
    said = " ".join(filter(None, [found, _sentence(result["detail"]), _sentence(result["advice"])]))
    rows = [[e["source"], Html(e["row"]), e["detail"], e["text"]] for e in result["examples"]]  # a number to look up: no thousands marked
    shows = f"The first {len(rows)} of {result['at_fault']:,} rows at fault" if result["at_fault"] > len(rows) else "The rows at fault"
    examples = table(f"{shows}: {result['name']}", ["source", "row", "what is wrong", "text"], rows) if rows else ""
    return (f'<h{level} id="{shown(anchor)}">{badge(kind_of(result))} {shown(result["sentence"])}</h{level}>'
            f'<p><code>{shown(result["name"])}</code>. {shown(said)}</p>\n{examples}')


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?", "。")) else f"{text}."


def results(told: dict[str, Any], *, prefix: str = "", level: int = 2) -> str:
    """The results of a suite as part of a page: summary, what was found, all expectations.

    `prefix` keeps the ids of several suites on one page apart; `level` is that of the headings.
    """
    found = _findings(told)
    places = {r["name"]: f"{prefix}{r['name']}" for r in found}
    parts = [_summary(told), f'<h{level} id="{prefix}found">What was found</h{level}>']
    parts += [_finding(r, places[r["name"]], level + 1) for r in found] or ["<p>Nothing: every expectation that was judged holds.</p>"]
    order = list(BADGES)
    rows = [[badge(kind_of(r)), Html(f'<a href="#{shown(places[r["name"]])}"><code>{shown(r["name"])}</code></a>') if r["name"] in places
             else Html(f"<code>{shown(r['name'])}</code>"), r["sentence"] + (f" Found: {r['detail']}." if r["detail"] else ""), r["severity"],
             r["checked"], r["at_fault"]] for r in sorted(told["results"], key=lambda r: order.index(kind_of(r)))]
    parts += [f'<h{level} id="{prefix}all">All expectations</h{level}>',
              table("Severity says what a failure does: block the chain, quarantine the row, or warn",
                    ["result", "expectation", "in words", "severity", "checked", "at fault"], rows, ("checked", "at fault"))]
    return "\n".join(parts)


def render(told: dict[str, Any]) -> str:
    """The page of a suite's validation.json: the same bytes for the same results."""
    title = f"Validation of the {told['what']}"
    entries = [("found", "What was found"), *((r["name"], r["name"]) for r in _findings(told)), ("all", "All expectations")]
    return page(title, f"<header><h1>{shown(title)}</h1>\n{contents(entries)}</header>\n<main>\n{results(told)}\n</main>")


# --- in the terminal and in the run's log --------------------------------------------------------

def _example(result: Result) -> str:
    if not result.examples or not result.examples[0]["source"] or result.state == "could not be run":
        return ""
    first = result.examples[0]
    said = f"{first['text'][:60]!r}" if first["text"] else first["detail"]
    return f" Example: {first['source']} row {first['row']}: {said}."


def _found(result: Result) -> str:
    if result.state == "could not be run":
        return f"could not be run: {result.detail}"
    return result.detail or f"{result.at_fault:,} of {result.checked:,} rows are at fault"


def blocked_message(verdict: Verdict, path: Path) -> str:
    """Each failed gate: how many of how many, one example, what to do; at the end the page."""
    lines, advised = [f"validation of the {verdict.what} stopped the chain"], set()
    for r in verdict.blocking:
        if r.state != "not run":
            advice = "" if r.advice in advised else f" {r.advice}."  # once is enough
            lines.append(f"  - {r.name}: {r.sentence} Found: {_found(r)}.{_example(r)}{advice}")
            advised.add(r.advice)
    waiting = sum(r.state == "not run" for r in verdict.results)
    if waiting:
        lines.append(f"  - {waiting} more expectations were not run")
    return "\n".join([*lines, f"All results, with the rows: {path}"])


def notes(verdict: Verdict) -> list[str]:
    """Sentences about warnings and about what was quarantined."""
    found = [f"{r.name}: {r.sentence} Found: {_found(r)}." for r in verdict.results if r.state == "failed" and r.severity == "warn"]
    quarantined = [f"{r.name} {r.at_fault:,}" for r in verdict.results if r.severity == "quarantine" and r.at_fault]
    if quarantined:
        found.append(f"{verdict.rows - len(verdict.table):,} of {verdict.rows:,} rows were quarantined ({', '.join(quarantined)}).")
    return found
