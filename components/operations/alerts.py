"""Alerts of Prefect's own server: one webhook is called when a run of a deployment failed, crashed or is late.

A fourth automation needs no address: it marks a run Crashed when its process gives no sign of life any more.

The address may hold a secret. So it comes from the environment alone and lies in a block whose value Prefect's pages hide, and the
action is *call-webhook*: Prefect's notification block logs the whole address when the receiver answers with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.operations import rest
from components.operations.addresses import ALERT_WEBHOOK

BLOCK = "lmworks-alert"
# flow runs send a heartbeat each 30 s (environment.FIXED); three in a row that are missing are no delay
SILENT_S = 90
NO_HEARTBEAT = "lmworks no heartbeat"
STARTED = ("Pending", "Running", "AwaitingConcurrencySlot", "Cancelled", "Dropped", "Crashed", "Failed", "Completed")

# one text for chat services (Slack, Mattermost …), and the parts for programs; of the message only the reason, not what the stage said last
PAYLOAD = """{{"text": {{{{ ("lmworks: " ~ flow_run.name ~ "{words}" ~ reason ~ "\\n" ~ (flow_run|ui_url)) | tojson }}}}, \
"run": {{{{ flow_run.name | tojson }}}}, "deployment": {{{{ deployment.name | tojson }}}}, "state": {{{{ flow_run.state.name | tojson }}}}, \
"reason": {{{{ reason | tojson }}}}, "url": {{{{ (flow_run|ui_url) | tojson }}}}}}"""
REASON = """{% set reason = ((flow_run.state.message or "") | string).split("\\nIts last lines:")[0].split() | join(" ") | truncate(400) %}"""


@dataclass(frozen=True)
class Alert:
    """One automation that calls the webhook."""

    name: str
    description: str
    words: str  # between the run's name and the reason
    trigger: dict[str, Any]

    @property
    def payload(self) -> str:
        return REASON + PAYLOAD.format(words=self.words)


def alerts(late_s: int) -> list[Alert]:
    """What is told, each as an automation of its own, so that it can be switched off in the page alone."""
    def ended(state: str) -> dict[str, Any]:  # the state's type: its name is the verdict (Blocked, TimedOut …)
        return {"posture": "Reactive", "expect": ["prefect.flow-run.*"], "within": 0,
                "match": {"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": state}}

    late = {"posture": "Proactive", "after": ["prefect.flow-run.Late"], "expect": [f"prefect.flow-run.{state}" for state in STARTED],
            "within": late_s, "for_each": ["prefect.resource.id"], "match": {"prefect.resource.id": "prefect.flow-run.*"}}
    return [Alert("lmworks failed", "Calls the webhook when a run of a deployment failed or was blocked.", " failed: ", ended("FAILED")),
            Alert("lmworks crashed", "Calls the webhook when a run of a deployment crashed.", " crashed: ", ended("CRASHED")),
            Alert("lmworks late", f"Calls the webhook when a scheduled run is late by more than {late_s} s (no worker takes it).",
                  f" is late by more than {late_s} s; does the worker run? ", late)]


def install(api: rest.Prefect, url: str | None, *, deployments: list[str], late_s: int) -> list[str]:
    """Make the automations what they should be; return what a person should know.

    `deployments` are the ids whose runs are watched. Without `url` alerts that were set up before go on calling theirs: who starts
    the servers from another shell must not silence the nights; an empty one removes alerts and block. Saying it twice changes nothing,
    and what a person switched off in the page stays off. Raises Unreachable.
    """
    known = _known(api)
    related = {"prefect.resource.id": [f"prefect.deployment.{deployment}" for deployment in deployments], "prefect.resource.role": "deployment"}
    _put(api, known, NO_HEARTBEAT, f"Marks a run Crashed when its process gave no sign of life for {SILENT_S} s.",
         {"posture": "Proactive", "after": ["prefect.flow-run.heartbeat"], "expect": ["prefect.flow-run.*"], "within": SILENT_S,
          "for_each": ["prefect.resource.id"], "match": {"prefect.resource.id": "prefect.flow-run.*"}, "match_related": related},
         {"type": "change-flow-run-state", "state": "CRASHED",
          "message": f"no sign of life for {SILENT_S} s: its process or its machine is gone. `lmworks up` puts in order what it left"})
    wanted = alerts(late_s)
    if url == "":
        return _remove(api, known, [alert.name for alert in wanted])
    found = _find_block(api)
    if url is None and found is None:
        return []
    block = _block(api, url) if url else found["id"]
    for alert in wanted:
        _put(api, known, alert.name, alert.description, {**alert.trigger, "match_related": related},
             {"type": "call-webhook", "block_document_id": block, "payload": alert.payload})
    off = [alert.name for alert in wanted if known.get(alert.name) and not known[alert.name][0]["enabled"]]
    receiver = ALERT_WEBHOOK if url else f"the address of an earlier start ({ALERT_WEBHOOK} is not set here; {ALERT_WEBHOOK}= lmworks up removes them)"
    return [f"alerts: failed, crashed and late (over {late_s} s) runs call {receiver}" + (f"; switched off in the page: {', '.join(off)}" if off else "")]


def _known(api: rest.Prefect) -> dict[str, list[dict[str, Any]]]:
    """Automations of ours by name. Prefect lets two have the same name."""
    names = [NO_HEARTBEAT, *(alert.name for alert in alerts(0))]
    known: dict[str, list[dict[str, Any]]] = {}
    for automation in api.send("/automations/filter", {"automations": {"name": {"any_": names}}, "limit": 200}):
        known.setdefault(automation["name"], []).append(automation)
    return known


def _put(api: rest.Prefect, known: dict[str, list[dict[str, Any]]], name: str, description: str, trigger: dict[str, Any], action: dict[str, Any]) -> None:
    first, *copies = known.get(name) or [None]
    body = {"name": name, "description": description, "enabled": first["enabled"] if first else True,
            "trigger": {"type": "event", "threshold": 1, **trigger}, "actions": [action], "actions_on_trigger": [], "actions_on_resolve": []}
    if first:
        api.send(f"/automations/{first['id']}", body, method="PUT")
    else:
        api.send("/automations/", body)
    for copy in copies:
        api.send(f"/automations/{copy['id']}", method="DELETE")


def _remove(api: rest.Prefect, known: dict[str, list[dict[str, Any]]], names: list[str]) -> list[str]:
    found = [automation for name in names for automation in known.get(name, [])]
    for automation in found:
        api.send(f"/automations/{automation['id']}", method="DELETE")
    block = _find_block(api)
    if block:
        api.send(f"/block_documents/{block['id']}", method="DELETE")
    return [f"alerts removed: {ALERT_WEBHOOK} is empty"] if found or block else []


def _find_block(api: rest.Prefect) -> dict[str, Any] | None:
    try:
        return api.get(f"/block_types/slug/webhook/block_documents/name/{BLOCK}")
    except rest.Unreachable as error:
        if error.status != 404:
            raise
        return None


def _block(api: rest.Prefect, url: str) -> str:
    """The id of the block with the address, made or brought up to date."""
    kind = api.get("/block_types/slug/webhook")["id"]
    schema = api.send("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}, "limit": 1})[0]["id"]
    # private addresses are allowed: a receiver in the same network is the usual case
    data = {"url": url, "method": "POST", "headers": {"Content-Type": "application/json"}, "allow_private_urls": True, "verify": True}
    found = _find_block(api)
    try:
        if found:
            api.send(f"/block_documents/{found['id']}", {"block_schema_id": schema, "data": data, "merge_existing_data": False}, method="PATCH")
            return found["id"]
        return api.send("/block_documents/", {"name": BLOCK, "data": data, "block_schema_id": schema, "block_type_id": kind})["id"]
    except rest.Unreachable as error:  # the answer to a bad request repeats the request
        raise rest.Unreachable(f"Prefect's server did not take the block {BLOCK!r} (status {error.status}). Look at its log, then run: lmworks up", error.status) from None
