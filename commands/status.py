"""`lmworks status`: servers, the last run, the last scheduled outcome, champions, and what is stale; also for cron."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from commands import display, tables
from components import config as settings
from components.errors import UserError
from components.layout import Layout

MAX_HASHED_BYTES = 64 * 2**20  # changed source files beyond that are hashed by the next run, not by a look
COLOURS = {"up": "green", "not answering": "red", "down": "bright_black"}


# --- what is known -------------------------------------------------------------------------------

def facts(layout: Layout) -> dict[str, Any]:
    """Everything that `lmworks status --json` prints. No server is started, and none is needed."""
    from components.operations import last_run, silence
    from components.operations import status as now

    running, doing = now.state(layout), now.activity(layout)
    told = {"services": running, **doing, "last_run": last_run.read(layout), "scheduled": silence.verdict(layout, time.time()),
            "champions": champions(layout, running["mlflow"]), "stale": staleness(layout, doing)}
    return told | {"exit_code": exit_code(told["scheduled"])}


def exit_code(scheduled: dict[str, dict[str, Any]]) -> int:
    """1 when a deployment's last run was red or its last green one is too long ago, else 0."""
    return int(any(told["red"] or told["too_old"] for told in scheduled.values()))


def champions(layout: Layout, mlflow: dict[str, Any]) -> dict[str, Any]:
    """{"source": "registry" | "receipt", "problem", "models": [{"name", "version", "weights_sha256", "gated", "note", "candidate"}]}.

    Without a server: what the last release of this checkout wrote down.
    """
    from components.release import registry

    problem = f"MLflow is {mlflow['state']}" if mlflow["state"] != "up" else None
    if problem is None:
        try:
            return {"source": "registry", "problem": None, "models": [_champion(model) for model in registry.catalogue(layout)]}
        except UserError as error:
            problem = str(error)
    return {"source": "receipt", "problem": problem, "models": _receipt(layout)}


def _champion(model: dict[str, Any]) -> dict[str, Any]:
    number = model["aliases"].get("champion")
    version = next((v for v in model["versions"] if str(v["version"]) == number), None)
    told = {"name": model["name"], "version": number, "candidate": model["aliases"].get("candidate"), "weights_sha256": None, "gated": None, "note": None}
    if version is None:
        return told | {"note": model.get("note")}
    return told | {"weights_sha256": version["weights_sha256"], "gated": version.get("gated", version["verdict"] == "passed"), "note": version["note"]}


def _receipt(layout: Layout) -> list[dict[str, Any]]:
    from components import files

    try:
        models = files.read_sealed(layout.receipt)["models"]
        return [{"name": name, "version": model["champion_version"], "candidate": model["version"], "gated": None, "note": None,
                 "weights_sha256": model["weights_sha256"] if model["version"] == model["champion_version"] else None}
                for name, model in sorted(models.items())]
    except (OSError, UserError, KeyError, TypeError, AttributeError):
        return []


def staleness(layout: Layout, doing: dict[str, Any]) -> dict[str, Any]:
    """{"not_asked": why nobody could say, or None; "sources": [what changed outside]; "stages": {stage: reasons}}."""
    if doing["run"] or doing["stage"]:
        return {"not_asked": "a run goes on", "sources": [], "stages": {}}
    from components.operations import staleness as dvc

    try:
        return {"not_asked": None, "sources": changed_sources(settings.load(layout.params), layout), "stages": dvc.stale(layout)}
    except (UserError, OSError) as error:
        return {"not_asked": str(error), "sources": [], "stages": {}}


def changed_sources(config: settings.Config, layout: Layout) -> list[str]:
    """Groups of sources.yaml whose files are other ones now, in words; sources.yaml itself stays as it is. Raises UserError."""
    from components.corpus import sources
    from components.release.lineage import source_digests

    groups = {"corpus": sources.corpus_group(config, layout), "records": sources.records_group(config, layout), "base": sources.base_group(config, layout)}
    cache = sources.StatCache(layout.stat_cache, [path for group in groups.values() for _, path in group.files])
    if cache.total_bytes > MAX_HASHED_BYTES:
        return [f"source files changed, {cache.total_bytes / 1e6:,.0f} MB; the next run hashes them"]
    known = source_digests(layout)
    _, digests = sources.render(groups, cache, layout)
    return [f"the files of {name} changed" for name, digest in zip(groups, digests, strict=True) if known.get(name) != digest]


# --- for a person --------------------------------------------------------------------------------

def show(told: dict[str, Any], out: Console) -> None:
    """Servers first, then one labelled fact after the other."""
    rows = []
    for name, service in told["services"].items():
        state = service["state"]
        rows.append(tables.Row([name, Text(state, style=COLOURS[state]), service.get("url", ""), str(service.get("pid", "given" if service.get("outside") else "")),
                                tables.duration(service.get("since_s")), f"{service['memory_mb']} MB" if "memory_mb" in service else ""]))
    tables.table(out, ["service", "state", "address", "pid", "up", "memory"], rows, right=(3, 4, 5), flexible=2)
    out.print()
    for line in _activity(told):
        tables.fact(out, "now", line)
    tables.fact(out, "last run", *_last_run(told))
    tables.fact(out, "scheduled", *_scheduled(told["scheduled"]))
    tables.fact(out, "champions", *_champions(told["champions"]))
    tables.fact(out, "stale", *_stale(told["stale"]))
    if all(service["state"] == "down" for service in told["services"].values()):
        tables.fact(out, "start", "lmworks up")


def _activity(told: dict[str, Any]) -> list[str]:
    lines = [told["restore"]] if told.get("restore") else []
    lines += [f"{words} ({told[key]})" for key, words in (("run", "a run goes on"), ("stage", "a stage works")) if told[key]]
    if told["unclean"]:
        lines.append(f"{told['unclean']} run or stage was killed; the next `lmworks up` or `lmworks run` puts that in order")
    if told["unsent"]:
        lines.append(f"{told['unsent']} training run{'s' if told['unsent'] > 1 else ''} not wholly sent to MLflow; the next run sends it")
    return lines


def _ago(iso: str) -> str:
    ended_s = tables.unix_time(iso)
    return "at an unknown time" if ended_s is None else f"{tables.moment(ended_s)} ({tables.duration(max(0, time.time() - ended_s))} ago)"


def _verdict(run: dict[str, Any], green: bool) -> Text:
    return Text(tables.plain(run["verdict"]), style="green" if green else "bold red")


def _last_run(told: dict[str, Any]) -> list[str | Text]:
    """The newer of `lmworks run` and the last run of a deployment."""
    run = told["last_run"]
    scheduled_s = max((tables.unix_time(one["last"]["ended_at"]) or 0 for one in told["scheduled"].values() if one["last"]), default=None)
    if scheduled_s is not None and (run is None or scheduled_s > (tables.unix_time(run["ended_at"]) or 0)):
        return ["the scheduled one"]
    if run is None:
        return ["none is known"]
    green = run["exit_code"] == 0
    lines: list[str | Text] = [Text.assemble(_verdict(run, green), f", {_ago(run['ended_at'])}, took {tables.duration(run['elapsed_s'])}")]
    if not green and run["message"]:
        lines.append(run["message"])
    return lines + ([run["flow_run"]] if run["flow_run"] else [])


def _scheduled(scheduled: dict[str, dict[str, Any]]) -> list[str | Text]:
    return [line for name, told in scheduled.items() for line in _deployment(name, told)] or ["no deployment has run yet"]


def _deployment(name: str, told: dict[str, Any]) -> list[str | Text]:
    """Its last outcome; of one that was skipped, the outcome before as well."""
    name = tables.plain(name)
    if told["last"] is None:
        overdue = Text(f", {tables.duration(told['overdue_s'])} overdue" if told["too_old"] else "", style="bold red")
        return [Text.assemble(f"{name}: its schedule is active, no run has ended yet", overdue)]
    lines: list[str | Text] = []
    ends = [told["last"]] if told["judged"] in (None, told["last"]) else [told["last"], told["judged"]]
    for end in ends:
        lines.append(Text.assemble(f"{name}: ", _verdict(end, end["green"]), f", {_ago(end['ended_at'])}"))
        if not end["green"]:
            lines += [text for text in (end["message"], end["flow_run"]) if text]
    if told["too_old"]:
        when = f"the last green run was {tables.duration(told['age_s'])} ago" if told["last_green"] else "no run was ever green"
        lines.append(Text(f"too old: {when}, at most {tables.duration(told['max_age_s'])} is allowed (operations.max_silence_s)", style="bold red"))
    elif told["red"]:
        lines.append(f"the last green run was {tables.duration(told['age_s'])} ago" if told["last_green"] else "no run was ever green")
    return lines


def _champions(told: dict[str, Any]) -> list[str | Text]:
    lines: list[str | Text] = []
    width = max((cell_len(tables.plain(model["name"])) for model in told["models"]), default=0)
    for model in told["models"]:
        name = set_cell_size(tables.plain(model["name"]), width)
        if model["version"] is None:
            candidate = f"; version {model['candidate']} is candidate" if model["candidate"] else ""
            gone = Text(f"; {tables.plain(model['note'])}" if model["note"] else "", style="bold red")
            lines.append(Text.assemble(f"{name}  no champion{candidate}", gone))
            continue
        weights = f", weights {model['weights_sha256'][:12]}" if model["weights_sha256"] else ""
        gate = {True: Text(", gated", style="green"), False: Text(f", not gated: {tables.plain(model['note'] or 'its gate said no').removeprefix('not gated: ')}", style="bold red"),
                None: Text(f", {tables.plain(model['note'])}" if model["note"] else "")}[model["gated"]]
        newer = f"; candidate is version {model['candidate']}" if model["candidate"] not in (None, model["version"]) else ""
        lines.append(Text.assemble(f"{name}  version {model['version']}{weights}", gate, newer))
    if told["source"] == "receipt":
        lines.append(f"{'as the last release left them' if lines else 'not known'}: {told['problem']}")
    return lines or ["no model is registered yet"]


def _stale(told: dict[str, Any]) -> list[str | Text]:
    """Stages that changed themselves, with their first reason; those that only follow are counted."""
    if told["not_asked"]:
        return [f"not asked: {told['not_asked']}"]
    if told["stages"] and all(reasons == ["it never ran"] for reasons in told["stages"].values()):
        return [f"{len(told['stages'])} stages never ran here; start with: lmworks run"]
    lines: list[str | Text] = list(told["sources"])
    followers = 0
    for stage, reasons in told["stages"].items():
        if reasons[0].endswith("which runs first"):
            followers += 1
            continue
        lines.append(f"{stage}: {reasons[0]}" + (f" (+{len(reasons) - 1} more)" if len(reasons) > 1 else ""))
    if followers:
        lines.append(f"and {followers} stage{'s' if followers > 1 else ''} after {'them' if len(lines) > 1 else 'it'}")
    return [*lines, "see all: lmworks why"] if lines else ["nothing: code, data and settings are those of the last run"]


def status(
    as_json: Annotated[bool, typer.Option("--json", help="everything, for machines")] = False,
) -> None:
    """What this checkout does and did: servers, last run, last scheduled outcome, champions, and what is stale and why.

    Exit code, for cron and monitors: 1 when a deployment's last run was red, or the last green one of an active schedule is longer
    ago than its next date and operations.max_silence_s allow, else 0. Works with all servers down.

    Examples:  lmworks status  ·  lmworks status --json  ·  lmworks status >/dev/null || mail -s "lmworks is silent" me
    """
    told = facts(Layout())
    if as_json:
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        show(told, display.console())
    if told["exit_code"]:
        raise typer.Exit(told["exit_code"])
