"""What release refuses or says no to in MLflow's own terms, each in one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import checkout
import pytest

from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout
from components.release import gates, lineage, registry
from components.release.release import Decision, sentence

pytestmark = pytest.mark.code


def test_a_deleted_experiment_is_refused_before_anything_trains(mlflow_url: str, tmp_path: Path):
    config = checkout.configuration(name="binned")
    layout = checkout.make(tmp_path, config)
    client = registry.client(layout)
    registry.check_name(config, layout)
    experiment = client.create_experiment("binned")
    client.delete_experiment(experiment)
    with pytest.raises(UserError, match=f"deleted in MLflow.*the line `name:` of params.yaml.*experiments restore --experiment-id {experiment}"):
        registry.check_name(config, layout)


@pytest.mark.parametrize("source", ["embedded", "my texts/it's $HOME"])
def test_what_is_advised_where_the_name_is_of_another_corpus_works_and_keeps_every_setting(mlflow_url: str, tmp_path: Path, source: str):
    mine = checkout.configuration(name="mixed", **{"corpus.source": source, "corpus.records": "my records.jsonl"})
    layout = Layout(root=tmp_path)
    files.write_atomic(layout.params, settings.render(mine))
    registry.ensure_registered(registry.client(layout), "mixed", checkout.configuration(name="mixed", **{"corpus.source": "elsewhere"}), "")
    with pytest.raises(UserError, match="'elsewhere'.*never mixes corpora.*the line `name:` of params.yaml") as refused:
        registry.check_name(mine, layout)
    assert "--corpus" not in str(refused.value)
    text = layout.params.read_text()
    assert text.count("\nname: mixed ") == 1
    files.write_atomic(layout.params, text.replace("\nname: mixed ", "\nname: unmixed "))
    renamed = settings.load(layout.params)
    registry.check_name(renamed, layout)
    assert renamed == mine.model_copy(update={"name": "unmixed"})


def test_a_champion_whose_gate_says_no_now_is_not_called_promoted():
    criterion = gates.above_majority({"classification, Chinese": (0.2, 0.3)})
    decision = Decision(name="x", version="1", weights_sha256="", evaluation_sha256="", verdict="failed", champion_version="1", run_id="r", model_id="m-1", criteria=[criterion])
    assert not decision.promoted
    assert sentence(decision).startswith("x: version 1 does not pass its gate any more (macro-F1 not above")


def test_the_first_run_of_the_same_weights_is_the_one_that_trained_them(mlflow_url: str, tmp_path: Path):
    config = checkout.configuration(name="twice")
    layout = checkout.make(tmp_path, config)
    client = registry.client(layout)
    subject = lineage.subjects(config, layout)[0]
    experiment = lineage.experiment_id(client, "twice")
    tags = {registry.WEIGHTS: subject.weights_sha256, "lmworks.stage": "pretrain"}
    first = client.create_run(experiment, start_time=1000, tags=tags).info.run_id
    client.create_run(experiment, start_time=2000, tags=tags)
    assert lineage.training_run(client, experiment, subject, config, layout, print) == first


def test_B6_the_uncommitted_difference_leaves_out_what_holds_secrets(tmp_path: Path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "color.ui=always"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "config", "color.ui", "always"], check=True)
    names = ("params.yaml", ".env", "deep/.env.local", ".dvc/config", "server.key", "aws_credentials.ini")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before\n")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    for name in names:
        (tmp_path / name).write_text("steps: 5\n" if name == "params.yaml" else "password: topsecret\n")
    commit, difference = lineage.git_state(tmp_path)
    assert commit and b"+steps: 5" in difference and b"topsecret" not in difference and b"\x1b" not in difference
