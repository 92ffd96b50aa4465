"""The silence alarm: how scheduled runs ended, an address outside that is pinged, and whether the last green one is too old.

What runs on this machine cannot tell that this machine is off; so the ping's receiver, or a monitor that asks `lmworks status`,
raises the alarm when nothing comes.
"""

from __future__ import annotations

import threading
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
FORMAT = 1
MAX_MESSAGE_CHARS = 500
NEUTRAL = "Skipped"  # it made nothing and broke nothing: no red end, and no proof that the nights are fine
DEPLOYMENTS = ("lmworks-refresh/refresh", "lmworks-chain/chain")  # those that prefect.yaml gives a schedule


# --- the end of a run ----------------------------------------------------------------------------

def record(layout: Layout, *, deployment: str, flow_run: str, verdict: str, message: str, green: bool) -> None:
    """Write .lmworks/scheduled.json: this run is the last, and the last green one if it is. Raises UserError (disk)."""
    told = {"deployment": deployment, "flow_run": flow_run, "verdict": verdict, "message": message[:MAX_MESSAGE_CHARS], "green": green,
            "ended_at": datetime.now(UTC).isoformat(timespec="seconds")}
    with files.lock(layout.state / "scheduled.lock", what="the end of another scheduled run", wait_s=5):
        proof = green and verdict != NEUTRAL
        files.write_sealed(layout.scheduled, {"format": FORMAT, "last": told, "last_green": told if proof else read(layout)["last_green"]})


def read(layout: Layout) -> dict[str, Any]:
    """{"last", "last_green"}, each None if there was none (or the file is damaged: then the next run writes it again)."""
    try:
        told = files.read_sealed(layout.scheduled)
    except (OSError, UserError):
        told = None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        told = {}
    return {"last": told.get("last"), "last_green": told.get("last_green")}


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

def verdict(layout: Layout, now_s: float) -> dict[str, Any]:
    """{"last", "last_green", "age_s", "too_old", "max_age_s"}: how old the last green scheduled run is, and whether that is too old.

    It counts only where a scheduled run has ended before or a schedule is active; until the first one has ended, from when the
    schedule was last changed. `age_s` is None where there is nothing to count from.
    """
    told, max_age_s = read(layout), _max_age_s(layout)
    since = told["last_green"] and _seconds(told["last_green"].get("ended_at"))
    never_green = told["last"] is not None and told["last"].get("verdict") != NEUTRAL and since is None
    if since is None and not never_green:
        since = _active_since(layout)
    age_s = None if since is None else max(0.0, now_s - since)
    too_old = max_age_s > 0 and (never_green or (age_s is not None and age_s > max_age_s))
    return {**told, "age_s": None if told["last_green"] is None else age_s, "too_old": too_old, "max_age_s": max_age_s}


def _max_age_s(layout: Layout) -> int:
    try:
        return settings.load(layout.params).operations.max_silence_s
    except UserError:  # the command that asks says so elsewhere; an alarm must not hang on it
        return settings.Config().operations.max_silence_s


def _seconds(moment: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(moment).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _active_since(layout: Layout) -> float | None:
    """When the newest change made a schedule active, as far as Prefect's server can be asked."""
    url = services.address(layout, processes.PREFECT)
    found: list[float] = []
    for name in DEPLOYMENTS if url else ():
        try:
            deployment = rest.call(f"{url}/api/deployments/name/{name}", timeout_s=2)
        except rest.Unreachable as error:
            if error.status is None:
                break  # it does not answer: no second wait
            continue
        found += [moment for schedule in deployment.get("schedules", []) if schedule["active"] and (moment := _seconds(schedule["updated"])) is not None]
    return min(found, default=None)
