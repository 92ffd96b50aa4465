"""What the MLflow page shows of released models: tables, datasets, figures by dataset, judged items, saved views, descriptions."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import checkout
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import files
from components.release import (
    datasets,
    evidence,
    gates,
    judged_items,
    lineage,
    model_files,
    registry,
    run_note,
    tables,
    views,
)
from components.release import release as releasing

pytestmark = pytest.mark.code

WIDE = {"gates.bits_per_byte_margin": 1.0, "gates.score_margin": 1.0}


@pytest.fixture(scope="module")
def pair(mlflow_url, tmp_path_factory):
    """(config, layout, [decisions of the first release, of the second], client): two models of one name, the second promoted."""
    config = checkout.configuration(name="pages", **WIDE)
    layout = checkout.make(tmp_path_factory.mktemp("pages"), config)
    first = releasing.release(config, layout, say=lambda line: None)
    checkout.retrain(layout, config, seed=3)
    return config, layout, [first, releasing.release(config, layout, say=lambda line: None)], registry.client(layout)


def experiment_of(client):
    return client.get_experiment_by_name("pages").experiment_id


def judged_runs(client, decision):
    return client.search_runs([experiment_of(client)], filter_string=f"tags.`{judged_items.JUDGED}` = '{decision.weights_sha256}'")


# --- tables ----------------------------------------------------------------------------------------


def test_every_run_has_both_tables_with_the_same_columns(pair):
    _, _, released, client = pair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, columns in ((tables.ANSWERS, tables.ANSWER_COLUMNS), (tables.SAMPLES, tables.SAMPLE_COLUMNS)):
            runs = [decision.run_id for decisions in released for decision in decisions]
            loaded = client.load_table(experiment_of(client), path, runs, extra_columns=["run_id"])
            assert tuple(loaded.columns) == (*columns, "run_id") and set(loaded["run_id"]) == set(runs)
    tags = client.get_run(released[0][0].run_id).data.tags
    assert json.loads(tags[tables.LOGGED]) == [{"path": tables.ANSWERS, "type": "table"}, {"path": tables.SAMPLES, "type": "table"}]


def test_two_models_answer_the_same_prompts_row_by_row(pair):
    _, _, released, client = pair
    runs = [decisions[1].run_id for decisions in released]
    loaded = client.load_table(experiment_of(client), tables.ANSWERS, runs, extra_columns=["run_id"])
    asked = [list(loaded[loaded["run_id"] == run]["prompt"]) for run in runs]
    assert asked[0] == asked[1] == [prompt for prompt, _, _ in checkout.RECORDS]
    for row in loaded.to_dict("records"):
        right = row["answer"] == row["expected"]
        assert (row["correct"], row["score"], row["metric"]) == ("yes" if right else "no", float(right), "accuracy")


def test_items_of_a_table_are_few_and_as_many_of_each_group(tmp_path):
    rows = [{"model": "instruct", "application": application, "language": code, "id": f"{n:03d}", "metric": metric, "value": n % 2, "weight": 1.0,
             "answer": f"a{n}", "expected": "e"} for application, code, count, metrics in (
                 ("question_answering", "en", 90, ("exact_match", "token_f1")), ("question_answering", "zh", 5, ("exact_match", "token_f1")),
                 ("classification", "zh", 90, ("accuracy",))) for n in range(count) for metric in metrics]
    layout = SimpleNamespace(evaluation=tmp_path, clean=tmp_path)
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "model": "majority"}]), tmp_path / "items.parquet")
    pq.write_table(pa.Table.from_pylist([{"application": row["application"], "id": row["id"], "prompt": "问" * 2000} for row in rows]),
                   tmp_path / "records.parquet")
    chosen = tables.graded("instruct", layout, 50)
    groups = [(row["application"], row["language"]) for row in chosen]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [16, 16, 5] and chosen == tables.graded("instruct", layout, 50)
    assert chosen[0]["id"] == "000" and {row["metric"] for row in chosen} == {"accuracy", "token_f1"}
    shown = tables.as_table(tables.ANSWER_COLUMNS, chosen)
    assert len(shown["data"][0][0]) == tables.MAX_CELL_CHARS + 1  # a long prompt is cut, and says so


def test_tables_of_others_stay_in_the_tag():
    others = json.dumps([{"path": "mine.json", "type": "table"}])
    once = tables.logged_tag(others)
    assert json.loads(once)[0]["path"] == "mine.json" and tables.logged_tag(once) == once


# --- datasets and figures --------------------------------------------------------------------------


def test_datasets_say_what_columns_and_how_much(pair):
    _, layout, released, client = pair
    base, instruct = (client.get_run(decision.run_id).inputs.dataset_inputs for decision in released[1])
    assert {entry.dataset.name: entry.tags[0].value for entry in base} == {
        "tokens/train": "training", "tokens/validation": "validation", "tokens/test": "test"}
    assert {"records/train", "records/test"} < {entry.dataset.name for entry in instruct}
    from mlflow.types import Schema

    for entry in (*base, *instruct):
        columns = Schema.from_json(json.dumps(json.loads(entry.dataset.schema)["mlflow_colspec"]))
        assert len(columns) > 1 and json.loads(entry.dataset.profile)
    profile = next(json.loads(entry.dataset.profile) for entry in instruct if entry.dataset.name == "records/test")
    assert profile == {"records": 4, "classification_zh": 4}
    digest = next(entry.dataset.digest for entry in base)
    assert digest == datasets.data_digest(layout)


def test_dvc_names_the_datasets(pair, tmp_path):
    _, layout, _, _ = pair
    other = type(layout)(root=tmp_path)
    other.dvc_lock.write_text("stages:\n  shards:\n    outs:\n    - path: data/tokens\n      md5: 00ff.dir\n")
    assert datasets.data_digest(other) == "00ff.dir"


def test_the_best_model_is_found_by_a_figure_on_one_dataset(pair):
    _, layout, released, client = pair
    from mlflow.entities import Metric

    key, digest = "metrics.`eval/bits_per_byte_zh`", datasets.data_digest(layout)

    def best_first() -> list[str]:
        found = client.search_logged_models([experiment_of(client)], filter_string="name = 'pages'", order_by=[{
            "field_name": key.replace("`", ""), "ascending": True, "dataset_name": "tokens/test", "dataset_digest": digest}])
        return [model.model_id for model in found]

    values = {}
    for decisions in released:
        model = client.get_logged_model(decisions[0].model_id)
        assert model.source_run_id == decisions[0].run_id
        assert {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics} == {("tokens/test", digest)}
        values[model.model_id] = next(metric.value for metric in model.metrics if metric.key == "eval/bits_per_byte_zh")
        outputs = client.get_run(decisions[0].run_id).outputs.model_outputs
        assert [output.model_id for output in outputs] == [model.model_id]
    assert best_first() == sorted(values, key=values.__getitem__)
    worst = max(values, key=values.__getitem__)
    run_id = client.get_logged_model(worst).source_run_id  # a better figure on other texts does not make it the best on these
    client.log_batch(run_id, metrics=[Metric("eval/bits_per_byte_zh", 0.01, 1, 0, model_id=worst, dataset_name="tokens/test", dataset_digest="other")])
    assert best_first() == sorted(values, key=values.__getitem__)


# --- judged items ----------------------------------------------------------------------------------


def test_items_are_judged_once_a_model_in_a_run_of_their_own(pair, capfd):
    config, layout, released, client = pair
    decision = released[1][1]
    (run,) = judged_runs(client, decision)
    assert run.info.status == "FINISHED" and run.info.run_name == f"judged items pages-instruct {decision.weights_sha256[:8]}"
    expected = [row["score"] for row in tables.graded("instruct", layout)]
    assert run.data.metrics["score/mean"] == pytest.approx(sum(expected) / 4) == run.data.metrics["correct/mean"]
    traces = client.search_traces(locations=[experiment_of(client)], run_id=run.info.run_id)
    assert len(traces) == 4 and run.info.run_id not in {d.run_id for decisions in released for d in decisions}
    releasing.release(config, layout, say=lambda line: None)
    assert len(judged_runs(client, decision)) == 1 and judged_runs(client, released[1][0]) == []
    assert client.get_run(decision.run_id).info.status == "FINISHED"
    assert capfd.readouterr() == ("", "")


def test_what_a_kill_left_is_judged_again_quietly(pair, capfd):
    config, layout, released, client = pair
    (run,) = judged_runs(client, released[1][1])
    client.delete_tag(run.info.run_id, judged_items.DONE)
    capfd.readouterr()
    releasing.release(config, layout, say=lambda line: None)
    assert capfd.readouterr() == ("", "")  # no bar, no banner, no warning
    (again,) = judged_runs(client, released[1][1])
    assert again.info.run_id != run.info.run_id and judged_items.DONE in again.data.tags


def test_a_failure_of_that_page_fails_no_release(pair, monkeypatch):
    from mlflow import genai

    config, layout, released, client = pair
    (run,) = judged_runs(client, released[1][1])
    client.delete_tag(run.info.run_id, judged_items.DONE)
    lines: list[str] = []

    def fail(**_more):
        raise TypeError("another version")

    with monkeypatch.context() as patched:
        patched.setattr(genai, "evaluate", fail)
        decisions = releasing.release(config, layout, say=lines.append)
    assert all(decision.promoted for decision in decisions) and any("TypeError: another version" in line for line in lines)
    import mlflow

    assert mlflow.active_run() is None


# --- saved views -----------------------------------------------------------------------------------


def view_tags(client):
    return {key: value for key, value in client.get_experiment(experiment_of(client)).tags.items() if key.startswith(views.VIEW)}


def test_views_are_there_and_show_what_was_held_against_what(pair):
    _, _, released, client = pair
    read = {key.removeprefix(views.VIEW): json.loads(value) for key, value in view_tags(client).items()}
    ours = {key: view["name"] for key, view in read.items() if key.startswith("lmworks-")}
    assert sorted(ours.values()) == ["Champion against candidate", "Nightly (trained by a deployment)", "Training"]
    state = views.unpacked(read["lmworks-champion"]["state"])
    runs = {decision.run_id for decisions in released for decision in decisions}
    assert {run.info.run_id for run in client.search_runs([experiment_of(client)], state["searchFilter"])} == runs
    assert "metrics.`eval/bits_per_byte_zh`" in state["selectedColumns"] and "metrics.`eval/f1_classification_zh`" in state["selectedColumns"]
    for view in read.values():  # the filters are such as the server takes
        client.search_runs([experiment_of(client)], views.unpacked(view["state"])["searchFilter"])


def test_views_are_written_once_and_those_of_others_never(pair):
    _, layout, released, client = pair
    run_ids = {decision.name: decision.run_id for decision in released[1]}
    shown = evidence.headlines(files.read_json(layout.evaluation / "evaluation.json"))
    client.set_experiment_tag(experiment_of(client), f"{views.VIEW}mine", "as I left it")
    before = view_tags(client)
    views.ship(client, experiment_of(client), run_ids, shown)
    assert view_tags(client) == before
    champion = f"{views.VIEW}lmworks-champion"
    views.ship(client, experiment_of(client), run_ids, ["eval/other"])
    after = view_tags(client)
    assert after[champion] != before[champion] and after[f"{views.VIEW}mine"] == "as I left it"
    assert json.loads(after[champion])["createdAt"] == json.loads(before[champion])["createdAt"]
    client.set_experiment_tag(experiment_of(client), champion, "{damaged")
    views.ship(client, experiment_of(client), run_ids, shown)
    assert json.loads(view_tags(client)[champion])["state"] == json.loads(before[champion])["state"]
    client.delete_experiment_tag(experiment_of(client), f"{views.VIEW}mine")


# --- descriptions ----------------------------------------------------------------------------------


def test_the_description_says_verdict_reasons_scores_and_where_to_look(pair, mlflow_url):
    _, _, released, client = pair
    run = client.get_run(released[1][0].run_id)
    text = run.data.tags[run_note.NOTE]
    first, reasons = text.split("\n\n")[:2]
    verdict, links = first.split("  \n")  # one paragraph: the fold of the page leaves two lines that can be clicked
    assert verdict == f"**Passed its gate** as [version 2 of pages]({mlflow_url}/#/models/pages/versions/2)."
    assert f"/runs/{run.info.run_id}/artifacts/evaluation/report.html)" in links
    assert "- yes, `below_unigram`: " in reasons and "bits per byte" in text and "\\[" in text
    assert run.data.tags[run_note.VERDICT] == "passed" and "in training" not in text.lower()


def test_two_models_that_are_compared_have_two_names_and_status_and_end_stay(pair):
    _, _, released, client = pair
    runs = [client.get_run(decision.run_id).info for decisions in released for decision in decisions]
    assert [run.run_name.rpartition(" ")[2] for run in runs] == ["v1", "v1", "v2", "v2"] and len({run.run_name for run in runs}) == 4
    assert all(run.run_name.startswith(("pretrain pages ", "finetune pages ")) and run.status == "FINISHED" and run.end_time for run in runs)


@pytest.mark.parametrize(("before", "after"), [
    ("pretrain tiny 13.9M zh+en seed 1", "pretrain tiny 13.9M zh+en seed 1 v3"), ("finetune tiny 4.8M zh seed 1 (restored) v2", "finetune tiny 4.8M zh seed 1 (restored) v3"),
    ("the one for Ann v2", "the one for Ann v2")])
def test_the_version_in_a_runs_name_is_the_newest_and_a_persons_own_name_stays(before: str, after: str):
    assert run_note.named(before, "3") == after == run_note.named(after, "3")


def test_J12_what_users_wrote_is_shown_as_text(pair):
    config, layout, _, _ = pair
    hostile = config.model_copy(update={"corpus": config.corpus.model_copy(update={"source": "<script>alert(1)</script>[x](javascript:y)"})})
    subject = lineage.subjects(config, layout)[0]
    criteria = [gates.Criterion(criterion="finite_loss", passed=False, observed=None, required="x", sentence="<img src=x onerror=alert(1)> **bold**")]
    run = SimpleNamespace(info=SimpleNamespace(experiment_id="1", run_id="r"), data=SimpleNamespace(tags={
        "lmworks.prefect_run": "javascript:alert(1)", lineage.DATA_PAGE: "data/report.html"}))
    text = run_note.describe(run, subject, "1", criteria, hostile, files.read_json(layout.evaluation / "evaluation.json"), "http://127.0.0.1:1")
    assert "<script>" not in text and "<img" not in text and "](javascript:" not in text and "**bold**" not in text
    assert text.startswith("**Did not pass its gate**") and "- **no**, `finite\\_loss`" not in text and "/artifacts/data/report.html)" in text


# --- deleted by hand -------------------------------------------------------------------------------


def test_a_run_that_a_person_deleted_gets_a_stand_in_and_is_named(mlflow_url, tmp_path):
    config = checkout.configuration(name="without-its-run", **{"corpus.base": "qwen-12345678"})  # one model is enough
    layout = checkout.make(tmp_path, config)
    (decision,) = releasing.release(config, layout, say=lambda line: None)
    client = registry.client(layout)
    assert releasing.receipt_current(config, layout)
    client.delete_run(decision.run_id)
    assert not releasing.receipt_current(config, layout), "or `lmworks run` would say that nothing changed"
    lines: list[str] = []
    (again,) = releasing.release(config, layout, say=lines.append)
    assert again.run_id != decision.run_id and again.version == decision.version and again.promoted
    assert any("was deleted in MLflow" in line for line in lines)
    run = client.get_run(again.run_id)
    assert run.data.tags["lmworks.restored"] == "true" and run.data.metrics and run.data.tags[run_note.VERDICT] == "passed"
    lines.clear()
    assert releasing.release(config, layout, say=lines.append)[0].run_id == again.run_id and not any("deleted" in line for line in lines)

    assert releasing.receipt_current(config, layout)
    client.delete_logged_model(again.model_id)
    assert not releasing.receipt_current(config, layout)
    (anew,) = releasing.release(config, layout, say=lines.append)
    assert anew.version == "2" and anew.promoted and anew.model_id != again.model_id and any("damaged or gone" in line for line in lines)
    with model_files.fetched(client.get_model_version_by_alias("without-its-run-instruct", "champion"), layout):
        pass
    assert releasing.receipt_current(config, layout)
