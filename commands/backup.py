"""`lmworks backup` and `restore`: all that this checkout has learned, in one folder, and back into a fresh clone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from commands import display, tables
from components.layout import Layout

KINDS = (("databases", ("mlruns/mlflow.db", ".prefect/")), ("models and runs", ("mlruns/artifacts/",)), ("data and models of the chain", (".dvc/",)),
         ("imported base", ("data/imported/",)), ("settings and state", ("",)))


def _by_kind(listed: dict[str, dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """{kind: (files, bytes)}; a file counts for the first kind that fits."""
    told: dict[str, tuple[int, int]] = {}
    for name, entry in listed.items():
        kind = next(kind for kind, starts in KINDS if name.startswith(starts))
        count, size = told.get(kind, (0, 0))
        told[kind] = count + 1, size + int(entry["bytes"])
    return told


def _show(index: dict[str, Any], out: Any) -> None:
    kinds = _by_kind(index["files"])
    tables.table(out, ["kind", "files", "MB"], [tables.Row([kind, f"{kinds[kind][0]:,}", f"{kinds[kind][1] / 1e6:,.1f}"]) for kind, _ in KINDS if kind in kinds],
                 right=(1, 2))
    for version in index["versions"]:
        if version["aliases"]:
            tables.fact(out, "model", f"{version['name']} version {version['version']} ({', '.join(version['aliases'])}), weights {(version['weights_sha256'] or 'unknown')[:12]}")


def _attention(out: Any, lines: list[str]) -> None:
    for line in lines:
        tables.paragraph(out, Text(tables.plain(line), style="yellow"), indent=tables.LABEL, first=Text("attention", style="yellow"))


def backup(
    path: Annotated[Path, typer.Argument(help="a new folder, best on another disk", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="for machines; progress goes to stderr")] = False,
) -> None:
    """Write a backup: databases, models, runs, data and settings; the servers may run, a run may not.

    [bold]In it[/bold]: both databases, each as of one moment; all artifacts and models; the outputs of all stages as dvc.lock names them;

    an imported base; params.yaml, sources.yaml, dvc.lock; unsent points and the last receipt; backup.json, with the sha256 of every file.

    [bold]Not in it[/bold]: the code (git), .venv and data/packages (make setup), your own text outside this checkout (its snapshot is),

    checkpoints of an unfinished training, and servers that MLFLOW_TRACKING_URI or PREFECT_API_URL name (it says how to save those).

    Example:  lmworks backup /mnt/backups/2026-11-25
    """
    from components.operations import backup as making

    index = making.create(Layout(), path)
    size = sum(int(entry["bytes"]) for entry in index["files"].values())
    if as_json:
        typer.echo(json.dumps({"path": str(path.absolute()), "files": len(index["files"]), "bytes": size, **{
            key: index[key] for key in ("made_at", "git", "versions", "warnings", "not_in")}}, ensure_ascii=False, indent=1))
        return
    out = display.console()
    tables.heading(out, f"{path}: {len(index['files']):,} files, {size / 1e6:,.1f} MB, every one with its sha256 in {making.INDEX}")
    _show(index, out)
    _attention(out, index["warnings"])
    tables.fact(out, "not in it", *index["not_in"])
    tables.fact(out, "bring back", f"in a fresh clone, after make setup: lmworks restore {path}")


def restore(
    path: Annotated[Path, typer.Argument(help="a folder that `lmworks backup` wrote", show_default=False)],
    only_databases: Annotated[bool, typer.Option("--databases", help="the databases alone, beside this checkout's data and models")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines; progress goes to stderr")] = False,
) -> None:
    """Bring a backup back into an empty checkout, all of it or nothing.

    Every file is hashed before anything is changed. The checkout may have been set up (databases that nobody used are replaced),

    but must hold no runs, models or data; the servers must be down. Then `lmworks up` serves the same champions.

    [bold]--databases[/bold]: where a database was damaged or lost. Into a checkout in use; its data and models stay, the databases of

    now are put aside, models that are newer than the backup are named, and the next `lmworks run` registers what data/ holds.

    Examples:  lmworks restore /mnt/backups/2026-11-25  ·  lmworks restore /mnt/backups/2026-11-25 --databases
    """
    from components.operations import restoration

    if only_databases:
        _restore_databases(path, as_json)
        return
    done = restoration.restore(Layout(), path)
    index, stands = done["index"], done["standing"]
    problems = done["reconciled"] + (stands.lines() if stands else [])
    if as_json:
        typer.echo(json.dumps({"path": str(path.absolute()), "files": len(index["files"]), "made_at": index["made_at"], "git": index["git"],
                               "replaced": done["replaced"], "versions": index["versions"], "problems": problems}, ensure_ascii=False, indent=1))
        return
    out = display.console()
    tables.heading(out, f"{path}: {len(index['files']):,} files of {index['made_at'].replace('T', ' ').replace('+00:00', ' UTC')} are back, every one hashed")
    _show(index, out)
    if done["replaced"]:
        tables.fact(out, "replaced", f"{', '.join(done['replaced'])} (git diff shows how)")
    _attention(out, problems)
    commit = index["git"]["commit"]
    if commit:
        tables.fact(out, "code then", f"{commit[:12]}; where yours is other code, stages that it changes run again")
    tables.fact(out, "next", "lmworks up", "lmworks models", "lmworks run --dry-run")


def _restore_databases(path: Path, as_json: bool) -> None:
    from components.operations import restored_databases

    done = restored_databases.restore(Layout(), path)
    if as_json:
        typer.echo(json.dumps({"path": str(path.absolute()), "made_at": done.index["made_at"], "databases": done.brought, "aside": done.aside,
                               "artifacts": done.artifacts, "problems": done.told}, ensure_ascii=False, indent=1))
        return
    out = display.console()
    tables.heading(out, f"{path}: {' and '.join(done.brought)} of {done.index['made_at'].replace('T', ' ').replace('+00:00', ' UTC')}")
    if done.aside:
        tables.fact(out, "put aside", *done.aside)
    if done.artifacts:
        tables.fact(out, "from backup", f"{len(done.artifacts)} file{'s' if len(done.artifacts) > 1 else ''} of models and runs that were missing or damaged here")
    _attention(out, done.told)
    tables.fact(out, "next", "lmworks up", "lmworks run (it registers again what data/ holds)", "lmworks models")
