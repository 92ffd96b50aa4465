"""A champion registered with a real MLflow server, backed up while that server runs, cleaned around, and loaded by alias from a
checkout elsewhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from components import files
from components.errors import Busy, Damaged
from components.layout import ROOT, Layout
from components.operations import backup, cleaning, databases, restoration, restored_databases, services
from components.release import model_files, registry, release

pytestmark = [pytest.mark.code, pytest.mark.slow]


def a_released_checkout() -> ModuleType:
    """tests/release/checkout.py, under a name of its own: tests/checkout.py is another module."""
    spec = importlib.util.spec_from_file_location("released_checkout", ROOT / "tests/release/checkout.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Layout, Path, str]]:
    """(the checkout, whose server is down by now, its backup, the champion's weights)."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            patch.delenv(variable, raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))
        made = a_released_checkout()
        folder = tmp_path_factory.mktemp("backup")
        config = made.configuration(name="kept")
        layout = made.make(folder / "old checkout", config)
        try:
            services.ensure(layout, prefect=False)
            decisions = release.release(config, layout, say=lambda _line: None)
            index = backup.create(layout, folder / "saved")  # while the server runs
            with pytest.raises(Busy, match="lmworks down"):
                restoration.restore(layout, folder / "saved")
        finally:
            services.down(layout)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert not index["warnings"] and all(version["sound"] for version in index["versions"])
        assert [version["name"] for version in index["versions"] if "champion" in version["aliases"]] == ["kept", "kept-instruct"]
        yield layout, folder / "saved", decisions[0].weights_sha256


@pytest.fixture(autouse=True)
def no_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client writes the address of the server that it talked to into the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def restored(saved: Path, root: Path) -> tuple[Layout, databases.Standing]:
    layout = Layout(root=root)
    return layout, restoration.restore(layout, saved)["standing"]


def what_nobody_needs(client: Any, layout: Layout) -> tuple[Path, Path, str]:
    """(the folder of a model that no version names, that of a run in the bin, the experiment)."""
    experiment = client.get_experiment_by_name("kept").experiment_id
    model = client.create_logged_model(experiment, name="left")
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "x" * 1000, "notes.txt")
    client.delete_run(run)
    left, binned = layout.artifacts / experiment / "models" / model.model_id, layout.artifacts / experiment / run
    files.write_atomic(left / "artifacts/model.safetensors", b"x" * 1000)
    return left, binned, experiment


def check_clean(client: Any, layout: Layout) -> None:
    """Only what nobody needs goes, and that only past the age; then the rows say so, too."""
    left, binned, experiment = what_nobody_needs(client, layout)
    before = {path for path in layout.artifacts.rglob("*") if path.is_file()}
    cleaning.clean(layout, older_than_days=1)
    cleaning.clean(layout, older_than_days=0, dry=True)
    assert {path for path in layout.artifacts.rglob("*") if path.is_file()} == before
    kinds = cleaning.clean(layout, older_than_days=0)
    assert {item.bytes for kind in kinds if kind.name == "MLflow" for item in kind.items} == {1000}
    assert {path for path in layout.artifacts.rglob("*") if path.is_file()} == {
        path for path in before if not path.is_relative_to(left) and not path.is_relative_to(binned)}
    assert "left" not in {model.name for model in client.search_logged_models([experiment])}
    assert not any(kind.items for kind in cleaning.clean(layout, older_than_days=0) if kind.name == "MLflow")


def test_the_champion_is_served_from_a_restored_and_cleaned_checkout_with_the_same_hash(saved, tmp_path: Path):
    old, folder, weights = saved
    away = old.root.rename(old.root.with_name("gone"))  # nothing may lean on the old place
    try:
        layout, stands = restored(folder, tmp_path / "another place")
        assert stands.lines() == [] and len(stands.sound) == 2
        try:
            services.ensure(layout, prefect=False)
            client = registry.client(layout)
            check_clean(client, layout)
            version = registry.aliased(client, "kept", "champion")
            assert version.tags[registry.WEIGHTS] == weights
            with model_files.fetched(version, layout) as model:
                assert files.weights_sha256(model / "artifacts/model") == weights
            import mlflow

            loaded = mlflow.pyfunc.load_model("models:/kept@champion")
            assert json.loads(loaded.predict(["x"], params={"about": True})[0])["weights_sha256"] == weights
            assert loaded.predict(["Hello"], params={"max_new_tokens": 2, "seed": 1})
        finally:
            services.down(layout)
    finally:
        away.rename(old.root)


def test_E8_a_database_older_than_the_store_or_files_that_are_gone_are_named(saved, tmp_path: Path):
    layout, stands = restored(saved[1], tmp_path / "new")
    base, instruct = stands.sound
    shutil.copytree((layout.artifacts / base.folder).parent, layout.artifacts / "1/models/m-newer")  # what last night's database cannot know
    shutil.rmtree(layout.artifacts / instruct.folder)
    weights = layout.artifacts / base.folder / "artifacts/model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    stands = databases.standing(layout)
    assert set(stands.unsound) == {base, instruct} and stands.orphans == ["1/models/m-newer/artifacts"]
    lines = "\n".join(stands.lines())
    assert "kept version 1 (kept@candidate and kept@champion point there) cannot be served" in lines and "model.safetensors is damaged" in lines
    assert "kept-instruct version 1" in lines and "its files are not there" in lines and "m-newer" in lines
    with pytest.raises(Damaged):  # and the model itself refuses, where it is served
        files.verify_manifest(layout.artifacts / base.folder / "artifacts/model")
    index = backup.create(layout, tmp_path / "b")  # such a backup is made, and says so
    assert any("cannot be served" in line for line in index["warnings"]) and not any(version["sound"] for version in index["versions"])


def test_E8_last_night_s_databases_beside_today_s_models_and_the_next_run_releases_again(saved, tmp_path: Path):
    old, folder, weights = saved
    made = a_released_checkout()
    config = made.configuration(name="kept")
    layout = Layout(root=tmp_path / "today")
    shutil.copytree(old.root, layout.root, ignore=shutil.ignore_patterns("services.json"))
    made.retrain(layout, config, seed=7)
    try:
        services.ensure(layout, prefect=False)
        today = release.release(config, layout, say=lambda _line: None)
        assert [decision.version for decision in today] == ["2", "2"] and today[0].weights_sha256 != weights
        assert release.receipt_current(config, layout)
    finally:
        services.down(layout)
    done = restored_databases.restore(layout, folder)
    newer = {f"{decision.model_id}/artifacts" for decision in today}
    stands = databases.standing(layout)
    assert {"/".join(orphan.split("/")[2:]) for orphan in stands.orphans} == newer and stands.unsound == {} and stands.dangling == []
    assert any("2 model folders are newer than the database" in line for line in done.told)
    try:
        services.ensure(layout, prefect=False)
        client = registry.client(layout)
        assert registry.aliased(client, "kept", "champion").tags[registry.WEIGHTS] == weights, "the champion of last night, whole"
        with model_files.fetched(registry.aliased(client, "kept", "champion"), layout):
            pass
        assert not release.receipt_current(config, layout), "so the next run does not call everything unchanged"
        again = release.release(config, layout, say=lambda _line: None)
        assert [(decision.version, decision.weights_sha256, decision.verdict) for decision in again] == [
            (decision.version, decision.weights_sha256, decision.verdict) for decision in today]
        for name in ("kept", "kept-instruct"):
            with model_files.fetched(registry.aliased(client, name, "champion"), layout) as model:
                assert files.weights_sha256(model / "artifacts/model") == registry.aliased(client, name, "champion").tags[registry.WEIGHTS]
    finally:
        services.down(layout)
