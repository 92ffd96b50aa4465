"""No dead link between our pages: every address that a description or an artifact names leads to something that is there."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request

import pytest

from components.operations import rest
from tests.browser.chains import NAME, Chains

pytestmark = pytest.mark.browser

ADDRESS = re.compile(r"https?://[^\s)>\"'`\]|,]+")
EXAMPLES = (":5330",)  # the port of `mlflow models serve`, which a copied line starts first


def status(url: str, body: object = None) -> int:
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def behind(chains: Chains, url: str) -> str:
    """What a page asks its server for to show this address: the address itself says 200 whatever stands behind its #."""
    server, _, route = url.partition("/#/")
    if found := re.fullmatch(r"experiments/(\d+)/runs/([0-9a-f]+)/artifacts/(.+)", route):
        return f"{server}/get-artifact?run_uuid={found[2]}&path={urllib.parse.quote(urllib.parse.unquote(found[3]))}"
    if found := re.fullmatch(r"experiments/(\d+)/runs/([0-9a-f]+)(/.*)?", route):
        return f"{server}/api/2.0/mlflow/runs/get?run_id={found[2]}"
    if found := re.fullmatch(r"experiments/(\d+)(/.*)?", route):
        return f"{server}/api/2.0/mlflow/experiments/get?experiment_id={found[1]}"
    if found := re.fullmatch(r"models/([^/]+)/versions/(\d+)", route):
        return f"{server}/api/2.0/mlflow/model-versions/get?name={found[1]}&version={found[2]}"
    if found := re.fullmatch(r"models/([^/]+)", route):
        return f"{server}/api/2.0/mlflow/registered-models/get?name={found[1]}"
    if found := re.fullmatch(rf"{re.escape(chains.prefect)}/runs/flow-run/([0-9a-f-]+)", url):
        return f"{chains.prefect}/api/flow_runs/{found[1]}"
    assert not route, f"no test knows what stands behind {url}"
    return url


def texts(chains: Chains) -> dict[str, str]:
    """Everything of ours that a page shows as Markdown: {where: text}."""
    found: dict[str, str] = {}
    ask = chains.checkout.mlflow
    for run in ask("POST", "runs/search", {"experiment_ids": [chains.experiment]})["runs"]:
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        if "lmworks.stage" in tags:
            found[f"run {tags['mlflow.runName']} {run['info']['run_id']}"] = tags["mlflow.note.content"] + f"\n{tags.get('lmworks.prefect_run', '')}"
    for name in (NAME, f"{NAME}-instruct"):
        found[f"model {name}"] = ask("GET", f"registered-models/get?name={name}")["registered_model"]["description"]
        for number in (1, 2, 3):
            version = ask("GET", f"model-versions/get?name={name}&version={number}")["model_version"]
            found[f"{name} version {number}"] = version.get("description", "")
    api = rest.Prefect(f"{chains.prefect}/api")
    for artifact in api.send("/artifacts/filter", {"artifacts": {"type": {"any_": ["markdown"]}}}):
        found[f"artifact {artifact['key']} {artifact['id']}"] = artifact["data"]
    return found


def test_every_link_of_ours_leads_to_something(chains: Chains):
    told = texts(chains)
    links = {url.rstrip(".;:"): where for where, text in told.items() for url in ADDRESS.findall(text)}
    assert {where.split()[0] for where in links.values()} >= {"run", "artifact"} and any(NAME in where for where in links.values())
    dead = []
    for url, where in links.items():
        assert urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost"), f"{where} leads out of the machine: {url}"
        if not any(example in url for example in EXAMPLES) and (code := status(behind(chains, url))) != 200:
            dead.append(f"{code} {url} in {where}")
    assert dead == []


def test_what_users_wrote_is_not_read_as_html(chains: Chains):
    for where, text in texts(chains).items():
        assert not re.search(r"<(script|img|iframe|svg)\b", text, re.I), where


def test_runs_and_prefect_runs_name_one_another(chains: Chains):
    told = texts(chains)
    for chain in (chains.promoted, chains.refused, chains.resumed):
        flow_run = chain.flow_run.rsplit("/", 1)[1]
        api = rest.Prefect(f"{chains.prefect}/api")
        artifact, = api.send("/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        for run_id in chain.runs.values():
            assert run_id in artifact["data"]
            assert any(run_id in where and chain.flow_run in text for where, text in told.items())
        assert sorted(chain.runs) == ["finetune", "pretrain"]
