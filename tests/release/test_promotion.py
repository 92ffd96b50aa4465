"""Concurrent promotions: the champion never gets worse than the one it replaced."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading

import pytest

from components import files
from components.errors import UserError
from components.layout import ROOT, Layout
from components.release import contract, promotion, registry

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


PROMOTER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from components.layout import Layout
    from components.release import promotion, registry
    name, first = sys.argv[2], int(sys.argv[3])
    layout = Layout(root=Path(sys.argv[1]))
    client = registry.client(layout)
    for version in (first, first + 4, first):
        mine = int(client.get_model_version(name, str(version)).tags["score"])
        try:
            promotion.promote(client, name, str(version), layout, lambda champion: (champion is None or mine >= int(champion.tags["score"]), "score"))
        except Exception as error:
            print(type(error).__name__, error); raise
""")


def test_G5_concurrent_promoters_end_with_the_best_and_never_step_down(mlflow_url, tmp_path):
    layout = Layout(root=tmp_path)
    client = a_model(layout, "race", 8)
    promoters = [subprocess.Popen([sys.executable, "-c", PROMOTER, str(tmp_path), "race", str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
                 for n in (1, 2, 3, 4)]
    failures = []
    done = threading.Event()

    def reader():
        best = -1
        while not done.wait(0.02):
            version = registry.registered(layout, "race")["aliases"].get("champion")
            if version is not None:
                if int(version) < best:
                    failures.append((best, version))
                best = int(version)

    watcher = threading.Thread(target=reader)
    watcher.start()
    outputs = [p.communicate(timeout=120)[0] for p in promoters]
    done.set()
    watcher.join()
    assert all(p.returncode == 0 for p in promoters), outputs
    assert not failures and registry.aliased(client, "race", "champion").version == "8"
    moves = registry.history(registry.registered(layout, "race"))
    assert [m["from"] for m in moves[1:]] == [m["to"] for m in moves[:-1]] and moves[-1]["to"] == "8"
    assert [int(m["to"]) for m in moves] == sorted({int(m["to"]) for m in moves})


def test_H2_champion_moved_by_hand_is_flagged_and_not_asked(mlflow_url, tmp_path):
    from components.serving import engine

    layout = Layout(root=tmp_path)
    client = a_model(layout, "byhand", 1)
    client.set_model_version_tag("byhand", "1", registry.VERDICT, "failed")
    client.set_registered_model_alias("byhand", "champion", "1")
    entry = next(model for model in registry.catalogue(layout) if model["name"] == "byhand")
    assert "by hand" in entry["versions"][0]["note"]
    with pytest.raises(UserError, match="moved it by hand"):
        engine.chosen(client, "byhand", None)


def test_without_champion_the_failed_criterion_is_named(mlflow_url, tmp_path):
    from components.serving import engine

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
    with pytest.raises(UserError, match="not registered by lmworks"), registry.fetched(client.get_model_version("foreign", "1"), layout):
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
