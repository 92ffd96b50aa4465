"""The figure `kills`, short: one chain of `smoke`, killed in six ways, then held against an untouched one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability import kills, places
from benchmarks.reliability.drilled import Drilled
from tests.checkout import copy_checkout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_C1_C2_C6_C7_C9_C15_killed_in_six_ways_the_chain_ends_as_if_nobody_had_touched_it(tmp_path: Path):
    checkout = Drilled(copy_checkout(tmp_path / "checkout").root, tmp_path / "scratch")
    try:
        reference = kills.untouched(checkout)
        assert all(reference.last_checkpoint(stage) >= 3 * reference.intervals[stage] for stage in reference.steps), "three checkpoints a training"
        checkout.reset()
        done = [kills.killed(checkout, reference, moment, kind, number, moment.step is not None) for number, (kind, moment) in enumerate([
            ("group", kills.Moment("clean", None, 0.5)), ("top", kills.Moment("pretrain", 70, 0.0)),
            ("everything", kills.Moment("finetune", 35, 0.0)), ("stage", kills.Moment("evaluate", None, 0.5))], 1)]
        assert all(done)
        assert [(kill.killed, kill.stage) for kill in done if kill] == [
            ("the whole run", "clean"), ("the top process", "pretrain"), ("the whole run and both servers", "finetune"), ("the stage", "evaluate")]
        for place in ("registry.version_created", "registry.alias_moved"):
            assert checkout.start(places.point(place)).end() == -9
        told = kills.finished(checkout, reference, ["six kills"])
    finally:
        checkout.lmworks("down", "--force")
    assert told["exit_code"] == 0 and told["tries"] == 1
    assert told["verdict"] == "Promoted"
    for what in ("registry", "different", "over_bound", "strays", "left_open", "leftovers"):
        assert told[what] == [], what
    assert told["points"] == {"lost": [], "doubled": [], "changed": []} and told["extra_runs"] == 0
    assert [len(lives) for lives in (told["steps"]["pretrain"]["lives"], told["steps"]["finetune"]["lives"])] == [2, 2], "both were killed once"
