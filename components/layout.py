"""Every path that a stage, a command or a flow reads or writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Layout:
    """The paths of one checkout.

    While a stage runs, `staged` sends its own outs to a partial folder that the runner publishes
    at the end; stage code reads and writes through the same names.
    """

    root: Path = ROOT
    staged: dict[str, Path] = field(default_factory=dict)
    work: Path | None = None  # work/STAGE/KEY of the running stage: checkpoints, spared by DVC

    def out(self, name: str) -> Path:
        """Folder of a DVC out, by its name below data/ ('clean', 'sources/base')."""
        return self.staged.get(name, self.root / "data" / name)

    # the outs of the chain, in its order
    @property
    def sources_corpus(self) -> Path: return self.out("sources/corpus")
    @property
    def sources_records(self) -> Path: return self.out("sources/records")
    @property
    def sources_base(self) -> Path: return self.out("sources/base")
    @property
    def raw(self) -> Path: return self.out("raw")
    @property
    def clean(self) -> Path: return self.out("clean")
    @property
    def tokenizer(self) -> Path: return self.out("tokenizer")
    @property
    def tokens(self) -> Path: return self.out("tokens")
    @property
    def pretrained(self) -> Path: return self.out("pretrained")
    @property
    def finetuned(self) -> Path: return self.out("finetuned")
    @property
    def evaluation(self) -> Path: return self.out("evaluation")

    # what to do, with what, exactly
    @property
    def params(self) -> Path: return self.root / "params.yaml"
    @property
    def sources(self) -> Path: return self.root / "sources.yaml"
    @property
    def versions(self) -> Path: return self.root / "versions.yaml"
    @property
    def dvc_yaml(self) -> Path: return self.root / "dvc.yaml"
    @property
    def dvc_lock(self) -> Path: return self.root / "dvc.lock"
    @property
    def presets(self) -> Path: return self.root / "presets"
    @property
    def packages(self) -> Path: return self.root / "data" / "packages"
    @property
    def imported(self) -> Path: return self.root / "data" / "imported"
    @property
    def venv(self) -> Path: return self.root / ".venv"

    # what this machine is doing
    @property
    def state(self) -> Path: return self.root / ".lmworks"
    @property
    def services(self) -> Path: return self.state / "services.json"
    @property
    def stage_lock(self) -> Path: return self.state / "stage.lock"
    @property
    def run_lock(self) -> Path: return self.state / "run.lock"
    @property
    def startup_lock(self) -> Path: return self.state / "startup.lock"
    @property
    def deployments_lock(self) -> Path: return self.state / "deployments.lock"
    @property
    def promotion_lock(self) -> Path: return self.state / "promotion.lock"
    @property
    def unclean(self) -> Path: return self.state / "unclean"  # a folder: one marker a live run or stage
    @property
    def receipt(self) -> Path: return self.state / "release.json"
    @property
    def last_run(self) -> Path: return self.state / "last-run.json"
    @property
    def scheduled(self) -> Path: return self.state / "scheduled.json"  # how the last scheduled runs ended
    @property
    def spool(self) -> Path: return self.state / "spool"
    @property
    def blocked(self) -> Path: return self.state / "blocked"
    @property
    def outcomes(self) -> Path: return self.state / "outcome"  # STAGE.json: how its last run ended, in its own words
    @property
    def logs(self) -> Path: return self.state / "logs"

    # what may be deleted
    @property
    def work_root(self) -> Path: return self.root / "work"
    @property
    def stat_cache(self) -> Path: return self.work_root / "stat-cache.json"
    @property
    def partial(self) -> Path: return self.root / "data" / ".partial"
    @property
    def mlruns(self) -> Path: return self.root / "mlruns"
    @property
    def mlflow_database(self) -> Path: return self.mlruns / "mlflow.db"
    @property
    def artifacts(self) -> Path: return self.mlruns / "artifacts"
    @property
    def prefect_home(self) -> Path: return self.root / ".prefect"
    @property
    def prefect_database(self) -> Path: return self.prefect_home / "prefect.db"
