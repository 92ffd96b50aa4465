"""What the drill counts: a figure that cannot be missed measures nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.reliability import __main__ as drill
from benchmarks.reliability import disk, outages, table
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


def test_an_outage_is_held_against_the_time_around_it_and_a_slower_step_misses():
    began = 1000 * (outages.SETTLE_S + outages.CONTROL_S)
    for slowed_ms, met in ((20, True), (22, False)):  # a step of 20 ms for the minute without servers
        points = [(0, 0)]
        while points[-1][1] < 200_000:
            at = points[-1][1]
            points.append((points[-1][0] + 10, at + 10 * (slowed_ms if began <= at < began + 1000 * outages.AWAY_S else 20)))
        found = outages.Outage("hang", began, [0, 46, 156, 174, 220]).told(points)
        assert found["slower"] == pytest.approx(slowed_ms / 20 - 1, abs=1e-3) and found["catching_up_slower"] == pytest.approx(0, abs=2e-3)
        assert found["busy"]["before"] == 46 / outages.CONTROL_S and found["busy"]["away"] == 110 / outages.AWAY_S
        run = {"exit_code": 0, "status": "FINISHED", "points": 5, "lost": 0, "doubled": 0, "wrong": 0,
               "outages": [found | {"slower": found["slower"] + noise} for noise in (-0.01, 0.01, 0)]}
        told = outages._told([run], 0, 3)
        assert json.loads(files.canonical_json(told))["met"] is met
        for bad in (outages._told([run], 1, 3), outages._told([run], 0, 4), outages._told([run | {"lost": 1}], 0, 3), outages._told([], 0, 3)):
            assert bad["met"] is False
        early = outages.held_against([point for point in points if point[1] < began + 80_000], began)
        assert early["slower"] is None and outages._told([run | {"outages": [*run["outages"], found | early]}], 0, 4)["met"] is False


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


def test_both_readmes_show_the_figures_as_they_were_measured():
    for language, path in table.READMES.items():
        shown = table.between(path.read_text("utf-8"))
        assert shown and shown[0] == table.table(drill.known(), language), f"{path.name}: run python -m benchmarks.reliability table"


def test_a_miss_is_red_a_short_form_is_told_and_what_never_happened_stands_apart(tmp_path: Path):
    section = {"goal": "g", "counts": {"kills": 1200, "strays": 0, "same_result": False}, "host": {"processor": "P", "cores": 2}, "date": "D", "met": False, "full": True}
    found = {"kills": section, "disk": section | {"met": True, "full": False}}
    english, chinese = (table.table(found, language).splitlines()[2:] for language in ("en", "zh"))
    assert english == ["| `kills` | g | 🔴 kills 1,200, same result no | strays | P, 2 cores, D |", "| `disk` | g | 🟡 short form: kills 1,200, same result no | strays | P, 2 cores, D |"]
    assert [line.split(" | ")[2:] for line in chinese] == [["🔴 杀 1,200，结果相同 否", "残留进程", "P，2 核，D |"], ["🟡 次数不足：杀 1,200，结果相同 否", "残留进程", "P，2 核，D |"]]
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\n\nold\n\n{table.END}\nafter\n", "utf-8")
    table.write(found, {"zh": readme})
    assert readme.read_text("utf-8") == f"before\n{table.BEGIN}\n\n{table.table(found, 'zh')}\n{table.END}\nafter\n"
    readme.write_text("no table\n", "utf-8")
    with pytest.raises(SystemExit, match="README.md has no lines"):
        table.write(found, {"zh": readme})
