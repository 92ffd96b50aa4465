"""What the page of a training run says once its model was judged: the verdict first, then why, how good, and where to look on."""

from __future__ import annotations

import re
from typing import Any

from components import files, provenance
from components.config import Config
from components.layout import Layout
from components.markdown import code, escape, link
from components.release import card, gates
from components.release.lineage import DATA_PAGE, Subject
from components.spool import NOTE

VERDICT = "lmworks.verdict"
OURS = re.compile(r"((?:pretrain|finetune) .+?)(?: v\d+)?")  # as tracking.run_name and this module name runs


def write(client: Any, run_id: str, subject: Subject, version: str, criteria: list[gates.Criterion], config: Config, layout: Layout, address: str) -> None:
    """The run's description, its tag `lmworks.verdict` and its name; `address` is the MLflow server's, for links that work in its page."""
    run = client.get_run(run_id)
    verdict = "passed" if gates.passes(criteria) else "failed"
    text = describe(run, subject, version, criteria, config, files.read_json(layout.evaluation / "evaluation.json"), address)
    for key, value in {NOTE: text, VERDICT: verdict}.items():
        if run.data.tags.get(key) != value:
            client.set_tag(run_id, key, value)
    if (name := named(run.info.run_name, version)) != run.info.run_name:
        client.update_run(run_id, name=name)  # status and end time stay


def named(name: str, version: str) -> str:
    """`pretrain tiny 13.9M zh+en seed 1 v3`: a comparison's columns are told apart by the version. A name that somebody gave it in the page stays."""
    ours = OURS.fullmatch(name)
    return f"{ours[1]} v{version}" if ours else name


def describe(run: Any, subject: Subject, version: str, criteria: list[gates.Criterion], config: Config, evaluation: dict[str, Any], address: str) -> str:
    """Markdown. Everything that users wrote is escaped."""
    passed = gates.passes(criteria)
    registered = link(f"version {version} of {subject.name}", f"{address}/#/models/{subject.name}/versions/{version}")
    verdict = f"**Passed its gate** as {registered}." if passed else f"**Did not pass its gate**: {registered} stays a candidate."
    reasons = "\n".join(f"- {'yes' if criterion.passed else '**no**'}, {code(criterion.criterion)}: {escape(criterion.sentence)}" for criterion in criteria)
    # the page folds all but the first lines, and a veil over the third takes the clicks: what one decides by and where one goes stand above it
    return "\n\n".join([f"{verdict}  \n{' · '.join(_links(run, address))}", reasons, escape(card.headline(subject, config)), card.evaluation_table(subject, evaluation)])


def _links(run: Any, address: str) -> list[str]:
    page = f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts"
    tags = run.data.tags
    found = [link("Evaluation", f"{page}/evaluation/report.html")]
    if DATA_PAGE in tags:
        found.append(link("Data and its validation", f"{page}/{tags[DATA_PAGE]}"))
    found.append(link("Settings", f"{page}/settings/params.yaml"))
    if prefect := tags.get(provenance.PREFECT_RUN):
        found.append(link("The run in Prefect", prefect))
    return found
