"""How the pages of MLflow and Prefect are opened, for the tests and for the README's pictures."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

SLOW = 30_000  # a wait, in milliseconds, not a promise


def shown(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.get_by_text(text).filter(visible=True).first).to_be_visible(timeout=SLOW)


def runs(page: Page, mlflow: str, experiment: str) -> None:
    page.goto(f"{mlflow}/#/experiments/{experiment}/runs")
    expect(page.get_by_test_id("saved-views-trigger")).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("link", name=re.compile("^(pretrain|finetune) ")).first).to_be_visible(timeout=SLOW)


def run(page: Page, mlflow: str, experiment: str, run_id: str, part: str = "") -> None:
    page.goto(f"{mlflow}/#/experiments/{experiment}/runs/{run_id}{part}")
    expect(page.get_by_role("heading", name=re.compile("^(pretrain|finetune) ")).first).to_be_visible(timeout=SLOW)


def side_by_side(page: Page) -> list[Locator]:
    """From the list of runs: what is clicked, in order, until the answers of two models stand side by side."""
    return [page.get_by_test_id("saved-views-trigger"), page.get_by_role("menuitem").filter(has_text="Champion against candidate").first,
            page.locator("label:has(input[value=ARTIFACT])")]


def unfold(page: Page) -> None:
    """The whole description, where MLflow has folded it."""
    shown(page, "Description")
    more = page.get_by_text("Show more", exact=True)
    expect(more.first).to_be_visible(timeout=SLOW)
    more.first.click()


def followed(page: Page, name: str) -> Page:
    """The page that a link of a description opens, in a tab of its own; the description stays folded, as it is for who just arrived."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=name, exact=True).first.click()
    return opened.value


def model(page: Page, mlflow: str, name: str) -> None:
    page.goto(f"{mlflow}/#/models/{name}")
    expect(page.get_by_role("heading", name=name).first).to_be_visible(timeout=SLOW)


def flow_run_tab(page: Page, name: str) -> Locator:
    return page.get_by_role("tab", name=name).or_(page.get_by_text(name, exact=True)).first
