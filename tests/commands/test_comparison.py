"""Two versions side by side: which one is meant, what differs, and that nothing is made up where a part is missing."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from commands import diff
from components.errors import UserError
from components.release import comparison

pytestmark = pytest.mark.code

FOUND = [{"name": "tiny", "aliases": {"champion": "1", "candidate": "3"}, "versions": [{"version": 3}, {"version": 1}]},
         {"name": "tiny-instruct", "aliases": {}, "versions": [{"version": 1}]}]


@pytest.mark.parametrize(("text", "meant"), [
    ("3", ("tiny", "3")), ("champion", ("tiny", "1")), ("tiny@candidate", ("tiny", "3")), ("tiny-instruct/1", ("tiny-instruct", "1")),
    ("models:/tiny@champion", ("tiny", "1")), ("models:/tiny/3", ("tiny", "3"))])
def test_a_version_is_named_in_every_usual_way(text: str, meant: tuple[str, str]):
    assert comparison.resolve(text, "tiny", FOUND) == meant


@pytest.mark.parametrize(("text", "words"), [
    ("2", "tiny has versions 1, 3 (candidate is 3, champion is 1)"), ("tiny/9", "tiny has versions 1, 3"), ("tiny@best", "no such version"),
    ("tiny-instruct@champion", "tiny-instruct has version 1"), ("other/1", "There are: tiny, tiny-instruct"), ("tiny", "which version of it?"),
    ("", "no such version"), ("tiny/", "no such version"), ("x'; --", "no such version"), ("模型/1", "no model '模型' is registered")])
def test_what_is_not_there_is_one_error_that_lists_what_is(text: str, words: str):
    with pytest.raises(UserError, match="(?s).*") as error:
        comparison.resolve(text, "tiny", FOUND)
    assert words in str(error.value) and "\n" not in str(error.value)


def side(version: str, **overrides: Any) -> dict[str, Any]:
    scores = [{"what": "question answering: exact match", "language": "Chinese", "value": .5, "low": .45, "high": .55, "items": 38, "higher_is_better": True},
              {"what": "bits per byte", "language": "English", "value": 2.007, "low": 1.9, "high": 2.1, "items": 12, "higher_is_better": False}]
    return {"name": "tiny", "version": version, "verdict": "passed", "weights_sha256": version * 64, "registered_s": 1.7e9, "reasons": {}, "unknown": [],
            "run": {"run_id": "r", "name": "pretrain tiny", "url": "http://127.0.0.1:5311/#/experiments/1/runs/r"},
            "settings": {"training.steps": 240, "corpus.source": "语料"},
            "data": {"digests": {"corpus": "c" * 64, "tokens": "d" * 32}, "splits": {"train": {"zh": {"documents": 10, "tokens": 100, "bytes": 300}}}},
            "code": {"commit": "a" * 40, "uncommitted": None, "files": {"components/training/loop.py": "1"}, "versions": {"torch": "2.13.0"}},
            "scores": copy.deepcopy(scores)} | overrides


def shown(told: dict[str, Any], width: int = 80) -> str:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    diff.show(told, out)
    return out.file.getvalue()


def test_nothing_differs_is_said_plainly():
    told = comparison.compare(side("1"), side("2", weights_sha256="1" * 64))
    assert told["same"] and told["same_weights"] and told["settings"] == [] and told["data"] == {"digests": [], "splits": []}
    assert "No difference" in shown(told)
    assert "same version" in shown(comparison.compare(side("1"), side("1")))


def test_what_differs_is_named_with_both_values():
    other = side("2", settings={"training.steps": 250, "corpus.source": "语料", "model.n_layer": 4})
    other["data"]["digests"]["corpus"] = "e" * 64
    other["data"]["splits"]["train"]["zh"] = {"documents": 12, "tokens": 120, "bytes": 360}
    other["code"] |= {"commit": "b" * 40, "uncommitted": "0123456789ab", "files": {"components/training/loop.py": "2"}, "versions": {"torch": "2.14.0"}}
    other["scores"][1] |= {"value": 1.9, "low": 1.8, "high": 2.0}
    other["reasons"] = {"not_worse_than_champion": "yes: not worse than champion version 1 in bits per byte: English -0.1070 [-0.1200, -0.0900]"}
    told = comparison.compare(side("1"), other)
    assert not told["same"] and told["settings"] == [{"key": "model.n_layer", "a": None, "b": 4}, {"key": "training.steps", "a": 240, "b": 250}]
    text = shown(told)
    for part in ("training.steps: 240 -> 250", "model.n_layer: not set -> 4", "corpus cccccccccccc -> eeeeeeeeeeee", "10 -> 12 (+2)", "100 -> 120 (+20)",
                 "commit aaaaaaaaaaaa -> bbbbbbbbbbbb", "uncommitted code none -> 0123456789ab", "components/training/loop.py", "torch: 2.13.0 -> 2.14.0",
                 "2.007 1.900-2.100", "1.900 1.800-2.000", "version 2 minus version 1", "-0.1070 [-0.1200, -0.0900]"):
        assert part in " ".join(text.split()), (part, text)
    assert max(cell_len(line) for line in text.splitlines() if "://" not in line) <= 80, text
    assert comparison.compare(other, side("1"))["paired"] == {**told["paired"]}, "whichever way round it is asked"


def test_a_commit_that_touches_no_stage_is_told_apart():
    other = side("2")
    other["code"]["commit"] = "b" * 40
    assert "no file that a stage depends on differs" in " ".join(shown(comparison.compare(side("1"), other)).split())


def test_a_part_that_one_side_lacks_is_not_compared_but_named():
    gone = side("2", run=None, settings=None, data=None, code=None, scores=None, unknown=["the run that trained it is gone from MLflow"])
    told = comparison.compare(side("1"), gone)
    assert not told["same"] and told["settings"] is told["scores"] is None
    assert "not known   tiny/2: the run that trained it is gone" in shown(told)
    # the same weights, but nobody knows the settings: that is not "no difference"
    assert not comparison.compare(side("1"), gone | {"weights_sha256": "1" * 64})["same"]


def test_settings_that_are_not_committed_are_no_change_of_code():
    settings, code = b"diff --git a/params.yaml b/params.yaml\n-steps: 1\n+steps: 2\n", b"diff --git a/x.py b/x.py\n+diff --git is a word\n"
    assert comparison.code_part(settings) == b"" and comparison.code_part(settings + code + settings) == code


def test_figures_of_other_test_texts_are_not_called_better():
    other = side("2")
    other["scores"][1]["value"] = 1.5
    assert "1.500 1.900-2.100*" in shown(comparison.compare(side("1"), other))
    other["data"]["digests"]["corpus"] = "e" * 64
    told = comparison.compare(side("1"), other)
    text = " ".join(shown(told).split())
    assert told["same_test_texts"] is False and "1.500 1.900-2.100*" not in text and "do not say which is better" in text
