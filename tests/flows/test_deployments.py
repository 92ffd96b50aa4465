"""Deployments, the worker, and a run asked for through Prefect's API, as its page does."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from components import files
from components.errors import UserError
from components.layout import ROOT, Layout
from components.operations import environment, processes, rest, services, silence
from flows import deployments

pytestmark = [pytest.mark.e2e]


def up(checkout: Any) -> dict[str, Any]:
    code = "from commands.services import up; up(None, None, True, True)"
    done = subprocess.run([environment.python(checkout.layout), "-c", code], cwd=checkout.root, env=environment.child(checkout.layout),
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def deployment(checkout: Any, name: str = "lmworks-chain/chain") -> dict[str, Any]:
    return checkout.api().get(f"/deployments/name/{name}")


def ask(checkout: Any, **parameters: Any) -> str:
    found = deployment(checkout)
    return checkout.api().send(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"]


def state_of(checkout: Any, run: str) -> tuple[str, str]:
    found = checkout.api().get(f"/flow_runs/{run}")
    return found["state_type"], found["state_name"]


def test_up_is_idempotent_and_what_a_person_switched_on_stays_on(checkout: Any):
    told = up(checkout)
    assert {service["state"] for service in told["services"].values()} == {"up"}
    found = deployment(checkout)
    assert [s["active"] for s in found["schedules"]] == [False], "schedules ship inactive"
    assert str(checkout.root) not in json.dumps(found["pull_steps"]), "no path of this machine is registered"
    checkout.api().send(f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}", {"active": True}, method="PATCH")
    pids = {name: service["pid"] for name, service in told["services"].items()}
    again = up(checkout)
    assert {name: service["pid"] for name, service in again["services"].items()} == pids
    kept = deployment(checkout)
    assert [s["active"] for s in kept["schedules"]] == [True]
    checkout.wait_for(lambda: silence.next_planned_s(checkout.layout, kept["id"]), "Prefect plans the next run")
    assert time.time() < silence.next_planned_s(checkout.layout, kept["id"]) <= time.time() + 7 * 86_400, "weekly"
    told = silence.verdict(checkout.layout, time.time())["chain"]
    assert (told["too_old"], told["overdue_s"]) == (False, None)
    checkout.api().send(f"/deployments/{kept['id']}/schedules/{kept['schedules'][0]['id']}", {"active": False}, method="PATCH")
    checkout.wait_for(lambda: silence.next_planned_s(checkout.layout, kept["id"]) is None, "no date is left")


@pytest.mark.code
@pytest.mark.parametrize(("text", "told"), [
    ("", "the file is None, dict was expected"), ("- one\n", "the file is ['one'], dict was expected"), ("deployments: []\n", "pull is None, list was expected"),
    ("pull: []\ndeployments: chain\n", "deployments is 'chain', list was expected"), ("pull: []\ndeployments: [chain]\n", "deployments[0] is 'chain', dict was expected"),
    ("concurrency_limit: *one_at_a_time", "deployments[0].concurrency_limit is 3, dict was expected"), ("active: false", "deployments[0].schedules[0].active is None, bool was expected"),
    ("flows/refresh.py:refresh", "no flow is at the entrypoint flows/refresh.py:refrish"), ("flows/refresh.py", "no flow is at the entrypoint flows/refrish.py:refresh")])
def test_D3_D4_a_prefect_yaml_of_another_shape_is_one_clear_error(tmp_path: Path, text: str, told: str):
    whole = (ROOT / "prefect.yaml").read_text()
    other = {"concurrency_limit: *one_at_a_time": "concurrency_limit: 3", "active: false": "activ: false", "flows/refresh.py:refresh": "flows/refresh.py:refrish",
             "flows/refresh.py": "flows/refrish.py"}
    (tmp_path / "prefect.yaml").write_text(whole.replace(text, other[text], 1) if text in other else text)
    (tmp_path / "flows").symlink_to(ROOT / "flows")
    layout = Layout(root=tmp_path)
    with pytest.raises(UserError) as caught:
        for entry in deployments._entries(layout):
            deployments._flow_at(entry["entrypoint"], layout)
    assert told in str(caught.value) and "git checkout -- prefect.yaml" in str(caught.value)


def test_each_parameter_says_what_it_is_for(checkout: Any):
    for name in ("lmworks-chain/chain", "lmworks-refresh/refresh", "lmworks-release/release"):
        for parameter, shown in deployment(checkout, name)["parameter_openapi_schema"]["properties"].items():
            assert len(shown["description"]) > 10, f"{name} {parameter}"
    stages = deployment(checkout)["parameter_openapi_schema"]["properties"]["from_stage"]["anyOf"][0]["enum"]
    assert stages == ["first", "second"], "a list to choose from"


@pytest.mark.parametrize("bad", [{"from_stagee": "first"}, {"from_stage": "frist"}, {"release": "perhaps"}, {"wait_s": -1}, {"wait_s": 10**6},
                                 {"from_stage": "second", "to_stage": "first"}])
def test_a_parameter_that_is_none_is_refused_when_the_run_is_asked_for(checkout: Any, bad: dict[str, Any]):
    with pytest.raises(rest.Unreachable) as refused:
        ask(checkout, **bad)
    assert refused.value.status == 409


def ended(checkout: Any, run: str) -> tuple[str, str]:
    checkout.wait_for(lambda: state_of(checkout, run)[0] in ("COMPLETED", "FAILED", "CRASHED"), "the worker runs it")
    return state_of(checkout, run)


@pytest.mark.slow
def test_a_triggered_run_is_the_same_chain_and_waits_for_the_lock(checkout: Any, receiver: Any):
    up(checkout)
    checkout.wish("second", "1 for a worker")
    before = len(receiver.pings())
    run = ask(checkout, release=False)
    assert ended(checkout, run) == ("COMPLETED", "Ready")
    found = checkout.api().get(f"/flow_runs/{run}")
    assert re.fullmatch(r"mini chain \d{4}-\d\d-\d\d \d\d:\d\d UTC corpus 语料 [0-9a-f]{6}", found["name"]), found["name"]
    assert found["tags"] == ["chain", "lmworks", "mini", "tiny"]
    assert json.loads((checkout.root / "told.json").read_text())["LMWORKS_DEPLOYMENT"] == "chain"
    run = ask(checkout, release=False)
    assert ended(checkout, run) == ("COMPLETED", "Nothing changed")
    checkout.last_scheduled(run)
    green = silence.read(checkout.layout)["chain"]["last_green"]
    assert (green["verdict"], green["deployment"], green["green"]) == ("Nothing changed", "chain", True)
    checkout.wait_for(lambda: receiver.pings()[before:] == [f"/ping/{receiver.token}"] * 2, "an outside monitor hears of both")
    with files.lock(checkout.layout.run_lock, what="a run"):
        run = ask(checkout, release=False, wait_s=0)
        assert ended(checkout, run) == ("COMPLETED", "Skipped")
    assert checkout.last_scheduled(run)["verdict"] == "Skipped"
    assert silence.read(checkout.layout)["chain"]["last_green"] == green and len(receiver.pings()) == before + 2, "a skipped run proves nothing"


def retry(checkout: Any, run: str, force: bool) -> tuple[str, str]:
    """What the button sends: with force in one of Prefect's two pages, without in the other. Returns how the run ended."""
    checkout.api().send(f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}, "force": force})
    return ended(checkout, run)


@pytest.mark.slow
def test_retry_in_the_page_goes_on_at_the_failed_stage(checkout: Any, receiver: Any):
    up(checkout)
    checkout.wish("first", "1 before a retry")
    checkout.wish("second", "fail")
    pings, alerts = len(receiver.pings()), len(receiver.alerts())
    run = ask(checkout, release=False)
    assert ended(checkout, run) == ("FAILED", "Failed")
    failed = checkout.api().get(f"/flow_runs/{run}")
    assert failed["state"]["message"].startswith("second: row 7 of first.txt has no text; mend it\nIts last lines:\n")
    shown, = checkout.artifacts(run)
    assert shown["data"].startswith("# Failed") and "| first | ran |" in shown["data"]
    checkout.wait_for(lambda: len(receiver.alerts()) > alerts, "the webhook is called")
    alert = receiver.alerts()[-1]
    assert (alert["run"], alert["deployment"], alert["state"]) == (failed["name"], "chain", "Failed")
    assert alert["reason"] == "second: row 7 of first.txt has no text; mend it", "what the stage said before stays here"
    assert alert["url"] == f"{services.address(checkout.layout, processes.PREFECT)}/runs/flow-run/{run}" and alert["url"] in alert["text"]

    assert retry(checkout, run, force=False) == ("FAILED", "Failed"), "nothing was mended"
    checkout.wish("second", "mended")
    assert retry(checkout, run, force=True) == ("COMPLETED", "Ready")
    assert checkout.api().get(f"/flow_runs/{run}")["name"] == failed["name"], "the night keeps its date"
    shown, = checkout.artifacts(run)
    assert shown["data"].startswith("# Ready") and "| first | cached |" in shown["data"] and "| second | ran |" in shown["data"]
    runs = checkout.api().send("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"name": {"any_": ["first"]}}})
    assert ("COMPLETED", "Cached") in {(task["state_type"], task["state_name"]) for task in runs}
    checkout.wait_for(lambda: receiver.pings()[pings:] == [f"/ping/{receiver.token}{end}" for end in ("/fail", "/fail", "")], "two red ends, then a green one")


@pytest.mark.slow
def test_cancelling_in_the_page_leaves_no_process(checkout: Any):
    up(checkout)
    checkout.wish("second", "sleep in a worker")
    (checkout.root / "asleep").unlink(missing_ok=True)
    run = ask(checkout, release=False)
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    checkout.api().send(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    checkout.wait_for(lambda: state_of(checkout, run)[0] in ("CANCELLED", "CRASHED"), "the run ends")
    checkout.wait_for(lambda: checkout.processes_in() == [], "the stage ends")
    assert checkout.last_scheduled(run)["green"] is False
    checkout.wish("second", "1")


class Queue:
    """What drop_late asks of Prefect's API."""

    def __init__(self, runs: list[dict[str, Any]]):
        self.runs, self.closed = runs, []

    def send(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert path == "/flow_runs/filter" and body["sort"] == "EXPECTED_START_TIME_DESC"
        return self.runs

    def close(self, kind: str, run_id: str, **state: Any) -> None:
        self.closed.append((kind, run_id, state["state"]))


def test_late_runs_are_dropped_but_the_newest_of_each_deployment():
    runs = [{"id": f"{deployment}{n}", "deployment_id": deployment, "auto_scheduled": n != 3} for n in range(4) for deployment in "ab"]
    queue = Queue(runs)
    assert deployments.drop_late(queue) == 4
    assert sorted(run for _, run, _ in queue.closed) == ["a1", "a2", "b1", "b2"], "0 is the newest, 3 was asked for by a person"
