"""How a flow run ends: one artifact, one last state, and word to whoever watches from outside."""

from __future__ import annotations

from typing import Any

import prefect.runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.logging.loggers import flow_run_logger
from prefect.states import Completed, Failed, State

from components import failpoints, mlflow_rest
from components.errors import UserError
from components.layout import Layout
from components.operations import processes, rest, services, silence, unclean
from flows import artifact, naming
from flows.records import LAST_LINES, RunResult, in_words, plain

ARTIFACT = "lmworks-run"
DONE = {"Promoted", "Partly promoted", "Not promoted", "Nothing changed", "Healed", "Ready", "Skipped"}
DATA_PAGE = "data/raw/validation.html"  # of a run that does not name its own in the tag lmworks.data_page


def end(result: RunResult, layout: Layout) -> State:
    """Write the artifact and return the last state: its name is the verdict, its message begins with the reason."""
    show(artifact.markdown(result, layout, links(layout, result)), result.verdict)
    if result.verdict in DONE:
        return Completed(name=result.verdict, message=result.message)
    return Failed(name=result.verdict, message=in_words(result.failed) if result.failed else result.message)


def show(text: str, verdict: str) -> None:
    """The one artifact of the run. A retry writes over that of the try before: the page shows several in no order."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[ARTIFACT])),
                                      flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[prefect.runtime.flow_run.id])))
        if found:
            client.update_artifact(found[0].id, ArtifactUpdate(data=text, description=verdict))
            return
    create_markdown_artifact(key=ARTIFACT, markdown=text, description=verdict)


def links(layout: Layout, result: RunResult) -> dict[str, str]:
    """Where to look next: addresses, and files of this checkout; none that an earlier run left."""
    found = {}
    url = services.address(layout, processes.MLFLOW)
    if url and not rest.healthy(f"{url}/health"):
        mend = f"{processes.MLFLOW.variable} names it" if services.outside(processes.MLFLOW, layout) else "where it hangs: `lmworks down --force`, then `lmworks up`"
        found[f"MLflow did not answer when this run ended ({mend}). Its pages"] = url
    elif url:
        found["MLflow: runs, models, reports"] = url
        for told in plain(result.release) or []:
            run = _run_page(url, told["run_id"])
            if run:
                address, data_page = run
                found[f"training run of {told['name']} version {told['version']}"] = address
                found[f"the data that {told['name']} learned from, validated"] = f"{address}/artifacts/{data_page}"
            found[f"{told['name']} version {told['version']} in the registry"] = f"{url}/#/models/{told['name']}/versions/{told['version']}"
    undone = {record.stage for record in result.stages if record.state in ("failed", "skipped")}
    for words, stage, path in (("validation of the raw documents (opens offline)", "ingest", layout.raw / "validation.html"),
                               ("evaluation report (opens offline)", "evaluate", layout.evaluation / "report.html"), ("settings", "", layout.params)):
        if stage not in undone and path.exists():
            found[words] = path.relative_to(layout.root).as_posix()
    return found


def _run_page(url: str, run_id: str) -> tuple[str, str] | None:
    """(the address of an MLflow run's page, its data page); None if the run is gone or the server does not answer."""
    try:
        found = mlflow_rest.call(url, "GET", f"runs/get?run_id={run_id}", timeout_s=5)
        if found is None:
            return None
        tags = {tag["key"]: tag["value"] for tag in found["run"]["data"].get("tags", [])}
        return f"{url}/#/experiments/{found['run']['info']['experiment_id']}/runs/{run_id}", tags.get("lmworks.data_page", DATA_PAGE)
    except (mlflow_rest.Unreachable, KeyError):
        return None


# --- hooks: after the last state is stored, in the worker where the flow's process was killed ----

def forget_marker(_flow: Any, flow_run: Any, _state: State) -> None:
    """This run left nothing open."""
    for path in Layout().unclean.glob("run-*.json"):
        if unclean.read(path).get("flow_run_id") == str(flow_run.id):
            path.unlink(missing_ok=True)


def tell_outside(flow: Any, flow_run: Any, state: State) -> None:
    """Runs of a deployment: .lmworks/scheduled.json, and the ping that an outside monitor waits for. Harms no run."""
    failpoints.hit("flow.hook")
    if not flow_run.deployment_id:
        return
    layout, logger = Layout(), flow_run_logger(flow_run, flow)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment(flow_run.deployment_id).name
    verdict, green = state.name or state.type.value.title(), state.is_completed()
    try:
        silence.record(layout, deployment=deployment, flow_run=naming.page(layout, flow_run.id), verdict=verdict,
                       message=" ".join((state.message or "").partition(LAST_LINES)[0].split()), green=green,
                       next_s=silence.next_planned_s(layout, str(flow_run.deployment_id)))
    except UserError as error:
        logger.warning("%s was not written: %s", layout.scheduled.name, error)
    if verdict != silence.NEUTRAL and (trouble := silence.ping(green)):
        logger.warning("the ping at the end of the run did not arrive. %s", trouble)


HOOKS: dict[str, Any] = {f"on_{ended}": [forget_marker, tell_outside] for ended in ("completion", "failure", "cancellation", "crashed")}
