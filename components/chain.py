"""The stage table, the dvc.yaml generated from it, and the runner behind `python -m components.chain STAGE`.

    python -m components.chain --generate     write dvc.yaml again
    python -m components.chain clean          what DVC runs for the stage `clean`
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def check_interpreter() -> None:
    """Another Python would bring other versions, so other results. Before any import that could fail."""
    venv = ROOT / ".venv"
    if venv.exists() and Path(sys.prefix).resolve() != venv.resolve():
        sys.exit(f"lmworks: this is {sys.executable}, not the checkout's interpreter {venv / 'bin' / 'python'}. "
                 f"Activate it (. {venv / 'bin' / 'activate'}) or run: lmworks run")


if __name__ == "__main__":
    check_interpreter()

import ast
import importlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from components import files
from components.config import Config, load
from components.errors import Blocked, UserError
from components.layout import Layout
from components.reporting import Report, say, stop


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the chain. Paths are below data/; params are dotted keys of params.yaml."""

    name: str
    deps: tuple[str, ...] = ()
    outs: tuple[str, ...]
    params: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    checked: bool = False  # runs a suite of Great Expectations on its own output
    timeout_s: int | None = None

    @property
    def module(self) -> str:
        return f"components.stages.{self.name}"


STAGES = (
    Stage(name="fetch", outs=("sources/corpus", "sources/records", "sources/base"),
          sources=("corpus.digest", "records.digest", "base.digest")),
    Stage(name="ingest", deps=("sources/corpus", "sources/records"), outs=("raw",), params=("corpus", "validation"),
          versions=("pyarrow", "great-expectations"), checked=True),
    Stage(name="clean", deps=("raw",), outs=("clean",), params=("cleaning", "splits", "validation", "corpus.base"),
          versions=("pyarrow", "numpy", "ftfy", "great-expectations"), checked=True),
    Stage(name="tokenizer", deps=("clean", "sources/base"), outs=("tokenizer",), params=("tokenizer",), versions=("tokenizers",)),
    Stage(name="shards", deps=("clean", "tokenizer"), outs=("tokens",), params=("validation", "corpus.base"),
          versions=("tokenizers", "numpy", "great-expectations"), checked=True),
    Stage(name="pretrain", deps=("tokens", "tokenizer", "sources/base"), outs=("pretrained",), params=("seed", "model", "training"),
          versions=("torch", "safetensors"), metrics=("pretrained/metrics.json",)),
    Stage(name="finetune", deps=("clean", "tokenizer", "pretrained"), outs=("finetuned",),
          params=("seed", "finetuning", "training.precision", "training.device", "training.threads", "training.clip_norm"),
          versions=("torch", "safetensors", "tokenizers", "transformers"), metrics=("finetuned/metrics.json",)),
    Stage(name="evaluate", deps=("clean", "tokens", "tokenizer", "pretrained", "finetuned"), outs=("evaluation",),
          params=("seed", "evaluation", "finetuning.applications", "finetuning.max_row_tokens"),
          versions=("torch", "numpy", "scikit-learn", "tokenizers", "transformers"), metrics=("evaluation/metrics.json",)),
)
BY_NAME = {stage.name: stage for stage in STAGES}

# Plumbing that changes how bytes are carried, not which bytes: formats carry versions of their own.
NOT_RESULTS = {"config", "layout", "files", "tracking", "chain", "errors", "reporting"}


def code_of(stage: Stage, root: Path = ROOT) -> list[str]:
    """The import closure of the stage's one module inside components/, plumbing left out."""
    seen: set[str] = set()
    queue = [f"components/stages/{stage.name}.py"]
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse((root / path).read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                parts = name.split(".")
                candidate = "/".join(parts) + ".py"
                if parts[0] == "components" and len(parts) > 1 and parts[1] not in NOT_RESULTS and (root / candidate).is_file():
                    queue.append(candidate)
    return sorted(seen)


# --- dvc.yaml ------------------------------------------------------------------------------------

PLOTS = [
    {"data/pretrained/curve.csv": {"title": "Pretraining loss (nats a token)", "x": "step", "y": {"data/pretrained/curve.csv": ["train/loss"]}}},
    {"data/finetuned/curve.csv": {"title": "Fine-tuning loss (nats a token)", "x": "step", "y": {"data/finetuned/curve.csv": ["train/loss"]}}},
    {"data/evaluation/plots/bits_per_byte.csv": {"title": "Bits per byte, beside baselines", "template": "bar_horizontal"}},
]


def render_dvc_yaml(root: Path = ROOT) -> str:
    """The text of dvc.yaml for the stage table and the code as they are."""
    stages = {}
    for stage in STAGES:
        params: list[Any] = list(stage.params)
        if stage.sources:
            params.append({"sources.yaml": list(stage.sources)})
        if stage.versions:
            params.append({"versions.yaml": list(stage.versions)})
        entry: dict[str, Any] = {"cmd": f"exec python -m components.chain {stage.name}",
                                 "deps": [*code_of(stage, root), *(f"data/{d}" for d in stage.deps)]}
        if params:
            entry["params"] = params
        entry["outs"] = [f"data/{out}" for out in stage.outs]
        stages[stage.name] = entry
    tree = {"stages": stages, "metrics": [f"data/{m}" for s in STAGES for m in s.metrics], "plots": PLOTS}
    head = "# Generated from the stage table: python -m components.chain --generate\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000)


# --- the runner ----------------------------------------------------------------------------------

def die_with_parent() -> None:
    """Linux: this process gets SIGTERM when its parent dies, so that no orphan writes on."""
    import ctypes
    import signal

    parent = os.getppid()
    try:
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
    except (OSError, AttributeError):
        return  # not Linux
    if os.getppid() != parent:
        sys.exit(143)


def check_versions(stage: Stage, layout: Layout) -> None:
    """The installed packages must be those that versions.yaml names. Raises UserError."""
    wanted = files.load_yaml(layout.versions)
    wrong = []
    for package in stage.versions:
        try:
            found = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        if found != str(wanted[package]):
            wrong.append(f"{package} {found} is installed, versions.yaml says {wanted[package]}")
    if wrong:
        raise UserError(f"{stage.name}: {'; '.join(wrong)}. Run: make setup (or state the new version in versions.yaml: the stage then runs again)")


def pick(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def fingerprint(stage: Stage, config: Config, layout: Layout) -> dict[str, Any]:
    """Everything that the stage's result depends on; its hash is the KEY of work/STAGE/KEY."""
    params = config.model_dump(mode="json")
    sources = files.load_yaml(layout.sources) if stage.sources else {}
    return {
        "code": {path: files.sha256_file(layout.root / path) for path in code_of(stage, layout.root)},
        "params": {key: pick(params, key) for key in stage.params},
        "sources": {key: pick(sources, key) for key in stage.sources},
        "inputs": {dep: files.manifest_hash(layout.out(dep)) for dep in stage.deps},
        "versions": {name: importlib.metadata.version(name) for name in {*stage.versions, "torch"}},
        "threads": config.training.threads,
        "python": sys.version.split()[0],
    }


def restore_previous(stage: Stage, layout: Layout) -> list[str]:
    """Bring back the outs that DVC deleted before a run that failed, from its cache. Returns their names."""
    if not layout.dvc_lock.exists():
        return []
    locked = ((files.load_yaml(layout.dvc_lock) or {}).get("stages") or {}).get(stage.name) or {}
    cache = layout.root / ".dvc" / "cache" / "files" / "md5"
    restored = []
    for out in locked.get("outs", []):
        final, md5 = layout.root / out["path"], out.get("md5", "")
        listing = cache / md5[:2] / md5[2:]
        if final.exists() or not md5.endswith(".dir") or not listing.exists():
            continue
        partial = layout.partial / f"restore-{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for entry in json.loads(listing.read_bytes()):
                target = partial / entry["relpath"]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(cache / entry["md5"][:2] / entry["md5"][2:], target)
            files.verify_manifest(partial)
        except (OSError, ValueError, UserError):
            shutil.rmtree(partial, ignore_errors=True)
            continue
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(final)
        restored.append(out["path"])
    return restored


def run_stage(stage: Stage, layout: Layout, config: Config | None = None, module: Any = None) -> Report:
    """Check, run, check again, publish. One stage at a time a checkout.

    Raises UserError (of any kind); then no out of the stage was written.
    """
    with files.lock(layout.stage_lock, what=f"a stage (wanted: {stage.name})", wait_s=5):
        marker = layout.unclean / f"stage-{os.getpid()}.json"
        files.write_json(marker, {"pid": os.getpid(), "stage": stage.name})
        try:
            return _run_locked(stage, layout, config or load(layout.params), module)
        finally:
            marker.unlink(missing_ok=True)


def _run_locked(stage: Stage, layout: Layout, config: Config, module: Any) -> Report:
    check_versions(stage, layout)
    for dep in stage.deps:
        files.verify_manifest(layout.out(dep))
    before = fingerprint(stage, config, layout)
    key = files.sha256_bytes(files.canonical_json(before).encode())[:16]
    staged = {out: layout.partial / out.replace("/", "-") for out in stage.outs}
    for folder in staged.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    work = layout.work_root / stage.name / key
    run: Callable[[Config, Layout], Report] = (module or importlib.import_module(stage.module)).run
    try:
        report = run(config, Layout(root=layout.root, staged=staged, work=work))
        changed = [name for name, value in fingerprint(stage, load(layout.params), layout).items() if value != before[name]]
        if changed:
            at_fault = [p for p, h in before["code"].items() if files.sha256_file(layout.root / p) != h] or changed
            raise UserError(f"{stage.name}: {', '.join(at_fault)} changed while the stage ran, so its output has no one origin. Run again")
        files.write_json(staged[stage.outs[0]] / "summary.json", {"stage": stage.name, **report.as_dict()})
        for out, folder in staged.items():
            files.publish(folder, layout.out(out))
    finally:
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return report


def outcome_path(stage: Stage, layout: Layout) -> Path:
    return layout.state / "outcome" / f"{stage.name}.json"


def main(argv: list[str]) -> int:
    layout = Layout()
    if argv == ["--generate"]:
        files.write_atomic(layout.dvc_yaml, render_dvc_yaml())
        return 0
    if len(argv) != 1 or argv[0] not in BY_NAME:
        say(f"usage: python -m components.chain STAGE, where STAGE is one of: {', '.join(BY_NAME)}")
        return 2
    stage = BY_NAME[argv[0]]
    die_with_parent()
    stop.install()
    from components.operations import environment

    environment.apply(layout)  # a bare `dvc repro` gets the same quiet, pinned environment
    started_s = time.monotonic()
    outcome: dict[str, Any] = {"stage": stage.name, "exit_code": 1, "message": "it ended without a word"}
    try:
        run_stage(stage, layout)
        outcome = {"stage": stage.name, "exit_code": 0}
    except KeyboardInterrupt:
        outcome.update(exit_code=130, message="stopped by a signal; the next run goes on")
    except UserError as error:
        outcome.update(exit_code=error.exit_code, message=str(error), blocked=isinstance(error, Blocked))
    except OSError as error:
        outcome.update(exit_code=1, message=f"{error.strerror or error}: {error.filename or 'a file of this stage'}. Mend it, then run again")
    finally:
        outcome["elapsed_s"] = round(time.monotonic() - started_s, 3)
        files.write_json(outcome_path(stage, layout), outcome)
    if outcome["exit_code"]:
        say(f"{stage.name}: {outcome['message']}")
        restored = restore_previous(stage, layout)
        if restored:
            say(f"{stage.name}: the previous {', '.join(restored)} is back in place")
    return outcome["exit_code"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
