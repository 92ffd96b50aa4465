"""Deployments, the worker, and a run asked for through Prefect's API, as its page does."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from components import files
from components.operations import environment, processes, rest, services
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
    assert [s["active"] for s in deployment(checkout)["schedules"]] == [True]
    kept = deployment(checkout)
    checkout.api().send(f"/deployments/{kept['id']}/schedules/{kept['schedules'][0]['id']}", {"active": False}, method="PATCH")


@pytest.mark.parametrize("bad", [{"from_stagee": "first"}, {"from_stage": "frist"}, {"release": "perhaps"}])
def test_a_parameter_that_is_none_is_refused_when_the_run_is_asked_for(checkout: Any, bad: dict[str, Any]):
    with pytest.raises(rest.Unreachable) as refused:
        ask(checkout, **bad)
    assert refused.value.status == 409


def test_a_page_of_another_site_cannot_write(checkout: Any):
    with pytest.raises(rest.Unreachable) as refused:
        rest.call(f"{services.address(checkout.layout, processes.PREFECT)}/api/flows/", {"name": "evil"}, headers={"Origin": "http://evil.example"})
    assert refused.value.status == 403
    with pytest.raises(rest.Unreachable) as refused:
        rest.call(f"{services.address(checkout.layout, processes.MLFLOW)}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": "evil.example"})
    assert refused.value.status == 403


def test_a_triggered_run_is_the_same_chain_and_waits_for_the_lock(checkout: Any):
    checkout.wish("second", "1")
    run = ask(checkout, release=False)
    checkout.wait_for(lambda: state_of(checkout, run)[0] in ("COMPLETED", "FAILED", "CRASHED"), "the worker runs it")
    assert state_of(checkout, run)[1] in ("Ready", "Nothing changed")
    with files.lock(checkout.layout.run_lock, what="a run"):
        run = ask(checkout, release=False, wait_s=0)
        checkout.wait_for(lambda: state_of(checkout, run)[0] in ("COMPLETED", "FAILED", "CRASHED"), "the worker runs it")
    assert state_of(checkout, run) == ("COMPLETED", "Skipped")


@pytest.mark.slow
def test_cancelling_in_the_page_leaves_no_process(checkout: Any):
    checkout.wish("second", "sleep in a worker")
    (checkout.root / "asleep").unlink(missing_ok=True)
    run = ask(checkout, release=False)
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    checkout.api().send(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    checkout.wait_for(lambda: state_of(checkout, run)[0] in ("CANCELLED", "CRASHED"), "the run ends")
    checkout.wait_for(lambda: checkout.processes_in() == [], "the stage ends")
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
