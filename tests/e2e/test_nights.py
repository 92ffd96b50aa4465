"""What whoever is on call finds in the morning after a scheduled run of the real chain."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import pytest

from components.operations import rest
from tests.checkout import Finished

pytestmark = pytest.mark.e2e


def test_a_night_with_nothing_to_do_is_green_releases_nothing_and_links_what_there_is(finished: Finished):
    checkout = finished.checkout
    api = rest.Prefect(f"{checkout.services()['prefect']['url']}/api")
    deployment = api.get("/deployments/name/lmworks-chain/chain")
    run = api.send(f"/deployments/{deployment['id']}/create_flow_run", {})["id"]
    deadline = time.monotonic() + 120
    while (state := api.get(f"/flow_runs/{run}")["state"])["type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    assert (state["type"], state["name"]) == ("COMPLETED", "Nothing changed"), state["message"]
    assert "smoke: version 1 is champion; smoke-instruct: version 1 is champion" in state["message"]
    release, = api.send("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"name": {"any_": ["release"]}}})
    assert release["state_name"] == "Cached"

    shown, = api.send("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    sections = [line for line in shown["data"].splitlines() if line.startswith("#")]
    assert sections[:3] == ["# Nothing changed", "## Stages", "## Gates"] and "## Look at" in sections
    pages = re.findall(r"\]\((http://[^)]+/#/experiments/(\d+)/runs/([0-9a-f]+)/artifacts/([^)]+))\)", shown["data"])
    assert len(pages) == 2, "each model's run, at the page of the data that it learned from"
    for _, _, run_id, path in pages:
        address = f"{checkout.services()['mlflow']['url']}/get-artifact?run_uuid={run_id}&path={path}"
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.status == 200 and b"<html" in answer.read()[:500].lower()

    status = json.loads(checkout.lmworks("status", "--json").stdout)
    green = status["scheduled"]["chain"]["last_green"]
    assert green["verdict"] == "Nothing changed" and green["flow_run"].endswith(run)
