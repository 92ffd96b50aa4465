"""Chromium, and four finished chains with their servers. Without Chromium these tests are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is missing: make dev")

from playwright.sync_api import Browser

from tests.browser import chains as four
from tests.browser import watched as watching
from tests.checkout import copy_checkout

MADE = "LMWORKS_BROWSER_CHAINS"  # a folder in which the chains were made before and whose servers are up: for whoever writes these tests


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if watching.browser_path() is None:
        pytest.skip("Chromium is missing: sh infra/browser.sh")
    with watching.browser() as started:
        yield started


@pytest.fixture(scope="session")
def chains(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[four.Chains]:
    """Asks for the browser first: without one nothing is trained."""
    if made := os.environ.get(MADE):
        yield four.read(Path(made))
        return
    checkout = copy_checkout(tmp_path_factory.mktemp("browser") / "checkout")
    try:
        yield four.make(checkout)
    finally:
        checkout.lmworks("down", "--force", code=None)


@pytest.fixture(scope="session", autouse=True)
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: LMWORKS_SCREENSHOTS, else a temporary folder."""
    os.environ.setdefault(watching.PICTURES, str(tmp_path_factory.mktemp("screenshots")))
    return Path(os.environ[watching.PICTURES])


@pytest.fixture
def visit(chromium: Browser) -> Iterator[watching.Watched]:
    with watching.watched(chromium) as seen:
        yield seen
