"""`lmworks models`: what is registered, what the gates said, how to serve a champion, and who moved it when."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from commands import display, tables
from components.layout import Layout

GATES = {"passed": "green", "failed": "yellow"}


def models(
    name: Annotated[str | None, typer.Argument(help="one registered model (default: all)", show_default=False)] = None,
    history: Annotated[bool, typer.Option("--history", help="who moved the champion, when, from which version to which, and why")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON array")] = False,
) -> None:
    """Registered models: versions, aliases, the gate's reasons, and the line that serves each champion.

    Examples:  lmworks models  ·  lmworks models tiny-instruct  ·  lmworks models --history  ·  lmworks models --json
    """
    from components.errors import UserError
    from components.operations import services
    from components.release import registry

    layout = Layout()
    services.ensure(layout, prefect=False)
    every = registry.catalogue(layout)
    found = [model for model in every if name in (None, model["name"])]
    if history:
        found = [_moves(model["name"], registry.registered(layout, model["name"]) or {"aliases": {}, "tags": {}}) for model in found]
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    if not found:
        raise UserError(f"no model {name!r} is registered. There are: {', '.join(model['name'] for model in every)}" if name and every
                        else "no model is registered yet. Run: lmworks run")
    out = display.console()
    for model in found:
        if history:
            show_history(model, out)
        else:
            show(model, registry.address(layout), out)


def _moves(name: str, model: dict[str, Any]) -> dict[str, Any]:
    from components.release import history

    return {"name": name, "champion": model["aliases"].get("champion"), "by_hand": history.by_hand(model), "history": history.history(model)}


def show(model: dict[str, Any], url: str, out: Console) -> None:
    """One model: a row a version, what is to be said about it below, and the lines to copy."""
    from components.release import calling

    tables.heading(out, f"{model['name']} (corpus {model['corpus'] or 'unknown'})")
    if model["note"]:
        tables.paragraph(out, Text(tables.plain(model["note"]), style="bold red"), indent=tables.GAP)
    rows = []
    for version in model["versions"]:
        aliases = ", ".join(alias for alias, number in sorted(model["aliases"].items()) if number == str(version["version"]))
        rows.append(tables.Row([str(version["version"]), aliases, Text(version["verdict"], style=GATES.get(version["verdict"], "")),
                                tables.moment(version["created_ms"] / 1000), (version["weights_sha256"] or "")[:12]], list(remarks(version))))
    if rows:
        tables.table(out, ["version", "alias", "gate", "registered", "weights"], rows, right=(0,), flexible=1)
    else:
        tables.paragraph(out, "no version is left", indent=tables.GAP)
    champion = next((version for version in model["versions"] if str(version["version"]) == model["aliases"].get("champion")), None)
    if champion and not model["note"]:
        tables.fact(out, "serve it", Text(calling.serve_line(url, model["name"], inside=True)))
        tables.fact(out, "ask it", Text(calling.ask_line(model["name"], champion["languages"])))
    out.print()


def remarks(version: dict[str, Any]) -> list[Text]:
    """What is wrong with a version, why its gate said no, and what changed since the champion of its day."""
    lines = [Text(tables.plain(version["note"]), style="bold red")] if version["note"] else []
    lines += [Text(f"no: {tables.plain(reason.removeprefix('no: '))}", style="yellow")
              for reason in version["reasons"].values() if reason.startswith("no: ")]
    changed = version.get("changed") or ""
    return lines + [Text(tables.plain(line), style="dim", no_wrap=True) for line in changed.splitlines() if line.strip()]


def show_history(model: dict[str, Any], out: Console) -> None:
    """Every move of the alias, newest first, and whether the last one was made by hand."""
    tables.heading(out, model["name"])
    if model["by_hand"]:
        tables.paragraph(out, Text(tables.plain(model["by_hand"]), style="bold red"), indent=tables.GAP)
    rows = [tables.Row([tables.moment(tables.unix_time(move["when"])), move["who"], f"{move['from'] or 'none'} -> {move['to'] or 'none'}"],
                       [Text(tables.plain(move["why"]), style="dim")]) for move in reversed(model["history"])]
    if rows:
        tables.table(out, ["when", "who", "version"], rows, flexible=1)
    elif not model["by_hand"]:
        tables.paragraph(out, "no version was champion yet", indent=tables.GAP)
    out.print()
