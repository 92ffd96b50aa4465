"""Great Expectations at work: measured columns in, the rows at fault out. The only module that imports it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from components.corpus.suites import Expectation

ROW_GROUP = 250_000  # rows that are judged at a time: 1 M rows at once take 1.1 GB
MESSAGE_CHARS = 300
SEVERITIES = {"block": "critical", "quarantine": "warning", "warn": "info"}

Judge = Callable[[dict[str, np.ndarray], Sequence[tuple[Expectation, dict[str, Any]]]], dict[str, list[int] | str]]


def great_expectations_judge() -> Judge:
    """A function (columns of N values, [(expectation, bounds)]) -> {name: rows at fault, or why it could not be run}."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import: nothing calls home
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    whole = context.data_sources.add_pandas("frames").add_dataframe_asset("frame").add_batch_definition_whole_dataframe("whole")

    def expectation(e: Expectation, bounds: dict[str, Any]) -> Any:
        common = {"column": e.column, "severity": SEVERITIES[e.severity], "meta": {"name": e.name}}
        if e.allowed is not None:
            return gxe.ExpectColumnValuesToBeInSet(value_set=list(e.allowed), **common)
        return gxe.ExpectColumnValuesToBeBetween(min_value=bounds["minimum"], max_value=bounds["maximum"], **common)

    def judge(columns: dict[str, np.ndarray], expected: Sequence[tuple[Expectation, dict[str, Any]]]) -> dict[str, list[int] | str]:
        suite = gx.ExpectationSuite(name="suite", expectations=[expectation(e, bounds) for e, bounds in expected])
        found: dict[str, list[int] | str] = {}
        rows = len(next(iter(columns.values()), ()))
        for begin in range(0, max(rows, 1), ROW_GROUP):
            frame = pd.DataFrame({name: values[begin:begin + ROW_GROUP] for name, values in columns.items()})
            outcome = whole.get_batch({"dataframe": frame}).validate(suite, result_format={"result_format": "COMPLETE"})
            for result in outcome.results:  # in an order of their own: found by name
                name = result.expectation_config.meta["name"]
                indices = result.result.get("unexpected_index_list")
                if indices is None:
                    found[name] = _why(result.exception_info)
                elif not isinstance(found.setdefault(name, []), str):
                    found[name] += [begin + int(i) for i in indices]
        return found

    return judge


def _why(info: dict[str, Any]) -> str:
    """The first exception message, whether flat or nested by metric."""
    nested = [v for v in info.values() if isinstance(v, dict)] or [info]
    message = next((v["exception_message"] for v in nested if v.get("exception_message")), "no result came back")
    return " ".join(str(message).split())[:MESSAGE_CHARS]
