"""`lmworks clean`: what takes the space, and what of it nothing needs any more."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.text import Text

from commands import display, tables
from components.errors import UserError
from components.layout import Layout

DEFAULT_DAYS = 30
SHOWN = 5  # items of a kind in the terminal; --json has all


def clean(
    dry: Annotated[bool, typer.Option("--dry-run", help="say what takes the space and what would go, and remove nothing")] = False,
    older_than_days: Annotated[float, typer.Option("--older-than", min=0, help="age in days of checkpoints, spools, logs, rows and models that may go")] = DEFAULT_DAYS,
    cache: Annotated[bool, typer.Option("--cache", help="also what DVC's cache keeps of earlier settings that no commit names")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Say what takes the space, and remove what no version, alias, output of dvc.lock or running process needs.

    [bold]checkpoints[/bold]: of trainings with other settings, data or code than the present ones, past the age.

    [bold]temporary files[/bold]: left by killed processes, older than a day.  [bold]logs[/bold], [bold]databases[/bold]: those put aside, past the age.

    [bold]spooled runs[/bold]: killed trainings that cannot go on, sent whole, past the age.

    [bold]data[/bold]: nothing.  [bold]DVC cache[/bold]: only with --cache; what dvc.lock, any commit, branch, tag or experiment names stays.

    Going back to settings that none of these names then runs their stages again (dvc gc --workspace --all-commits --all-experiments).

    [bold]DVC run cache[/bold]: notes of runs whose outputs are not in the cache any more.

    [bold]MLflow[/bold]: runs in its bin, rows and files, and models that no registered version names, past the age. Versions and their runs stay.

    [bold]Prefect[/bold]: flow runs past the age that neither a registered version nor `lmworks status` refers to, with tasks and logs.

    Not during a run. Servers that MLFLOW_TRACKING_URI or PREFECT_API_URL name are left alone.

    Examples:  lmworks clean --dry-run  ·  lmworks clean --older-than 7  ·  lmworks clean --cache
    """
    from components.operations import cleaning

    kinds = cleaning.clean(Layout(), older_than_days=older_than_days, cache=cache, dry=dry)
    _show(kinds, older_than_days=older_than_days, dry=dry, as_json=as_json)
    if failed := [kind.failed for kind in kinds if kind.failed]:
        raise UserError(". ".join(failed))


def _show(kinds: list[Any], *, older_than_days: float, dry: bool, as_json: bool) -> None:
    freed = sum(kind.removable_bytes for kind in kinds if _goes(kind))
    if as_json:
        typer.echo(json.dumps({"dry_run": dry, "older_than_days": older_than_days, "removed_bytes": 0 if dry else freed, "removable_bytes": freed, "kinds": [
            {"kind": kind.name, "failed": kind.failed, "bytes": kind.bytes, "removable_bytes": kind.removable_bytes if _goes(kind) else 0, "keeps": kind.keeps,
             "items": [{"what": item.what, "bytes": item.bytes, "why": item.why, "goes": _goes(kind)} for item in kind.items]}
            for kind in kinds]}, ensure_ascii=False, indent=1))
        return
    out = display.console()
    tables.table(out, ["what", "takes", "can go" if dry else "went", "items"], [_row(kind) for kind in kinds], right=(1, 2, 3))
    things = sum(len(kind.items) for kind in kinds if _goes(kind))
    verb = "would go" if dry else "went"
    tables.paragraph(out, f"{_size(freed)} {verb}, {things:,} thing{'' if things == 1 else 's'}" if things else "nothing to remove")
    if dry and things:
        tables.paragraph(out, "remove it: the same command without --dry-run")


def _goes(kind: Any) -> bool:
    return kind.remove is not None and kind.failed is None


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _row(kind: Any) -> tables.Row:
    going = kind.items if _goes(kind) else []
    notes = [Text(f"{tables.plain(item.what)}: {item.why}", style="dim", no_wrap=True) for item in going[:SHOWN]]
    if len(going) > SHOWN:
        notes.append(Text(f"and {len(going) - SHOWN:,} more (--json has all)", style="dim"))
    if kind.items and not _goes(kind):
        notes.append(Text(f"{_size(kind.removable_bytes)} more could go", style="dim"))
    notes.append(Text(f"stays: {tables.plain(kind.keeps)}", style="dim"))
    return tables.Row([kind.name, _size(kind.bytes), _size(sum(item.bytes for item in going)) if going else "", f"{len(going):,}" if going else ""], notes)
