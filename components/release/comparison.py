"""Two registered versions side by side: settings, data, code, weights and scores, read from the runs that trained them.

Everything comes from MLflow's server by plain REST. `read` gathers one version, `compare` is a pure function of two.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from typing import Any

import yaml

from components import files, mlflow_rest
from components.config import flatten
from components.errors import UserError
from components.release import evidence
from components.release.registry import EVALUATION, REASON, RELEASE_COMMIT, TRAINED_COMMIT, VERDICT, WEIGHTS

SOURCES = "lmworks.sources."
PROFILE = re.compile(r"^(documents|tokens|bytes)_(\w+)$")  # a figure of a language in the profile of a dataset
CHOOSING = ("corpus.", "cleaning.", "splits.", "validation.")  # settings that decide which texts are held out
NOT_CODE = (b" b/params.yaml", b" b/sources.yaml", b" b/dvc.lock")  # how the head of their part of a `git diff` ends
AGAINST = re.compile(r"\bchampion version (\d+)\b")  # how a gate names what it judged against


# --- which version is meant ----------------------------------------------------------------------

def resolve(text: str, default: str, found: list[dict[str, Any]]) -> tuple[str, str]:
    """(name, number) of `3`, `champion`, `NAME/3`, `NAME@champion`, with or without models:/ in front; `default` is the NAME left out.

    `found`: what `registry.catalogue` gives. Raises UserError that lists what exists.
    """
    wanted = text.strip().removeprefix("models:/")
    name, at, alias = wanted.partition("@")
    number = ""
    if not at:
        name, slash, number = wanted.partition("/")
        if not slash:  # a number or an alias of this checkout's model; or somebody forgot which version
            name, number, alias = default, (wanted if wanted.isdigit() else ""), ("" if wanted.isdigit() else wanted)
            if any(model["name"] == wanted for model in found):
                raise UserError(f"{text}: which version of it? {_there_is(wanted, found)}")
    model = next((model for model in found if model["name"] == name), None)
    if model is None:
        raise UserError(f"{text}: no model {name!r} is registered. There are: {', '.join(m['name'] for m in found) or 'none; run: lmworks run'}")
    number = number or str(model["aliases"].get(alias, ""))
    if not number.isdigit() or all(str(version["version"]) != str(int(number)) for version in model["versions"]):
        raise UserError(f"{text}: no such version. {_there_is(name, found)}")
    return name, str(int(number))


def _there_is(name: str, found: list[dict[str, Any]]) -> str:
    model = next(model for model in found if model["name"] == name)
    versions = sorted(int(version["version"]) for version in model["versions"])
    named = ", ".join(f"{alias} is {number}" for alias, number in sorted(model["aliases"].items()))
    numbers = ", ".join(map(str, versions)) if len(versions) <= 20 else f"{versions[0]} to {versions[-1]}"
    return f"{name} has version{'s' if len(versions) > 1 else ''} {numbers or 'none'}" + (f" ({named})" if named else "")


# --- one version ---------------------------------------------------------------------------------

def read(url: str, name: str, number: str) -> dict[str, Any]:
    """What is known of a version: {"name", "version", "verdict", "weights_sha256", "registered_s", "run", "settings", "data", "code", "scores",
    "reasons", "unknown"}. A part that cannot be read is None, and `unknown` says why. Raises UserError when MLflow does not answer.
    """
    try:
        return _read(url, name, number)
    except mlflow_rest.Unreachable as error:
        raise UserError(f"the MLflow server at {url} does not answer ({error}). Run: lmworks up") from None


def _read(url: str, name: str, number: str) -> dict[str, Any]:
    answer = mlflow_rest.call(url, "GET", f"model-versions/get?{urllib.parse.urlencode({'name': name, 'version': number})}")
    if answer is None:
        raise UserError(f"{name}/{number} was deleted meanwhile. See what is there: lmworks models")
    version = answer["model_version"]
    tags = _tags(version)
    told: dict[str, Any] = {
        "name": name, "version": number, "verdict": tags.get(VERDICT), "weights_sha256": tags.get(WEIGHTS),
        "registered_s": int(version["creation_timestamp"]) / 1000, "run": None, "settings": None, "data": None, "code": None, "scores": None,
        "reasons": {key.removeprefix(REASON): value for key, value in sorted(tags.items()) if key.startswith(REASON)}, "unknown": []}
    run_id = version.get("run_id", "")
    found = mlflow_rest.call(url, "GET", f"runs/get?{urllib.parse.urlencode({'run_id': run_id})}") if run_id else None
    if found is None:
        told["unknown"].append("the run that trained it is gone from MLflow, and with it settings, data, code and scores")
        return told
    run = found["run"]
    told["run"] = {"run_id": run_id, "name": run["info"].get("run_name"), "url": f"{url}/#/experiments/{run['info']['experiment_id']}/runs/{run_id}"}
    stored = _Stored(url, run_id)
    told["settings"] = stored.settings()
    told["data"] = _data(run)
    told["code"] = _code(run, stored)
    told["scores"] = stored.scores(tags.get(EVALUATION), "instruct" if name.endswith("-instruct") else "base")
    told["unknown"] += stored.missing
    return told


class _Stored:
    """The artifacts of a run; what is missing or damaged is noted in words."""

    def __init__(self, url: str, run_id: str):
        self.url, self.run_id, self.missing = url, run_id, []
        self.paths = {entry["path"] for folder in ("settings", "evaluation") for entry in self._listed(folder)}

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"run_id": self.run_id, "path": folder})
        return (mlflow_rest.call(self.url, "GET", f"artifacts/list?{query}") or {}).get("files", [])

    def get(self, path: str) -> bytes | None:
        return mlflow_rest.artifact(self.url, self.run_id, path) if path in self.paths else None

    def tree(self, path: str, what: str) -> Any:
        """YAML or JSON as values; None, with a note, where there is none."""
        text = self.get(path)
        try:
            tree = None if text is None else yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError:
            tree = None
        if not isinstance(tree, dict):
            self.missing.append(f"{what}: its run has no readable {path}")
            return None
        return tree

    def settings(self) -> dict[str, Any] | None:
        tree = self.tree("settings/params.yaml", "settings")
        return None if tree is None else flatten(tree)

    def scores(self, evaluation_sha256: str | None, kind: str) -> list[dict[str, Any]] | None:
        """The evaluation table that this version was judged by. A run that was released again holds a newer one."""
        text = self.get("evaluation/evaluation.json")
        if text is None:
            self.missing.append("scores: its run has no evaluation/evaluation.json")
            return None
        if files.sha256_bytes(text) != evaluation_sha256:  # so what is read below is what lmworks wrote
            self.missing.append("scores: its weights were evaluated again since, and the run holds the newer figures")
            return None
        rows = evidence.rows(json.loads(text), kind)
        return [{"what": row.what, "language": row.language, "value": row.model[0], "low": row.model[1], "high": row.model[2], "items": row.items,
                 "higher_is_better": row.higher_is_better} for row in rows]


def _tags(entity: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in entity.get("tags", [])}


def _data(run: dict[str, Any]) -> dict[str, Any]:
    """{"digests": {group: digest}, "splits": {split: {language: {"documents", "tokens", "bytes"}}}}."""
    tags = _tags(run["data"])
    digests = {key.removeprefix(SOURCES): value for key, value in sorted(tags.items()) if key.startswith(SOURCES)}
    if "lmworks.data_digest" in tags:
        digests["tokens"] = tags["lmworks.data_digest"]
    splits: dict[str, Any] = {}
    for entry in (run.get("inputs") or {}).get("dataset_inputs", []):
        dataset = entry["dataset"]
        try:
            profile = json.loads(dataset.get("profile") or "{}")
        except ValueError:
            continue
        for key, value in sorted(profile.items() if isinstance(profile, dict) else ()):
            if match := PROFILE.match(key):
                split = splits.setdefault(dataset["name"].removeprefix("tokens/"), {})
                split.setdefault(match[2], {})[match[1]] = value
    return {"digests": digests, "splits": splits}


def _code(run: dict[str, Any], stored: _Stored) -> dict[str, Any]:
    """{"commit", "uncommitted": None or a hash, "files": {path: md5}, "versions": {package: version}}: what the stages depended on."""
    tags = _tags(run["data"])
    lock = stored.tree("settings/dvc.lock", "code by file") or {}
    code: dict[str, str] = {}
    versions: dict[str, str] = {}
    for stage in (lock.get("stages") or {}).values():
        code |= {dep["path"]: str(dep.get("md5")) for dep in stage.get("deps") or [] if dep["path"].endswith(".py")}
        versions |= {package: str(version) for package, version in ((stage.get("params") or {}).get("versions.yaml") or {}).items()}
    difference = code_part(stored.get("settings/uncommitted.diff") or b"") if tags.get("lmworks.uncommitted") == "true" else b""
    return {"commit": tags.get(RELEASE_COMMIT, tags.get(TRAINED_COMMIT)), "uncommitted": files.sha256_bytes(difference)[:12] if difference else None,
            "files": code, "versions": versions}


def code_part(difference: bytes) -> bytes:
    """A `git diff` without the files that settings and data are told by: every run changes those."""
    parts = re.split(rb"(?m)^(?=diff --git )", difference)
    return b"".join(part for part in parts if part and not part.partition(b"\n")[0].endswith(NOT_CODE))


# --- two versions --------------------------------------------------------------------------------

def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What differs: {"a", "b", "same", "same_weights", "settings", "data", "code", "scores", "same_test_texts", "paired", "unknown"}.

    Each difference is a dict with what differs and the values "a" and "b" (None: not there). `scores` holds equal ones too; where
    `same_test_texts` is not true they are not of the same items, so neither is better.
    A part that one of the two does not know is None, and `unknown` says why.
    """
    told = {
        "a": _head(a), "b": _head(b), "same_weights": a["weights_sha256"] is not None and a["weights_sha256"] == b["weights_sha256"],
        "settings": _both(a, b, "settings", lambda x, y: _different(x, y, "key")),
        "data": _both(a, b, "data", _data_differences), "code": _both(a, b, "code", _code_differences),
        "scores": _both(a, b, "scores", _scores), "same_test_texts": _same_test_texts(a, b), "paired": _paired(a, b),
        "unknown": [f"{side['name']}/{side['version']}: {why}" for side in (a, b) for why in side["unknown"]]}
    parts = [told["settings"], *(told["data"] or {"": None}).values(), *(told["code"] or {"": None}).values()]
    told["same"] = told["same_weights"] and told["scores"] is not None and all(part == [] for part in parts) and all(
        row["a"] == row["b"] for row in told["scores"])
    return told


def _head(side: dict[str, Any]) -> dict[str, Any]:
    return {key: side[key] for key in ("name", "version", "verdict", "weights_sha256", "registered_s", "run", "reasons")}


def _both(a: dict[str, Any], b: dict[str, Any], part: str, differences: Any) -> Any:
    return None if a[part] is None or b[part] is None else differences(a[part], b[part])


def _different(a: dict[str, Any], b: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [{what: key, "a": a.get(key), "b": b.get(key)} for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def _data_differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    def flat(splits: dict[str, Any]) -> dict[tuple[str, str], dict[str, int]]:
        return {(split, language): counts for split, languages in splits.items() for language, counts in languages.items()}

    ours, theirs = flat(a["splits"]), flat(b["splits"])
    return {"digests": _different(a["digests"], b["digests"], "what"),
            "splits": [{"split": key[0], "language": key[1], "a": ours.get(key), "b": theirs.get(key)}
                       for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]}


def _code_differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    git = ("commit", "uncommitted")
    return {"git": _different({key: a[key] for key in git}, {key: b[key] for key in git}, "what"),
            # without a lock of one of the two nothing can be said by file
            "files": _different(a["files"], b["files"], "path") if a["files"] and b["files"] else [],
            "versions": _different(a["versions"], b["versions"], "package") if a["versions"] and b["versions"] else []}


def _scores(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every figure of either, in the order of the tables: {"what", "language", "higher_is_better", "a": {"value", "low", "high", "items"}, "b"}."""
    def keyed(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["what"], row["language"]): row for row in rows}

    def figure(row: dict[str, Any] | None) -> dict[str, Any] | None:
        return row and {key: row[key] for key in ("value", "low", "high", "items")}

    ours, theirs = keyed(a), keyed(b)
    return [{"what": key[0], "language": key[1], "higher_is_better": (ours.get(key) or theirs[key])["higher_is_better"],
             "a": figure(ours.get(key)), "b": figure(theirs.get(key))} for key in {**ours, **theirs}]


def _same_test_texts(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether both were judged on the same documents and records, as far as sources, counts and the settings that choose them say."""
    def chosen(side: dict[str, Any]) -> Any:
        test = {language: (counts.get("documents"), counts.get("bytes")) for language, counts in side["data"]["splits"].get("test", {}).items()}
        digests = {what: digest for what, digest in side["data"]["digests"].items() if what in ("corpus", "records")}
        return test, digests, {key: value for key, value in side["settings"].items() if key.startswith(CHOOSING)}

    return all(side["data"] is not None and side["settings"] is not None for side in (a, b)) and chosen(a) == chosen(b)


def _paired(a: dict[str, Any], b: dict[str, Any]) -> dict[str, str] | None:
    """{"challenger", "champion", "sentence"}: what the gate measured on the same items, if one of the two was judged against the other."""
    for challenger, champion in ((b, a), (a, b)):
        said = challenger["reasons"].get("not_worse_than_champion", "")
        match = AGAINST.search(said)
        if challenger["name"] == champion["name"] and match and match[1] == champion["version"]:
            return {"challenger": challenger["version"], "champion": champion["version"], "sentence": said.partition(": ")[2]}
    return None
