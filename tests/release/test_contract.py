"""Laws of the contract, of the alias' history and of what a version says is new: pure functions, no server."""

from __future__ import annotations

import json

import pytest

from components.errors import Damaged
from components.release import changes, contract, gates, history

pytestmark = pytest.mark.code


def a_contract(**other):
    params = [{"name": "seed", "type": "long", "default": 0, "shape": None}, {"name": "temperature", "type": "double", "default": 0.8, "shape": None}]
    return {"format": 1, "inputs": [{"type": "string", "required": True}], "outputs": [{"type": "string", "required": True}], "params": params,
            "context": 128, "chat_template": "a" * 64, "requirements": ["mlflow<3.18,>=3.17", "torch>=2.13,<2.14"], "python": "3.11"} | other


SEED = {"name": "seed", "type": "long", "default": 0, "shape": None}


@pytest.mark.parametrize(("part", "other", "words"), [
    ("params", {"params": [SEED]}, "temperature is gone"),
    ("params", {"params": [SEED, {"name": "temperature", "type": "long", "default": 1, "shape": None}]}, "temperature double → long"),
    ("params", {"params": [SEED, {"name": "temperature", "type": "double", "default": 0.7, "shape": None}]}, "temperature: default 0.8 → 0.7"),
    ("context", {"context": 64}, "128 → 64 tokens"),
    ("chat_template", {"chat_template": "b" * 64}, "aaaaaaaaaaaa → bbbbbbbbbbbb"),
    ("inputs", {"inputs": [{"type": "long", "required": True}]}, "string → long"),
    ("inputs", {"inputs": [{"type": "string", "required": True}, {"type": "string", "name": "system", "required": True}]}, "is asked for now"),
    ("outputs", {"outputs": []}, "string → nothing"),
    ("requirements", {"requirements": ["mlflow>=3.17,<3.18", "torch>=2.13.1,<2.14"]}, "torch"),
    ("requirements", {"requirements": ["mlflow>=3.17,<3.18", "torch>=2.13,<2.14", "vllm"]}, "vllm is needed now"),
    ("requirements", {"python": "3.12"}, "Python 3.11 → 3.12")])
def test_what_is_taken_away_breaks_and_is_blocked_unless_allowed_by_name(part, other, words):
    broken = contract.breaks(a_contract(**other), a_contract())
    assert set(broken) == {part} and words in broken[part]
    said = contract.criterion(a_contract(**other), a_contract(), "3", [])
    assert not said.passed and words in said.sentence and f"gates.allow_contract_break to [{part}]" in said.sentence and "version 3" in said.sentence
    assert contract.criterion(a_contract(**other), a_contract(), "3", [part]).passed
    assert not contract.criterion(a_contract(**other), a_contract(), "3", [p for p in ("params", "context") if p != part]).passed


def test_what_is_added_breaks_nobody():
    more = a_contract(params=[*a_contract()["params"], {"name": "about", "type": "boolean", "default": False, "shape": None}], context=256,
                      requirements=["torch>=2.12,<3"], inputs=[*a_contract()["inputs"], {"type": "string", "name": "system", "required": False}])
    assert contract.breaks(more, a_contract()) == {} == contract.breaks(a_contract(context=None), a_contract())
    assert contract.criterion(more, a_contract(), "3", []).sentence.endswith("version 3; new: about")
    assert contract.criterion(more, None, None, []).passed
    assert "context" in contract.breaks(a_contract(), a_contract(context=None))


@pytest.mark.parametrize(("new", "old", "holds"), [
    (">=2.13,<2.14", ">=2.13,<2.14", True), ("<2.14,>=2.13", ">=2.13,<2.14", True), (">=2.13", ">=2.13,<2.14", True), ("", ">=2.13", True),
    (">2.13", ">=2.13", False), (">=2.13", ">2.13", True), (">=2.13,<=2.14", ">=2.13,<2.14", True), (">=2.13,<2.14", ">=2.13,<=2.14", False),
    ("==3.17.2", ">=3.17,<3.18", False), (">=3.17,<3.18", "==3.17.2", True), (">=2,<3", "", False), ("~=2.13", "~=2.13", True), ("~=2.13", "~=2.12", False)])
def test_a_range_admits_another_or_not(new, old, holds):
    assert contract.admits(new, old) is holds


def test_a_model_without_signature_says_no_contract(tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    with pytest.raises(Damaged, match="says no contract"):
        contract.of_folder(tmp_path)


# --- history -------------------------------------------------------------------------------------

def moved(model: dict, to: str) -> dict:
    """The model after a promotion, as `promotion.move_champion` writes it."""
    entries = history.planned(model, to=to, who="eva", when="2026-01-02T03:04:05+00:00", why=f"version {to} is better")
    tags = model["tags"] | {f"{history.HISTORY}{number:06d}": json.dumps(entry) for number, entry in entries.items()}
    return {"tags": tags | {history.DONE: str(max(entries))}, "aliases": model["aliases"] | {"champion": to}}


def pairs(model: dict) -> list[tuple]:
    return [(move["from"], move["to"]) for move in history.history(model)]


def test_history_chains_and_a_move_by_hand_gets_an_entry_of_its_own():
    model = moved(moved({"tags": {}, "aliases": {}}, "1"), "2")
    assert pairs(model) == [(None, "1"), ("1", "2")] and history.by_hand(model) is None
    model["aliases"]["champion"] = "1"
    assert history.by_hand(model) == "not gated: the alias champion was moved by hand to version 1; the last recorded promotion is of version 2"
    after = moved(model, "3")
    assert pairs(after) == [(None, "1"), ("1", "2"), ("2", "1"), ("1", "3")] and history.by_hand(after) is None
    assert history.history(after)[2]["who"] == "unknown" and "by hand" in history.history(after)[2]["why"]


def test_an_alias_that_is_gone_and_one_that_no_promotion_made_are_by_hand():
    model = moved({"tags": {}, "aliases": {}}, "1")
    model["aliases"] = {}
    assert "removed by hand, or its version was deleted" in history.by_hand(model)
    assert pairs(moved(model, "2")) == [(None, "1"), ("1", None), (None, "2")]
    assert "no promotion is recorded" in history.by_hand({"tags": {}, "aliases": {"champion": "4"}})
    assert history.by_hand({"tags": {}, "aliases": {}}) is None


def test_C7_a_kill_between_the_entry_and_its_move_is_no_move_by_hand():
    model = moved({"tags": {}, "aliases": {}}, "1")
    killed = {"tags": moved(model, "2")["tags"] | {history.DONE: "1"}, "aliases": {"champion": "1"}}
    assert history.by_hand(killed) is None
    assert pairs(moved(killed, "2")) == [(None, "1"), ("1", "2")]


def test_J12_entries_edited_in_the_page_are_shown_as_text_and_break_nothing():
    tags = {f"{history.HISTORY}000001": "{", f"{history.HISTORY}000002": '"<b>"', f"{history.HISTORY}x": "?",
            f"{history.HISTORY}000003": json.dumps({"to": 2, "who": "<script>alert(1)</script>", "why": "a | b\n# c"})}
    model = {"tags": tags, "aliases": {"champion": "2"}}
    assert len(history.history(model)) == 3 and history.history(model)[2]["to"] == "2"
    page = history.page(model)
    assert "<" not in page and "\n#" not in page and "cannot be read" in page
    assert history.planned(model, to="3", who="", when="", why="")[4]["from"] == "2"


def test_the_page_shows_the_last_ten_moves_newest_first():
    model = {"tags": {}, "aliases": {}}
    for version in range(1, 14):
        model = moved(model, str(version))
    rows = [line for line in history.page(model).splitlines() if line.startswith("| 2026")]
    assert len(rows) == 10 and "version 13 is better" in rows[0] and "3 earlier moves" in history.page(model)


# --- what is new ---------------------------------------------------------------------------------

def told(**other):
    figure = {"value": 2.0, "low": 1.9, "high": 2.1, "items": 5}
    return {"data": {"digests": [], "splits": []}, "settings": [], "code": {"git": [], "files": [], "versions": []}, "unknown": [], "same_weights": False,
            "scores": [{"what": "bits per byte", "language": "Chinese", "a": figure, "b": figure | {"value": 1.5}}]} | other


def test_three_lines_say_data_settings_code_and_scores():
    ours = {"data": {"digests": {"tokens": "abcdef0123456789"}}, "code": {"commit": "0123456789abcdef"}}
    assert changes.data(told(), ours) == "the same (abcdef012345)" and changes.settings(told()) == "settings the same"
    assert changes.code(told(), ours) == "code the same (commit 0123456789ab)"
    data = {"digests": [{"what": "corpus", "a": "1" * 64, "b": "2" * 64}], "splits": [
        {"split": "train", "language": "zh", "a": {"documents": 10, "tokens": 500}, "b": {"documents": 22, "tokens": 490}}]}
    assert changes.data(told(data=data), ours) == "corpus 111111111111 → 222222222222; train, Chinese: +12 documents, -10 tokens"
    keys = [{"key": f"k{n}", "a": n, "b": True} for n in range(11)]
    assert changes.settings(told(settings=keys)).startswith("k0 0 → true, ") and changes.settings(told(settings=keys)).endswith(" and 3 more")
    git = {"git": [{"what": "commit", "a": "a" * 40, "b": None}], "files": [{}], "versions": [{"package": "torch", "a": "2.12", "b": "2.13"}]}
    assert changes.code(told(code=git), ours) == "code commit aaaaaaaaaaaa → none, 1 file of the stages, torch 2.12 → 2.13"
    measured = gates.not_worse(gates.BITS, {"zh": (-0.5, -0.6, -0.4)}, 0.01, "1")
    assert changes.scores(told(), [measured]) == (
        "on the same items (this - champion) Chinese -0.5000 [-0.6000, -0.4000]; bits per byte, Chinese 2.000 [1.900, 2.100] → 1.500 [1.900, 2.100]")


def test_weights_that_were_only_judged_again_are_told_as_such():
    assert changes.scores(told(same_weights=True, scores=None, unknown=["x/1: scores: newer figures"]), []) == "the weights are the champion's, evaluated again"


def test_what_was_deleted_by_hand_is_told_as_not_known():
    gone = told(data=None, settings=None, code=None, scores=None, unknown=["x/1: the run that trained it is gone from MLflow"])
    ours = {"data": None, "code": None}
    for line in (changes.data(gone, ours), changes.settings(gone), changes.code(gone, ours), changes.scores(gone, [])):
        assert "not known" in line
    assert changes.parsed(changes.text_of([("Data", "a: b"), ("Scores", "c")])) == [("Data", "a: b"), ("Scores", "c")]
