"""The watch itself: what it must not let pass."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browser.watched import watched

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("page", "said"), [
    ('<img src="http://picture.example.org/a.png">', "requests that would leave the machine.*picture.example.org"),
    ('<link rel="stylesheet" href="https://203.0.113.7/a.css">', "requests that would leave the machine.*203.0.113.7"),
    ("<script>console.error('a word of ours')</script>", "a word of ours"),
    ("<script>throw new Error('thrown by us')</script>", "thrown by us"),
])
def test_a_request_that_leaves_the_machine_and_a_complaint_are_seen(chromium: Browser, page: str, said: str):
    with pytest.raises(AssertionError, match=said):
        with watched(chromium) as visit:
            visit.page.set_content(page)


def test_a_quiet_page_passes(chromium: Browser):
    with watched(chromium) as visit:
        visit.page.set_content("<h1>Nothing</h1>")
