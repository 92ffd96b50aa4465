"""What the drill counts: a figure that cannot be missed measures nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.reliability import disk, outages
from components import files

pytestmark = pytest.mark.code


def stepping(*gaps_ms: int) -> list[tuple[int, int]]:
    """Points (step, ms), the given times apart."""
    return [(step, sum(gaps_ms[:step])) for step in range(len(gaps_ms) + 1)]


def test_one_long_stall_makes_the_mean_step_longer_wherever_it_lies():
    steady = outages.of_window(stepping(*[100] * 100), 1000, 9000)
    assert steady == {"step_s": 0.1, "longest_without_a_point_s": 0.1}
    for at in (10, 50, 88):  # over the begin of the window, within it, over its end
        stalled = outages.of_window(stepping(*[100] * at, 3000, *[100] * (100 - at)), 1000, 9000)
        assert stalled["longest_without_a_point_s"] == 3.0 and stalled["step_s"] > steady["step_s"] * (1 + outages.LIMIT), at


def test_a_training_that_ended_within_the_window_is_not_compared():
    assert outages.of_window(stepping(*[100] * 50), 1000, 9000)["step_s"] is None
    assert outages.of_window([], 1000, 9000)["step_s"] is None


def test_what_eight_pairs_tell_can_be_written_and_a_slower_step_misses():
    training = {"exit_code": 0, "status": "FINISHED", "points": 5, "lost": 0, "doubled": 0, "wrong": 0, "longest_without_a_point_s": 1.0}
    for shift, met in ((0.0, True), (0.05, False)):
        told = outages._told([{"slower": shift + noise, "away": training, "there": training} for noise in (-0.02, 0.01, 0.02, -0.01)], 0)
        assert json.loads(files.canonical_json(told))["met"] is met


@pytest.mark.parametrize(("ends", "went_on"), [([3, 0], True), ([3, 1], False), ([0, 0], True), ([0, 1], False)])
def test_each_moment_of_a_full_disk_is_followed_by_a_run_that_must_reach_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: list[int], went_on: bool):
    calls: list[str] = []

    class Full:
        filled, after_s = True, 1.0
        start = leave = lambda self: None

    def call(_root: Path, *words: str, **_env: str) -> tuple[int, str]:
        calls.append(words[1])
        return (ends[calls.count("run") - 1], f"{disk.NO_SPACE}work") if words[1] == "run" else (0, "")

    monkeypatch.setattr(disk, "Neighbour", lambda *_: Full())
    monkeypatch.setattr(disk, "call", call)
    (tmp_path / "data").mkdir()
    (tmp_path / "dvc.lock").write_text("")
    (row,) = disk.moments(tmp_path, 1, random.Random(1), {}, disk.files.sha256_file(tmp_path / "dvc.lock"))
    assert row["went_on"] is row["same"] is went_on and calls == ["run", "run", "down"]


def test_the_full_count_holds_every_named_write():
    assert len(disk.named()) < disk.COUNT
