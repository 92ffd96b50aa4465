"""The champion judged again on the challenger's own test items, so that two models are compared on the same texts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components import files
from components.config import Config
from components.errors import Passing, UserError
from components.evaluation import significance
from components.layout import Layout
from components.release import gates, model_files, registry
from components.release.lineage import Subject

FOLDER = "champion"  # in the challenger's run


def test_key(subject: Subject, weights_sha256: str, config: Config, layout: Layout) -> str:
    """What the champion's figures depend on: its weights, the test texts and how they are judged."""
    clean = files.read_manifest(layout.clean)["files"]
    tested = clean["test.parquet" if subject.kind == "base" else "records.parquet"]["sha256"]
    settings = config.model_dump(mode="json")
    return files.sha256_bytes(files.canonical_json({
        "kind": subject.kind, "weights": weights_sha256, "test": tested, "evaluation": settings["evaluation"],
        "applications": settings["finetuning"]["applications"], "max_row_tokens": settings["finetuning"]["max_row_tokens"],
        "seed": config.seed}).encode())[:32]


def items_of(client: Any, run_id: str, subject: Subject, champion: Any, config: Config, layout: Layout, say: Callable[[str], None]) -> Any:
    """The champion's items (pa.Table) on the challenger's test items: from the challenger's run, else judged now and put there.

    Raises UserError or Damaged when the champion's files cannot be fetched or judged.
    """
    import pyarrow.parquet as pq
    from mlflow.exceptions import MlflowException

    key = test_key(subject, champion.tags.get(registry.WEIGHTS, ""), config, layout)
    work = layout.work_root / "release"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="champion-") as scratch:
        for kept in (entry.path for entry in client.list_artifacts(run_id, FOLDER) if entry.path.startswith(f"{FOLDER}/{key}-")):
            try:
                path = Path(client.download_artifacts(run_id, kept, scratch))
                if path.name != kept_as(key, path):  # the name vouches for the bytes: the store does not, and Parquet does not either
                    raise ValueError(path.name)
                return pq.read_table(path)
            except (MlflowException, OSError, ValueError):
                say(f"{subject.name}: the kept judgement of champion version {champion.version} cannot be read; judging again")
        say(f"{subject.name}: judging champion version {champion.version} on the new test items …")
        with model_files.fetched(champion, layout) as folder:
            table = judge(folder / "artifacts" / "model", subject, config, layout)
        judged = Path(scratch) / "judged.parquet"
        pq.write_table(table, judged, compression="zstd")
        client.log_artifact(run_id, str(judged.rename(judged.with_name(kept_as(key, judged)))), FOLDER)
        return table


def kept_as(key: str, judged: Path) -> str:
    """The name of a kept judgement: what it depends on, and the hash of its bytes."""
    return f"{key}-{files.sha256_file(judged)[:32]}.parquet"


def judge(model_folder: Path, subject: Subject, config: Config, layout: Layout) -> Any:
    import pyarrow.parquet as pq

    from components.evaluation import judging

    if subject.kind == "base":
        documents = pq.read_table(layout.clean / "test.parquet", columns=["id", "text", "language"]).to_pylist()
        return judging.judge_base(model_folder, documents, config)
    return judging.judge_instruct(model_folder, pq.read_table(layout.clean / "records.parquet").to_pylist(), config)


# --- comparing items -----------------------------------------------------------------------------

Key = tuple[str, str, str, str]  # application, language, id, metric


def rows_of(table: Any, kind: str) -> dict[Key, tuple[float, float]]:
    """{key: (value, weight)} of a model's own rows, baselines left out."""
    return {(row["application"], row["language"], row["id"], row["metric"]): (row["value"], row["weight"])
            for row in table.to_pylist() if row["model"] == kind}


def bits_differences(challenger: dict[Key, tuple[float, float]], champion: dict[Key, tuple[float, float]],
                     config: Config) -> dict[str, gates.Interval]:
    """Bits per byte, challenger minus champion, by language, of the documents that both judged."""
    shared = sorted(key for key in challenger.keys() & champion.keys() if key[3] == "nats")
    found = {}
    for code in sorted({key[1] for key in shared}):
        keys = [key for key in shared if key[1] == code]
        found[code] = significance.paired_corpus_bits_per_byte(
            [challenger[key][0] for key in keys], [champion[key][0] for key in keys], [challenger[key][1] for key in keys],
            samples=config.evaluation.bootstrap_samples, confidence=config.evaluation.confidence, seed=config.seed)
    return found


def score_differences(challenger: dict[Key, tuple[float, float]], champion: dict[Key, tuple[float, float]],
                      metrics: dict[str, str], config: Config) -> dict[str, gates.Interval]:
    """Mean score, challenger minus champion, over all records that both judged (one interval: few records a slice decide nothing).

    `metrics`: the item metric of each application.
    """
    shared = sorted(key for key in challenger.keys() & champion.keys() if metrics.get(key[0]) == key[3])
    if not shared:
        return {}
    return {f"mean score of {len(shared):,} records": significance.paired_interval(
        [challenger[key][0] for key in shared], [champion[key][0] for key in shared],
        samples=config.evaluation.bootstrap_samples, confidence=config.evaluation.confidence, seed=config.seed)}


def criterion(client: Any, run_id: str, subject: Subject, champion: Any | None, config: Config, layout: Layout,
              say: Callable[[str], None]) -> gates.Criterion:
    """not_worse_than_champion. A champion that cannot be judged again is no pass."""
    base = subject.kind == "base"
    measure, allowed = (gates.BITS, config.gates.bits_per_byte_margin) if base else (gates.SCORES, config.gates.score_margin)
    margin = measure.required(allowed)
    if champion is None:
        return gates.no_champion_yet(margin)
    if champion.tags.get(registry.WEIGHTS) == subject.weights_sha256:
        return gates.is_champion(champion.version, margin)
    import pyarrow.parquet as pq

    try:
        theirs = rows_of(items_of(client, run_id, subject, champion, config, layout, say), subject.kind)
    except Passing:  # no word on the champion: the next run asks it again
        raise
    except UserError as error:
        return gates.not_judged(str(error), margin)
    ours = rows_of(pq.read_table(layout.evaluation / "items.parquet"), subject.kind)
    if base:
        return gates.not_worse(measure, bits_differences(ours, theirs, config), allowed, champion.version)
    from components.applications.catalogue import APPLICATIONS

    metrics = {name: "accuracy" if name == "classification" else application.metric for name, application in APPLICATIONS.items()}
    return gates.not_worse(measure, score_differences(ours, theirs, metrics, config), allowed, champion.version)
