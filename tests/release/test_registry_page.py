"""What the registry page says, after releases that pass, break the contract, follow a hand's move, or find versions deleted."""

from __future__ import annotations

import json
from pathlib import Path

import checkout
import pytest

from components import config as settings
from components import files
from components.release import (
    contract,
    history,
    model_files,
    package,
    registry,
    registry_page,
    rollback,
)
from components.release import release as releasing

pytestmark = pytest.mark.code
HOSTILE = "<img src=x onerror=alert(1)>"
NAME = "paged"


def released(layout, **overrides):
    config = checkout.configuration(name=NAME, **{"gates.bits_per_byte_margin": 9.0, "gates.score_margin": 1.0} | overrides)
    files.write_atomic(layout.params, settings.render(config))
    return releasing.release(config, layout, say=lambda _: None)


@pytest.fixture(scope="module")
def paged(mlflow_url, tmp_path_factory):
    """(layout, client, url): version 1 is champion; version 2, whose context is shorter, was refused for that."""
    config = checkout.configuration(name=NAME)
    layout = checkout.make(tmp_path_factory.mktemp(NAME), config)
    released(layout)
    client = registry.client(layout)
    client.delete_model_version_tag(NAME, "1", contract.CONTRACT)  # as a version from before there were contracts
    checkout.retrain(layout, config, seed=2, context=32)
    decisions = released(layout, **{"training.steps": 41, "corpus.text_field": HOSTILE})
    assert [decision.promoted for decision in decisions] == [False, True]
    return layout, client, mlflow_url


def entry(layout, version: int) -> dict:
    model = next(model for model in registry.catalogue(layout) if model["name"] == NAME)
    return next(found for found in model["versions"] if found["version"] == version)


def test_the_model_says_what_it_is_and_how_to_call_it(paged):
    _, client, url = paged
    for name in (NAME, f"{NAME}-instruct"):
        text = client.get_registered_model(name).description
        for needed in (f'mlflow.set_tracking_uri("{url}")', f'load_model("models:/{name}@champion")', f"MLFLOW_TRACKING_URI={url} mlflow models serve",
                       "curl -s http://127.0.0.1:5330/invocations", '"about": true', "about()", "is the champion", "temperature (double", "64 tokens"):
            assert needed.replace("(double", "\\(double") in text, (needed, text)
        assert len(text) <= 5000
    assert "| none | 1 | " in client.get_registered_model(NAME).description and "| 1 | 2 | " in client.get_registered_model(f"{NAME}-instruct").description


def test_a_first_version_has_nothing_to_compare_and_the_next_says_three_things(paged):
    layout, client, _ = paged
    assert client.get_model_version(NAME, "1").description.startswith("- **Changes**: first version, nothing to compare\n")
    lines = entry(layout, 2)["changed"].splitlines()
    assert len(lines) == 3 and lines[0].startswith("Data, since champion version 1: the same (")
    assert "training.steps 40 → 41" in lines[1] and "corpus.text_field text → <img" in lines[1] and "code " in lines[1]
    assert "on the same items (this - champion) English " in lines[2] and "; bits per byte, Chinese" in lines[2] and lines[2].count("[") >= 6
    text = client.get_model_version(NAME, "2").description
    shown = text.splitlines()[:3]
    assert all(line.startswith("- **") for line in shown) and "training.steps 40 → 41" in shown[1]


def test_what_is_vouched_for_is_what_was_logged_and_no_bytecode(paged):
    _, client, _ = paged
    listed = json.loads(client.get_model_version(NAME, "2").tags[model_files.FILES])
    assert {"MLmodel", "model_file.py", "artifacts/model/manifest.json"} <= set(listed)
    assert not [name for name in listed if "__pycache__" in name or name in ("registered_model_meta", "README.md")]


def test_J12_what_settings_hold_cannot_become_markup(paged):
    _, client, _ = paged
    text = client.get_model_version(NAME, "2").description
    assert "&lt;img src=x onerror=alert\\(1\\)&gt;" in text and "<" not in text


def test_J12_C7_a_model_whose_first_release_was_killed_shows_its_corpus_as_text(mlflow_url, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_args, **_more):
        raise Killed

    config = checkout.configuration(name="just-registered")
    layout = checkout.make(tmp_path, config)
    hostile = config.model_copy(update={"corpus": config.corpus.model_copy(update={"source": f"/texts/{HOSTILE}@ann"})})
    monkeypatch.setattr(package, "logged_model", lambda *_: ("m-0", {}))
    monkeypatch.setattr(registry, "register", kill)
    with pytest.raises(Killed):
        releasing.release(hostile, layout, say=lambda _: None)
    text = registry.client(layout).get_registered_model("just-registered").description
    assert "/texts/&lt;img src=x onerror=alert\\(1\\)&gt;&#64;ann" in text and "<" not in text


def test_a_broken_contract_blocks_and_is_told_everywhere(paged):
    _, client, _ = paged
    version = client.get_model_version(NAME, "2")
    assert version.tags["gate.verdict"] == "failed" and client.get_model_version_by_alias(NAME, "champion").version == "1"
    failed = {key for key, value in version.tags.items() if key.startswith("gate.reason.") and value.startswith("no")}
    assert failed == {"gate.reason.contract"} and "params: max_new_tokens: default 32 → 16" in version.tags["gate.reason.contract"] and "context: 64 → 32 tokens" in version.tags["gate.reason.contract"]
    assert "context: 64 → 32 tokens" in version.description and "allow\\_contract\\_break" in version.description
    readme = Path(client.download_artifacts(version.run_id, "README.md")).read_text()
    assert "context: 64 → 32 tokens" in readme and "tried with mlflow" in readme
    decided = files.read_json(Path(client.download_artifacts(version.run_id, "promotion.json")))
    assert [c["criterion"] for c in decided["criteria"] if not c["passed"]] == ["contract"]
    stored = files.read_json(Path(client.download_artifacts(version.run_id, "contract.json")))
    assert stored == json.loads(version.tags[contract.CONTRACT]) and stored["context"] == 32 and stored["chat_template"] is None
    assert {param["name"] for param in stored["params"]} == {"max_new_tokens", "temperature", "top_k", "top_p", "seed", "about"}
    # the champion had no tag: its contract was read off its files
    assert json.loads(client.get_model_version(NAME, "1").tags[contract.CONTRACT])["context"] == 64
    assert json.loads(client.get_model_version(f"{NAME}-instruct", "1").tags[contract.CONTRACT])["chat_template"]


def test_H2_moved_by_hand_is_shown_and_the_next_promotion_goes_on(paged):
    layout, client, url = paged
    client.set_registered_model_alias(NAME, "champion", "2")
    assert entry(layout, 2)["gated"] is False and "moved by hand to version 2" in entry(layout, 2)["note"]
    released(layout)  # judged against version 1, whose contract it breaks: what a hand did does not pass by being there
    assert entry(layout, 2)["gated"] is False and entry(layout, 2)["verdict"] == "failed"
    text = client.get_registered_model(NAME).description
    assert "**Not gated: the alias champion was moved by hand to version 2; the last recorded promotion is of version 1.**" in text

    allowed = {"gates.allow_contract_break": ["context", "params"]}
    released(layout, **allowed)
    assert entry(layout, 2)["gated"] is True and entry(layout, 2)["note"] is None
    assert "as gates.allow_contract_break allows" in client.get_model_version(NAME, "2").tags["gate.reason.contract"]
    client.set_registered_model_alias(NAME, "champion", "1")
    assert "last recorded promotion is of version 2" in entry(layout, 1)["note"] and entry(layout, 1)["verdict"] == "passed" and not entry(layout, 1)["gated"]
    released(layout, **allowed)
    text = client.get_registered_model(NAME).description
    assert entry(layout, 2)["gated"] and "**Version 2 is the champion.**" in text and "Not gated" not in text
    moves = history.history(registry.registered(layout, NAME))
    assert [(move["from"], move["to"]) for move in moves] == [(None, "1"), ("1", "2"), ("2", "2"), ("2", "1"), ("1", "2")]
    assert ["by hand" in move["why"] for move in moves] == [False, True, False, True, False]


def test_H2_what_a_hand_moved_stands_on_the_page_after_up_and_after_a_rollback(paged):
    layout, client, _ = paged

    def page() -> str:
        return client.get_registered_model(NAME).description

    config = settings.load(layout.params)
    assert releasing.receipt_current(config, layout) and registry_page.bring_all_up_to_date(layout) == []
    client.update_registered_model(NAME, page().replace("## How to call it", "Ask **Ann** first. $5 \\1\n\n## How to call it"))
    client.set_registered_model_alias(NAME, "champion", "1")
    assert registry_page.bring_all_up_to_date(layout) == [f"MLflow: the page of {NAME} says again who is champion"]  # lmworks up
    assert "**Not gated: the alias champion was moved by hand to version 1; " in page() and "is the champion" not in page()
    client.set_registered_model_alias(NAME, "champion", "2")
    assert not releasing.receipt_current(config, layout), "the aliases are those of the receipt again, the page is not"
    assert registry_page.bring_up_to_date(layout, NAME) and "**Version 2 is the champion.**" in page()

    client.set_registered_model_alias(NAME, "champion", "1")
    assert rollback.roll_back(layout, NAME, to="2", why="a hand slipped").to == "2"
    assert "**Version 2 is the champion.**" in page() and "a hand slipped" in page() and "Version 1 is" not in page() and page().count("| When |") == 1
    client.set_registered_model_alias(NAME, "champion", "1")
    assert not releasing.receipt_current(config, layout)  # so lmworks run goes on to the release, which writes the page anew
    assert "Ask **Ann** first. $5 \\1\n" in page()
    released(layout, **{"gates.allow_contract_break": ["context", "params"]})
    assert "**Version 2 is the champion.**" in page() and releasing.receipt_current(config, layout)


def test_who_is_champion_is_found_on_the_page_however_it_was_told():
    moves = {f"{history.HISTORY}{n:06d}": json.dumps({"from": str(n - 1) if n > 1 else None, "to": str(n), "why": "passed | all"}) for n in range(1, 14)}
    tags = moves | {history.DONE: "13"}
    told = [{"aliases": aliases, "tags": found} for found in ({}, tags) for aliases in (
        {}, {"candidate": "1"}, {"champion": "13"}, {"champion": "13", "candidate": "14"}, {"champion": "2"})]

    def text_of(model) -> str:
        return f"What it is.\n\n{registry_page.standing(NAME, model)}\n\n## Who was champion\n\n{history.page(model)}\n\nA note: **Version 9 is the champion.**"

    for before in told:
        for after in told:
            assert registry_page.anew(NAME, after | {"description": text_of(before)}) == text_of(after)
    assert registry_page.is_current(NAME, told[0] | {"description": "somebody's own words"})


def test_G_deleted_versions_and_a_deleted_model_leave_history_and_releases_whole(paged):
    layout, client, _ = paged
    before = history.history(registry.registered(layout, NAME))
    client.delete_model_version(NAME, client.get_model_version_by_alias(NAME, "champion").version)
    assert history.history(registry.registered(layout, NAME)) == before
    assert "removed by hand, or its version was deleted" in history.by_hand(registry.registered(layout, NAME))
    client.delete_registered_model(f"{NAME}-instruct")
    base, instruct = released(layout)
    assert base.promoted and instruct.promoted and instruct.version == "1"
    moves = history.history(registry.registered(layout, NAME))
    assert moves[:len(before)] == before and moves[-1]["to"] == base.version and history.by_hand(registry.registered(layout, NAME)) is None
    assert "| none |" in client.get_registered_model(NAME).description


def test_another_address_of_the_server_makes_the_next_run_write_the_pages_again(paged, monkeypatch):
    layout, _, url = paged
    config = settings.load(layout.params)
    receipt = files.read_sealed(layout.receipt)
    assert releasing.receipt_current(config, layout) and receipt["address"] == url
    files.write_sealed(layout.receipt, receipt | {"address": "http://127.0.0.1:9"})
    assert not releasing.receipt_current(config, layout)
