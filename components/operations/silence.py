"""The silence alarm: how the runs of each deployment ended, an address outside that is pinged, and whether the last
green one is too old.

What runs on this machine cannot tell that this machine is off; so the ping's receiver, or a monitor that asks `lmworks status`,
raises the alarm when nothing comes.
"""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from typing import Any

from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import addresses, processes, rest, services

PING_S = 5  # for all of it, names looked up included
FORMAT = 2
MAX_MESSAGE_CHARS = 500
SLACK_S = 7_200  # that a run may take beyond the moment for which it is planned
NEUTRAL = "Skipped"  # it made nothing and broke nothing: no red end, and no proof that the nights are fine
DEPLOYMENTS = {"refresh": "lmworks-refresh/refresh", "chain": "lmworks-chain/chain"}  # those that prefect.yaml gives a schedule


# --- the end of a run ----------------------------------------------------------------------------

def record(layout: Layout, *, deployment: str, flow_run: str, verdict: str, message: str, green: bool, next_s: float | None) -> None:
    """Write the end of a run into .lmworks/scheduled.json; `next_s` (Unix time) is when this deployment's schedule asks for the next
    one, None where no schedule is active. Raises UserError (disk).
    """
    told = {"deployment": deployment, "flow_run": flow_run, "verdict": verdict, "message": message[:MAX_MESSAGE_CHARS], "green": green,
            "ended_at": _iso(time.time()), "next_at": None if next_s is None else _iso(next_s)}
    with files.lock(layout.state / "scheduled.lock", what="the end of another scheduled run", wait_s=5):
        known = read(layout)
        before = known.get(deployment) or {"first": told, "judged": None, "last_green": None}
        judged = verdict != NEUTRAL
        known[deployment] = {"first": before["first"], "last": told, "judged": told if judged else before["judged"],
                             "last_green": told if judged and green else before["last_green"]}
        files.write_sealed(layout.scheduled, {"format": FORMAT, "deployments": known})


def read(layout: Layout) -> dict[str, dict[str, Any]]:
    """{deployment: {"first", "last", "judged" (the last that was not skipped), "last_green"}}, the last two None if there was none.

    Empty where the file is damaged: the next run writes it again.
    """
    try:
        told = files.read_sealed(layout.scheduled)
    except (OSError, UserError):
        return {}
    return told["deployments"] if isinstance(told, dict) and told.get("format") == FORMAT else {}


def next_planned_s(layout: Layout, deployment_id: str) -> float | None:
    """When the deployment's schedule asks for its next run (Unix time); None where none is active, or Prefect does not say."""
    url = services.address(layout, processes.PREFECT)
    try:
        return _planned_s(rest.Prefect(f"{url}/api", timeout_s=PING_S), deployment_id) if url else None
    except rest.Unreachable:
        return None


def _planned_s(api: rest.Prefect, deployment_id: str) -> float | None:
    """The earliest run that a schedule asked for and that has not begun."""
    waiting = api.send("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment_id]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
                                             "sort": "EXPECTED_START_TIME_ASC", "limit": 50})
    return next((_seconds(run["expected_start_time"]) for run in waiting if run.get("auto_scheduled")), None)


def ping(green: bool, within_s: float = PING_S) -> str | None:
    """Ask for the address after a green end, ADDRESS/fail after a red one (the convention of healthchecks.io), and wait at most `within_s`.

    Returns what went wrong in words without the address, None if it was reached or none is set. Raises nothing.
    """
    try:
        url = addresses.secret_address(addresses.PING_URL)
    except UserError as error:
        return str(error)
    if not url:
        return None
    parts = urllib.parse.urlsplit(url)
    if not green:
        url = parts._replace(path=parts.path.rstrip("/") + "/fail").geturl()
    said: list[str] = []
    asking = threading.Thread(target=_ask, args=(url, within_s, said), daemon=True, name="ping")  # a name look-up knows no time-out
    asking.start()
    asking.join(within_s)
    if asking.is_alive():
        return f"{addresses.PING_URL}: no answer within {within_s:g} s"
    return f"{addresses.PING_URL}: {said[0]}" if said else None


def _ask(url: str, within_s: float, said: list[str]) -> None:
    try:
        if addresses.resolves_to_forbidden(urllib.parse.urlsplit(url).hostname or ""):
            said.append("leads to a link-local address, which is not asked")
            return
        request = urllib.request.Request(url, headers={"User-Agent": "lmworks"})
        addresses.opener(proxies=True).open(request, timeout=within_s).close()
    except urllib.error.HTTPError as error:
        said.append(f"answered {error.code}")
    except Exception as error:  # noqa: BLE001 - whatever it is, its text may hold the address
        said.append(f"cannot be reached ({type(getattr(error, 'reason', error)).__name__})")


# --- the question of a monitor -------------------------------------------------------------------

def verdict(layout: Layout, now_s: float) -> dict[str, dict[str, Any]]:
    """What `read` gives of each deployment, and "red": its last run that was not skipped failed; "age_s" of its last green one; "max_age_s"
    that this may be; "too_old"; "overdue_s": its schedule is active, and the first run that it asked for has not begun since.

    A run is too old only where a schedule is active: as Prefect's server says, or, where that does not answer, as it was when the
    last run ended. It may be as old as `operations.max_silence_s`, and older where the schedule asks for fewer runs.
    """
    known, active, setting_s = read(layout), _active(layout), _max_silence_s(layout)
    return {name: _judged(known.get(name), active, name, setting_s, now_s) for name in sorted({*known, *(active or {})})}


def _judged(told: dict[str, Any] | None, active: dict[str, float | None] | None, name: str, setting_s: int, now_s: float) -> dict[str, Any]:
    if told is None:
        planned_s = (active or {})[name]
        overdue_s = None if planned_s is None or now_s - planned_s <= SLACK_S else now_s - planned_s
        return {"first": None, "last": None, "judged": None, "last_green": None, "red": False, "age_s": None, "max_age_s": setting_s,
                "too_old": setting_s > 0 and overdue_s is not None, "overdue_s": overdue_s}
    origin = told["last_green"] or told["first"]
    ended_s, next_s = _seconds(origin["ended_at"]) or 0.0, _seconds(origin["next_at"])
    if next_s is None and told["last"] == origin:  # its schedule was made active since
        next_s = (active or {}).get(name)
    age_s = max(0.0, now_s - ended_s)
    max_age_s = setting_s if next_s is None or not setting_s else max(setting_s, round(next_s - ended_s + SLACK_S))
    watched = told["last"]["next_at"] is not None if active is None else name in active
    return {**told, "red": bool(told["judged"]) and not told["judged"]["green"], "age_s": age_s if told["last_green"] else None, "max_age_s": max_age_s,
            "too_old": watched and max_age_s > 0 and age_s > max_age_s, "overdue_s": None}


def _max_silence_s(layout: Layout) -> int:
    try:
        return settings.load(layout.params).operations.max_silence_s
    except UserError:  # the command that asks says so elsewhere; an alarm must not hang on it
        return settings.Config().operations.max_silence_s


def _iso(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).isoformat(timespec="seconds")


def _seconds(moment: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(moment).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _active(layout: Layout) -> dict[str, float | None] | None:
    """{deployment whose schedule is active: when it asks for the next run}; None where Prefect's server does not say."""
    url = services.address(layout, processes.PREFECT)
    if not url:
        return None
    api, found = rest.Prefect(f"{url}/api", timeout_s=2), {}
    try:
        for name, path in DEPLOYMENTS.items():
            try:
                deployment = api.get(f"/deployments/name/{path}")
            except rest.Unreachable as error:
                if error.status == 404:
                    continue
                raise
            if not deployment.get("paused") and any(schedule["active"] for schedule in deployment.get("schedules", [])):
                found[name] = _planned_s(api, deployment["id"])
    except rest.Unreachable:
        return None  # it does not answer: no second wait
    return found
