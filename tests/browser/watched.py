"""A browser that keeps what its pages asked for and what they complained of, and reaches nothing but this machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HERE = ("127.0.0.1", "localhost")
OWN_SCHEMES = ("data", "blob", "about", "file", "chrome-error")
PICTURES = "LMWORKS_SCREENSHOTS"
SIZE: ViewportSize = {"width": 1500, "height": 950}
WAIT_MS = 30_000  # a page of MLflow is 5 MB of script, and the machine may be busy
# MLflow opens its assistant by itself at the first visit
SETTINGS = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
# What MLflow's and Prefect's own pages complain of, whatever they show: (where it was raised, what it says)
KNOWN: tuple[tuple[str, str], ...] = (
    (r"/ajax-api/2\.0/mlflow/users/current$", "404"),  # who is logged in, where nobody has to
    (r":\d+/favicon\.ico$", "404"),  # Prefect has none at that address
    (r"/static-files/static/js/main\.\w+\.js$", "ResizeObserver loop completed with undelivered notifications"),  # a chart of MLflow that is resized while it draws
    (r"/artifacts/artifact/", r"Cannot read properties of null \(reading 'position'\)"),  # Prefect's graph of stages, left for another page while it draws
    (r"/ico/undefined\.svg$", "404"),  # an icon of Prefect's graph of stages
)


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@dataclass
class Watched:
    """A page, and what was seen of it. `check` raises AssertionError for a request that would leave the machine and for an unknown complaint."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def check(self) -> None:
        outside = [url for url in self.requests if urlsplit(url).scheme not in OWN_SCHEMES and urlsplit(url).hostname not in HERE]
        assert not outside, f"requests that would leave the machine: {outside}"
        assert not self.complaints, f"the console says: {self.complaints}"

    def picture(self, name: str, page: Page | None = None) -> None:
        """Kept as NAME.png in the folder that LMWORKS_SCREENSHOTS names. `page`: another tab than the first."""
        page = page or self.page
        folder = Path(os.environ[PICTURES])
        folder.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(700)  # what slides in has arrived
        page.screenshot(path=folder / f"{name}.png", animations="disabled")


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium of the distribution. Names other than this machine's are not even looked up."""
    only_here = ", ".join(f"EXCLUDE {host}" for host in HERE)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser_path(), args=[
            "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", f"--host-resolver-rules=MAP * ~NOTFOUND, {only_here}"])
        yield started
        started.close()


@contextmanager
def watched(started: Browser, size: ViewportSize = SIZE, **how: object) -> Iterator[Watched]:
    """A visitor who was never here before. What its pages did is checked at the end."""
    context: BrowserContext = started.new_context(viewport=size, locale="en-GB", timezone_id="UTC", **how)
    context.add_init_script(f"try {{ {SETTINGS} }} catch {{}}")
    context.set_default_timeout(WAIT_MS)
    seen = Watched(context.new_page())
    seen.page.on("websocket", lambda socket: seen.requests.append(socket.url))
    context.on("page", lambda page: page.on("websocket", lambda socket: seen.requests.append(socket.url)))
    context.on("request", lambda request: seen.requests.append(request.url))
    context.on("console", lambda message: _heard(seen, message))
    context.on("weberror", lambda error: _complain(seen, error.page.url if error.page else "", f"uncaught: {error.error}"))
    try:
        yield seen
        seen.check()
    finally:
        context.close()


def _heard(seen: Watched, message: ConsoleMessage) -> None:
    if message.type == "error":
        _complain(seen, message.location.get("url", ""), message.text)


def _complain(seen: Watched, place: str, text: str) -> None:
    if not any(re.search(where, place) and re.search(what, text) for where, what in KNOWN):
        seen.complaints.append(f"{place}: {text[:300]}")
