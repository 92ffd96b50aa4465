"""Release against a real MLflow server: runs, versions, aliases, gates, receipt."""

from __future__ import annotations

from pathlib import Path

import checkout
import pytest
from mlflow.exceptions import MlflowException

from benchmarks.reliability.proxy import CUT, ERROR, PASS, REFUSE, Proxy
from components import files
from components.errors import Damaged, Passing, UserError
from components.layout import Layout
from components.operations import rest
from components.release import calls, history, lineage, model_files, package, registry, rollback
from components.release import release as releasing
from components.serving import engine

pytestmark = pytest.mark.code


def quietly(config, layout):
    lines: list[str] = []
    return releasing.release(config, layout, say=lines.append), lines


@pytest.fixture(scope="module")
def first(mlflow_url, tmp_path_factory):
    """(config, layout, decisions, client) of a first release that passes."""
    config = checkout.configuration(name="first")
    layout = checkout.make(tmp_path_factory.mktemp("first"), config)
    decisions, _ = quietly(config, layout)
    return config, layout, decisions, registry.client(layout)


def test_first_release_registers_both_and_promotes_what_passes(first):
    config, layout, decisions, client = first
    assert [d.name for d in decisions] == ["first", "first-instruct"]
    for decision in decisions:
        assert decision.promoted and decision.verdict == "passed" and decision.champion_version == "1"
        version = client.get_model_version_by_alias(decision.name, "champion")
        assert version.version == client.get_model_version_by_alias(decision.name, "candidate").version
        assert version.tags["gate.verdict"] == "passed" and version.tags["gate.reason.finite_loss"].startswith("yes: ")
        assert version.tags[registry.WEIGHTS] == decision.weights_sha256 and version.tags["lmworks.data_digest"]
        assert "gate" in version.description.lower() or "Criterion" in version.description


def test_restored_run_is_finished_and_holds_the_evidence(first):
    config, layout, decisions, client = first
    run = client.get_run(decisions[0].run_id)
    assert run.info.status == "FINISHED" and run.data.tags["lmworks.restored"] == "true"
    assert "eval/bits_per_byte_zh" in run.data.metrics and "eval/f1_classification_zh" not in run.data.metrics
    assert "eval/f1_classification_zh" in client.get_run(decisions[1].run_id).data.metrics
    paths = {entry.path for folder in ("", "evaluation", "settings") for entry in client.list_artifacts(decisions[0].run_id, folder)}
    assert {"promotion.json", "README.md", "evaluation/evaluation.json", "evaluation/report.html", "evaluation/samples.json",
            "settings/params.yaml", "settings/sources.json"} <= paths
    assert sorted(entry.dataset.name for entry in run.inputs.dataset_inputs) == ["tokens/test", "tokens/train", "tokens/validation"]
    assert all(len(entry.dataset.digest) <= 36 for entry in run.inputs.dataset_inputs)


def test_release_finds_the_training_run_and_leaves_its_end_alone(mlflow_url, tmp_path):
    config = checkout.configuration(name="tracked")
    layout = checkout.make(tmp_path, config)
    client = registry.client(layout)
    experiment = lineage.experiment_id(client, "tracked")
    run = client.create_run(experiment, tags={registry.WEIGHTS: lineage.weights_of(layout.pretrained), "lmworks.stage": "pretrain"})
    client.set_terminated(run.info.run_id, "FINISHED", end_time=1_700_000_000_000)
    decisions, _ = quietly(config, layout)
    assert decisions[0].run_id == run.info.run_id != decisions[1].run_id
    after = client.get_run(run.info.run_id).info
    assert (after.status, after.end_time) == ("FINISHED", 1_700_000_000_000)


def test_C7_releasing_again_changes_nothing(first):
    config, layout, decisions, client = first
    before = registry.registered(layout, "first")
    again, lines = quietly(config, layout)
    assert [(d.name, d.version, d.run_id) for d in again] == [(d.name, d.version, d.run_id) for d in decisions]
    assert registry.registered(layout, "first") == before
    assert len(client.search_model_versions("name = 'first'")) == 1
    assert len(client.search_logged_models([lineage.experiment_id(client, "first")])) == 2


def test_receipt_holds_until_anything_differs(first, monkeypatch):
    config, layout, decisions, client = first
    assert releasing.receipt_current(config, layout)
    assert files.read_json(layout.receipt)["models"]["first"]["version"] == decisions[0].version
    client.delete_registered_model_alias("first", "champion")
    try:
        assert not releasing.receipt_current(config, layout)
    finally:
        client.set_registered_model_alias("first", "champion", "1")
    assert releasing.receipt_current(config, layout)
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert not releasing.receipt_current(config, layout)
    assert not releasing.receipt_current(checkout.configuration(name="first", **{"gates.score_margin": 0.5}), layout)


def test_receipt_needs_no_mlflow_import():
    import subprocess
    import sys

    from components.layout import ROOT

    code = "import sys; from components.release.release import receipt_current; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_H9_first_model_must_pass_the_absolute_gates(mlflow_url, tmp_path):
    config = checkout.configuration(name="toolow")
    layout = checkout.make(tmp_path, config, unigram_above=-0.5, majority_f1=0.9)
    decisions, lines = quietly(config, layout)
    for decision, criterion in zip(decisions, ("below_unigram", "above_majority"), strict=True):
        assert not decision.promoted and decision.verdict == "failed" and decision.champion_version is None
        assert [c.criterion for c in decision.criteria if not c.passed] == [criterion]
        aliases = registry.registered(layout, decision.name)["aliases"]
        assert aliases == {"candidate": "1"}
    assert any("toolow: version 1 was not promoted" in line and "unigram" in line for line in lines)
    assert releasing.receipt_current(config, layout)  # a no is a decision too


def test_worse_model_stays_candidate_better_one_replaces_and_history_is_kept(mlflow_url, tmp_path):
    config = checkout.configuration(name="rounds")
    layout = checkout.make(tmp_path, config, seed=1)
    quietly(config, layout)
    checkout.retrain(layout, config, seed=2, scale=30.0)
    (worse, _), lines = quietly(config, layout)
    assert worse.version == "2" and not worse.promoted and worse.champion_version == "1"
    failed = next(c for c in worse.criteria if not c.passed)
    assert failed.criterion == "not_worse_than_champion" and "may be worse than champion version 1" in failed.sentence
    client = registry.client(layout)
    assert client.get_model_version("rounds", "2").tags["gate.reason.not_worse_than_champion"].startswith("no: ")
    kept = client.list_artifacts(worse.run_id, "champion")
    quietly(config, layout)  # judged once, then read from the run
    assert [entry.path for entry in client.list_artifacts(worse.run_id, "champion")] == [entry.path for entry in kept] and len(kept) == 1

    margin = checkout.configuration(name="rounds", **{"gates.bits_per_byte_margin": 1.0, "gates.score_margin": 1.0})
    checkout.retrain(layout, margin, seed=3)
    (better, instruct), _ = quietly(margin, layout)
    assert better.promoted and better.version == "3" and instruct.promoted
    moves = history.history(registry.registered(layout, "rounds"))
    assert [(move["from"], move["to"]) for move in moves] == [(None, "1"), ("1", "3")]
    assert all(move["who"] and move["when"] and move["why"] for move in moves)


def test_gates_are_independent_and_the_card_says_so(mlflow_url, tmp_path):
    config = checkout.configuration(name="halves")
    layout = checkout.make(tmp_path, config, unigram_above=-0.5)
    (base, instruct), _ = quietly(config, layout)
    assert not base.promoted and instruct.promoted
    client = registry.client(layout)
    assert "was not promoted" in client.get_model_version("halves-instruct", "1").description
    readme = client.download_artifacts(instruct.run_id, "README.md")
    assert "was not promoted" in Path(readme).read_text()


def test_imported_base_releases_instruct_alone(mlflow_url, tmp_path):
    config = checkout.configuration(name="onlychild", **{"corpus.base": "qwen-12345678"})
    layout = checkout.make(tmp_path, config)
    decisions, _ = quietly(config, layout)
    assert [d.name for d in decisions] == ["onlychild-instruct"] and registry.registered(layout, "onlychild") is None
    assert releasing.receipt_current(config, layout)


def test_same_name_with_another_corpus_is_refused_before_anything_trains(first):
    config, layout, _, client = first
    other = checkout.configuration(name="first", **{"corpus.source": "my-texts"})
    with pytest.raises(UserError, match="'embedded'.*'my-texts'.*the line `name:` of params.yaml"):
        registry.check_name(other, layout)
    with pytest.raises(UserError):
        releasing.release(other, layout)
    registry.check_name(checkout.configuration(name="new-name", **{"corpus.source": "my-texts"}), layout)


def test_D3_damaged_model_is_not_released(mlflow_url, tmp_path):
    config = checkout.configuration(name="damaged")
    layout = checkout.make(tmp_path, config)
    path = layout.pretrained / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match="model.safetensors is damaged"):
        releasing.release(config, layout)
    assert registry.registered(layout, "damaged") is None


def test_H3_evaluation_of_another_model_is_refused(mlflow_url, tmp_path):
    config = checkout.configuration(name="borrowed")
    layout = checkout.make(tmp_path, config)
    checkout.write_model(layout.pretrained, seed=9)
    with pytest.raises(Damaged, match="judged other weights"):
        releasing.release(config, layout)
    assert registry.registered(layout, "borrowed") is None


def test_weights_hash_is_that_of_files(first):
    _, layout, _, _ = first
    assert lineage.weights_of(layout.pretrained) == files.weights_sha256(layout.pretrained / "model")


def test_H1_half_written_files_are_never_registered(mlflow_url, tmp_path, monkeypatch):
    import mlflow

    config = checkout.configuration(name="halfway")
    layout = checkout.make(tmp_path, config)
    real = mlflow.artifacts.download_artifacts

    def short(*args, **kwargs):
        folder = real(*args, **kwargs)
        weights = Path(folder) / "artifacts" / "model" / "model.safetensors"
        if weights.exists():
            weights.write_bytes(weights.read_bytes()[:1000])
        return folder

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", short)
    with pytest.raises(Damaged, match="model.safetensors"):
        releasing.release(config, layout)
    assert registry.registered(layout, "halfway") is None


def test_D9_edited_version_in_the_store_is_registered_anew(mlflow_url, tmp_path):
    config = checkout.configuration(name="edited")
    layout = checkout.make(tmp_path, config)
    quietly(config, layout)
    client = registry.client(layout)
    version = client.get_model_version_by_alias("edited", "champion")
    (tmp_path / "model_file.py").write_text("print('evil')")
    client.log_model_artifact(registry.model_id(version), str(tmp_path / "model_file.py"))
    with pytest.raises(Damaged, match="model_file.py is damaged in the model store"), model_files.fetched(version, layout):
        pass
    (again, _), lines = quietly(config, layout)
    assert again.version == "2" and again.promoted and any("damaged" in line for line in lines)


def test_D9_a_version_whose_tag_of_its_files_was_edited_or_deleted_is_refused_and_registered_anew(mlflow_url, tmp_path):
    config = checkout.configuration(name="tagged")
    layout = checkout.make(tmp_path, config)
    quietly(config, layout)
    client = registry.client(layout)
    for number, edited in enumerate(["{", "[]", '{"MLmodel": 5}', None], start=1):
        if edited is None:
            client.delete_model_version_tag("tagged", str(number), model_files.FILES)
        else:
            client.set_model_version_tag("tagged", str(number), model_files.FILES, edited)
        with pytest.raises(UserError, match="vouches for|is damaged in the model store"), model_files.fetched(client.get_model_version("tagged", str(number)), layout):
            pass
        (again, _), lines = quietly(config, layout)
        assert again.version == str(number + 1) and again.promoted and any("damaged or gone" in line for line in lines), (edited, lines)


def test_D1_F1_a_full_disk_or_a_server_that_is_away_is_no_damage_of_the_model_that_is_fetched(mlflow_url, tmp_path, monkeypatch):
    """As damage it would take the receipt away, register the weights again, judge a champion as unreadable, and roll back too far."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = checkout.configuration(name="away")
    layout = checkout.make(tmp_path, config)
    with Proxy(mlflow_url) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        quietly(config, layout)
        champion = registry.client(layout).get_model_version_by_alias("away", "champion")
        expected = model_files.vouched_files(champion.tags[model_files.FILES])
        for mode in (REFUSE, ERROR, CUT):
            proxy.misbehave(mode)
            for answers in (False, True):  # one that refuses the files alone is healthy
                monkeypatch.setattr(rest, "healthy", lambda *_args, answers=answers, **_named: answers)
                with pytest.raises(Passing, match="MLflow at .* did not give the files of away .*lmworks status"):
                    package.is_sound(champion.source, expected, "away", layout)
        proxy.misbehave(PASS)
        with monkeypatch.context() as full:
            full.setattr("mlflow.artifacts.download_artifacts", lambda **_: (_ for _ in ()).throw(MlflowException("OSError(28, 'No space left on device')")))
            with pytest.raises(Passing, match="away version 1 cannot be fetched: no space in "):
                engine.answer(layout, "away", ["房间"], {})
            with pytest.raises(Passing, match="no space in "):
                rollback._usable(champion, "away", "1", layout)
        assert layout.receipt.exists() and package.is_sound(champion.source, expected, "away", layout)


def test_a_server_that_refuses_is_one_clear_line_for_who_asks_a_model(mlflow_url, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with Proxy(mlflow_url) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        layout = Layout(root=tmp_path)
        proxy.misbehave(ERROR)
        for version in (None, 1):
            with pytest.raises(rest.Unreachable, match="MLflow at .* went away or refused a call: .*Look at `lmworks status`, then ask again"):
                engine.answer(layout, "whoever", ["房间"], {}, version)


@pytest.mark.parametrize(("said", "asks_who"), [
    ("API request to endpoint /api/2.0/mlflow/registered-models/alias failed with error code 401 != 200.", True), ("PERMISSION_DENIED: Permission denied", True),
    ("HTTPConnectionPool(host='127.0.0.1', port=5401): Max retries exceeded with url: /api/2.0/mlflow/logged-models/m-401f40", False)])
def test_who_is_refused_is_told_to_sign_in_and_nobody_else(said, asks_who, mlflow_url, tmp_path):
    with pytest.raises(rest.Unreachable) as told, calls.explained(Layout(root=tmp_path), "Then ask again"):
        raise MlflowException(said)
    assert ("MLFLOW_TRACKING_USERNAME" in str(told.value)) == asks_who and str(told.value).endswith("Then ask again") and said in str(told.value)


def test_no_server_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="lmworks up"):
        registry.client(Layout(root=tmp_path))


def test_promotion_is_bound_to_weights_and_evaluation(first):
    _, layout, decisions, client = first
    promotion = files.read_json(Path(client.download_artifacts(decisions[0].run_id, "promotion.json")))
    assert promotion["weights_sha256"] == lineage.weights_of(layout.pretrained)
    assert promotion["evaluation_sha256"] == files.sha256_file(layout.evaluation / "evaluation.json")
