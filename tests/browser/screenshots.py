"""The pictures of the README, of a real run: python -m tests.browser.screenshots [FOLDER]

FOLDER is a checkout (default: this one) whose servers are up (`lmworks up`) and that has released two models of its NAME.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect

from components import config, files
from components.errors import UserError
from components.layout import ROOT, Layout
from components.mlflow_rest import call
from tests.browser import opening
from tests.browser.watched import browser, browser_path, watched

TARGET = ROOT / "infra" / "screenshots"
SIZE: ViewportSize = {"width": 1440, "height": 860}
WIDE: ViewportSize = {"width": 1720, "height": 1020}  # the frame in which MLflow shows a report is half as wide as its page
MAX_BYTES = 200_000
COLOURS = 256


def take(layout: Layout, target: Path) -> list[Path]:
    """Raises UserError where there is nothing to show, and AssertionError where a page does not show it."""
    if browser_path() is None:
        raise UserError("Chromium is missing. Run: sh infra/browser.sh")
    name = config.load(layout.params).name
    services = files.read_json(layout.services) if layout.services.exists() else {}
    if "mlflow" not in services:
        raise UserError(f"the servers of {layout.root} are down. Run there: lmworks up")
    mlflow = services["mlflow"]["url"]
    experiment, run_id, flow_run = _newest(mlflow, name)
    target.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Page], None]] = {
        "mlflow-run": lambda page: _run(page, mlflow, experiment, run_id),
        "mlflow-comparison": lambda page: _comparison(page, mlflow, experiment),
        "mlflow-registry": lambda page: _registry(page, mlflow, name),
        "mlflow-report": lambda page: _report(page, mlflow, experiment, run_id),
        "prefect-run": lambda page: _flow_run(page, flow_run),
    }
    return [_picture(show, target / f"{title}.png", WIDE if title == "mlflow-report" else SIZE) for title, show in pictures.items()]


def _newest(mlflow: str, name: str) -> tuple[str, str, str]:
    """(experiment, the base model's newest released run, the page of its Prefect run)."""
    experiment = call(mlflow, "GET", f"experiments/get-by-name?experiment_name={name}")["experiment"]["experiment_id"]
    wanted = "tags.`lmworks.stage` = 'pretrain' AND tags.`lmworks.verdict` LIKE '%'"
    found = call(mlflow, "POST", "runs/search", {"experiment_ids": [experiment], "filter": wanted, "order_by": ["attributes.start_time DESC"]}).get("runs")
    if not found:
        raise UserError(f"{mlflow} has no released model of {name}. Run: lmworks run")
    tags = {tag["key"]: tag["value"] for tag in found[0]["data"]["tags"]}
    return experiment, found[0]["info"]["run_id"], tags["lmworks.prefect_run"]


def _picture(show: Callable[[Page], None], path: Path, size: ViewportSize) -> Path:
    with browser() as started, watched(started, size=size) as visit:
        show(visit.page)
        visit.page.wait_for_timeout(2000)  # charts and graphs draw themselves
        visit.page.screenshot(path=path, animations="disabled")
    with Image.open(path) as taken:  # a palette: a third of the size, and text as sharp as before
        small = taken.convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    assert path.stat().st_size < MAX_BYTES, f"{path} has {path.stat().st_size} bytes"
    return path


def _run(page: Page, mlflow: str, experiment: str, run_id: str) -> None:
    opening.run(page, mlflow, experiment, run_id)
    opening.shown(page, "The run in Prefect")
    opening.shown(page, "train/loss")


def _comparison(page: Page, mlflow: str, experiment: str) -> None:
    opening.runs(page, mlflow, experiment)
    for target in opening.side_by_side(page):
        target.click()
    expect(page.get_by_role("link", name=re.compile("^finetune ")).nth(3)).to_be_visible(timeout=opening.SLOW)


def _registry(page: Page, mlflow: str, name: str) -> None:
    opening.model(page, mlflow, name)
    opening.shown(page, "How to call it")


def _report(page: Page, mlflow: str, experiment: str, run_id: str) -> None:
    opening.run(page, mlflow, experiment, run_id, "/artifacts/evaluation/report.html")
    expect(page.frame_locator("iframe#html").locator("table").first).to_be_visible(timeout=opening.SLOW)


def _flow_run(page: Page, address: str) -> None:
    page.goto(address)
    opening.shown(page, re.compile("repro --single-item"))


def main() -> None:
    layout = Layout(root=Path(sys.argv[1]).resolve()) if sys.argv[1:] else Layout()
    try:
        for path in take(layout, TARGET):
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1000} kB")
    except UserError as error:
        sys.exit(f"screenshots: {error}")


if __name__ == "__main__":
    main()
