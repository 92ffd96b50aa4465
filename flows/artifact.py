"""The one markdown artifact of a run, in reading order: verdict, stages, reasons, links. Values in, text out."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from components import files
from components.errors import UserError
from components.layout import Layout
from components.markdown import escape
from flows.records import RunResult, StageRecord, plain

MAX_CELL = 160
MAX_LINE = 600
MAX_ROWS = 60  # a large artifact makes the server refuse its event
SAMPLE_ROWS = 10
ROW_HEAD = ["expectation", "source", "row", "detail", "text"]


def cell(value: Any, limit: int = MAX_CELL) -> str:
    """Text that cannot leave its table cell, nor be read as HTML or a link."""
    text = " ".join(str(value).split())
    return escape(text if len(text) <= limit else text[: limit - 1] + "…")


def table(head: list[str], rows: list[list[Any]]) -> str:
    shown = rows[:MAX_ROWS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(cell(v) for v in row)} |" for row in shown)]
    if len(rows) > len(shown):
        lines.append(f"\n… and {len(rows) - len(shown)} more")
    return "\n".join(lines)


def stage_rows(stages: list[StageRecord]) -> list[list[Any]]:
    rows = []
    for record in stages:
        into, out, tokens = (record.summary.get(key) for key in ("documents_in", "documents_out", "tokens"))
        documents = "" if out is None else (f"{out:,}" if into in (None, out) else f"{into:,} → {out:,}")
        why = record.why[0] + (f" (+{len(record.why) - 1} more)" if len(record.why) > 1 else "") if record.why else ""
        rows.append([record.stage, record.state, f"{record.elapsed_s:.1f}", documents, "" if tokens is None else f"{tokens:,}", why])
    return rows


def gate_tables(decisions: Any) -> list[str]:
    """Each model's decision and the criteria behind it (`components.release.release.Decision`s)."""
    lines = []
    for told in plain(decisions) or []:
        champion = f"champion is version {told['champion_version']}" if told["champion_version"] else "there is no champion"
        rows = [["yes" if c["passed"] else "no", c["criterion"], c["observed"], c["required"]] for c in told["criteria"]]
        lines += [f"### {cell(told['name'])} version {cell(told['version'])}: gate {cell(told['verdict'])}, {champion}", "",
                  table(["met", "criterion", "observed", "required"], rows), ""]
    return ["## Gates", "", *lines] if lines else []


def blocked_report(layout: Layout, stage: str) -> list[str]:
    """What validation found when it blocked `stage`, expectation by expectation, with rows at fault."""
    path = layout.blocked / stage / "validation.json"
    try:
        told = files.read_json(path)
    except (OSError, UserError):
        return []
    results = told["results"]
    failed = [result for result in results if not result.get("success", True)]
    rows = [[r.get("severity"), r.get("name"), r.get("sentence"), r.get("checked"), r.get("at_fault")] for r in failed]
    lines = [f"## Why {cell(stage)} was blocked", "", table(["severity", "expectation", "in words", "checked", "at fault"], rows), ""]
    if examples := sample(failed):
        lines += ["### Rows at fault", "", table(ROW_HEAD, examples), ""]
    return [*lines, f"The same page, offline: `{path.relative_to(layout.root).with_suffix('.html')}`", ""]


def _example(example: Any) -> list[Any]:
    if isinstance(example, dict):
        return [example.get("source", ""), example.get("row", ""), example.get("detail") or "", example.get("text") or ""]
    return ["", "", example, ""]


def sample(results: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows at fault, each once, of each expectation in turn so that none hides another."""
    turns = zip_longest(*([[r.get("name"), *_example(example)] for example in r.get("examples") or []] for r in results))
    rows: list[list[Any]] = []
    for row in (row for turn in turns for row in turn if row is not None):
        if not row[1] or row[1:3] not in [other[1:3] for other in rows]:
            rows.append(row)
    return rows[:SAMPLE_ROWS]


def quarantine_sample(layout: Layout) -> list[str]:
    """Rows that validation set aside while the chain went on."""
    try:
        results = files.read_json(layout.raw / "validation.json")["results"]
    except (OSError, UserError, KeyError):
        return []
    aside = [result for result in results if result.get("severity") == "quarantine" and result.get("at_fault")]
    if not (rows := sample(aside)):
        return []
    count = sum(result["at_fault"] for result in aside)
    return [f"## Quarantine: {count:,} row{'s' if count > 1 else ''} set aside", "", table(ROW_HEAD, rows), ""]


def markdown(result: RunResult, layout: Layout, links: dict[str, str]) -> str:
    """The whole artifact. `links` = {words: address}; only http addresses become links."""
    lines = [f"# {cell(result.verdict)}", "", *(f"{cell(line, MAX_LINE)}\n" for line in result.message.splitlines()[:MAX_ROWS]), ""]
    failed = result.failed
    if failed is not None:
        lines += [f"**{cell(failed.stage)}** ended with exit code {failed.exit_code}.", ""]
        if failed.exit_code == 3:
            lines += blocked_report(layout, failed.stage)
    lines += ["## Stages", "", table(["stage", "state", "seconds", "documents", "tokens", "why"], stage_rows(result.stages)), ""]
    lines += gate_tables(result.release)
    if links:
        lines += ["## Look at", "", *(f"- [{cell(words)}]({address})" if address.startswith("http") else f"- {cell(words)}: `{address}`"
                                      for words, address in links.items()), ""]
    if failed is None or failed.exit_code != 3:  # of a blocked stage the rows stand above
        lines += quarantine_sample(layout)
    return "\n".join(lines)
