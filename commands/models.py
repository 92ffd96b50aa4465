"""`lmworks models`: what is registered, what the gates said, and how to serve a champion."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import Annotated, Any

import typer

from components.layout import Layout


def mlflow_command(layout: Layout) -> str:
    """How to call mlflow from where the user stands, with or without an activated environment."""
    binary = layout.venv / "bin" / "mlflow"
    return os.path.relpath(binary) if binary.exists() and len(os.path.relpath(binary)) < len(str(binary)) else \
        str(binary) if binary.exists() else "mlflow"


def models(
    name: Annotated[str | None, typer.Argument(help="one registered model (default: all)", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON array")] = False,
) -> None:
    """Registered models: versions, aliases, the gate's reasons, and the line that serves each champion.

    Examples:  lmworks models  ·  lmworks models tiny-instruct  ·  lmworks models --json
    """
    from components.errors import UserError
    from components.operations import services
    from components.release import registry

    layout = Layout()
    services.ensure(layout, prefect=False)
    found = [model for model in registry.catalogue(layout) if name in (None, model["name"])]
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    if not found:
        raise UserError(f"no model {name!r} is registered. Run: lmworks run" if name else "no model is registered yet. Run: lmworks run")
    show(found, registry.address(layout), mlflow_command(layout))


def show(found: list[dict[str, Any]], url: str, mlflow: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from components.release import registry

    console = Console()
    for model in found:
        table = Table(title=f"{model['name']} (corpus {model['corpus'] or 'unknown'})", title_justify="left")
        for column in ("Version", "Alias", "Gate", "Why not", "Registered", "Weights"):
            table.add_column(column)
        for version in model["versions"]:
            aliases = [alias for alias, number in sorted(model["aliases"].items()) if number == str(version["version"])]
            failed = [reason.removeprefix("no: ") for reason in version["reasons"].values() if reason.startswith("no: ")]
            table.add_row(str(version["version"]), ", ".join(aliases), version["verdict"], escape(version["note"] or "; ".join(failed)),
                          datetime.fromtimestamp(version["created_ms"] / 1000).strftime("%Y-%m-%d %H:%M"), (version["weights_sha256"] or "")[:12])
        console.print(table)
        if "champion" in model["aliases"]:
            typer.echo(f"serve it:  {registry.serve_line(url, model['name'], inside=True)}")
            typer.echo(f"ask it:    {registry.ask_line(model['name'])}\n")
