"""`lmworks`: from raw text to a served language model. One module a noun; this one wires them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from commands import (
    backup,
    clean,
    data,
    diff,
    generate,
    imports,
    models,
    rollback,
    run,
    runs,
    services,
    settings,
    status,
    verify,
)
from commands.doctor import doctor
from components import storage
from components.errors import UserError
from components.layout import ROOT
from components.masking import masked

EXAMPLES = """
[bold]Examples[/bold]

  lmworks run                                 text to champion

  lmworks use tiny --corpus ./my-texts        your own text

  lmworks run --dry-run                       what would run, and why

  lmworks generate "The king" --seed 1        ask the champion

  lmworks status                              servers, last run, champions, what is stale

  lmworks runs                                what was trained, and what came of it

  lmworks diff champion candidate             what changed between two versions
"""

app = typer.Typer(name="lmworks", help="From raw text to a served, accountable language model.", epilog=EXAMPLES,
                  no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)

app.command(rich_help_panel="The chain")(run.run)
app.command(rich_help_panel="The chain")(settings.use)
app.command("import", rich_help_panel="The chain")(imports.import_model)
app.command(rich_help_panel="The chain")(data.why)
app.command(rich_help_panel="The chain")(data.accept)
app.command(rich_help_panel="Models")(generate.generate)
app.command(rich_help_panel="Models")(models.models)
app.command(rich_help_panel="Models")(runs.runs)
app.command(rich_help_panel="Models")(diff.diff)
app.command(rich_help_panel="Models")(rollback.rollback)
app.command(rich_help_panel="This machine")(services.up)
app.command(rich_help_panel="This machine")(status.status)
app.command(rich_help_panel="This machine")(services.down)
app.command(rich_help_panel="This machine")(backup.backup)
app.command(rich_help_panel="This machine")(backup.restore)
app.command(rich_help_panel="This machine")(clean.clean)
app.command(rich_help_panel="This machine")(verify.verify)
app.command(rich_help_panel="This machine")(doctor)


def check_checkout() -> None:
    """Refuse to work on another checkout than the one that the user stands in."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "components" / "chain.py").exists():
            if folder.resolve() != ROOT.resolve():
                raise UserError(f"this lmworks belongs to {ROOT}, you are in {folder}. Run: {folder / '.venv' / 'bin' / 'lmworks'}")
            return


def main() -> None:
    """Entry point. Exit codes: 0 done (a gate's no included), 1 failed, 2 your input, 3 data blocked, 4 damaged, 5 done but Prefect does not know, 75 busy, 130 and 143 stopped."""
    color = False if os.environ.get("NO_COLOR") else None  # rich looks for itself, click does not; None: a terminal has colours
    try:
        check_checkout()
        app(prog_name="lmworks", color=color)  # usage errors, --help and a broken pipe end in there
    except UserError as error:
        typer.secho("lmworks: ", fg="red", bold=True, nl=False, err=True, color=color)
        typer.echo(masked(str(error)), err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        typer.secho("lmworks: ", fg="red", bold=True, nl=False, err=True, color=color)
        words = storage.said(error, ROOT)
        typer.echo(words or f"{error.filename or 'this checkout'}: {error.strerror or error}. Mend it, then run the same command again", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
