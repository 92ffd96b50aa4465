"""Our own pages, opened from the disk by somebody who has no server and no network."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chains import FAULTY_FILE, Chains
from tests.browser.watched import watched

pytestmark = pytest.mark.browser

PAGES = {"blocked": ".lmworks/blocked/ingest/validation.html", "clean": "data/clean/validation.html", "evaluation": "data/evaluation/report.html"}
DATA_REPORT = "data/report.html"  # lies among the artifacts of a run, for whoever downloads it


def fonts(page: Page, selector: str) -> list[str]:
    """The fonts that the first such element was really drawn with."""
    session = page.context.new_cdp_session(page)
    session.send("DOM.enable")
    session.send("CSS.enable")
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    node = session.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
    return [font["familyName"] for font in session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]]


def data_report(chains: Chains, folder: Path) -> Path:
    kept = folder / "report.html"
    address = f"{chains.mlflow}/get-artifact?run_uuid={chains.promoted.runs['pretrain']}&path={DATA_REPORT}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        kept.write_bytes(answer.read())
    return kept


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", [*PAGES, "data"])
def test_a_page_opens_from_the_disk_and_asks_for_nothing(chromium: Browser, chains: Chains, which: str, scheme: str, tmp_path: Path):
    path = chains.checkout.root / PAGES[which] if which in PAGES else data_report(chains, tmp_path)
    with watched(chromium, offline=True, color_scheme=scheme) as visit:
        page = visit.page
        page.goto(path.as_uri())
        expect(page.locator("h1")).to_be_visible()
        assert page.locator("table").count() and page.title() not in ("", "run")
        assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
        targets = page.eval_on_selector_all("a[href^='#']", "links => links.map(link => link.getAttribute('href').slice(1))")
        assert all(page.evaluate("id => document.getElementById(id) !== null", target) for target in targets)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it has to be scrolled sideways"
        visit.picture(f"page-{which}-{scheme}")


def test_the_page_of_blocked_data_shows_chinese_and_runs_nothing_that_stood_in_the_data(chromium: Browser, chains: Chains):
    with watched(chromium, offline=True) as visit:
        page = visit.page
        page.goto((chains.checkout.root / PAGES["blocked"]).as_uri())
        expect(page.get_by_text(FAULTY_FILE).first).to_be_visible()
        expect(page.get_by_text("<script>").first).to_be_visible()
        assert page.title() != "run" and page.locator("img[src=x]").count() == 0
        assert any("CJK" in font or "Hei" in font or "Song" in font for font in fonts(page, ":lang(zh):not(:has(*))")), "no Chinese font was used"
