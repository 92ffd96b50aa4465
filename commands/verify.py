"""`lmworks verify`: is every byte the one that was written, and what to do where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from commands import display, tables
from components.errors import Damaged
from components.layout import Layout


def verify(
    models: Annotated[list[str] | None, typer.Argument(help="models:/NAME@champion or models:/NAME/3 (default: everything)", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object; progress goes to stderr")] = False,
) -> None:
    """Hash everything that lmworks keeps, name what is wrong, where, and what to do. Nothing is changed. Exit code 0: clean; 4: damaged.

    [bold]outputs[/bold]: every published folder by its manifest.  [bold]DVC cache[/bold]: what dvc.lock names.  [bold]text packages[/bold]: as installed.

    [bold]sources[/bold]: the files of sources.yaml where they lie.  [bold]checkpoints[/bold], [bold]receipts and spool[/bold]: by the hashes in them.

    [bold]databases[/bold]: SQLite's own check.

    [bold]models[/bold]: every version that an alias names, by the hashes that release wrote; only those asked for, where you name some. Of a champion

    it says, too, that it was moved by hand, or that its gate says no: that is no damage.

    Examples:  lmworks verify  ·  lmworks verify models:/tiny@champion  ·  lmworks verify models:/tiny/3 models:/tiny-instruct@champion --json
    """
    from components.operations import verification

    found = verification.verify(Layout(), models or [])
    if as_json:
        typer.echo(json.dumps({"clean": found.clean, "looked_at": {kind: {"things": things, "bytes": size} for kind, (things, size) in found.looked_at.items()},
                               "problems": [asdict(problem) for problem in found.problems]}, ensure_ascii=False, indent=1))
    else:
        out, rows = display.console(), []
        for kind, (things, size) in found.looked_at.items():
            mine = [problem for problem in found.problems if problem.kind == kind]
            bad = sum(problem.damaged for problem in mine)
            notes = [line for problem in mine for line in (
                Text(tables.plain(f"{problem.where}: {problem.wrong}"), style="red" if problem.damaged else "yellow"), Text(f"-> {tables.plain(problem.todo)}", style="dim"))]
            rows.append(tables.Row([kind, f"{things:,}", f"{size / 1e6:,.1f}", Text(f"{bad:,} damaged" if bad else "as written", style="red" if bad else "green")], notes))
        tables.table(out, ["what", "looked at", "MB", ""], rows, right=(1, 2))
    if not found.clean:
        raise typer.Exit(Damaged.exit_code)
