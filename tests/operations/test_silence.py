"""The silence alarm: what is kept of scheduled runs, when their silence is too long, and the ping to an outside monitor."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components import config as settings
from components.layout import Layout
from components.operations import addresses, silence

pytestmark = [pytest.mark.code]
DAY_S = 86_400


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    found = Layout(root=tmp_path)
    found.params.write_text(settings.render(settings.Config()))
    return found


def ends(layout: Layout, verdict: str, green: bool, *, deployment: str = "refresh", next_s: float | None = DAY_S) -> None:
    """A run of a deployment ends now; its schedule asks for the next one `next_s` from now (None: it has no active schedule)."""
    silence.record(layout, deployment=deployment, flow_run="http://127.0.0.1:1/runs/flow-run/x", verdict=verdict, message="数据 not valid", green=green,
                   next_s=None if next_s is None else time.time() + next_s)


def too_old(layout: Layout, after_s: float, deployment: str = "refresh") -> bool:
    return silence.verdict(layout, time.time() + after_s)[deployment]["too_old"]


def test_a_checkout_without_scheduled_runs_is_not_silent(layout: Layout):
    assert silence.verdict(layout, time.time()) == {}


def test_the_last_green_run_stays_known_through_red_and_skipped_ones(layout: Layout):
    ends(layout, "Ready", True)
    ends(layout, "Blocked", False)
    ends(layout, "Skipped", True)
    now_s = time.time()
    told = silence.verdict(layout, now_s)["refresh"]
    assert (told["last"]["verdict"], told["judged"]["verdict"], told["last_green"]["verdict"]) == ("Skipped", "Blocked", "Ready")
    assert told["red"], "a skipped run does not make the red one before it good"
    assert abs(told["age_s"] - (now_s - datetime.fromisoformat(told["last_green"]["ended_at"]).timestamp())) < 1e-6
    assert not too_old(layout, 25 * 3600) and too_old(layout, 27 * 3600)
    ends(layout, "Nothing changed", True)
    assert not silence.verdict(layout, time.time())["refresh"]["red"]


def test_each_deployment_is_judged_by_itself(layout: Layout):
    ends(layout, "Failed", False, deployment="chain", next_s=7 * DAY_S)
    ends(layout, "Ready", True)
    ends(layout, "Promoted", True, deployment="release", next_s=None)
    told = silence.verdict(layout, time.time())
    assert {name: one["red"] for name, one in told.items()} == {"chain": True, "refresh": False, "release": False}
    assert told["chain"]["age_s"] is None and told["chain"]["last_green"] is None
    assert not too_old(layout, 400 * DAY_S, "release"), "it has no schedule that could miss a date"


def test_a_weekly_schedule_may_be_silent_for_a_week(layout: Layout):
    ends(layout, "Promoted", True, deployment="chain", next_s=7 * DAY_S)
    assert not too_old(layout, 7 * DAY_S + 3600, "chain") and too_old(layout, 7 * DAY_S + 3 * 3600, "chain")


def test_nights_that_are_all_skipped_are_silent_in_the_end(layout: Layout):
    for _ in range(3):
        ends(layout, "Skipped", True)
    assert not silence.verdict(layout, time.time())["refresh"]["red"]
    assert not too_old(layout, 25 * 3600) and too_old(layout, 27 * 3600)


def test_zero_means_never(layout: Layout):
    layout.params.write_text(settings.render(settings.build({"operations.max_silence_s": 0}, where="test")))
    ends(layout, "Ready", True)
    assert not too_old(layout, 400 * DAY_S)


def test_B5_settings_or_a_record_that_cannot_be_read_hang_no_monitor(layout: Layout):
    ends(layout, "Ready", True)
    layout.params.write_text("operations: [")
    assert too_old(layout, 27 * 3600)
    layout.scheduled.write_text('{"format": 2, "la')
    assert silence.read(layout) == {}
    ends(layout, "Ready", True)
    assert silence.read(layout)["refresh"]["last_green"]["verdict"] == "Ready"


class Planner:
    """What of Prefect's API is asked here. The real one is asked in tests/flows/test_deployments.py."""

    def __init__(self, active: bool, planned_s: float):
        self.active, self.planned_s, self.paused = active, planned_s, False

    def get(self, path: str) -> dict[str, object]:
        if path.endswith("chain"):
            raise silence.rest.Unreachable("no such deployment", 404)
        return {"id": "7", "paused": self.paused, "schedules": [{"active": False}, {"active": self.active}]}

    def send(self, path: str, body: object) -> list[dict[str, object]]:
        start = datetime.fromtimestamp(self.planned_s, UTC).isoformat().replace("+00:00", "Z")
        return [{"auto_scheduled": False, "expected_start_time": "2020-01-01T00:00:00Z"}, {"auto_scheduled": True, "expected_start_time": start}]


def test_what_prefect_says_of_a_schedule_counts(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    planner = Planner(active=True, planned_s=time.time() + 3600)
    monkeypatch.setattr(silence.services, "address", lambda *_: "http://127.0.0.1:1")
    monkeypatch.setattr(silence.rest, "Prefect", lambda *_, **__: planner)
    assert silence.verdict(layout, time.time())["refresh"]["last"] is None and not too_old(layout, 0)
    assert too_old(layout, 4 * 3600), "its first run has not begun long after its date"
    ends(layout, "Ready", True)
    assert too_old(layout, 27 * 3600)
    planner.paused = True
    assert not too_old(layout, 27 * 3600), "somebody paused it: Prefect asks for no run then"
    planner.paused, planner.active = False, False
    assert not too_old(layout, 27 * 3600), "somebody switched it off"
    ends(layout, "Ready", True, next_s=None)
    planner.active, planner.planned_s = True, time.time() + 7 * DAY_S
    assert not too_old(layout, 3 * DAY_S) and too_old(layout, 8 * DAY_S), "switched on after its last run: its date counts"


# --- the ping ------------------------------------------------------------------------------------

@pytest.fixture
def monitor() -> Iterator[tuple[str, list[str]]]:
    """(address, paths asked for)."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404 if "gone" in self.path else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_green_asks_for_the_address_and_red_for_its_fail(monitor: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch):
    address, asked = monitor
    monkeypatch.setenv(addresses.PING_URL, f"{address}/s3cret?create=1")
    assert silence.ping(True) is None and silence.ping(False) is None
    assert asked == ["/s3cret?create=1", "/s3cret/fail?create=1"]
    monkeypatch.delenv(addresses.PING_URL)
    assert silence.ping(True) is None and len(asked) == 2, "without the setting nothing leaves"


def test_trouble_is_told_without_the_address(monitor: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes the call and never answers
        for wrong, words in ((f"{monitor[0]}/gone/s3cret", "answered 404"), ("http://127.0.0.1:9/s3cret", "cannot be reached (ConnectionRefusedError)"),
                             ("s3cret", "no http or https address"), (f"http://127.0.0.1:{deaf.getsockname()[1]}/s3cret", "")):
            monkeypatch.setenv(addresses.PING_URL, wrong)
            told = silence.ping(True, within_s=0.3)
            assert told is not None and words in told and "s3cret" not in told and "127.0.0.1" not in told


def test_F1_a_monitor_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(addresses.PING_URL, "http://a.example/s3cret")
    release = threading.Event()
    monkeypatch.setattr(addresses, "resolves_to_forbidden", lambda _: release.wait(30))  # a name look-up that hangs knows no time-out
    assert silence.ping(True, within_s=0.1) == "LMWORKS_PING_URL: no answer within 0.1 s"
    release.set()
