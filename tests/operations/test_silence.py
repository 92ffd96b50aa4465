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


def ends(layout: Layout, verdict: str, green: bool) -> None:
    silence.record(layout, deployment="refresh", flow_run="http://127.0.0.1:1/runs/flow-run/x", verdict=verdict, message="数据 not valid", green=green)


def test_a_checkout_without_scheduled_runs_is_not_silent(layout: Layout):
    told = silence.verdict(layout, time.time())
    assert told == {"last": None, "last_green": None, "age_s": None, "too_old": False, "max_age_s": 26 * 3600}


def test_the_last_green_run_stays_known_through_red_and_skipped_ones(layout: Layout):
    ends(layout, "Ready", True)
    ends(layout, "Blocked", False)
    ends(layout, "Skipped", True)
    now_s = time.time()
    told = silence.verdict(layout, now_s)
    assert (told["last"]["verdict"], told["last_green"]["verdict"], told["last"]["message"]) == ("Skipped", "Ready", "数据 not valid")
    assert abs(told["age_s"] - (now_s - datetime.fromisoformat(told["last_green"]["ended_at"]).timestamp())) < 1e-6
    assert not told["too_old"]
    assert not silence.verdict(layout, now_s + 25 * 3600)["too_old"] and silence.verdict(layout, now_s + 27 * 3600)["too_old"]


def test_a_schedule_whose_runs_were_never_green_is_too_old_at_once(layout: Layout):
    ends(layout, "Failed", False)
    told = silence.verdict(layout, time.time())
    assert told["too_old"] and told["age_s"] is None and told["last_green"] is None


def test_zero_means_never(layout: Layout):
    layout.params.write_text(settings.render(settings.build({"operations.max_silence_s": 0}, where="test")))
    ends(layout, "Ready", True)
    assert not silence.verdict(layout, time.time() + 400 * DAY_S)["too_old"]


def test_B5_settings_or_a_record_that_cannot_be_read_hang_no_monitor(layout: Layout):
    ends(layout, "Ready", True)
    layout.params.write_text("operations: [")
    assert silence.verdict(layout, time.time() + 27 * 3600)["too_old"]
    layout.scheduled.write_text('{"format": 1, "la')
    assert silence.read(layout) == {"last": None, "last_green": None}
    ends(layout, "Ready", True)
    assert silence.read(layout)["last_green"]["verdict"] == "Ready"


def test_an_active_schedule_that_never_ran_is_counted_from_its_change(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    switched_on = datetime.fromtimestamp(time.time() - 2 * DAY_S, UTC).isoformat().replace("+00:00", "Z")
    schedules = [{"active": False, "updated": "2020-01-01T00:00:00Z"}, {"active": True, "updated": switched_on}]
    monkeypatch.setattr(silence.services, "address", lambda *_: "http://127.0.0.1:1")
    monkeypatch.setattr(silence.rest, "call", lambda *_, **__: {"schedules": schedules})
    assert silence.verdict(layout, time.time())["too_old"]
    schedules[1]["active"] = False
    assert not silence.verdict(layout, time.time())["too_old"]


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
