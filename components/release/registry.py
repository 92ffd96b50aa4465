"""What the MLflow registry says and is told: addresses, versions, aliases, history. Only this folder promotes."""

from __future__ import annotations

import getpass
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from components import files
from components.config import Config
from components.errors import UserError
from components.layout import Layout

QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # a server that is away is told in seconds, not after minutes
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
REST_TIMEOUT_S = 5
WEIGHTS, EVALUATION, VERDICT, CORPUS = "lmworks.weights_sha256", "lmworks.evaluation_sha256", "gate.verdict", "lmworks.corpus"
HISTORY = "lmworks.history."


def address(layout: Layout) -> str:
    """The MLflow server's URL: MLFLOW_TRACKING_URI, else the one that runs for this checkout. Raises UserError."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given.rstrip("/")
    try:
        return str(files.read_json(layout.services)["mlflow"]["url"]).rstrip("/")
    except (OSError, KeyError, TypeError):
        raise UserError("no MLflow server is known: MLFLOW_TRACKING_URI is not set and none runs for this checkout. "
                        "Run: lmworks up") from None


def quiet() -> None:
    """MLflow and Hugging Face without chatter; before either is imported. What the user set stays."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)


def client(layout: Layout) -> Any:
    """An MlflowClient of this checkout's server; `mlflow` itself points there too. Raises UserError."""
    quiet()
    url = address(layout)
    import mlflow

    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)
    return mlflow.MlflowClient(url, url)


def registered(layout: Layout, name: str) -> dict[str, Any] | None:
    """The registered model by one plain REST call (no mlflow import): {"aliases": {alias: version}, "tags": {…}}.

    None: there is no such model. Raises UserError when the server does not answer.
    """
    url = address(layout)
    query = urllib.parse.urlencode({"name": name})
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if "127.0.0.1" in url or "localhost" in url \
            else urllib.request.build_opener()
        with opener.open(f"{url}/api/2.0/mlflow/registered-models/get?{query}", timeout=REST_TIMEOUT_S) as answer:
            model = json.load(answer)["registered_model"]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise UserError(f"the MLflow server at {url} answered {error.code} about model {name!r}. See its log, or run: lmworks status") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the MLflow server at {url} does not answer ({error}). Run: lmworks up") from None
    return {"aliases": {a["alias"]: str(a["version"]) for a in model.get("aliases", [])},
            "tags": {t["key"]: t["value"] for t in model.get("tags", [])}}


# --- one name, one corpus ------------------------------------------------------------------------

def corpus_identity(config: Config) -> str:
    return config.corpus.source


def names(config: Config) -> list[str]:
    """The registered models of this configuration; an imported base is not ours to register."""
    return ([config.name] if config.corpus.base == "none" else []) + [f"{config.name}-instruct"]


def check_name(config: Config, layout: Layout) -> None:
    """Refuse, before anything trains, a name whose registered model learned from another corpus. Raises UserError."""
    mine = corpus_identity(config)
    for name in names(config):
        model = registered(layout, name)
        other = (model or {"tags": {}})["tags"].get(CORPUS, mine)
        if other != mine:
            raise UserError(f"model {name!r} is registered with corpus {other!r}; params.yaml has corpus.source={mine!r}, and one name "
                            f"never mixes corpora. Choose another name: lmworks use {config.preset} --corpus {mine} --name NEW_NAME")


def ensure_registered(mlflow_client: Any, name: str, config: Config, description: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow_client.create_registered_model(name, tags={CORPUS: corpus_identity(config)}, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


# --- versions and aliases ------------------------------------------------------------------------

def find_version(mlflow_client: Any, name: str, weights_sha256: str, evaluation_sha256: str) -> Any | None:
    """The newest version with these weights and this evaluation: an earlier release, or what a kill left behind."""
    found = mlflow_client.search_model_versions(
        f"name = '{name}' and tags.`{WEIGHTS}` = '{weights_sha256}' and tags.`{EVALUATION}` = '{evaluation_sha256}'")
    return max(found, key=lambda version: int(version.version), default=None)


def aliased(mlflow_client: Any, name: str, alias: str) -> Any | None:
    """The version that the alias names, with its tags, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def model_id(version: Any) -> str:
    """The logged model behind a version (its source is models:/m-…)."""
    return version.source.removeprefix("models:/")


def history(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Every move of the champion, oldest first, from the tags of `registered(...)`."""
    return [json.loads(value) for key, value in sorted(model["tags"].items()) if key.startswith(HISTORY)]


def move_champion(mlflow_client: Any, name: str, *, expected: str | None, to: str, why: str) -> None:
    """Write history, then move the alias. The caller holds the promotion lock and has just read `expected`."""
    moves = history({"tags": mlflow_client.get_registered_model(name).tags})
    entry = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": getpass.getuser(), "from": expected, "to": to, "why": why}
    mlflow_client.set_registered_model_tag(name, f"{HISTORY}{len(moves) + 1:06d}", json.dumps(entry, ensure_ascii=False, sort_keys=True))
    mlflow_client.set_registered_model_alias(name, "champion", to)


def promote(mlflow_client: Any, name: str, version: str, layout: Layout,
            judge: Callable[[Any | None], tuple[bool, str]]) -> tuple[bool, Any | None]:
    """Compare-and-set of the alias champion. Returns (moved or already there, the champion judged against).

    `judge(champion)` says whether `version` passes against that champion, and why. Judging takes minutes, so it runs
    outside the lock; when the champion changed meanwhile, it is judged again against the new one. Raises UserError
    when other promotions keep moving the alias.
    """
    for _attempt in range(5):
        champion = aliased(mlflow_client, name, "champion")
        passed, why = judge(champion)
        if not passed:
            return False, champion
        with files.lock(layout.promotion_lock, what="a promotion", wait_s=60):
            now = aliased(mlflow_client, name, "champion")
            if (now and now.version) != (champion and champion.version):
                continue
            if not now or now.version != version:
                move_champion(mlflow_client, name, expected=now.version if now else None, to=version, why=why)
            return True, champion
    raise UserError(f"{name}: other promotions kept moving the champion; version {version} stays a candidate. Run again: lmworks run")
