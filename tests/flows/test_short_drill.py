"""The drill `kills` in short, for `make test`: a chain of two small stages with real servers, killed in three ways, run again and compared."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import psutil
import pytest

from benchmarks.reliability import curves, file_kinds

pytestmark = pytest.mark.code


def ended(checkout: Any) -> dict[str, str]:
    """What a plain run leaves, byte by byte."""
    code, told, err = checkout.run()
    assert code == 0 and told["verdict"] in ("Ready", "Nothing changed"), (told, err)
    return {place: str(file_kinds.tree(checkout.root / "data" / place)) for place in ("first", "second")}


def kill(checkout: Any, running: Any, whom: str) -> None:
    stages = [process for process in psutil.process_iter(["cmdline", "cwd"]) if process.info["cwd"] == str(checkout.root) and "fake_stage.py" in (process.info["cmdline"] or [])]
    if whom == "the stage":
        for stage in stages:
            with contextlib.suppress(psutil.Error):
                stage.kill()
    else:
        (os.killpg if whom == "the whole group" else os.kill)(running.pid, signal.SIGKILL)
    running.communicate(timeout=120)
    assert stages, "it was killed while a stage worked"
    checkout.wait_for(lambda: checkout.processes_in() == [], f"nothing of a run outlives the kill of {whom}")


def test_C1_C2_C6_C15_a_chain_that_is_killed_in_three_ways_ends_as_if_nobody_had_touched_it(checkout: Any):
    for stage in ("first", "second"):
        checkout.wish(stage, "drilled wait")
    (checkout.root / "go").write_text("")
    untouched = ended(checkout)
    before = curves.left_open(checkout.root)  # by tests whose checkout this is, too
    try:
        for number, whom in enumerate(("the whole group", "the stage", "the top process")):
            stage = ("first", "second")[number % 2]
            (checkout.root / "go").unlink(missing_ok=True)
            (checkout.root / "asleep").unlink(missing_ok=True)
            checkout.wish(stage, f"drilled wait {number}")
            running = checkout.start()
            checkout.wait_for((checkout.root / "asleep").exists, f"{stage} works")
            kill(checkout, running, whom)
            checkout.wish(stage, "drilled wait")
        (checkout.root / "go").write_text("")
        assert ended(checkout) == untouched
        with contextlib.suppress(AssertionError):  # tasks reach Prefect's server as events, a moment later
            checkout.wait_for(lambda: curves.left_open(checkout.root) == before, "no run is left open", within_s=60)
        assert curves.left_open(checkout.root) == before
    finally:
        (checkout.root / "go").unlink(missing_ok=True)
        for stage in ("first", "second"):
            checkout.wish(stage, "1")
