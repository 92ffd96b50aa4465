"""MLflow's pages after four chains: what the engineer and the consumer of the registry see, click by click."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser import opening
from tests.browser.chains import NAME, Chains
from tests.browser.opening import SLOW, shown
from tests.browser.watched import Watched

pytestmark = pytest.mark.browser
VIEWS = ("Training", "Champion against candidate", "Nightly")
CHINESE = re.compile("[一-鿿]{2,}")


def verdict_of(chains: Chains, name: str, number: int) -> str:
    """`passed` or `failed`, as the registry keeps it."""
    version = chains.checkout.mlflow("GET", f"model-versions/get?name={name}&version={number}")["model_version"]
    return {tag["key"]: tag["value"] for tag in version["tags"]}["gate.verdict"]


def test_the_experiment_has_one_row_a_model_with_a_name_to_say_and_our_views(visit: Watched, chains: Chains):
    page = visit.page
    opening.runs(page, chains.mlflow, chains.experiment)
    rows = page.get_by_role("link", name=re.compile(rf"^(pretrain|finetune) {NAME} \d+\.\d+M zh\+en seed 1 v\d+$"))
    expect(rows).to_have_count(6, timeout=SLOW)  # three chains trained, two models each: the killed life is no row of its own
    page.get_by_test_id("saved-views-trigger").click()
    for view in VIEWS:
        expect(page.get_by_role("menuitem").filter(has_text=view).first).to_be_visible(timeout=SLOW)
    visit.picture("mlflow-experiment")


@pytest.mark.parametrize(("view", "rows"), [("Training", 6), ("Nightly", 0)])
def test_a_view_of_ours_opens_on_its_rows(visit: Watched, chains: Chains, view: str, rows: int):
    """None of the four chains was asked for by a deployment."""
    page = visit.page
    opening.runs(page, chains.mlflow, chains.experiment)
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_role("menuitem").filter(has_text=view).first.click()
    expect(page.get_by_role("link", name=re.compile(f"^(pretrain|finetune) {NAME} "))).to_have_count(rows, timeout=SLOW)
    visit.picture(f"mlflow-view-{view.lower()}")


def test_two_models_answers_stand_side_by_side_after_three_clicks(visit: Watched, chains: Chains):
    page = visit.page
    opening.runs(page, chains.mlflow, chains.experiment)
    clicks = opening.side_by_side(page)
    assert len(clicks) <= 3
    for target in clicks:
        target.click()
    shown(page, "tables/answers.json")
    compared = page.get_by_role("link", name=re.compile(rf"^finetune {NAME} "))
    expect(compared.nth(3)).to_be_visible(timeout=SLOW)  # the list names each of the two once, the heads of the table once more
    shown(page, re.compile("[一-鿿]{4,}"))  # a Chinese prompt
    visit.picture("mlflow-comparison")


@pytest.mark.parametrize(("which", "number"), [("promoted", 1), ("refused", 2), ("resumed", 3)])
def test_the_page_of_a_run_says_its_verdict_and_where_to_look_on(visit: Watched, chains: Chains, which: str, number: int):
    page = visit.page
    opening.run(page, chains.mlflow, chains.experiment, getattr(chains, which).runs["pretrain"])
    verdict = verdict_of(chains, NAME, number)
    assert {"promoted": "passed", "refused": "failed"}.get(which, verdict) == verdict
    shown(page, "Passed its gate" if verdict == "passed" else "Did not pass its gate")
    shown(page, "Finished")
    shown(page, f"version {number} of {NAME}")
    for link in ("Evaluation", "Data and its validation", "Settings", "The run in Prefect"):
        expect(page.get_by_role("link", name=link, exact=True).first).to_be_visible(timeout=SLOW)
    for metric in ("val/bits_per_byte_best", "eval/bits_per_byte_zh", "train/loss"):
        page.get_by_placeholder("Search metrics").fill(metric)
        expect(page.get_by_role("link", name=metric, exact=True).first).to_be_visible(timeout=SLOW)
    page.get_by_placeholder("Search metrics").fill("")
    shown(page, "tokens/train")
    opening.unfold(page)
    shown(page, "below_unigram")
    shown(page, "with interval")


def test_the_run_in_prefect_is_one_click_away(visit: Watched, chains: Chains):
    page = visit.page
    opening.run(page, chains.mlflow, chains.experiment, chains.refused.runs["finetune"])
    there = opening.followed(page, "The run in Prefect")
    assert there.url == chains.refused.flow_run
    shown(there, "Not promoted")


def test_the_page_of_a_run_is_fit_for_a_picture(visit: Watched, chains: Chains):
    page = visit.page
    opening.run(page, chains.mlflow, chains.experiment, chains.resumed.runs["pretrain"])
    shown(page, "Registered models")
    shown(page, "eval/bits_per_byte_en")
    visit.picture("mlflow-run")


@pytest.mark.parametrize("which", ["promoted", "resumed"])
def test_the_machine_is_in_the_tab_of_system_metrics_after_a_resume_too(visit: Watched, chains: Chains, which: str):
    page = visit.page
    opening.run(page, chains.mlflow, chains.experiment, getattr(chains, which).runs["pretrain"], "/system-metrics")
    shown(page, "cpu_utilization_percentage")
    shown(page, "system_memory_usage_megabytes")
    visit.picture(f"mlflow-system-metrics-{which}")


@pytest.mark.parametrize(("link", "heading", "part"), [("Evaluation", NAME, CHINESE), ("Data and its validation", f"Data of {NAME}", "Chinese")])
def test_reports_open_inside_the_page(visit: Watched, chains: Chains, link: str, heading: str, part: str | re.Pattern[str]):
    page = visit.page
    opening.run(page, chains.mlflow, chains.experiment, chains.promoted.runs["pretrain"])
    there = opening.followed(page, link)
    frame = there.frame_locator("iframe#html")
    expect(frame.locator("h1")).to_contain_text(heading, timeout=SLOW)
    expect(frame.locator("table").first).to_be_visible(timeout=SLOW)
    expect(frame.get_by_text(part).first).to_be_attached(timeout=SLOW)
    visit.picture(f"mlflow-{link.split()[0].lower()}", there)


@pytest.mark.parametrize("name", [NAME, f"{NAME}-instruct"])
def test_the_registry_says_what_the_model_is_and_how_to_call_it(visit: Watched, chains: Chains, name: str):
    page = visit.page
    opening.model(page, chains.mlflow, name)
    for promised in ("is the champion.", "How to call it", "mlflow models serve", "curl", f"models:/{name}@champion", chains.mlflow, "Who was champion"):
        shown(page, promised)
    shown(page, re.compile("Version 3"))
    for alias in ("champion", "candidate"):
        shown(page, re.compile(rf"^@?\s*{alias}$"))
    if name == NAME:
        visit.picture("mlflow-registry")


@pytest.mark.parametrize(("which", "number"), [("refused", 2), ("resumed", 3)])
def test_a_version_says_in_three_lines_what_changed(visit: Watched, chains: Chains, which: str, number: int):
    page = visit.page
    page.goto(f"{chains.mlflow}/#/models/{NAME}/versions/{number}")
    expect(page.get_by_role("heading", name=f"Version {number}").first).to_be_visible(timeout=SLOW)
    for label in ("data", "settings", "scores"):
        expect(page.locator("li strong").filter(has_text=re.compile(label, re.I)).first).to_be_visible(timeout=SLOW)
    shown(page, "training.steps")
    shown(page, "Its gate passed" if verdict_of(chains, NAME, number) == "passed" else "Its gate said no")
    shown(page, "max_new_tokens")  # the params of the signature
    visit.picture(f"mlflow-version-{number}")
