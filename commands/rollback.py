"""`lmworks rollback`: the previous champion answers again."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from commands import display, tables
from components.layout import Layout


def rollback(
    name: Annotated[str, typer.Argument(help="the registered model", show_default=False)],
    to: Annotated[int | None, typer.Option("--to", min=1, help="a version that was champion (default: the last one before the present champion)", show_default=False)] = None,
    why: Annotated[str, typer.Option("--why", help="the reason, for the history", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Make the previous champion champion again: its stored files are hashed first, then the alias moves, and the history says who did it and why.

    A version that is damaged, deleted or does not pass its gate any more is skipped, and said so. Nothing is asked.

    The weights that were left stay where they are, as a candidate at most: `lmworks run` does not promote them again. --to brings them back.

    Examples:  lmworks rollback tiny --why "answers got worse"  ·  lmworks rollback tiny-instruct --to 3  ·  lmworks rollback tiny --json
    """
    from components.operations import services
    from components.release import rollback as rolling

    layout = Layout()
    services.ensure(layout, prefect=False)
    done = rolling.roll_back(layout, name, to=str(to) if to is not None else None, why=why)
    if as_json:
        typer.echo(json.dumps(done.as_dict(), ensure_ascii=False, indent=1))
        return
    out = display.console()
    for version, reason in done.skipped:
        tables.paragraph(out, Text(tables.plain(f"version {version} was skipped: {reason}"), style="yellow"))
    tables.heading(out, f"{name}: version {done.to} is champion again, its files verified ({f'before: version {done.left}' if done.left else 'there was none'})")
    if done.brought_back:
        tables.fact(out, "next", "its weights may be promoted again")
    elif done.left:
        tables.fact(out, "next", f"lmworks run does not promote the weights of version {done.left} again", f"take it back: lmworks rollback {name} --to {done.left}")
    tables.fact(out, "history", f"lmworks models {name} --history")
