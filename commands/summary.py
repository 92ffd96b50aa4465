"""The end of a run, for a person: stages, evaluation beside its baselines, samples, gates, what to type next."""

from __future__ import annotations

import shlex
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from commands import display, tables
from components import chain, files
from components.config import Config
from components.layout import Layout
from components.release import calling, evidence, lineage

STYLES = {"Promoted": "bold green", "Nothing changed": "bold green", "Ready": "bold green", "Healed": "bold green", "Partly promoted": "bold yellow", "Not promoted": "bold yellow", "Skipped": "bold yellow"}
MAX_SAMPLE_CHARS = 300
SHORT = {"kneser_ney": "5-gram", "kneser_ney_seen": "5-gram on as much text", "tfidf_logistic_regression": "TF-IDF", "nearest_question": "nearest question"}


def nothing_changed(layout: Layout, began_s: float) -> Any:
    """The result of a run that had nothing to do, from what the last one left."""
    from flows.records import RunResult, StageRecord

    stages = []
    for stage in chain.STAGES:
        path = layout.out(stage.outs[0]) / "summary.json"
        stages.append(StageRecord(stage.name, "cached", summary=files.read_json(path) if path.exists() else {}))
    receipt = files.read_sealed(layout.receipt)
    return RunResult("Nothing changed", "code, data, settings and models are those of the last run", 0, stages,
                     release=list(receipt["models"].values()), seconds={"platform": time.monotonic() - began_s})


def plain_table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, justify in columns:
        table.add_column(head, justify=justify, overflow="fold")
    return table


def stages(result: Any, out: Console) -> None:
    table = plain_table(("stage", "left"), ("", "left"), ("seconds", "right"), ("documents, tokens", "left"), ("why it ran", "left"))
    for record in result.stages:
        why = "" if not record.why else record.why[0] + (f" (+{len(record.why) - 1} more)" if len(record.why) > 1 else "")
        seconds = f"{record.elapsed_s:.1f}" if record.elapsed_s else ""
        table.add_row(record.stage, record.state, seconds, Text(display.counts(record.summary)), Text(why, style="dim"))
    out.print(table)


def evaluation(config: Config, layout: Layout, out: Console) -> None:
    """Both models against their baselines, with intervals."""
    figures = files.read_json(layout.evaluation / "evaluation.json")
    table = plain_table(("evaluation (test split)", "left"), ("", "left"), ("model", "right"), (f"{config.evaluation.confidence * 100:g} % interval", "right"), ("baselines", "left"))
    seen: set[tuple[str, str]] = set()
    for kind in ("base", "instruct"):
        for row in evidence.rows(figures, kind):
            application = (row.what.split(":")[0], row.language)
            if application in seen:  # the headline comes first; the report has the rest
                continue
            seen.add(application)
            value, low, high = row.model
            best = (max if row.higher_is_better else min)(row.baselines.values(), default=None)
            ahead = best is None or (value > best if row.higher_is_better else value < best)
            others = " · ".join(f"{SHORT.get(name, name)} {number:.3f}" for name, number in row.baselines.items())
            table.add_row(row.what, row.language, Text(f"{value:.3f}", style="green" if ahead else ""), f"{low:.3f} to {high:.3f}", Text(others, style="dim"))
    out.print(table)


def samples(layout: Layout, out: Console) -> None:
    """One continuation a language, and one answer an application and language."""
    found = files.read_json(layout.evaluation / "samples.json")
    seen: set[str] = set()
    for sample in found["continuations"]:
        if sample["temperature"] > 0 and sample["language"] not in seen:
            seen.add(sample["language"])
            text = " ".join(sample["text"][:MAX_SAMPLE_CHARS].split())
            out.print(Text.assemble((f"[{sample['language']}] ", "bold"), (" ".join(sample["prompt"].split()), "dim"), " ", text))


def gates(result: Any, out: Console) -> None:
    """Each model: version, alias, and every criterion with its sentence."""
    for decision in result.release or []:
        told = decision if isinstance(decision, dict) else decision.as_dict()
        promoted = told["champion_version"] == told["version"]
        champion = "champion" if promoted else f"champion stays version {told['champion_version']}" if told["champion_version"] else "no champion"
        out.print(Text.assemble((f"{told['name']} ", "bold"), f"version {told['version']}: gate ", (told["verdict"], "green" if told["verdict"] == "passed" else "yellow"),
                                f", candidate, {champion}"))
        for criterion in told["criteria"]:
            mark, style = ("✓", "green") if criterion["passed"] else ("✗", "red")
            tables.paragraph(out, f"{criterion['criterion']}: {criterion['sentence']}", indent=4, first=Text(f"  {mark} ", style=style))


def next_commands(config: Config, layout: Layout, result: Any) -> list[tuple[str, str]]:
    """Whole lines that work as printed, each with what it does."""
    from components.mlflow_rest import server_url

    told = [d if isinstance(d, dict) else d.as_dict() for d in result.release or []]
    champions = [d["name"] for d in told if d["champion_version"]]
    bin_ = ".venv/bin/"
    lines = []
    # as their pages say it
    prompts = {subject.name: shlex.quote(calling.example_prompt(subject.name, subject.languages)) for subject in lineage.subjects(config, layout)}
    if config.name in champions:
        lines.append((f"{bin_}lmworks generate {prompts[config.name]} --max-new-tokens 40", "ask the champion"))
    if (instruct_name := f"{config.name}-instruct") in champions:
        lines.append((f"{bin_}lmworks generate --instruct {prompts[instruct_name]}", "ask the fine-tuned champion"))
    for d in told:
        if not d["champion_version"]:
            instruct = "--instruct " if d["name"].endswith("-instruct") else ""
            lines.append((f"{bin_}lmworks generate {instruct}{prompts[d['name']]} --version {d['version']}",
                          f"ask {d['name']} all the same, though its gate said no"))
    if any(d["champion_version"] not in (None, d["version"]) for d in told if d["name"] == config.name):
        lines.append((f"{bin_}lmworks diff champion candidate", "what changed against the champion"))
    if champions:
        lines.append((calling.serve_line(server_url(layout) or "", champions[0], inside=True), "serve it"))
    lines += [(f"{bin_}lmworks use tiny --corpus PATH", "your own text"), (f"{bin_}lmworks down", "stop the servers")]
    return lines


def cost(result: Any) -> str:
    seconds = result.seconds
    parts = [f"{seconds.get('wall', 0):.1f} s in all", f"{seconds.get('stages', 0):.1f} s in stages", f"{seconds.get('release', 0):.1f} s release"]
    return f"{', '.join(parts)}; the platform itself {seconds.get('platform', 0):.1f} s"


def show(result: Any, config: Config, layout: Layout, out: Console) -> None:
    """Everything in reading order: the verdict comes last but one, the next commands last."""
    out.print()
    stages(result, out)
    finished = result.exit_code == 0 and result.release
    if finished and result.verdict != "Nothing changed":
        out.print()
        evaluation(config, layout, out)
        out.print()
        samples(layout, out)
    if finished:
        out.print()
        gates(result, out)
    out.print()
    out.print(Text.assemble((result.verdict, STYLES.get(result.verdict, "bold red")), f"  {result.message}" if result.message != result.verdict else ""), soft_wrap=True)
    for line in result.reconciled:
        out.print(Text(f"put in order after a crash: {line}", style="dim"), soft_wrap=True)
    if result.flow_run:
        out.print(Text(f"Prefect: {result.flow_run}", style="dim"), soft_wrap=True)
    out.print(Text(cost(result), style="dim"), soft_wrap=True)
    if finished:
        out.print()
        for line, what in next_commands(config, layout, result):
            out.print(Text.assemble((f"{what}:", "dim")))
            out.print(Text(f"  {line}"), soft_wrap=True)
