"""Which run trained which weights, and everything that belongs beside them in MLflow.

Only client calls: a finished run keeps its status and its end time, and saying a thing twice changes nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import files, masking, provenance, tracking
from components.config import Config
from components.errors import Damaged
from components.layout import Layout
from components.markdown import escape
from components.release import datasets, tables
from components.release.datasets import data_digest
from components.release.registry import EVALUATION, RELEASE_COMMIT, TRAINED_COMMIT, WEIGHTS

RELEASED = "lmworks.released"  # evaluation hash of the last complete copy
MAX_DIFF_BYTES = 5 * 2**20
SECRETS = [f":(exclude,glob)**/{name}" for name in (".env*", "*.pem", "*.key", "*credentials*", ".dvc/config*", ".netrc", ".pypirc")]
CHECKED = ("raw", "clean", "tokens")  # data stages that publish validation pages
DATA_PAGE = "lmworks.data_page"  # tag: which artifact of the run tells about its data
DATA_PAGES = ("data/report.html", "data/clean/validation.html", "data/tokens/validation.html")  # the first that there is


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model to release."""

    name: str  # of the registered model
    kind: str  # "base" | "instruct"
    out: Path  # the published folder: model/, metrics.json, training.json
    weights_sha256: str
    evaluation_sha256: str
    languages: tuple[str, ...]  # of what it was trained on, the one with most of it first

    @property
    def stage(self) -> str:
        return "pretrain" if self.kind == "base" else "finetune"

    @property
    def training(self) -> dict[str, Any]:
        return files.read_json(self.out / "training.json")

    @property
    def metrics(self) -> dict[str, Any]:
        return files.read_json(self.out / "metrics.json")


def weights_of(out: Path) -> str:
    """What `files.weights_sha256` gives for the model of a published folder, from its manifest: nothing is hashed again. Raises Damaged."""
    listed = files.read_manifest(out)["files"]
    shards = {name.removeprefix("model/"): entry["sha256"] for name, entry in listed.items()
              if name.startswith("model/") and name.endswith(".safetensors")}
    if not shards:
        raise Damaged(f"{out} lists no *.safetensors file. Run: lmworks run")
    return next(iter(shards.values())) if len(shards) == 1 else files.sha256_bytes(files.canonical_json(shards).encode())


def subjects(config: Config, layout: Layout) -> list[Subject]:
    """The models of this configuration, in the order of release. Raises Damaged when an out is not published."""
    evaluation = files.read_manifest(layout.evaluation)["files"]["evaluation.json"]["sha256"]
    of_texts = languages_of_texts(layout)
    instruct = Subject(name=f"{config.name}-instruct", kind="instruct", out=layout.finetuned, weights_sha256=weights_of(layout.finetuned),
                       evaluation_sha256=evaluation, languages=languages_of_records(layout) or of_texts)
    if config.corpus.base != "none":
        return [instruct]  # an imported base is somebody else's model
    return [Subject(name=config.name, kind="base", out=layout.pretrained, weights_sha256=weights_of(layout.pretrained),
                    evaluation_sha256=evaluation, languages=of_texts), instruct]


def languages_of_texts(layout: Layout) -> tuple[str, ...]:
    """Of the training texts, the one with most tokens first."""
    counts = files.read_json(layout.tokens / "index.json")["splits"].get("train") or {}
    return tuple(sorted(counts, key=lambda code: (-counts[code]["tokens"], code)))


def languages_of_records(layout: Layout) -> tuple[str, ...]:
    """Of the application records that it was fine-tuned on, the one with most of them first."""
    counts: Counter[str] = Counter()
    for found in files.read_json(layout.evaluation / "evaluation.json")["applications"].values():
        counts.update({code: figures["training_records"] for code, figures in found.items()})
    return tuple(sorted(counts, key=lambda code: (-counts[code], code)))


def source_digests(layout: Layout) -> dict[str, str]:
    """{group: digest} of sources.yaml: corpus, records, base."""
    if not layout.sources.exists():
        return {}
    return {group: str(entry["digest"]) for group, entry in (files.load_yaml(layout.sources) or {}).items()
            if isinstance(entry, dict) and "digest" in entry}


def git_state(root: Path) -> tuple[str | None, bytes]:
    """(commit, uncommitted difference) of the checkout; (None, b"") without git. Files that hold secrets by custom are left out, and what
    looks like one in the others is masked."""
    def git(*arguments: str) -> bytes | None:
        try:
            done = subprocess.run(["git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments], capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return None, b""
    return commit.decode().strip(), without_secrets((git("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", ".", *SECRETS) or b"")[:MAX_DIFF_BYTES])


def without_secrets(text: bytes) -> bytes:
    """The same bytes where there is nothing to mask, whatever their encoding."""
    read = text.decode(errors="surrogateescape")
    return text if (clean := masking.masked(read)) == read else clean.encode(errors="surrogateescape")


# --- runs ----------------------------------------------------------------------------------------

def experiment_id(client: Any, name: str) -> str:
    """The experiment NAME, made if it is new (two at once: one makes it, both use it)."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id


def training_run(client: Any, experiment: str, subject: Subject, config: Config, layout: Layout, say: Callable[[str], None]) -> str:
    """Id of the run that trained the weights; a finished stand-in, tagged *restored*, where this server knows none, or somebody
    deleted it in the page.

    The first of several: a stage that was killed between training and publishing trains its last steps once more.
    """
    from mlflow.entities import ViewType

    def known(view: str) -> list[Any]:
        return client.search_runs(
            [experiment], order_by=["attributes.start_time ASC"], max_results=20, run_view_type=view,
            filter_string=f"tags.`{WEIGHTS}` = '{subject.weights_sha256}' and tags.`lmworks.stage` = '{subject.stage}'")

    if found := known(ViewType.ACTIVE_ONLY):
        trained = [run for run in found if run.data.tags.get("lmworks.restored") != "true"]
        return (trained or found)[0].info.run_id
    why = "the weights came back from the data cache; the run that trained them is not on this server"
    if deleted := known(ViewType.DELETED_ONLY):
        why = f"the run that trained these weights ({deleted[0].info.run_name}) was deleted in MLflow, its curves with it"
        say(f"{subject.name}: {why}; a stand-in holds what the release knows")
    return _stand_in(client, experiment, subject, config, layout, why)


def _stand_in(client: Any, experiment: str, subject: Subject, config: Config, layout: Layout, why: str) -> str:
    parameters = subject.training.get("parameters")
    languages = sorted(subject.languages)  # as the training tags its run
    name = tracking.run_name(subject.stage, config, parameters, languages) if parameters else f"{subject.stage} {subject.weights_sha256[:8]}"
    known = {
        WEIGHTS: subject.weights_sha256, "lmworks.stage": subject.stage, "lmworks.restored": "true", "lmworks.name": config.name,
        "lmworks.preset": config.preset, "lmworks.seed": config.seed, "lmworks.size": provenance.size_in_words(parameters) if parameters else None,
        "lmworks.languages": "+".join(languages), "lmworks.corpus_digest": provenance.corpus_digest(layout),
        "mlflow.note.content": f"A stand-in: {escape(why)}."}
    run = client.create_run(experiment, run_name=f"{name} (restored)", tags={key: str(value) for key, value in known.items() if value is not None})
    client.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id


def is_copied(run: Any, subject: Subject) -> bool:
    return run.data.tags.get(RELEASED) == subject.evaluation_sha256


def copy_in(client: Any, run_id: str, subject: Subject, config: Config, layout: Layout) -> None:
    """Bring evaluation, tables, reports, settings, code state and datasets into the run; nothing to do when they are there."""
    from mlflow.entities import Param, RunTag

    run = client.get_run(run_id)
    if is_copied(run, subject):
        return
    commit, difference = git_state(layout.root)
    digests = source_digests(layout)
    tags = {f"lmworks.sources.{group}": digest for group, digest in digests.items()} | {"lmworks.data_digest": data_digest(layout)}
    if commit:
        tags |= {RELEASE_COMMIT: commit, "lmworks.uncommitted": "true" if difference else "false"}
        tags.setdefault(TRAINED_COMMIT, run.data.tags.get(TRAINED_COMMIT, commit))
    params = [] if run.data.params else [Param(key, str(value)) for key, value in sorted(subject.training.items())
                                         if isinstance(value, str | int | float)][:60]
    client.log_inputs(run_id, datasets=datasets.inputs(subject.kind, layout))
    folder = layout.work_root / "release" / subject.kind
    shutil.rmtree(folder, ignore_errors=True)
    try:
        gather(folder, layout, difference, digests)
        tables.write(folder, subject.kind, config, layout)
        client.log_artifacts(run_id, str(folder))
        tags |= {tables.LOGGED: tables.logged_tag(run.data.tags.get(tables.LOGGED))}
        if page := next((page for page in DATA_PAGES if (folder / page).exists()), None):
            tags[DATA_PAGE] = page
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
    client.set_tag(run_id, EVALUATION, subject.evaluation_sha256)
    client.set_tag(run_id, RELEASED, subject.evaluation_sha256)  # last: a kill before it copies again


def gather(folder: Path, layout: Layout, difference: bytes, digests: dict[str, str]) -> None:
    """The artifacts of a run, as they shall lie in it."""
    wanted = {f"evaluation/{name}": layout.evaluation / name for name in ("evaluation.json", "report.html", "samples.json", "metrics.json")}
    wanted |= {"settings/params.yaml": layout.params, "settings/dvc.lock": layout.dvc_lock}
    for out in CHECKED:
        wanted |= {f"data/{out}/{name}": layout.out(out) / name for name in ("validation.html", "validation.json", "summary.json")}
    for target, source in wanted.items():
        if source.exists():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            if target.startswith("settings/"):
                files.write_atomic(folder / target, without_secrets(source.read_bytes()))
            else:
                shutil.copyfile(source, folder / target)
    # it reads tables: not on the path of a run in which nothing changed
    from components.release import data_page

    report = data_page.render(layout)
    if report is not None:
        files.write_atomic(folder / data_page.PAGE, report)
    files.write_json(folder / "settings/sources.json", digests)
    if difference:
        files.write_atomic(folder / "settings/uncommitted.diff", difference)
