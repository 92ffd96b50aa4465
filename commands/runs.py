"""`lmworks runs`: the models that were trained, and the last runs of the chain."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from commands import display, tables
from components import config as settings
from components.layout import Layout

STATES = {"FINISHED": "finished", "RUNNING": "running", "FAILED": "failed", "KILLED": "killed", "SCHEDULED": "waiting"}
STYLES = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red", "COMPLETED": "green", "RUNNING": "cyan", "FAILED": "red", "CRASHED": "red"}
# the first that a run has is shown; an evaluation of the test split is better than the last look at the validation split
BITS = ("eval/bits_per_byte_", "val/bits_per_byte_")
MAX_MESSAGE_CHARS = 200


def facts(layout: Layout, name: str | None, limit: int) -> dict[str, Any]:
    """{"name", "models": [...], "unsent": [...], "chains": [...], "last_run", "problems": [...]}: what the servers say, or what is known without.

    `name`: an experiment, None for all.
    """
    from components import mlflow_rest
    from components.operations import chain_runs, last_run, processes, rest, services
    from components.release import training_runs

    told: dict[str, Any] = {"name": name, "models": [], "unsent": training_runs.spooled(layout), "chains": [], "last_run": last_run.read(layout), "problems": []}
    mlflow, prefect = services.address(layout, processes.MLFLOW), services.address(layout, processes.PREFECT)
    try:
        told["models"] = training_runs.trained(mlflow, name, limit) if mlflow else []
    except (mlflow_rest.Unreachable, KeyError, TypeError) as error:  # KeyError: something that answers, but not as MLflow does
        told["problems"].append(f"MLflow at {mlflow} does not answer: {error}")
    try:
        told["chains"] = chain_runs.latest(prefect, limit) if prefect else []
    except (rest.Unreachable, KeyError, TypeError) as error:
        told["problems"].append(f"Prefect at {prefect} does not answer: {error}")
    down = [server for server, url in (("MLflow", mlflow), ("Prefect", prefect)) if url is None]
    if down:
        told["problems"].append(f"{' and '.join(down)} {'are' if len(down) > 1 else 'is'} down, so only what this checkout knows is shown; start with: lmworks up")
    return told


def result(run: dict[str, Any]) -> str:
    """`2.007 en, 2.237 zh bits per byte`, or the headline of each application; nothing before the first look."""
    from components.applications.catalogue import APPLICATIONS

    metrics = run["metrics"]
    if run["stage"] == "pretrain":
        for prefix in BITS:
            found = {key.removeprefix(prefix): value for key, value in sorted(metrics.items()) if key.startswith(prefix) and "best" not in key}
            if found:
                held_out = "" if prefix.startswith("eval/") else " (validation)"
                return f"{_by_language(found)} bits per byte{held_out}"
        return ""
    parts = []
    for name, application in APPLICATIONS.items():
        headline = "f1" if application.metric == "macro_f1" else application.metric
        prefix = f"eval/{headline}_{name}_"
        found = {key.removeprefix(prefix): value for key, value in sorted(metrics.items()) if key.startswith(prefix)}
        if found:
            parts.append(f"{name.replace('_', ' ')} {headline.replace('_', ' ')} {_by_language(found)}")
    return "; ".join(parts)


def _by_language(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:.3f} {language}" for language, value in figures.items())


def _gate(run: dict[str, Any]) -> Text:
    verdict = run["verdict"] or ""
    return Text(verdict, style={"passed": "green", "failed": "yellow"}.get(verdict, ""))


def show_models(told: dict[str, Any], out: Console) -> None:
    rows = []
    for run in told["models"]:
        state = STATES.get(run["status"], run["status"].lower())
        elapsed_s = run["elapsed_s"] if state != "running" else time.time() - run["started_s"] if run["started_s"] else None
        told_so_far = " · ".join(part for part in (run["stage"], ", ".join(run["versions"]), result(run)) if part)
        rows.append(tables.Row([run["name"], Text(state, style=STYLES.get(state, "")), tables.moment(run["started_s"]), _minutes(elapsed_s), _gate(run)],
                               [Text(tables.plain(told_so_far), style="dim"), *([Text(tables.plain(run["error"]), style="red")] if run["error"] else [])]))
    if rows:
        tables.table(out, ["trained model", "state", "started", "minutes", "gate"], rows, right=(3,))
    elif not told["problems"]:
        whose = f" under the name {told['name']}" if told["name"] else ""
        tables.paragraph(out, f"no model was trained{whose} yet; start with: lmworks run" + (" (other names: lmworks runs --all)" if told["name"] else ""))
    seen = {(run["name"], run["started_s"]) for run in told["models"]}
    for run in told["unsent"]:
        if not run["in_training"]:
            tables.paragraph(out, f"not wholly sent to MLflow: {run['name']}, started {tables.moment(run['started_s'])}; the next run sends it")
        elif (run["name"], run["started_s"]) not in seen:
            tables.paragraph(out, f"in training: {run['name']}, started {tables.moment(run['started_s'])}")


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def show_chains(told: dict[str, Any], out: Console) -> None:
    rows = []
    for run in told["chains"]:
        notes: list[str | Text] = [Text(run["url"], style="dim")]
        if run["type"] not in ("COMPLETED", "RUNNING", "PENDING") and run["message"]:
            message = tables.plain(run["message"])
            notes.insert(0, message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "…")
        rows.append(tables.Row([run["deployment"] or "lmworks run", Text(tables.plain(run["verdict"]), style=STYLES.get(run["type"], "")),
                                tables.moment(tables.unix_time(run["started_at"])), tables.duration(run["elapsed_s"])], notes))
    if rows:
        tables.table(out, ["run of the chain", "verdict", "started", "took"], rows, right=(3,))
    elif run := told["last_run"]:
        ended = tables.moment(tables.unix_time(run["ended_at"]))
        tables.paragraph(out, f"last `lmworks run`: {run['verdict']}, ended {ended}, took {tables.duration(run['elapsed_s'])}")


def runs(
    limit: Annotated[int, typer.Option(min=1, max=500, help="how many of each, newest first")] = 8,
    every: Annotated[bool, typer.Option("--all", help="the models of every name, not of params.yaml's alone")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Trained models (one MLflow run each: state, minutes, result, gate, version) and the last runs of the chain in Prefect.

    Starts no server: one that is down is named, and what is known without it is shown.

    Examples:  lmworks runs  ·  lmworks runs --limit 30  ·  lmworks runs --all --json
    """
    layout = Layout()
    told = facts(layout, None if every else settings.load(layout.params).name, limit)
    if as_json:
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
        return
    out = display.console()
    show_models(told, out)
    if told["chains"] or told["last_run"]:
        if told["models"] or told["unsent"]:
            out.print()
        show_chains(told, out)
    for problem in told["problems"]:
        tables.paragraph(display.console(stderr=True), problem)
