"""Validation that blocks: Great Expectations judges a table, severity decides what follows.

block: the chain stops here; quarantine: the row is set aside, with the expectation's name; warn: a note.
An expectation that could not be run is a failed gate, never a pass.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from components import failpoints, files
from components.config import Config, flatten
from components.corpus import validation_page
from components.corpus.suites import READER, SCHEMA, SUITES, Expectation, Suite, decoded
from components.corpus.validation_judge import Judge, great_expectations_judge
from components.errors import Blocked

EXAMPLES = 10
TEXT_CHARS = 300  # of a text at fault, in the quarantine and on the page


@dataclass
class Result:
    """How one expectation fared."""

    name: str
    sentence: str
    severity: str
    state: str = "not run"  # passed | failed | could not be run | not run
    checked: int = 0
    at_fault: int = 0
    detail: str = ""
    advice: str = ""
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def success(self) -> bool:
        return self.state == "passed"

    @property
    def blocks(self) -> bool:
        """Only a plain failure may be lenient: what was not judged stops the chain."""
        return not self.success and (self.severity == "block" or self.state != "failed")

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sentence": self.sentence, "severity": self.severity, "success": self.success, "state": self.state,
                "blocks": self.blocks, "checked": self.checked, "at_fault": self.at_fault, "detail": self.detail, "advice": self.advice,
                "examples": self.examples}


@dataclass
class Verdict:
    """All results of one suite, and the rows that stay."""

    suite: str
    what: str
    rows: int  # read, those that a reader set aside included
    results: list[Result]
    table: pa.Table
    faults: list[dict[str, Any]]

    @property
    def blocking(self) -> list[Result]:
        return [r for r in self.results if r.blocks]

    def as_dict(self) -> dict[str, Any]:
        return {"suite": self.suite, "what": self.what, "success": not self.blocking, "rows": self.rows, "rows_kept": len(self.table),
                "results": [r.as_dict() for r in self.results]}


# --- judging -------------------------------------------------------------------------------------

class _Settings(dict):
    """Settings by dotted key, for templates: '{validation.min_documents:,}'."""

    def fill(self, template: str) -> str:
        flat = {key.replace(".", "__"): value for key, value in self.items()}  # format() reads a dot as an attribute
        return re.sub(r"\{(\w+)\.(\w+)", r"{\1__\2", template).format(**flat)


def _resolve(e: Expectation, config: Config, settings: _Settings) -> tuple[Expectation, dict[str, Any]]:
    """The expectation with its words filled in and its severity for this configuration; its bounds as numbers."""
    bounds = {side: settings[v] if isinstance(v, str) else v for side, v in (("minimum", e.minimum), ("maximum", e.maximum))}
    severity = "warn" if e.pretraining and config.corpus.base != "none" else e.severity
    return replace(e, sentence=settings.fill(e.sentence), advice=settings.fill(e.advice), severity=severity), bounds


def _compute(measure: Callable[[pa.Table], Any], table: pa.Table) -> np.ndarray | str:
    """The measured column, or why it could not be measured."""
    try:
        values = measure(table)
        if isinstance(values, (pa.Array, pa.ChunkedArray)):
            values = values.to_pandas().to_numpy()
        return np.asarray(values)
    except Exception as error:  # noqa: BLE001  whatever it is: the gate is named and fails, the chain stops (A21)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:TEXT_CHARS]}"


def _run(judge: Judge, columns: dict[str, np.ndarray | str], expected: list[tuple[Expectation, dict]], rows: int,
         ) -> Iterator[tuple[Expectation, Result, list[int]]]:
    """Judge the columns; yields in the order of `expected`. A column given as text could not be measured."""
    good = {name: values for name, values in columns.items() if not isinstance(values, str)}
    try:
        found = judge(good, [(e, b) for e, b in expected if e.column in good]) if good else {}
    except Exception as error:  # noqa: BLE001  as in _compute
        found = {e.name: f"{type(error).__name__}: {error}" for e, _ in expected}
    for e, _ in expected:
        outcome = found.get(e.name, columns.get(e.column, "no such column was measured"))
        result = Result(e.name, e.sentence, e.severity, advice=e.advice)
        if isinstance(outcome, list):
            result.state, result.checked, result.at_fault = "failed" if outcome else "passed", rows, len(outcome)
            yield e, result, outcome
        else:
            result.state, result.detail = "could not be run", outcome if isinstance(outcome, str) else "it gave no result"
            yield e, result, []


def _started_judge() -> Judge:
    """Great Expectations; where it does not even start, a judge that says why of each expectation: not judged is not passed (A21)."""
    try:
        return great_expectations_judge()
    except Exception as error:  # noqa: BLE001  as in _compute
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:TEXT_CHARS]}"
        return lambda columns, expected: {e.name: why for e, _ in expected}


def _schema_columns(suite: Suite, table: pa.Table) -> tuple[dict[str, np.ndarray], list[str]]:
    """One row a required column: is it missing, has it another type; and a sentence about each."""
    missing, wrong, words = [], [], []
    for name, kind in suite.columns.items():
        index = table.schema.get_field_index(name)
        found = None if index < 0 else table.schema.field(index).type
        fits = found is not None and (pt.is_integer(found) if kind == "integer" else pt.is_string(found) or pt.is_large_string(found))
        missing.append(found is None)
        wrong.append(found is not None and not fits)
        words.append(f"column {name!r} ({kind}): " + ("missing; the columns found are " + ", ".join(map(repr, table.column_names))
                                                     if found is None else f"found as {found}"))
    return {"missing": np.array(missing), "wrong_type": np.array(wrong)}, words


def _row_of(table: pa.Table, index: int) -> dict[str, Any]:
    """Where a row came from: its source, its number there (from the id SOURCE#ROW where it has that form), its text."""
    def value(name: str) -> str:
        return str(table[name][index].as_py() or "") if name in table.column_names else ""

    number = value("row") or value("id").rpartition("#")[2]
    source = value("source") or " ".join(filter(None, (value("split"), value("language"))))
    return {"source": source, "row": int(number) if number.isdecimal() else index, "text": value("text")[:TEXT_CHARS]}


def _detail(e: Expectation, columns: dict[str, Any], index: int) -> str:
    value = columns[e.column][index]
    if e.allowed is not None and len(e.allowed) == 1:
        return e.sentence
    return f"{e.column.replace('_', ' ')} = {value:.4g}" if isinstance(value, float) else f"{e.column.replace('_', ' ')} = {value}"


def _reader_results(faults: Sequence[dict[str, Any]], rows: int, settings: _Settings) -> Iterator[Result]:
    for name in sorted({*READER, *(f["expectation"] for f in faults)}):
        own = [f for f in faults if f["expectation"] == name]
        sentence = settings.fill(READER[name]) if name in READER else f"The reader set aside no row as {name!r}."
        yield Result(name, sentence, "quarantine", "failed" if own else "passed", rows, len(own), advice="Mend the rows in the source",
                     examples=[{k: f[k] for k in ("source", "row", "detail", "text")} for f in own[:EXAMPLES]])


def judge_table(suite_name: str, table: pa.Table, config: Config, reader_faults: Sequence[dict[str, Any]] = (),
                judge: Judge | None = None) -> Verdict:
    """Every expectation of the suite on the table; nothing is written and nothing raised for what is at fault."""
    suite, settings = SUITES[suite_name], _Settings(flatten(config.model_dump()))
    judge = judge or _started_judge()
    rows_read = len(table) + len(reader_faults)
    columns, words = _schema_columns(suite, table)
    results = []
    for _, result, indices in _run(judge, columns, [_resolve(e, config, settings) for e in SCHEMA], len(words)):
        result.examples = [{"source": "", "row": i, "text": "", "detail": words[i]} for i in indices[:EXAMPLES]]
        result.detail = result.detail or "; ".join(words[i] for i in indices)
        results.append(result)
    expected = [_resolve(e, config, settings) for e in suite.rows]
    totals = [_resolve(e, config, settings) for e in suite.all]
    if not all(r.success for r in results):
        results += [Result(e.name, e.sentence, e.severity, detail="needs the columns named above", advice=e.advice) for e, _ in [*expected, *totals]]
        return Verdict(suite_name, suite.what, rows_read, results, table, [])

    own, faults, kept = _judge_rows(judge, suite, table, expected)
    readers = {r.name: r for r in _reader_results(reader_faults, rows_read, settings)} if suite_name == "raw" or reader_faults else {}
    for result in own:  # a fault that reader and suite both look for is one expectation
        reader = readers.pop(result.name, None)
        if reader and result.state in ("passed", "failed"):
            result.checked, result.at_fault = rows_read, result.at_fault + reader.at_fault
            result.examples = [*reader.examples, *result.examples][:EXAMPLES]
            result.state = "failed" if result.at_fault else "passed"
    results += [*readers.values(), *own]
    results += _judge_totals(judge, suite, kept, totals, [*reader_faults, *faults], rows_read, config)
    return Verdict(suite_name, suite.what, rows_read, results, kept, faults)


def _judge_rows(judge: Judge, suite: Suite, table: pa.Table, expected: list[tuple[Expectation, dict]],
                ) -> tuple[list[Result], list[dict[str, Any]], pa.Table]:
    """Row by row -> (results, faults of the quarantined rows, the rows that stay)."""
    readable = decoded(table) if "text" in suite.columns else table
    columns = {name: _compute(measure, table if name == "undecodable" else readable) for name, measure in suite.measures.items()}
    results, quarantined = [], {}
    for e, result, indices in _run(judge, columns, expected, len(table)):
        result.examples = [{**_row_of(readable, i), "detail": _detail(e, columns, i)} for i in indices[:EXAMPLES]]
        if e.severity == "quarantine":
            for i in indices:
                quarantined.setdefault(i, e)  # a row has one line in the quarantine: its first expectation
        results.append(result)
    faults = [{**_row_of(readable, i), "expectation": e.name, "detail": _detail(e, columns, i)} for i, e in sorted(quarantined.items())]
    if not quarantined:
        return results, faults, table
    stays = np.ones(len(table), bool)
    stays[list(quarantined)] = False
    return results, faults, table.filter(pa.array(stays))


def _judge_totals(judge: Judge, suite: Suite, kept: pa.Table, expected: list[tuple[Expectation, dict]], faults: list[dict[str, Any]],
                  rows_read: int, config: Config) -> list[Result]:
    """The whole table, as one row of numbers."""
    free = config.validation.free_quarantine_rows
    numbers: dict[str, Any] = {name: _compute(lambda t, f=total: np.array([f(t)]), kept) for name, total in suite.totals.items()}
    numbers["quarantine_ratio"] = np.array([len(faults) / rows_read if len(faults) > free else 0.0])
    by_name = Counter(f["expectation"] for f in faults)
    context = {name: float("nan") if isinstance(values, str) else values[0] for name, values in numbers.items()}
    context |= {"quarantined": len(faults), "rows_read": rows_read,
                "breakdown": ", ".join(f"{name} {n:,}" for name, n in sorted(by_name.items(), key=lambda x: (-x[1], x[0]))) or "none"}
    results = []
    for e, result, indices in _run(judge, numbers, expected, 1):
        if result.state in ("passed", "failed"):
            result.detail = e.found.format(**context)
        if indices:
            result.examples = [{"source": f["source"], "row": f["row"], "text": f["text"], "detail": f"{f['expectation']}: {f['detail']}"}
                               for f in faults[:EXAMPLES]] if e.column == "quarantine_ratio" else []
        results.append(result)
    return results


# --- what follows --------------------------------------------------------------------------------

def check(suite: str, table: pa.Table, config: Config, folder: Path, reader_faults: Sequence[dict[str, Any]] = (), *,
          kept: Path | None = None) -> tuple[pa.Table, list[dict[str, Any]], list[str]]:
    """Judge `table` by `suite` ('raw', 'clean', 'tokens'); write validation.json and validation.html into `folder`.

    reader_faults: rows that a reader set aside already ({source, row, expectation, detail, text}); they count.
    Returns (the rows that stay, the faults of the rows taken out here in the same form, notes).
    Raises Blocked when a gate failed or could not be run; page and JSON are then copied to `kept`, as the
    folder of a blocked stage is deleted. A suite that passes removes what an earlier one left in `kept`.
    """
    verdict = judge_table(suite, table, config, reader_faults)
    told = verdict.as_dict()
    files.write_json(folder / "validation.json", told)
    files.write_atomic(folder / "validation.html", validation_page.render(told))
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    if verdict.blocking:
        if kept is not None:
            kept.mkdir(parents=True)
            for name in ("validation.json", "validation.html"):
                shutil.copyfile(folder / name, kept / name)
        raise Blocked(validation_page.blocked_message(verdict, (kept or folder) / "validation.html"))
    failpoints.hit("validate.done", suite)
    return verdict.table, verdict.faults, validation_page.notes(verdict)
