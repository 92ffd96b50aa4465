"""What a flow run is called in Prefect's page, its tags, and what its stages are told of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefect.runtime
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import processes, services

DIGEST_CHARS = 6
MAX_CORPUS_CHARS = 24
CORPUS = re.compile(r" corpus [^/]*$")


def flow_run_name() -> str:
    """`tiny nightly refresh 2026-11-24 02:30 UTC corpus 3f2a91`: NAME, schedule and deployment where there is one, first start (in UTC, as
    the schedules are), corpus."""
    run, layout = _run(), Layout()
    config = _config(layout)
    if run is not None and run.start_time:  # a retry: people look for the night's date
        return CORPUS.sub("", run.name) + corpus_in_words(config, layout)
    parts = [config.name if config else "lmworks", _schedule(run), deployment(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")]
    return " ".join(part for part in parts if part) + corpus_in_words(config, layout)


def corpus_in_words(config: settings.Config | None, layout: Layout) -> str:
    """` corpus 3f2a91`, with the folder's own name where NAME is another (a Chinese one makes no model name); '' before the first run."""
    try:
        digest = str(files.load_yaml(layout.sources)["corpus"]["digest"])[:DIGEST_CHARS]
    except (OSError, UserError, KeyError, TypeError):
        return ""
    called = Path(config.corpus.source).name.split(".")[0] if config and config.corpus.source != "embedded" else ""
    shown = f"{called[:MAX_CORPUS_CHARS]} " if config and called and called.lower() != config.name else ""
    return f" corpus {shown}{digest}"


def bring_up_to_date(layout: Layout) -> None:
    """Name and tags as settings and sources are now: whoever reads the list of runs sees what this one works on."""
    run, config = _run(), _config(layout)
    if run is None or config is None:
        return
    name = CORPUS.sub("", run.name) + corpus_in_words(config, layout)
    tags = sorted({*run.tags, *(tag for tag in ("lmworks", config.name, config.preset, deployment()) if tag)})
    if name == run.name and tags == sorted(run.tags):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, name=name, tags=tags)
    run.name, run.tags = name, tags


def deployment() -> str | None:
    """The deployment whose run this is; None for `lmworks run`."""
    run = _run()
    return prefect.runtime.deployment.name if run is not None and run.deployment_id else None


def page(layout: Layout, flow_run_id: Any) -> str:
    """The address of a flow run's page ('' if no server is known)."""
    url = services.address(layout, processes.PREFECT)
    return f"{url}/runs/flow-run/{flow_run_id}" if url else ""


def told_to_stages(layout: Layout) -> dict[str, str]:
    """Environment variables of a stage's process: tracking links the training run to this flow run."""
    run_id = prefect.runtime.flow_run.id
    told = {"LMWORKS_FLOW_RUN": page(layout, run_id) if run_id else "", "LMWORKS_DEPLOYMENT": deployment() or ""}
    return {name: value for name, value in told.items() if value}


def _run() -> Any:
    context = FlowRunContext.get()
    return context.flow_run if context else None


def _schedule(run: Any) -> str | None:
    """The slug of the schedule that asked for the run (`nightly`); None if a person did."""
    by = run.created_by if run is not None else None
    return by.display_value if by is not None and by.type == "SCHEDULE" else None


def _config(layout: Layout) -> settings.Config | None:
    try:
        return settings.load(layout.params)
    except UserError:
        return None
