"""Which addresses of the environment are taken, and that nobody is sent on to another host (J6)."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components import mlflow_rest
from components.errors import UserError
from components.layout import Layout
from components.operations import addresses, rest, services, silence
from components.operations.processes import MLFLOW, PREFECT

pytestmark = pytest.mark.code

BAD = ["file:///etc/passwd", "gopher://127.0.0.1:70/x", "ftp://127.0.0.1/x", "http://169.254.169.254/latest/meta-data", "http://2852039166/", "http://0xa9fea9fe/",
       "http://0251.0376.0251.0376/", "http://[::ffff:169.254.169.254]/", "http://[fe80::1%25eth0]/", "http://0.0.0.0:8080/", "http://224.0.0.1/", "http://metadata.google.internal/",
       "http://metadata./", "http://", "http://ex ample.org", "http://example.org\\@169.254.169.254/", "http://example.org:port/", "http://[::1", "javascript:alert(1)", "//example.org/x",
       "http://[fd00:ec2::254]/", "http://[FD00:0EC2:0:0::254]/", "http://100.100.100.200/", "http://1684301000/", "http://[::ffff:100.100.100.200]/", "http://example.org/\x00", "http://example.org/\r\nHost: evil"]


@pytest.mark.parametrize("url", BAD)
@pytest.mark.parametrize("variable", addresses.SECRETS)
def test_J6_an_address_that_may_hold_a_secret_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch, variable: str, url: str):
    if "\x00" in url:
        return  # the environment cannot hold it
    monkeypatch.setenv(variable, f"{url}?token=s3cret-value")
    with pytest.raises(UserError) as refused:
        addresses.secret_address(variable)
    assert str(refused.value).startswith(f"{variable} holds ") and "s3cret" not in str(refused.value) and "\n" not in str(refused.value)
    if variable == addresses.PING_URL:
        assert "s3cret" not in str(silence.ping(True))


@pytest.mark.parametrize("url", [url for url in BAD if "\x00" not in url])
@pytest.mark.parametrize("service", [MLFLOW, PREFECT], ids=lambda service: service.name)
def test_J6_the_address_of_a_server_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: Any, url: str):
    monkeypatch.setenv(service.variable, url)
    with pytest.raises(UserError, match=service.variable) as refused:
        services.ensure(Layout(root=tmp_path), mlflow=service is MLFLOW, prefect=service is PREFECT)
    assert "\n" not in str(refused.value) and not (tmp_path / ".lmworks" / "services.json").exists()


@pytest.mark.parametrize("url", ["https://hooks.slack.com/services/T0/B0/x", "http://10.0.0.7:8080/alert", "http://127.0.0.1:9/x", "http://[::1]:9/x", "https://报警.example/路径"])
def test_addresses_of_people_are_taken(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv(addresses.ALERT_WEBHOOK, url)
    assert addresses.secret_address(addresses.ALERT_WEBHOOK) == url


@dataclass
class Site:
    """A server that sends everybody on to `to`, and remembers who came."""

    url: str
    to: str = ""
    seen: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Authorization)


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    """Two of them, on the same machine and different ports: two hosts as far as addresses go."""
    made: list[Site] = []
    running = []
    for _ in range(2):
        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                site = made[self.server.number]  # type: ignore[attr-defined]
                site.seen.append((self.path, self.headers.get("Authorization")))
                self.send_response(302 if site.to and self.path != "/end" else 200)
                if site.to:
                    self.send_header("Location", site.to)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                """Silent."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.number = len(made)  # type: ignore[attr-defined]
        made.append(Site(f"http://127.0.0.1:{server.server_port}"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
    yield made[0], made[1]
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("to", ["{}/end", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "http://169.254.169.254/latest"])
def test_J6_nobody_is_sent_on_to_another_host(sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, to: str):
    first, other = sites
    first.to = to.format(other.url)
    monkeypatch.setenv(addresses.PING_URL, f"{first.url}/ping")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret-value")
    assert silence.ping(True) == f"{addresses.PING_URL}: answered 302"
    with pytest.raises(mlflow_rest.Unreachable, match="it sends to another address .*, which is not followed|is not allowed"):
        mlflow_rest.call(first.url, "GET", "experiments/search")
    with pytest.raises(rest.Unreachable, match="answered 302: .*(it sends to another address|is not allowed)"):
        rest.call(f"{first.url}/api/health")
    assert other.seen == [] and len(first.seen) == 3, "the other host heard nothing, above all no Authorization"


def test_a_redirect_within_the_host_is_followed(sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch):
    first, _ = sites
    first.to = f"{first.url}/end"
    monkeypatch.setenv(addresses.PING_URL, f"{first.url}/ping")
    assert silence.ping(True) is None and [path for path, _ in first.seen] == ["/ping", "/end"]


def test_J6_a_name_that_leads_to_a_link_local_address_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(addresses.PING_URL, "http://innocent.example/ping")
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_args, **_named: [(2, 1, 6, "", ("169.254.169.254", 0))])
    assert silence.ping(True) == f"{addresses.PING_URL}: leads to a link-local address, which is not asked"


def test_an_outside_prefect_hears_who_calls(sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:open")
    rest.Prefect(f"{sites[0].url}/api").get("/flows")
    assert sites[0].seen == [("/api/flows", "Basic YWRtaW46b3Blbg==")]


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("ask", [lambda url: rest.call(url, timeout_s=0.5), lambda url: mlflow_rest.call(url, "GET", "x", timeout_s=0.5)], ids=["rest", "mlflow_rest"])
def test_F1_an_answer_that_drips_in_without_end_is_given_up(ask: Callable[[str], Any], status: int):
    asked_enough = threading.Event()

    class Dripping(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not asked_enough.wait(0.05):
                    self.wfile.write(b" ")

        def log_message(self, *_: Any) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            with pytest.raises((rest.Unreachable, mlflow_rest.Unreachable), match="too slowly|answered 500"):
                ask(f"http://127.0.0.1:{server.server_port}")
        finally:
            asked_enough.set()
            server.shutdown()
