"""`lmworks diff`, `runs` and `models` against a real MLflow server: two released versions, and what a person deleted."""

from __future__ import annotations

import json

import checkout
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from commands import main
from components import config as settings
from components import files
from components.release import comparison, registry
from components.release import release as releasing

pytestmark = [pytest.mark.code, pytest.mark.slow]


@pytest.fixture(scope="module")
def two(mlflow_url, tmp_path_factory):
    """(layout, url, client) of a model with two versions whose settings and weights differ."""
    config = checkout.configuration(name="pair")
    layout = checkout.make(tmp_path_factory.mktemp("语料 pair"), config)
    releasing.release(config, layout, say=lambda _: None)
    config = checkout.configuration(name="pair", **{"training.steps": 41})
    files.write_atomic(layout.params, settings.render(config))
    checkout.retrain(layout, config, seed=2)
    releasing.release(config, layout, say=lambda _: None)
    return layout, mlflow_url, registry.client(layout)


@pytest.fixture
def lmworks(two, monkeypatch):
    """Call a command in that checkout; returns what it printed."""
    layout, _, _ = two
    for module in ("diff", "runs", "models"):
        monkeypatch.setattr(f"commands.{module}.Layout", lambda: layout)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main.app, arguments)
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout

    return call


def fits(text: str) -> bool:
    """Addresses and lines to copy are whole; everything else fits."""
    return all(cell_len(line) <= 80 for line in text.splitlines() if "://" not in line)


def test_two_versions_side_by_side(two, lmworks):
    told = json.loads(lmworks("diff", "1", "2", "--json"))
    assert told["settings"] == [{"key": "training.steps", "a": 40, "b": 41}] and not told["same"] and not told["same_weights"]
    assert told["data"] == {"digests": [], "splits": []} and told["unknown"] == ["pair/1: code by file: its run has no readable settings/dvc.lock",
                                                                               "pair/2: code by file: its run has no readable settings/dvc.lock"]
    figures = {row["language"]: row for row in told["scores"] if row["what"] == "bits per byte"}
    assert set(figures) == {"Chinese", "English"} and figures["Chinese"]["a"]["low"] < figures["Chinese"]["a"]["value"] < figures["Chinese"]["a"]["high"]
    assert told["paired"]["challenger"] == "2" and told["paired"]["champion"] == "1" and "Chinese" in told["paired"]["sentence"]
    text = lmworks("diff", "models:/pair/1", "pair@candidate")
    assert "training.steps: 40 -> 41" in text and "version 2 minus version 1" in " ".join(text.split()) and fits(text), text


def test_the_fine_tuned_model_has_scores_of_its_own(lmworks):
    told = json.loads(lmworks("diff", "1", "2", "--instruct", "--json"))
    assert {row["what"] for row in told["scores"]} == {"classification: accuracy", "classification: f1"} and told["a"]["name"] == "pair-instruct"
    assert fits(lmworks("diff", "1", "2", "--instruct"))


def test_a_version_that_is_not_there_is_one_error(two, lmworks):
    layout, _, _ = two
    with pytest.raises(Exception, match="pair has versions 1, 2") as error:
        comparison.resolve("7", "pair", registry.catalogue(layout))
    assert error.value.exit_code == 2
    lmworks("diff", "7", "1", code=1)  # CliRunner's code for an error that `main` prints


def test_trained_models_are_listed_newest_first(two, lmworks):
    _, _, client = two
    told = json.loads(lmworks("runs", "--json"))
    assert [(run["stage"], run["versions"]) for run in told["models"]] == [
        ("finetune", ["pair-instruct/2"]), ("pretrain", ["pair/2"]), ("finetune", ["pair-instruct/1"]), ("pretrain", ["pair/1"])]
    assert all(run["status"] == "FINISHED" and run["verdict"] in ("passed", "failed") and run["url"].startswith("http") for run in told["models"])
    assert "eval/bits_per_byte_zh" in told["models"][1]["metrics"]
    client.update_run(told["models"][0]["run_id"], name="最好的 \x1b[31m[red]run[/red]")
    text = lmworks("runs")
    assert "bits per byte" in text and "zh" in text and "最好的" in text and "[red]run" in text and "\x1b" not in text and fits(text), text
    assert len(json.loads(lmworks("runs", "--limit", "1", "--json"))["models"]) == 1
    assert {run["experiment"] for run in json.loads(lmworks("runs", "--all", "--limit", "50", "--json"))["models"]} >= {"pair"}


def test_versions_and_history_fit_the_terminal(two, lmworks):
    text = lmworks("models", "pair")
    assert "champion" in text and "MLFLOW_TRACKING_URI=http" in text and fits(text), text
    moved = json.loads(lmworks("models", "pair", "--history", "--json"))
    assert moved[0]["history"][0]["from"] is None and moved[0]["history"][0]["to"] == "1"
    text = lmworks("models", "pair", "--history")
    assert "none -> 1" in text and "finite_loss" in text and fits(text), text


def test_H2_the_history_says_when_the_alias_was_moved_by_hand(two, lmworks):
    _, _, client = two
    before = client.get_model_version_by_alias("pair", "champion").version
    other = {"1": "2", "2": "1"}[str(before)]
    client.set_registered_model_alias("pair", "champion", other)
    try:
        assert f"moved by hand to version {other}" in " ".join(lmworks("models", "pair", "--history").split())
        assert "moved by hand" in " ".join(lmworks("models", "pair").split())
    finally:
        client.set_registered_model_alias("pair", "champion", before)


def test_a_run_that_was_deleted_by_hand_leaves_the_rest(two, lmworks):
    _, url, client = two
    run_id = client.get_model_version("pair", "1").run_id
    client.delete_run(run_id)
    try:
        assert "pair/1" not in {v for run in json.loads(lmworks("runs", "--json"))["models"] for v in run["versions"]}
        assert "training.steps: 40 -> 41" in lmworks("diff", "1", "2")  # in MLflow's bin, still readable
    finally:
        client.restore_run(run_id)
    told = comparison.compare(comparison.read(url, "pair", "1"), {**comparison.read(url, "pair", "2"), "settings": None})
    assert told["settings"] is None and told["scores"]


def test_H2_status_says_that_no_gate_made_the_champion(two):
    from commands import status

    layout, url, client = two
    before = client.get_model_version_by_alias("pair", "champion").version
    client.set_registered_model_alias("pair", "champion", {"1": "2", "2": "1"}[str(before)])
    try:
        told = status.champions(layout, {"state": "up", "url": url})
        (line,) = [str(line) for line in status._champions(told) if str(line).startswith("pair ")]
        assert told["source"] == "registry" and line.count("not gated") == 1 and "moved by hand" in line
    finally:
        client.set_registered_model_alias("pair", "champion", before)


def test_models_and_runs_of_others_in_chinese_and_with_quotes(two, lmworks):
    """A shared server holds what lmworks would never name so; nothing breaks, and columns stand below each other."""
    _, _, client = two
    for name in ("红楼梦 七律", "it's \x1b[31m*bold*"):
        run = client.create_run(client.create_experiment(name), run_name=name, tags={"lmworks.stage": "pretrain"})
        client.create_registered_model(name)
        client.create_model_version(name, source=f"{run.info.artifact_uri}/x", run_id=run.info.run_id)
    text = lmworks("runs", "--all", "--limit", "50")
    assert "红楼梦 七律" in text and "it's" in text and "\x1b" not in text and fits(text), text
    rows = [line for line in text.splitlines() if line.startswith(("红楼梦", "finetune pair", "最好的")) and "-" in line]
    assert len({cell_len(line[:line.index("20")]) for line in rows}) == 1, rows
    text = lmworks("models", "红楼梦 七律")
    assert "1" in text and "none" in text and fits(text)
    text = lmworks("diff", "红楼梦 七律/1", "pair/1")
    assert "not known   红楼梦 七律/1: scores" in text and "readable settings/params.yaml" in " ".join(text.split()) and fits(text), text
