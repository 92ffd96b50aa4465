"""Prefect's pages after four chains: what whoever is on call sees, click by click, without a shell."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser import opening
from tests.browser.chains import BLOCKED_NAME, FAULTY_FILE, NAME, Chains
from tests.browser.opening import SLOW, shown
from tests.browser.watched import Watched

pytestmark = pytest.mark.browser

def run_link(page: Page, address: str):
    return page.locator(f"a[href$='{address.rsplit('/', 1)[1]}']").first


def test_the_dashboard_opens(visit: Watched, chains: Chains):
    visit.page.goto(f"{chains.prefect}/dashboard")
    shown(visit.page, "Flow Runs")
    visit.picture("prefect-dashboard")


def test_the_list_of_runs_says_who_when_and_what(visit: Watched, chains: Chains):
    page = visit.page
    page.goto(f"{chains.prefect}/runs")
    for chain, verdict in ((chains.promoted, "Promoted"), (chains.refused, "Not promoted"), (chains.blocked, "Blocked")):
        expect(run_link(page, chain.flow_run)).to_contain_text(re.compile(rf"^({NAME}|{BLOCKED_NAME}) \d{{4}}-\d\d-\d\d \d\d:\d\d UTC corpus "), timeout=SLOW)
        shown(page, re.compile(f"^{verdict}$"))
    visit.picture("prefect-runs")


def test_the_reason_of_a_failure_is_there_after_two_clicks(visit: Watched, chains: Chains):
    page, clicks = visit.page, 0
    page.goto(f"{chains.prefect}/runs")
    run_link(page, chains.blocked.flow_run).click()
    clicks += 1
    expect(page.get_by_text(re.compile(rf"validation of the raw documents stopped the chain.*{FAULTY_FILE}", re.S)).first).to_be_attached(timeout=SLOW)  # in the log
    opening.flow_run_tab(page, "Details").click()
    clicks += 1
    assert clicks <= 2
    shown(page, "ingest: validation of the raw documents stopped the chain")
    shown(page, "Blocked")
    visit.picture("prefect-reason")


def test_a_failed_run_has_the_whole_log_and_the_rows_at_fault(visit: Watched, chains: Chains):
    page = visit.page
    page.goto(chains.blocked.flow_run)
    shown(page, re.compile("repro --single-item ingest"))  # the log, which this page opens with
    page.wait_for_timeout(1500)  # the graph of its stages is drawn
    visit.picture("prefect-blocked")
    opening.flow_run_tab(page, "Artifacts").click()
    page.locator("a[href*='/artifacts/']").filter(visible=True).first.click()
    shown(page, "Why ingest was blocked")
    shown(page, FAULTY_FILE)
    shown(page, "<script>")  # as text
    assert page.title() != "run"
    visit.picture("prefect-artifact-blocked")


def test_the_run_of_a_promoted_model_shows_its_stages_and_its_verdict(visit: Watched, chains: Chains):
    page = visit.page
    page.goto(chains.promoted.flow_run)
    shown(page, "Promoted")
    shown(page, re.compile("pretrain is|pretrain runs|\\$ -m dvc"))
    page.wait_for_timeout(1500)  # the graph of its stages is drawn
    visit.picture("prefect-run")
    opening.flow_run_tab(page, "Artifacts").click()
    page.locator("a[href*='/artifacts/']").filter(visible=True).first.click()
    for section in ("Stages", "Gates", "Look at"):
        expect(page.get_by_role("heading", name=section, exact=True).first).to_be_visible(timeout=SLOW)
    visit.picture("prefect-artifact")


def test_a_run_that_lost_its_plug_is_crashed_and_no_longer_running(visit: Watched, chains: Chains):
    visit.page.goto(chains.killed.flow_run)
    shown(visit.page, "Crashed")
