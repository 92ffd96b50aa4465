"""From a published model to a logged model in MLflow whose stored bytes were read back and found right."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components import files
from components.errors import Damaged
from components.layout import Layout
from components.release import calling, contract, model_files, registry
from components.release.lineage import Subject
from components.release.loader import MODEL_FILE

# Ranges in which loading and serving were tried, so that a consumer on the same Python minor sees no warning
# (transformers 5.24 already warns about an argument that 5.23 asks for).
REQUIREMENTS = ["mlflow>=3.15,<3.18", "torch>=2.13,<2.14", "transformers>=5.23,<5.24"]
TRIED_MLFLOW = ("3.15.0", "3.16.1", "3.17.2")  # with which a consumer loaded and served a released model
MAX_NEW_TOKENS = 64


def example(subject: Subject) -> tuple[list[str], dict[str, Any]]:
    """A request with every param; MLflow reads their types and defaults from it."""
    config = files.read_json(subject.out / "model" / "config.json")
    context = config.get("max_position_embeddings") or config.get("n_positions") or 2 * MAX_NEW_TOKENS
    return ([calling.example_prompt(subject.name, subject.languages)], {
        "max_new_tokens": min(MAX_NEW_TOKENS, context // 2), "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 0, "about": False})


@contextlib.contextmanager
def packed(subject: Subject, layout: Layout) -> Iterator[Path]:
    """The folder to log: the model's files, serving.json and a manifest of its own; links where the disk allows, so no copy."""
    work = layout.work_root / "release"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix=f"{subject.kind}-") as name:
        folder = Path(name) / "model"
        shutil.copytree(subject.out / "model", folder, copy_function=_link_or_copy)
        (folder / model_files.CARD).unlink(missing_ok=True)
        files.write_json(folder / "serving.json", {"kind": subject.kind, "name": subject.name, "weights_sha256": subject.weights_sha256})
        files.write_manifest(folder)
        yield folder


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def logged_model(client: Any, experiment: str, run_id: str, subject: Subject, layout: Layout) -> tuple[str, dict[str, str]]:
    """(model id, tags for its version: the files that the registry vouches for, the contract). Uploads once; what an earlier try
    verified is used again.

    Raises Damaged when the store gives back other bytes than were sent: then nothing is registered.
    """
    for earlier in client.search_logged_models([experiment], max_results=50, filter_string=(
            f"tags.`{registry.WEIGHTS}` = '{subject.weights_sha256}' AND tags.`{registry.EVALUATION}` = '{subject.evaluation_sha256}'")):
        expected = model_files.vouched_files(earlier.tags.get(model_files.FILES))
        if earlier.name == subject.name and is_sound(f"models:/{earlier.model_id}", expected, subject.name, layout):
            return earlier.model_id, {key: earlier.tags[key] for key in (model_files.FILES, contract.CONTRACT) if key in earlier.tags}
    import mlflow

    started = mlflow.initialize_logged_model(name=subject.name, source_run_id=run_id, experiment_id=experiment, model_type=subject.kind, tags={
        registry.WEIGHTS: subject.weights_sha256, registry.EVALUATION: subject.evaluation_sha256})
    with packed(subject, layout) as folder, no_bytecode():
        mlflow.pyfunc.log_model(
            name=subject.name, python_model=str(MODEL_FILE), artifacts={"model": str(folder)}, input_example=example(subject),
            pip_requirements=REQUIREMENTS, model_id=started.model_id, metadata=files.read_json(folder / "serving.json"))
        tags = read_back(started.model_id, folder, subject, layout)
        beside = folder.parent / model_files.VOUCHED
        files.write_atomic(beside, model_files.listing(json.loads(tags[model_files.FILES])))
        client.log_model_artifact(started.model_id, str(beside))
    client.set_logged_model_tags(started.model_id, tags)
    return started.model_id, tags


@contextlib.contextmanager
def no_bytecode() -> Iterator[None]:
    """MLflow tries the model file where it is about to upload it from: the interpreter's cache of it would be logged as part of the model."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def is_sound(source: str, expected: dict[str, str] | None, what: str, layout: Layout) -> bool:
    """Whether the store still gives the bytes that were registered; not where nothing says which those were."""
    if not expected:
        return False
    try:
        with model_files.stored(source, expected, what, layout):
            return True
    except Damaged:
        return False


def read_back(model_id: str, sent: Path, subject: Subject, layout: Layout) -> dict[str, str]:
    """Tags of what the store serves, held against what was sent. MLflow itself calls a half-written model READY. Raises Damaged."""
    with model_files.stored(f"models:/{model_id}", None, subject.name, layout) as folder:
        found = model_files.local_files(folder)
        for path, wanted in ((f"artifacts/model/{files.MANIFEST}", sent / files.MANIFEST), (MODEL_FILE.name, MODEL_FILE)):
            if found.get(path) != files.sha256_file(wanted):
                raise Damaged(f"{subject.name}: the model store gave back another {path}: sha256 {found.get(path, 'no such file')} found, "
                              f"{files.sha256_file(wanted)} sent. Nothing was registered. Run: lmworks run")
        files.verify_manifest(folder / "artifacts" / "model")
        return {model_files.FILES: json.dumps(found, sort_keys=True), contract.CONTRACT: contract.text_of(contract.of_folder(folder))}
