"""Back to the previous champion: verified, in the history, and not undone by the next release. Real server, real files."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import checkout
import mlflow
import pytest

from commands import display
from components import mlflow_rest
from components.errors import Busy, Damaged, UserError
from components.release import history, model_files, registry, rollback
from components.release import release as releasing
from components.serving import engine

pytestmark = pytest.mark.code


def released(config, layout):
    return releasing.release(config, layout, say=lambda _line: None)


@pytest.fixture(scope="module")
def three(mlflow_url, tmp_path_factory):
    """(config, layout, client): three versions of each model that were champion one after the other; the third is."""
    config = checkout.configuration(name="back", **{"gates.bits_per_byte_margin": 9.0, "gates.score_margin": 1.0})
    layout = checkout.make(tmp_path_factory.mktemp("back"), config, seed=1)
    released(config, layout)
    for seed in (2, 3):
        checkout.retrain(layout, config, seed=seed)
        decisions = released(config, layout)
    assert [(d.champion_version, d.promoted) for d in decisions] == [("3", True)] * 2
    return config, layout, registry.client(layout)


def champion(layout, name: str) -> str | None:
    return registry.registered(layout, name)["aliases"].get("champion")


def note(layout, name: str, version: int) -> str | None:
    model = next(model for model in registry.catalogue(layout) if model["name"] == name)
    return next(entry["note"] for entry in model["versions"] if entry["version"] == version)


def test_H6_back_to_the_previous_champion_and_a_run_does_not_undo_it(three):
    config, layout, client = three
    done = rollback.roll_back(layout, "back", why="答案变差\n | worse")
    assert (done.left, done.to, done.skipped, done.brought_back) == ("3", "2", [], False) and champion(layout, "back") == "2"
    move = history.history(registry.registered(layout, "back"))[-1]
    assert (move["from"], move["to"], move["why"]) == ("3", "2", "rollback: 答案变差 | worse") and move["who"] == done.who
    assert "rolled back from it to version 2" in note(layout, "back", 3) and note(layout, "back", 2) is None
    text = client.get_registered_model("back").description
    assert "**Version 2 is the champion.**" in text and "rollback: 答案变差" in text and "**Version 3 is the champion.**" not in text
    assert engine.chosen(client, "back", None).version == "2"

    assert not releasing.receipt_current(config, layout)
    for _run in range(2):
        base, instruct = released(config, layout)
        assert (base.version, base.promoted, base.champion_version) == ("3", False, "2") and instruct.promoted
        assert [c.criterion for c in base.criteria if not c.passed] == ["not_rolled_back"]
        assert "rolled back from version 3 to 2" in releasing.sentence(base) and "lmworks rollback back --to 3" in releasing.sentence(base)
    assert releasing.receipt_current(config, layout)

    assert rollback.roll_back(layout, "back").to == "1"  # not to 3, which was left for a reason
    with pytest.raises(UserError, match="no earlier champion to go back to.*--to 3 takes that back.*History: none -> 1 .*3 -> 2 .*2 -> 1"):
        rollback.roll_back(layout, "back")

    again = rollback.roll_back(layout, "back", to="3")  # taken back: judged as 'no' since, and served all the same
    assert again.brought_back and engine.chosen(client, "back", None).version == "3" and note(layout, "back", 3) is None
    base, _ = released(config, layout)
    assert base.promoted and base.version == "3" and next(c.passed for c in base.criteria if c.criterion == "not_rolled_back")
    assert list(history.left_behind(registry.registered(layout, "back"))) == ["2"]


def test_what_cannot_be_gone_back_to_is_told_with_the_history(three):
    _, layout, _ = three
    with pytest.raises(UserError, match="no model 'nobody' is registered"):
        rollback.roll_back(layout, "nobody")
    with pytest.raises(UserError, match="version 9 was never made champion.*History: none -> 1"):
        rollback.roll_back(layout, "back-instruct", to="9")
    with pytest.raises(UserError, match="version 3 is the champion already"):
        rollback.roll_back(layout, "back-instruct", to="3")
    assert champion(layout, "back-instruct") == "3"


def test_H4_a_champion_that_moved_meanwhile_is_left_alone(three, monkeypatch):
    _, layout, client = three
    fetched = model_files.fetched

    def meanwhile(version, where):
        client.set_registered_model_alias("back-instruct", "champion", "1")
        return fetched(version, where)

    monkeypatch.setattr(model_files, "fetched", meanwhile)
    before = history.history(registry.registered(layout, "back-instruct"))
    try:
        with pytest.raises(Busy, match="moved from version 3 to 1 meanwhile; nothing was changed"):
            rollback.roll_back(layout, "back-instruct")
        assert champion(layout, "back-instruct") == "1" and history.history(registry.registered(layout, "back-instruct")) == before
    finally:
        client.set_registered_model_alias("back-instruct", "champion", "3")


def test_C7_a_kill_between_history_and_alias_is_no_rollback(three, monkeypatch):
    _, layout, _ = three

    class Killed(BaseException):
        pass

    def kill(*_args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "set_registered_model_alias", kill)
        with pytest.raises(Killed):
            rollback.roll_back(layout, "back-instruct")
    model = registry.registered(layout, "back-instruct")
    assert champion(layout, "back-instruct") == "3" and not history.left_behind(model) and history.by_hand(model) is None


def test_D3_a_damaged_version_is_refused_by_name_and_skipped_otherwise(three, mlflow_folder):
    _, layout, client = three
    name = "back-instruct"
    stored = next((mlflow_folder / "artifacts").glob(f"*/models/{registry.model_id(client.get_model_version(name, '2'))}/artifacts/artifacts/model/model.safetensors"))
    good = stored.read_bytes()
    try:
        for bad in (good[:-7], good[:-1] + bytes([good[-1] ^ 1])):
            stored.write_bytes(bad)
            with pytest.raises(Damaged, match="model.safetensors is damaged: sha256"):
                rollback.roll_back(layout, name, to="2")
            assert champion(layout, name) == "3"
        done = rollback.roll_back(layout, name)
        assert done.to == "1" and [version for version, _ in done.skipped] == ["2"] and "damaged" in done.skipped[0][1]
        assert json.loads(json.dumps(done.as_dict()))["skipped"][0]["version"] == "2"
    finally:
        stored.write_bytes(good)
    rollback.roll_back(layout, name, to="3")
    assert champion(layout, name) == "3"


def model_of(*moves: dict, champion: str) -> dict:
    tags = {f"{history.HISTORY}{n:06d}": json.dumps(move) for n, move in enumerate(moves, 1)}
    return {"aliases": {"champion": champion}, "tags": tags | {history.DONE: str(len(moves))}}


def test_H5_deleting_the_version_does_not_bring_its_weights_back():
    moves = [{"to": "1", "why": "passed"}, {"from": "1", "to": "2", "why": "passed"}, {"from": "2", "to": "1", "why": "rollback: x", "left_weights": "a" * 64}]
    model = model_of(*moves, champion="1")
    assert not rollback.criterion("m", model, "7", "a" * 64).passed and not rollback.criterion("m", model, "2", "?").passed
    assert rollback.criterion("m", model, "7", "b" * 64).passed
    assert history.champions(model) == ["1", "2"] and history.was_rolled_back(model)


def test_a_champion_that_nobody_gated_is_not_gone_back_to():
    moves = [{"to": "1", "why": "passed"}, {"from": "1", "to": "5", "why": f"{history.BY_HAND} (found)"}, {"from": "5", "to": "6", "why": "passed"}]
    assert history.champions(model_of(*moves, champion="6")) == ["6", "1"]


def test_the_command_says_what_was_done(three, monkeypatch, capsys):
    from commands import rollback as command
    from components.operations import services

    _, layout, _ = three
    monkeypatch.setattr(command, "Layout", lambda: layout)
    monkeypatch.setattr(services, "ensure", lambda *_args, **_more: {})
    before = champion(layout, "back-instruct")
    command.rollback("back-instruct", to=2, why="too slow", as_json=False)
    said = capsys.readouterr().out
    assert "version 2 is champion again, its files verified (before: version 3)" in said and "lmworks rollback back-instruct --to 3" in said
    command.rollback("back-instruct", to=int(before), why="", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["from"], told["to"], told["brought_back"], told["why"]) == ("2", "3", True, "rollback: no reason given")
    assert Path(layout.promotion_lock).exists()


def test_F1_a_page_that_cannot_be_written_makes_no_failure_of_a_rollback_that_was_done(three, monkeypatch):
    """Who takes it for one says it again, and goes back one version too far."""
    _, layout, _ = three

    def away(*_args):
        raise mlflow_rest.Unreachable("MLflow does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(rollback.registry_page, "bring_up_to_date", away)
        assert rollback.roll_back(layout, "back-instruct", to="2").to == "2" and champion(layout, "back-instruct") == "2"
    assert rollback.roll_back(layout, "back-instruct", to="3").to == "3"


def test_H2_from_an_alias_moved_by_hand_to_the_version_that_a_gate_chose_last(three):
    _, layout, client = three
    client.set_registered_model_alias("back-instruct", "champion", "1")
    done = rollback.roll_back(layout, "back-instruct")
    assert (done.left, done.to) == ("1", "3")
    model = registry.registered(layout, "back-instruct")
    by_hand, back = history.history(model)[-2:]
    assert (by_hand["from"], by_hand["to"], by_hand["who"]) == ("3", "1", "unknown") and (back["from"], back["to"]) == ("1", "3")
    assert history.by_hand(model) is None and engine.chosen(client, "back-instruct", None).version == "3"
    client.delete_registered_model_alias("back-instruct", "champion")  # as when the champion's version is deleted (H5)
    done = rollback.roll_back(layout, "back-instruct")
    assert (done.left, done.to) == (None, "3") and champion(layout, "back-instruct") == "3"


def test_C7_a_champion_that_is_refused_is_registered_again_by_an_unchanged_run(three, mlflow_folder):
    config, layout, client = three
    released(config, layout)
    assert releasing.receipt_current(config, layout)
    answers = engine.chosen(client, "back-instruct", None)
    stored = next((mlflow_folder / "artifacts").glob(f"*/models/{registry.model_id(answers)}/artifacts/artifacts/model/model.safetensors"))
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(Damaged, match="Release it again: lmworks run|model.safetensors is damaged"):
        engine.answer(layout, "back-instruct", ["房间"], {})
    assert not releasing.receipt_current(config, layout)
    _, instruct = released(config, layout)
    assert instruct.promoted and instruct.version == "4"


@pytest.mark.slow
def test_G8_two_consumers_that_load_while_the_alias_moves_each_answer_from_one_whole_version(three, nursery):
    _, layout, client = three
    prompt, before = "The king", champion(layout, "back")
    each = nursery.ask([{"do": "consume", "uri": f"models:/back/{number}", "times": 1, "prompt": prompt} for number in (1, 2, 3)])
    expected = {answer["told"][0]["version"]: answer["told"][0] for answer in each}
    assert len({told["weights_sha256"] for told in expected.values()}) == 3
    over = threading.Event()
    moves = []

    def move():
        while not over.wait(0.03):
            moves.append(str(1 + len(moves) % 3))
            client.set_registered_model_alias("back", "champion", moves[-1])

    mover = threading.Thread(target=move)
    mover.start()
    try:
        consumers = nursery.ask([{"do": "consume", "uri": "models:/back@champion", "times": 4, "prompt": prompt}] * 2)
        ours = engine.answer(layout, "back", [prompt], {"max_new_tokens": 12, "seed": 3})
    finally:
        over.set()
        mover.join()
        client.set_registered_model_alias("back", "champion", before)
    loads = [load for consumer in consumers for load in consumer["told"]]
    assert len(loads) == 8 and len(moves) > 10
    for load in loads:
        assert load == expected[load["version"]], "a version that is no one's whole"
    assert ours["texts"] == [expected[ours["version"]]["text"]]


def test_H5_a_champion_that_was_deleted_is_told_and_gone_back_from_and_the_next_run_goes_on(three, capsys):
    from commands import models as command

    config, layout, client = three
    name = "back-instruct"
    released(config, layout)
    gone = champion(layout, name)
    loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    answer = loaded.predict(["房间"], params={"max_new_tokens": 4, "seed": 1})
    client.delete_model_version(name, gone)
    assert champion(layout, name) is None
    assert loaded.predict(["房间"], params={"max_new_tokens": 4, "seed": 1}) == answer, "who serves it keeps it"

    model = next(model for model in registry.catalogue(layout) if model["name"] == name)
    assert f"its version was deleted: the last recorded promotion is of version {gone}. lmworks rollback" in model["note"]
    command.show(model, registry.address(layout), display.console())
    shown = " ".join(capsys.readouterr().out.split())
    assert "the alias champion was removed by hand, or its version was deleted" in shown and "serve it" not in shown
    with pytest.raises(UserError, match=f"{name} has no champion: the alias champion was removed by hand, or its version was deleted"):
        engine.answer(layout, name, ["房间"], {})
    with pytest.raises(UserError, match=f"version {gone} was deleted from the registry"):
        rollback.roll_back(layout, name, to=gone)

    assert not releasing.receipt_current(config, layout)
    _, instruct = released(config, layout)
    assert instruct.promoted and int(instruct.version) > int(gone)
    move = history.history(registry.registered(layout, name))[-1]
    assert (move["from"], move["to"]) == (None, instruct.version)
    assert rollback.roll_back(layout, name).to not in (gone, instruct.version)
