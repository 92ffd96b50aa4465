"""Concurrent promotions: the champion never gets worse than the one it replaced."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import mlflow
import pytest

from benchmarks.reliability import promoters
from components import files
from components.errors import UserError
from components.layout import Layout
from components.release import contract, history, model_files, promotion, registry, rollback
from components.serving import engine

pytestmark = pytest.mark.code


def a_model(layout: Layout, name: str, versions: int):
    """A registered model whose versions carry a score as a tag; the files do not matter here."""
    client = registry.client(layout)
    client.create_registered_model(name)
    for score in range(versions):
        _version(client, name, score)
    return client


def _version(client, name: str, score: int):
    run = client.create_run(client.create_experiment(f"{name}-{score}"))
    return client.create_model_version(name, source=f"{run.info.artifact_uri}/x", run_id=run.info.run_id, tags={"score": str(score)})


def better(client, name: str, version: str):
    mine = int(client.get_model_version(name, version).tags["score"])

    def judge(champion):
        return champion is None or mine >= int(champion.tags["score"]), f"score {mine}"

    return judge


def test_H4_older_result_that_comes_last_loses(mlflow_url, tmp_path):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "late", 2)
    judge = better(client, "late", "1")
    judged = []

    def slow_judge(champion):
        verdict = judge(champion)
        judged.append(champion and champion.version)
        if len(judged) == 1:  # while the worse one judges, the better one is promoted
            assert promotion.promote(client, "late", "2", layout, better(client, "late", "2"))[0]
        return verdict

    moved, current = promotion.promote(client, "late", "1", layout, slow_judge)
    assert not moved and judged == [None, "2"]
    assert registry.registered(layout, "late")["aliases"]["champion"] == "2"


def test_C14_moves_keep_their_order_though_the_clock_was_set_back_between_them(mlflow_url, tmp_path, monkeypatch):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "clock", 3)
    noon = datetime(2026, 10, 25, 12, tzinfo=UTC)
    for version, hours in (("1", 0), ("2", -1), ("3", 1)):
        monkeypatch.setattr(promotion, "datetime", SimpleNamespace(now=lambda _zone, hours=hours: noon + timedelta(hours=hours)))
        assert promotion.promote(client, "clock", version, layout, better(client, "clock", version))[0]
    model = registry.registered(layout, "clock")
    assert [(move["to"], move["when"][11:13]) for move in history.history(model)] == [("1", "12"), ("2", "11"), ("3", "13")]
    assert history.champions(model) == ["3", "2", "1"] and history.recorded(model) == "3" and history.by_hand(model) is None


def test_G5_who_registers_the_same_weights_at_once_gets_one_version(mlflow_url, tmp_path):
    """As two checkouts do, or the last request of a process that was killed, and the process after it."""
    client = registry.client(Layout(root=tmp_path))
    client.create_registered_model("twice")
    experiment = client.create_experiment("twice")
    run = client.create_run(experiment).info.run_id

    def register(after=None) -> str:
        model = client.create_logged_model(experiment, name="twice", source_run_id=run)
        client.finalize_logged_model(model.model_id, "READY")
        return str(registry.register(client, "twice", model.model_id, run, {}, weights_sha256="a" * 64, evaluation_sha256="b" * 64,
                                     data_digest="none", languages=["en", "zh"], after=after).version)

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        assert {future.result() for future in [threads.submit(register) for _ in range(6)]} == {"1"}
    assert [str(version.version) for version in client.search_model_versions("name = 'twice'")] == ["1"]
    damaged = registry.find_version(client, "twice", "a" * 64, "b" * 64)
    again = register(after=damaged)
    assert again != "1" and registry.find_version(client, "twice", "a" * 64, "b" * 64).version == again, "the files of version 1 will not do"


@pytest.mark.slow
def test_G5_eight_promoters_that_are_killed_at_random_never_leave_an_illegal_alias(mlflow_url, tmp_path):
    found = promoters.race(Layout(root=tmp_path), rounds=3, seed=20)
    counts = found["counts"]
    assert found["met"], found
    assert counts["rounds"] == 24 and counts["versions"] == 24 and counts["reads"] >= 150 and counts["moves"] >= 2
    assert counts["kills_at_fail_points"] >= 3 and counts["kills_at_random_moments"] >= 3


# --- a version is deleted meanwhile --------------------------------------------------------------

def test_G6_a_version_that_is_deleted_while_it_is_judged_or_moved_to_leaves_the_champion_alone(mlflow_url, tmp_path, monkeypatch):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "doomed", 4)
    assert promotion.promote(client, "doomed", "1", layout, better(client, "doomed", "1"))[0]
    before = registry.registered(layout, "doomed")

    def deleting_judge(_champion):
        client.delete_model_version("doomed", "2")
        client.set_model_version_tag("doomed", "2", registry.VERDICT, "passed")  # as a release writes its verdict
        return True, "better"

    with pytest.raises(UserError, match="doomed: version 2 was deleted from the registry before it could be champion; the champion is as it was.*lmworks models doomed"):
        promotion.promote(client, "doomed", "2", layout, deleting_judge)
    assert registry.registered(layout, "doomed") == before

    move = mlflow.MlflowClient.set_registered_model_alias

    def too_late(self, name, alias, version):  # deleted after the history was written
        client.delete_model_version(name, version)
        move(self, name, alias, version)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "set_registered_model_alias", too_late)
        with pytest.raises(UserError, match="version 3 was deleted"):
            promotion.promote(client, "doomed", "3", layout, lambda _champion: (True, "better"))
    model = registry.registered(layout, "doomed")
    assert model["aliases"] == {"champion": "1"} and history.by_hand(model) is None and len(history.history(model)) == 1
    assert promotion.promote(client, "doomed", "4", layout, better(client, "doomed", "4"))[0]
    model = registry.registered(layout, "doomed")
    assert [(move["from"], move["to"]) for move in history.history(model)] == [(None, "1"), ("1", "4")] and history.unmade(model) == []


def test_G6_an_alias_that_the_server_left_at_a_deleted_version_is_put_back_or_passed_over(mlflow_url, mlflow_folder, tmp_path, monkeypatch):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "dangling", 4)
    assert promotion.promote(client, "dangling", "1", layout, better(client, "dangling", "1"))[0]
    move = mlflow.MlflowClient.set_registered_model_alias

    def deleted_between(self, name, alias, version):
        """MLflow looks whether the version is there, somebody deletes it, MLflow writes the alias."""
        move(self, name, alias, version)
        if version == "2":
            client.delete_model_version(name, version)
            with contextlib.closing(sqlite3.connect(mlflow_folder / "mlflow.db", timeout=20)) as database, database:
                database.execute("INSERT INTO registered_model_aliases (name, alias, version, workspace) VALUES (?, ?, 2, 'default')", (name, alias))

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "set_registered_model_alias", deleted_between)
        with pytest.raises(UserError, match="version 2 was deleted"):
            promotion.promote(client, "dangling", "2", layout, better(client, "dangling", "2"))
        assert registry.registered(layout, "dangling")["aliases"] == {"champion": "1"}

    client.delete_model_version("dangling", "3")  # so late that nobody of ours sees it
    with contextlib.closing(sqlite3.connect(mlflow_folder / "mlflow.db", timeout=20)) as database, database:
        database.execute("UPDATE registered_model_aliases SET version = 3 WHERE name = 'dangling' AND alias = 'champion'")
    entry = next(model for model in registry.catalogue(layout) if model["name"] == "dangling")
    assert entry["note"].startswith("the alias champion names version 3, which was deleted")
    with pytest.raises(UserError, match="dangling has no champion: the alias champion names version 3, which was deleted. lmworks rollback"):
        engine.chosen(client, "dangling", None)
    assert promotion.promote(client, "dangling", "4", layout, better(client, "dangling", "4"))[0]
    assert registry.aliased(client, "dangling", "champion").version == "4"


@pytest.mark.parametrize("when", ["before the move", "after it"])
def test_G6_a_move_to_a_deleted_version_is_no_move_where_the_champion_of_before_is_deleted_too(mlflow_url, tmp_path, monkeypatch, when):
    layout, name = Layout(root=tmp_path), f"twice-{when[0]}"
    client = a_model(layout, name, 3)
    assert promotion.promote(client, name, "1", layout, better(client, name, "1"))[0]
    move = mlflow.MlflowClient.set_registered_model_alias

    def deleting(self, model, alias, version):
        if when == "after it":
            move(self, model, alias, version)
        for number in ("1", "2"):
            client.delete_model_version(model, number)
        if when == "before the move":
            move(self, model, alias, version)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "set_registered_model_alias", deleting)
        with pytest.raises(UserError, match="version 2 was deleted"):
            promotion.promote(client, name, "2", layout, lambda _champion: (True, "better"))
    model = registry.registered(layout, name)
    assert model["aliases"] == {} and [move["to"] for move in history.history(model)] == ["1"] and history.unmade(model) == []
    assert promotion.promote(client, name, "3", layout, better(client, name, "3"))[0]
    assert registry.aliased(client, name, "champion").version == "3"


def test_G6_promoting_and_deleting_at_once_ends_with_one_winner(mlflow_url, tmp_path):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "both", 9)
    assert promotion.promote(client, "both", "1", layout, better(client, "both", "1"))[0]
    outcomes = []
    for number in range(2, 9):
        deleter = threading.Timer(0.01 * (number - 2), client.delete_model_version, ("both", str(number)))
        deleter.start()
        try:
            outcomes.append(promotion.promote(client, "both", str(number), layout, lambda _champion: (True, "better"))[0])
        except UserError as error:
            assert f"both: version {number} was deleted from the registry before it could be champion" in str(error)
            outcomes.append(False)
        deleter.join()
        champion = registry.registered(layout, "both")["aliases"].get("champion")
        assert champion is None or int(champion) < number or outcomes[-1], "the deleted one is champion, and its promoter was told no"
    assert promotion.promote(client, "both", "9", layout, better(client, "both", "9"))[0]
    assert registry.aliased(client, "both", "champion").version == "9"


def test_H4_a_champion_that_was_another_one_in_between_is_judged_against_again(mlflow_url, tmp_path):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "between", 3)
    assert promotion.promote(client, "between", "1", layout, better(client, "between", "1"))[0]
    judged = []

    def judge(champion):
        judged.append(champion.version)
        if len(judged) == 1:  # there and back again: the alias is where it was, but somebody decided meanwhile
            for number in ("3", "1"):
                with files.lock(layout.promotion_lock, what="a promotion"):
                    promotion.move_champion(client, "between", promotion.model_of(client, "between"), to=number, why="rollback: by a person")
        return True, "better"

    assert promotion.promote(client, "between", "2", layout, judge)[0] and judged == ["1", "1"]


def test_H2_champion_moved_by_hand_is_flagged_and_not_asked(mlflow_url, tmp_path, monkeypatch):
    from commands import imports
    from components.operations import services

    monkeypatch.setattr(services, "ensure", lambda *_args, **_more: {})
    layout = Layout(root=tmp_path)
    client = a_model(layout, "byhand", 2)
    for number in ("1", "2"):
        client.set_model_version_tag("byhand", number, registry.VERDICT, "failed")
    client.set_registered_model_alias("byhand", "champion", "1")
    entry = next(model for model in registry.catalogue(layout) if model["name"] == "byhand")
    assert "by hand" in entry["versions"][1]["note"] and not entry["versions"][1]["gated"] and entry["note"] is None
    with pytest.raises(UserError, match="moved it by hand"):
        engine.chosen(client, "byhand", None)
    with pytest.raises(UserError, match="moved it by hand"):
        imports.bring_in("models:/byhand@champion", layout)
    with pytest.raises(UserError, match="version 2 was never made champion by its gate"):
        rollback.roll_back(layout, "byhand", to="2")


def test_without_champion_the_failed_criterion_is_named(mlflow_url, tmp_path):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "waiting", 1)
    client.set_registered_model_alias("waiting", "candidate", "1")
    client.set_model_version_tag("waiting", "1", registry.REASON + "below_unigram", "no: not fewer bits per byte than the unigram model: Chinese")
    client.set_model_version_tag("waiting", "1", registry.REASON + "finite_loss", "yes: every loss is a finite number")
    with pytest.raises(UserError, match="no champion.*not fewer bits per byte than the unigram model.*--version 1") as caught:
        engine.chosen(client, "waiting", None)
    assert "finite" not in str(caught.value)
    with pytest.raises(UserError, match="no version 9"):
        engine.chosen(client, "waiting", 9)
    with pytest.raises(UserError, match="no model 'nothing' is registered"):
        engine.chosen(client, "nothing", None)


def test_version_that_lmworks_did_not_register_is_not_loaded(mlflow_url, tmp_path):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "foreign", 1)
    with pytest.raises(UserError, match="not registered by lmworks"), model_files.fetched(client.get_model_version("foreign", "1"), layout):
        pass


def test_A21_a_champion_whose_contract_cannot_be_read_blocks(mlflow_url, tmp_path):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "stranger", 2)  # version 1 was put there by somebody else: no tag says what its files are
    promise = {"format": 1, "inputs": [], "outputs": [], "params": [], "context": 8, "chat_template": None, "requirements": [], "python": "3.11"}
    client.set_model_version_tag("stranger", "2", contract.CONTRACT, contract.text_of(promise))
    mine, stranger = client.get_model_version("stranger", "2"), client.get_model_version("stranger", "1")
    said = contract.judged(client, mine, stranger, ["context"], layout)
    assert not said.passed and "champion version 1 could not be read" in said.sentence and "remove its alias" in said.sentence
    assert contract.known(client, stranger, layout) is None and contract.judged(client, mine, None, [], layout).passed


def test_damaged_services_file_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = Layout(root=tmp_path)
    files.write_json(layout.services, {"mlflow": {}})
    with pytest.raises(UserError, match="lmworks up"):
        registry.address(layout)
    assert json.loads(layout.services.read_text()) == {"mlflow": {}}
