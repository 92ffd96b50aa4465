"""`lmworks runs` and `lmworks status` against real servers: the runs of the chain, and the servers gone."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess

import pytest

from components.operations import chain_runs, environment, processes, services

pytestmark = pytest.mark.code


def lmworks(checkout, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = environment.child(checkout.layout) | {"COLUMNS": "80"}
    done = subprocess.run([environment.python(checkout.layout), "-m", "commands", *arguments], cwd=checkout.root, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_runs_of_the_chain_are_listed_with_their_end(checkout):
    checkout.wish("first", "1")
    checkout.wish("second", "1")
    assert checkout.run()[0] == 0
    checkout.wish("second", "fail")
    assert checkout.run()[0] == 2
    checkout.wish("second", "1")
    url = services.address(checkout.layout, processes.PREFECT)
    newest, before, *_ = chain_runs.latest(url, 5)
    assert newest["verdict"] == "Failed" and "row 7 of first.txt" in newest["message"] and newest["deployment"] is None
    assert before["type"] == "COMPLETED" and newest["url"].startswith(f"{url}/runs/flow-run/")
    done = lmworks(checkout, "runs", "--limit", "2")
    assert done.stderr == "" and "lmworks run" in done.stdout and "row 7 of first.txt" in done.stdout and newest["url"] in done.stdout
    assert "no model was trained under the name mini" in " ".join(done.stdout.split())
    assert len(json.loads(lmworks(checkout, "runs", "--limit", "2", "--json").stdout)["chains"]) == 2


def test_status_with_servers_and_stages_that_are_stale(checkout):
    told = json.loads(lmworks(checkout, "status", "--json").stdout)
    assert told["services"]["mlflow"]["state"] == told["services"]["prefect"]["state"] == "up" and told["champions"]["source"] == "registry"
    checkout.wish("first", "2")
    try:
        text = lmworks(checkout, "status").stdout
        assert "first: input first.txt changed" in text and "no model is registered yet" in text
    finally:
        checkout.wish("first", "1")


@pytest.mark.parametrize("command", ["why", "status"])
def test_a_terminal_sees_no_progress_bars_of_DVC(checkout, command: str):
    terminal, other_end = pty.openpty()
    try:
        subprocess.run([environment.python(checkout.layout), "-m", "commands", command], cwd=checkout.root, env=environment.child(checkout.layout),
                       stdout=subprocess.PIPE, stderr=other_end, check=True)
        assert select.select([terminal], [], [], 0)[0] == [], os.read(terminal, 2000)
    finally:
        os.close(other_end)
        os.close(terminal)


def test_a_server_that_does_not_answer_is_named_and_the_rest_is_shown(checkout):
    env = environment.child(checkout.layout) | {"COLUMNS": "80", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run([environment.python(checkout.layout), "-m", "commands", "runs"], cwd=checkout.root, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "MLflow at http://127.0.0.1:9 does not answer" in " ".join(done.stderr.split()) and "run of the chain" in done.stdout
    assert "Traceback" not in done.stderr and os.environ.get("MLFLOW_TRACKING_URI") is None
