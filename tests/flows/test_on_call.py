"""Alerts: a receiver of our own is called when a deployment's run crashed or is late; what a person decides in the page stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

import pytest
import test_deployments as page

from components import config as settings
from components import files
from components.errors import UserError
from components.operations import addresses, alerts, processes, rest, services, unclean
from flows import reconciler

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
NAMES = {"lmworks crashed", "lmworks failed", "lmworks late", alerts.NO_HEARTBEAT}


@pytest.fixture(scope="module", autouse=True)
def no_red_night_is_left(checkout: Any) -> Any:
    """`lmworks status` of later tests would say so by its exit code."""
    yield
    checkout.layout.scheduled.unlink(missing_ok=True)


@pytest.fixture
def on_call(checkout: Any) -> Any:
    """The checkout with its worker and alerts as `lmworks up` makes them."""
    page.up(checkout)
    return checkout


def automations(checkout: Any) -> dict[str, dict[str, Any]]:
    found = checkout.api().send("/automations/filter", {"limit": 200})
    assert len({automation["name"] for automation in found}) == len(found), "none twice"
    return {automation["name"]: automation for automation in found}


def asleep_in_a_worker(checkout: Any, words: str) -> tuple[str, int]:
    """(flow run, pid of its process), the second stage at work."""
    checkout.wish("second", f"sleep {words}")
    (checkout.root / "asleep").unlink(missing_ok=True)
    run = page.ask(checkout, release=False)
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    marker, = checkout.layout.unclean.glob("run-*.json")
    return run, unclean.read(marker)["pid"]


def alert_of(receiver: Any, run: str) -> dict[str, Any]:
    return next((alert for alert in receiver.alerts() if alert["url"].endswith(run)), {})


def test_up_makes_them_once_and_takes_them_away_with_the_setting(on_call: Any, monkeypatch: pytest.MonkeyPatch):
    made = automations(on_call)
    assert set(made) == NAMES
    on_call.api().send(f"/automations/{made['lmworks late']['id']}", {"enabled": False}, method="PATCH")
    assert any("switched off in the page: lmworks late" in line for line in page.up(on_call)["done"])
    again = automations(on_call)
    assert {name: automation["id"] for name, automation in again.items()} == {name: automation["id"] for name, automation in made.items()}
    assert not again["lmworks late"]["enabled"] and again["lmworks failed"]["enabled"]
    on_call.api().send(f"/automations/{made['lmworks late']['id']}", {"enabled": True}, method="PATCH")
    block = on_call.api().get(f"/block_types/slug/webhook/block_documents/name/{alerts.BLOCK}")
    assert set(block["data"]["url"]) == {"*"}, "the page does not show the address"

    with monkeypatch.context() as without:
        without.delenv(addresses.ALERT_WEBHOOK)
        assert any("the address of an earlier start" in line for line in page.up(on_call)["done"]), "another shell silences no night"
        assert {name: automation["id"] for name, automation in automations(on_call).items()} == {name: made[name]["id"] for name in NAMES}
        without.setenv(addresses.ALERT_WEBHOOK, "")
        assert "alerts removed: LMWORKS_ALERT_WEBHOOK is empty" in page.up(on_call)["done"]
        assert set(automations(on_call)) == {alerts.NO_HEARTBEAT}
        with pytest.raises(rest.Unreachable):
            on_call.api().get(f"/block_types/slug/webhook/block_documents/name/{alerts.BLOCK}")
        assert not any("alert" in line for line in page.up(on_call)["done"]), "nothing to say twice"
        without.delenv(addresses.ALERT_WEBHOOK)
        assert not any("alert" in line for line in page.up(on_call)["done"]), "nothing was set up"
    page.up(on_call)
    assert set(automations(on_call)) == NAMES


def test_F4_a_run_whose_process_was_killed_is_told_and_put_in_order(on_call: Any, receiver: Any):
    run, pid = asleep_in_a_worker(on_call, "until the flow is killed")
    os.kill(pid, signal.SIGKILL)
    on_call.wait_for(lambda: page.state_of(on_call, run)[0] == "CRASHED", "the worker notices")
    on_call.wait_for(lambda: alert_of(receiver, run), "the webhook is called")
    assert alert_of(receiver, run)["state"] == "Crashed" and f"{on_call.api().get(f'/flow_runs/{run}')['name']} crashed: " in alert_of(receiver, run)["text"]
    told = on_call.last_scheduled(run)  # by the worker
    assert (told["verdict"], told["green"]) == ("Crashed", False)
    on_call.wait_for(lambda: on_call.processes_in() == [], "the stage dies with the flow")
    on_call.wish("second", "1")
    reconciler.reconcile(on_call.layout)
    assert {kind for kind, _ in on_call.task_runs({"id": run}).values()} <= {"CRASHED", "COMPLETED"}


def test_an_address_that_does_not_answer_is_logged_and_harms_no_run(on_call: Any, receiver: Any, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv(addresses.ALERT_WEBHOOK, f"http://127.0.0.1:9/{receiver.token}")  # nobody listens there
        page.up(on_call)
    on_call.wish("second", "fail with nobody to tell")
    run = page.ask(on_call, release=False)
    on_call.wait_for(lambda: page.state_of(on_call, run) == ("FAILED", "Failed"), "the run ends as it does")
    log = processes.log_path(on_call.layout, "prefect")
    on_call.wait_for(lambda: "Webhook call failed" in log.read_text(errors="replace"), "the server says so")
    on_call.wish("second", "1")
    page.up(on_call)


def test_what_is_no_address_is_one_clear_error_without_it(checkout: Any, monkeypatch: pytest.MonkeyPatch):
    for variable in addresses.SECRETS:
        for wrong in ("hooks.example.org/s3cret", "http://a b/s3cret", "ftp://s3cret"):
            monkeypatch.setenv(variable, wrong)
            with pytest.raises(UserError, match=variable) as refused:
                addresses.secret_address(variable)
            assert "s3cret" not in str(refused.value)
        monkeypatch.setenv(variable, "  ")
        assert addresses.secret_address(variable) == ""


def test_the_addresses_are_written_nowhere_but_in_the_hidden_block(checkout: Any, receiver: Any):
    assert receiver.calls, "the tests before have used them"
    for path in (path for folder in (checkout.layout.state, checkout.layout.mlruns, checkout.layout.prefect_home) for path in folder.rglob("*")):
        if path.is_file():
            assert receiver.token.encode() not in path.read_bytes(), path
    for kind, body in (("logs", {"limit": 200, "sort": "TIMESTAMP_DESC"}), ("artifacts", {"limit": 200}), ("automations", {"limit": 200}),
                       ("block_documents", {"limit": 200}), ("flow_runs", {"limit": 200}), ("events", {"limit": 50})):
        assert receiver.token not in json.dumps(checkout.api().send(f"/{kind}/filter", body)), kind


def write_settings(checkout: Any, **changed: int) -> None:
    flat = settings.flatten(settings.load(checkout.layout.params).model_dump(mode="json"))
    files.write_atomic(checkout.layout.params, settings.render(settings.build(flat | {f"operations.{k}": v for k, v in changed.items()}, where="test")))


@contextlib.contextmanager
def no_worker(checkout: Any) -> Any:
    services.process_of(services.read(checkout.layout)["worker"], checkout.layout).kill()
    try:
        yield
    finally:
        page.up(checkout)


def test_a_run_that_nobody_takes_is_told(on_call: Any, receiver: Any):
    write_settings(on_call, late_alert_s=10)
    page.up(on_call)
    on_call.wish("second", "1")
    with no_worker(on_call):
        run = page.ask(on_call, release=False)
        on_call.wait_for(lambda: alert_of(receiver, run), "the webhook is called")
        assert alert_of(receiver, run)["state"] == "Late" and "late by more than 10 s" in alert_of(receiver, run)["text"]
    on_call.wait_for(lambda: page.state_of(on_call, run)[0] == "COMPLETED", "the worker that came back takes it")
    write_settings(on_call, late_alert_s=900)


def test_F4_C15_worker_and_flow_killed_together_are_told_and_put_in_order(on_call: Any, receiver: Any):
    run, pid = asleep_in_a_worker(on_call, "until all is killed")
    with no_worker(on_call):
        os.kill(pid, signal.SIGKILL)
        on_call.wish("second", "1")
        on_call.wait_for(lambda: page.state_of(on_call, run)[0] == "CRASHED", "the server misses its heartbeats", within_s=240)
        assert "no sign of life" in on_call.api().get(f"/flow_runs/{run}")["state"]["message"]
        on_call.wait_for(lambda: alert_of(receiver, run), "the webhook is called")
    assert {kind for kind, _ in on_call.task_runs({"id": run}).values()} <= {"CRASHED", "COMPLETED"}, "`lmworks up` closed its tasks"
