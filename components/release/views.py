"""Saved views of the experiment's page, so that nobody has to find the columns: *Training*, *Champion against candidate*, *Nightly
(trained by a deployment)*.

MLflow keeps a view as a tag of the experiment: a name, when it was made, and the state of its page, packed. It has no call for it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
import zlib
from collections.abc import Iterable
from typing import Any

from components.release import history

VIEW = "mlflow.sharedViewState."
PACKED = "deflate;"
KIND = "mlflow.experimentKind"
NEWEST_FIRST = {"orderByKey": "attributes.start_time", "orderByAsc": False}
BY_NAME = {"orderByKey": "tags.`mlflow.runName`", "orderByAsc": True}  # the runs of one kind of model stand together
WHAT = ("tags.`lmworks.size`", "tags.`lmworks.languages`", "tags.`lmworks.seed`", "tags.`lmworks.corpus_digest`")
BEST = ("metrics.`val/bits_per_byte`", "metrics.`val/bits_per_byte_best`")


def ship(client: Any, experiment: str, run_ids: dict[str, str], measured: Iterable[str]) -> None:
    """Write the views of this experiment that are missing or no longer so; other views stay as their makers left them.

    `run_ids`: {registered model: the run just released}; `measured`: the figures of the evaluation that are shown. A view keeps the time at which it
    was first made.
    """
    tags = client.get_experiment(experiment).tags
    if KIND not in tags:  # else the page guesses from the traces of `judged` that this is about agents, and hides the runs
        client.set_experiment_tag(experiment, KIND, "custom_model_development")
    figures = [f"metrics.`{key}`" for key in measured]
    now_ms = int(time.time() * 1000)
    for place, (view_id, (name, state)) in enumerate(views(compared(client, run_ids), figures).items()):
        before = _read(tags.get(VIEW + view_id))
        if before is None or (before["name"], unpacked(before["state"])) != (name, state):
            made_ms = before["createdAt"] if before else now_ms - place  # the page lists the newest first
            client.set_experiment_tag(experiment, VIEW + view_id, json.dumps({"name": name, "createdAt": made_ms, "state": packed(state)}))


def views(run_ids: list[str], figures: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """{id: (name, state of the page)}; `run_ids`: of champion and candidate."""
    listed = ", ".join(f"'{run_id}'" for run_id in run_ids)
    return {
        "lmworks-training": ("Training", _state(
            "tags.`lmworks.stage` LIKE '%'", [*WHAT, "tags.`lmworks.git_branch`", "metrics.`train/loss`", "metrics.`val/loss`", *BEST,
                                              "metrics.`train/tokens_per_s`", "attributes.`Dataset`"])),
        "lmworks-champion": ("Champion against candidate", _state(
            f"attributes.run_id IN ({listed})",
            ["attributes.`Models`", "tags.`lmworks.verdict`", *figures, *BEST, *WHAT], BY_NAME)),
        # the nightly refresh looks for new data and trains nothing: what stands here a deployment trained, at night or by hand
        "lmworks-nightly": ("Nightly (trained by a deployment)", _state(
            "tags.`lmworks.deployment` LIKE '%'", ["tags.`lmworks.deployment`", "tags.`lmworks.verdict`", "tags.`lmworks.prefect_run`",
                                                   "tags.`lmworks.corpus_digest`", "tags.`lmworks.error`", *figures]))}


def _state(search: str, columns: list[str], order: dict[str, Any] = NEWEST_FIRST) -> dict[str, Any]:
    """What the page of runs keeps of itself: the filter, the order and the columns. The rest it sets as it does for a new visitor."""
    return {"searchFilter": search, **order, "startTime": "ALL", "lifecycleFilter": "Active", "modelVersionFilter": "All Runs",
            "datasetsFilter": [], "selectedColumns": columns, "columnOrder": [], "columnWidths": {}, "viewMaximized": False,
            "runListHidden": False, "groupBy": None, "hideEmptyCharts": True}


def compared(client: Any, run_ids: dict[str, str]) -> list[str]:
    """The runs just released, with those of the champion of each model and of the champion before: what the newest was held against."""
    from mlflow.exceptions import MlflowException

    found = list(run_ids.values())
    for name in run_ids:
        model = client.get_registered_model(name)
        numbers = [model.aliases.get("champion"), *(move["from"] for move in history.history({"tags": model.tags, "aliases": model.aliases})[-1:])]
        for number in filter(None, numbers):
            with contextlib.suppress(MlflowException):  # a version that somebody deleted
                found.append(client.get_model_version(name, str(number)).run_id)
    return list(dict.fromkeys(filter(None, found)))  # a version that others registered may name no run


def packed(state: dict[str, Any]) -> str:
    return PACKED + base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode()


def unpacked(text: str) -> Any:
    """None where it is not a state."""
    try:
        return json.loads(zlib.decompress(base64.b64decode(text.removeprefix(PACKED))))
    except (ValueError, zlib.error):
        return None


def _read(tag: str | None) -> dict[str, Any] | None:
    """The envelope of a view; None if there is none, or the page could not read it either."""
    try:
        view = json.loads(tag or "null")
        return view if isinstance(view["name"], str) and isinstance(view["createdAt"], int) and isinstance(view["state"], str) else None
    except (ValueError, KeyError, TypeError):
        return None
