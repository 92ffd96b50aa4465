"""`lmworks up` and `down`: the servers of this checkout."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Annotated, Any

import typer

from components.layout import Layout


def _say(text: str) -> None:
    typer.secho(text, fg="bright_black", err=True)


def _addresses(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [("MLflow", found["mlflow"]["url"], "runs, models, reports"), ("Prefect", found["prefect"]["url"], "what happened, when, why")]


def up(
    mlflow_port: Annotated[int | None, typer.Option(min=1024, max=65535, help="port of MLflow (default: the last one, else the next free from 5311)")] = None,
    prefect_port: Annotated[int | None, typer.Option(min=1024, max=65535, help="port of Prefect (default: the last one, else the next free from 4311)")] = None,
    worker: Annotated[bool, typer.Option(help="start the worker that runs deployments, too")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Start MLflow, Prefect and the worker on 127.0.0.1 (what runs already stays).  Example:  lmworks up"""
    from components import files
    from components.errors import Busy
    from components.operations import environment, services, unclean
    from components.operations import status as now
    from components.release import registry_page

    layout, began_s = Layout(), time.monotonic()
    environment.allow_no_git(layout)
    ports = {name: port for name, port in (("mlflow", mlflow_port), ("prefect", prefect_port)) if port}
    found = services.ensure(layout, say=_say, ports=ports)
    if not as_json:
        for name, url, what in _addresses(found):
            typer.echo(f"{name:<8} {url:<24} {what}")
    done = registry_page.bring_all_up_to_date(layout)
    if worker:
        environment.apply(layout, PREFECT_API_URL=found["prefect"]["api"])
        from flows import deployments, reconciler

        done += reconciler.settle(layout)
        if unclean.dead(layout):  # else a run that is started in the same moment would find its lock taken
            with contextlib.suppress(Busy), files.lock(layout.run_lock, what="lmworks up"):  # during a run there is nothing to put in order
                done += reconciler.reconcile(layout)
        done += deployments.start(layout, say=_say)
    if as_json:
        typer.echo(json.dumps({"services": now.state(layout), "done": done}, indent=1, ensure_ascii=False))
        return
    for line in done:
        typer.echo(line)
    typer.echo(f"up after {time.monotonic() - began_s:.1f} s; stop them with: lmworks down")


def down(
    force: Annotated[bool, typer.Option("--force", help="also during a run")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Stop the servers, after sending what is spooled; not during a run.  Example:  lmworks down"""
    from components.operations import services

    stopped = services.down(Layout(), force=force, say=_say)
    if as_json:
        typer.echo(json.dumps({"stopped": stopped}))
    else:
        typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing of this checkout was running")
