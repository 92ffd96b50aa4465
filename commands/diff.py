"""`lmworks diff A B`: what two registered versions do not have in common."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from commands import display, tables
from components import config as settings
from components.layout import Layout

MAX_FILES = 12  # code files named one by one


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="3 · champion · candidate · NAME/3 · NAME@champion", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="the other one, named in the same way", show_default=False)],
    instruct: Annotated[bool, typer.Option("--instruct", help="3 means version 3 of NAME-instruct, the fine-tuned model")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines: every value of both sides")] = False,
) -> None:
    """Two registered versions side by side: settings, data, code, and scores with their intervals.

    A number or an alias alone means the model of params.yaml. Only what differs is printed, and the scores of both.

    Examples:  lmworks diff 3 4  ·  lmworks diff champion candidate  ·  lmworks diff champion candidate --instruct  ·  lmworks diff tiny/3 other@champion
    """
    from components.operations import services
    from components.release import comparison, registry

    layout = Layout()
    config = settings.load(layout.params)
    services.ensure(layout, prefect=False)
    found = registry.catalogue(layout)
    # an imported base is not registered: then only its fine-tuned child has versions
    default = f"{config.name}-instruct" if instruct or config.corpus.base != "none" else config.name
    wanted = [comparison.resolve(text, default, found) for text in (a, b)]
    url = registry.address(layout)
    told = comparison.compare(*(comparison.read(url, name, number) for name, number in wanted))
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        show(told, display.console())


def show(told: dict[str, Any], out: Console) -> None:
    rows = [tables.Row([sign, f"{side['name']} version {side['version']}", _gate(side["verdict"]), tables.moment(side["registered_s"]), (side["weights_sha256"] or "")[:12]],
                       [Text(side["run"]["url"], style="dim")] if side["run"] else [])
            for sign, side in (("A", told["a"]), ("B", told["b"]))]
    tables.table(out, ["", "model", "gate", "registered", "weights"], rows, flexible=1)
    out.print()
    if (told["a"]["name"], told["a"]["version"]) == (told["b"]["name"], told["b"]["version"]):
        tables.paragraph(out, "A and B are the same version")
        return
    if told["same"]:
        tables.paragraph(out, "No difference: the same weights, settings, data, code and scores")
        return
    if told["same_weights"]:
        tables.fact(out, "weights", "the very same")
    show_settings(told["settings"], out)
    show_data(told["data"], out)
    show_code(told["code"], out)
    show_scores(told, out)
    for line in told["unknown"]:
        tables.fact(out, "not known", Text(tables.plain(line), style="yellow"))


def _gate(verdict: str | None) -> Text:
    return Text(verdict or "none", style={"passed": "green", "failed": "yellow"}.get(verdict or "", ""))


def _value(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _changes(rows: list[dict[str, Any]], what: str) -> list[str]:
    return [f"{row[what]}: {_value(row['a'])} -> {_value(row['b'])}" for row in rows]


def show_settings(rows: list[dict[str, Any]] | None, out: Console) -> None:
    if rows is not None:
        tables.fact(out, "settings", *(_changes(rows, "key") or ["the same"]))


def show_data(data: dict[str, list[dict[str, Any]]] | None, out: Console) -> None:
    """Digests that differ, then documents and tokens by split and language."""
    if data is None:
        return
    if not data["digests"] and not data["splits"]:
        tables.fact(out, "data", "the same")
        return
    lines = [f"{row['what']} {_short(row['a'])} -> {_short(row['b'])}" for row in data["digests"]]
    tables.fact(out, "data", *lines, *([] if data["splits"] else ["as many documents and tokens in every split and language"]))
    if data["splits"]:
        out.print()
        rows = [tables.Row([row["split"], row["language"], _counts(row, "documents"), _counts(row, "tokens")]) for row in data["splits"]]
        tables.table(out, ["split", "language", "documents", "tokens"], rows, right=(2, 3))
        out.print()


def _counts(row: dict[str, Any], what: str) -> str:
    """`1,200 -> 1,250 (+50)`."""
    before, after = ((row[side] or {}).get(what, 0) for side in ("a", "b"))
    return f"{before:,} -> {after:,} ({after - before:+,})"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def show_code(code: dict[str, list[dict[str, Any]]] | None, out: Console) -> None:
    """Commit first; then the files that stages depend on, and versions of packages that decide results."""
    if code is None:
        return
    lines = [f"{'commit' if row['what'] == 'commit' else 'uncommitted code'} {_short(row['a'])} -> {_short(row['b'])}" for row in code["git"]]
    paths = [row["path"] for row in code["files"]]
    if paths:
        more = f" and {len(paths) - MAX_FILES} more" if len(paths) > MAX_FILES else ""
        lines.append(f"files that stages depend on: {', '.join(paths[:MAX_FILES])}{more}")
    elif lines:
        lines.append("no file that a stage depends on differs")
    lines += _changes(code["versions"], "package")
    tables.fact(out, "code", *(lines or ["the same"]))


def _figure(row: dict[str, Any], side: str, comparable: bool) -> Text:
    """`2.007 1.951-2.060`, with a star where it is the better of the two on the same test texts."""
    figure = row[side]
    if figure is None:
        return Text("")
    better = comparable and _better(row) == side
    return Text(f"{figure['value']:.3f} {figure['low']:.3f}-{figure['high']:.3f}{'*' if better else ''}", style="green" if better else "")


def _better(row: dict[str, Any]) -> str | None:
    """The side with the better figure; None where they are equal, or one is missing."""
    if row["a"] is None or row["b"] is None or row["a"]["value"] == row["b"]["value"]:
        return None
    return "b" if (row["b"]["value"] > row["a"]["value"]) == row["higher_is_better"] else "a"


def show_scores(told: dict[str, Any], out: Console) -> None:
    """Every figure of both sides with its interval; below, what was measured on the same items."""
    if told["scores"]:
        out.print()
        same = told["same_test_texts"]
        rows = [tables.Row([row["what"], row["language"], _figure(row, "a", same), _figure(row, "b", same)]) for row in told["scores"]]
        tables.table(out, ["test split, * better" if same else "test split of each", "", "A, interval", "B, interval"], rows)
        out.print()
        if not same:
            tables.fact(out, "scores", "the two were not judged on the same test texts, so these figures do not say which is better")
    paired = told["paired"]
    if paired:
        tables.fact(out, "paired", f"version {paired['challenger']} minus version {paired['champion']} on the same items, as the gate measured it: {paired['sentence']}")
    elif told["scores"] and told["same_test_texts"] and not told["same_weights"]:
        tables.fact(out, "paired", "no gate compared these two on the same items; two intervals that overlap decide nothing")
