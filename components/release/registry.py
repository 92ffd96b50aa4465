"""What the MLflow registry says and is told: addresses, versions, aliases. The files of its models: model_files.py."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Collection
from typing import Any

from components import mlflow_rest
from components.config import Config
from components.errors import UserError
from components.layout import Layout
from components.operations import environment
from components.release.history import ROLLBACK, by_hand, left_behind

QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # another host would get what was meant for this one (J6)
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # a server that is away is told in seconds, not after minutes
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
WEIGHTS, EVALUATION, VERDICT, CORPUS = "lmworks.weights_sha256", "lmworks.evaluation_sha256", "gate.verdict", "lmworks.corpus"
TRAINED_COMMIT, RELEASE_COMMIT = "mlflow.source.git.commit", "lmworks.release_commit"  # of a run
LANGUAGES = "lmworks.languages"
REASON, CHANGED = "gate.reason.", "lmworks.changed"
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what MLflow says of a name or version that it does not have; the second: none can have it
ANOTHER_NAME = "Choose another name: write it into the line `name:` of params.yaml, where all else stays as you set it, then: lmworks run"


def address(layout: Layout) -> str:
    """The MLflow server's URL: MLFLOW_TRACKING_URI, else the one that runs for this checkout. Raises UserError."""
    url = mlflow_rest.server_url(layout)
    if url is None:
        raise UserError("no MLflow server is known: MLFLOW_TRACKING_URI is not an http address and none runs for this checkout. "
                        "Run: lmworks up")
    return url.rstrip("/")


def quiet() -> None:
    """MLflow and Hugging Face without chatter, past any proxy to our own server; before either is imported. What the user set stays."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    environment.spare_loopback(os.environ)


def client(layout: Layout) -> Any:
    """An MlflowClient of this checkout's server; `mlflow` itself points there too. Raises UserError."""
    quiet()
    url = address(layout)
    import mlflow

    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)
    return mlflow.MlflowClient(url, url)


def _silent(layout: Layout, error: Exception) -> UserError:
    """Why MLflow does not answer: its database, where that is locked or damaged."""
    from components.operations import contention  # it looks into databases, which know of versions from here
    from components.operations.processes import MLFLOW

    return contention.trouble(layout, MLFLOW) or UserError(f"the MLflow server at {address(layout)} does not answer ({error}). Run: lmworks up")


def registered(layout: Layout, name: str) -> dict[str, Any] | None:
    """The registered model by one plain REST call (no mlflow import): {"aliases": {alias: version}, "tags": {…}, "description"}.

    None: there is no such model. Raises UserError when the server does not answer.
    """
    url = address(layout)
    try:
        answer = mlflow_rest.call(url, "GET", f"registered-models/get?{urllib.parse.urlencode({'name': name})}")
    except mlflow_rest.Unreachable as error:
        raise _silent(layout, error) from None
    if answer is None:
        return None
    model = answer["registered_model"]
    return {"aliases": {a["alias"]: str(a["version"]) for a in model.get("aliases", [])},
            "tags": {t["key"]: t["value"] for t in model.get("tags", [])}, "description": model.get("description", "")}


# --- one name, one corpus ------------------------------------------------------------------------

def corpus_identity(config: Config) -> str:
    return config.corpus.source


def names(config: Config) -> list[str]:
    """The registered models of this configuration; an imported base is not ours to register."""
    return ([config.name] if config.corpus.base == "none" else []) + [f"{config.name}-instruct"]


def check_name(config: Config, layout: Layout) -> None:
    """Refuse, before anything trains, a name whose registered model learned from another corpus, or whose experiment is in MLflow's
    bin (there its name stays taken). Raises UserError."""
    try:
        found = mlflow_rest.call(address(layout), "GET", f"experiments/get-by-name?{urllib.parse.urlencode({'experiment_name': config.name})}")
    except mlflow_rest.Unreachable as error:
        raise _silent(layout, error) from None
    if found and found["experiment"].get("lifecycle_stage") == "deleted":
        raise UserError(f"experiment {config.name!r} was deleted in MLflow, where its name stays taken. {ANOTHER_NAME}; "
                        f"or bring it back: MLFLOW_TRACKING_URI={address(layout)} mlflow experiments restore "
                        f"--experiment-id {found['experiment']['experiment_id']}")
    mine = corpus_identity(config)
    for name in names(config):
        model = registered(layout, name)
        other = (model or {"tags": {}})["tags"].get(CORPUS, mine)
        if other != mine:
            raise UserError(f"model {name!r} is registered with corpus {other!r}; params.yaml has corpus.source={mine!r}, and one name "
                            f"never mixes corpora. {ANOTHER_NAME}")


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
    return max(_versions(mlflow_client, name, weights_sha256, evaluation_sha256), key=_number, default=None)


def _versions(mlflow_client: Any, name: str, weights_sha256: str, evaluation_sha256: str) -> list[Any]:
    return mlflow_client.search_model_versions(
        f"name = '{name}' and tags.`{WEIGHTS}` = '{weights_sha256}' and tags.`{EVALUATION}` = '{evaluation_sha256}'")


def _number(version: Any) -> int:
    return int(version.version)


def register(mlflow_client: Any, name: str, logged_model_id: str, run_id: str, vouched: dict[str, str], *, weights_sha256: str,
             evaluation_sha256: str, data_digest: str, languages: Collection[str], after: Any | None = None) -> Any:
    """A version of a logged model that was read back; its tags bind it to weights, evaluation and data, and `vouched` to its files.

    `after` is the version that find_version gave, and that will not do. One that came since, by another checkout or by the last request
    of a process that was killed, is taken instead.
    """
    made = mlflow_client.create_model_version(name, source=f"models:/{logged_model_id}", run_id=run_id, model_id=logged_model_id, tags={
        WEIGHTS: weights_sha256, EVALUATION: evaluation_sha256, "lmworks.data_digest": data_digest, VERDICT: "undecided",
        LANGUAGES: "+".join(languages)} | vouched)
    since = [version for version in _versions(mlflow_client, name, weights_sha256, evaluation_sha256) if after is None or _number(version) > _number(after)]
    first = min(since, key=_number, default=made)
    if _number(first) < _number(made):  # not ">=": of two that see each other, one must stay
        mlflow_client.delete_model_version(name, made.version)
        return first
    return made


def aliased(mlflow_client: Any, name: str, alias: str) -> Any | None:
    """The version that the alias names, with its tags, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise


def named(mlflow_client: Any, uri: str) -> Any:
    """The version of models:/NAME@ALIAS or models:/NAME/VERSION. Raises UserError."""
    from mlflow.exceptions import MlflowException

    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, slash, number = (name, "", "") if at else name.partition("/")
    version = None
    if name and at and alias:
        version = aliased(mlflow_client, name, alias)
    elif name and slash and number.isdigit():
        try:
            version = mlflow_client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
    else:
        raise UserError(f"{uri}: models:/NAME@champion or models:/NAME/VERSION was expected")
    if version is None:
        raise UserError(f"{uri} is not in the registry at {mlflow_client.tracking_uri}. See what is: lmworks models")
    return version


def model_id(version: Any) -> str:
    """The logged model behind a version (its source is models:/m-…)."""
    return version.source.removeprefix("models:/")


# --- what there is, without importing mlflow -----------------------------------------------------

def catalogue(layout: Layout) -> list[dict[str, Any]]:
    """Every registered model by name: {"name", "corpus", "aliases", "note", "versions": [{"version", "verdict", "reasons",
    "weights_sha256", "created_ms", "gated", "changed", "languages", "note"}]}, newest version first. `gated`: its gate passed and, of a champion,
    made it so; `changed`: what differs from the champion of its day, in lines; `note` says what is wrong: of a version, e.g. a champion
    moved by hand (H2), of a model, that its champion is gone (H5).

    Raises UserError when the server does not answer.
    """
    url = address(layout)
    try:
        found = mlflow_rest.call(url, "GET", "registered-models/search?max_results=200") or {}
        models = []
        for name in sorted(model["name"] for model in found.get("registered_models", [])):
            versions = versions_of(url, name)
            model = registered(layout, name) or {"aliases": {}, "tags": {}}
            gone = model["aliases"].get("champion") not in {str(version["version"]) for version in versions}
            models.append({"name": name, "corpus": model["tags"].get(CORPUS), "aliases": model["aliases"], "note": champion_gone(model) if gone else None,
                           "versions": [_version(version, model) for version in sorted(versions, key=lambda v: -int(v["version"]))]})
    except mlflow_rest.Unreachable as error:
        raise _silent(layout, error) from None
    return models


def champion_gone(model: dict[str, Any]) -> str | None:
    """Why a model has no champion though it had one, and what to do; None where it never had any. No version answers to its alias."""
    number = model["aliases"].get("champion")
    if number is None and (why := by_hand(model)) is None:
        return None
    said = f"the alias champion names version {number}, which was deleted" if number else why
    return f"{said}. lmworks rollback goes back to an earlier champion; lmworks run judges what data/ holds anew"


def versions_of(url: str, name: str) -> list[dict[str, Any]]:
    """Every version of a registered model, as MLflow's REST API gives it. Raises mlflow_rest.Unreachable."""
    quote = '"' if "'" in name else "'"
    if quote in name:  # MLflow's filter has no escape; somebody else's model on a shared server, its versions are left out
        return []
    query = urllib.parse.urlencode({"filter": f"name = {quote}{name}{quote}", "max_results": 1000})
    return (mlflow_rest.call(url, "GET", f"model-versions/search?{query}") or {}).get("model_versions", [])


def _version(version: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
    verdict, note = tags.get(VERDICT), None
    if model["aliases"].get("champion") == str(version["version"]):
        note = by_hand(model)
        if note is None and verdict != "passed":
            note = "champion, but its gate says no: the gate was changed since"
    elif move := left_behind(model).get(str(version["version"])):
        note = f"{move['who']} rolled back from it to version {move['to']}: {move['why'].removeprefix(ROLLBACK)}"
    return {"version": int(version["version"]), "verdict": verdict or "none", "weights_sha256": tags.get(WEIGHTS),
            "created_ms": int(version["creation_timestamp"]), "gated": verdict == "passed" and note is None, "changed": tags.get(CHANGED),
            "reasons": {key.removeprefix(REASON): value for key, value in sorted(tags.items()) if key.startswith(REASON)}, "note": note,
            "languages": tags.get(LANGUAGES, "").split("+")}
