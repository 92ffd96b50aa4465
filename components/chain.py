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
    if "/.dvc/tmp/exps/" in f"{ROOT.as_posix()}/":
        sys.exit("lmworks: `dvc exp run` with --temp or --queue works in a copy of the checkout without what git ignores: no .venv, no "
                 "data/packages, no checkpoints. Run the experiment in the checkout: dvc exp run -S KEY=VALUE")
    venv = ROOT / ".venv"
    if venv.exists() and Path(sys.prefix).resolve() != venv.resolve():
        sys.exit(f"lmworks: this is {sys.executable}, not the checkout's interpreter {venv / 'bin' / 'python'}. "
                 f"Activate it (. {venv / 'bin' / 'activate'}) or run: lmworks run")


if __name__ == "__main__":
    check_interpreter()

import contextlib
import difflib
import importlib
import importlib.metadata
import os
import reprlib
import shutil
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from components import failpoints, files, masking, stage_code, storage
from components.config import Config, load
from components.errors import Blocked, Damaged, UserError
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
          params=("name", "seed", "evaluation", "finetuning.applications", "finetuning.max_row_tokens"),  # the name: it stands in the report
          versions=("torch", "numpy", "scikit-learn", "tokenizers", "transformers"), metrics=("evaluation/metrics.json",)),
)
BY_NAME = {stage.name: stage for stage in STAGES}


def selection(names: list[str], from_stage: str | None, to_stage: str | None) -> list[str]:
    """The stages from `from_stage` to `to_stage`, both included. Raises UserError for a name that is none."""
    for asked in (from_stage, to_stage):
        if asked is not None and asked not in names:
            near = difflib.get_close_matches(asked, names, n=1)
            raise UserError(f"no stage {asked!r}; " + (f"did you mean {near[0]!r}? " if near else "") + f"The chain is: {', '.join(names)}")
    start = names.index(from_stage) if from_stage else 0
    end = names.index(to_stage) if to_stage else len(names) - 1
    if start > end:
        raise UserError(f"{from_stage} comes after {to_stage}; the chain is: {', '.join(names)}")
    return names[start : end + 1]


# --- dvc.yaml ------------------------------------------------------------------------------------

PLOTS = [
    {"data/pretrained/curve.csv": {"title": "Pretraining loss (nats a token)", "x": "step", "y": {"data/pretrained/curve.csv": ["train/loss"]}}},
    {"data/finetuned/curve.csv": {"title": "Fine-tuning loss (nats a token)", "x": "step", "y": {"data/finetuned/curve.csv": ["train/loss"]}}},
    {"data/evaluation/plots/bits_per_byte.csv": {"title": "Bits per byte, beside baselines", "template": "bar_horizontal"}},
]


def render_dvc_yaml(root: Path = ROOT) -> str:
    """The text of dvc.yaml for the stage table and the code as they are. Raises UserError."""
    stages = {}
    for stage in STAGES:
        params: list[Any] = list(stage.params)
        if stage.sources:
            params.append({"sources.yaml": list(stage.sources)})
        if stage.versions:
            params.append({"versions.yaml": list(stage.versions)})
        entry: dict[str, Any] = {"cmd": f"exec python -m components.chain {stage.name}",
                                 "deps": [*stage_code.of(stage.name, root), *(f"data/{d}" for d in stage.deps)]}
        if params:
            entry["params"] = params
        entry["outs"] = [f"data/{out}" for out in stage.outs]
        stages[stage.name] = entry
    tree = {"stages": stages, "metrics": [f"data/{m}" for s in STAGES for m in s.metrics], "plots": PLOTS}
    head = "# Generated from the stage table: python -m components.chain --generate\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000)


# --- the runner ----------------------------------------------------------------------------------

def die_with_parent() -> None:
    """Linux: this process gets SIGTERM when its parent dies, so that no orphan writes on. Whose run died before it came here ends at once."""
    import ctypes
    import signal

    from components.operations import liveness

    parent = os.getppid()
    try:
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
    except (OSError, AttributeError):
        return  # not Linux
    pid, _, mark = os.environ.get(liveness.RUN, "").partition(":")
    if os.getppid() != parent or pid and liveness.process_of({"pid": pid, "started": mark}) is None:
        sys.exit(143)


def wrong_versions(stage: Stage, layout: Layout) -> list[str]:
    """The installed packages that are not those of versions.yaml, in words."""
    wanted = files.load_yaml(layout.versions)
    wrong = []
    for package in stage.versions:
        try:
            found = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        named = pick(wanted, package, layout.versions)
        named = named if isinstance(named, str) else reprlib.repr(named)[:60]  # short, whatever stands there
        if found != named:
            wrong.append(f"{package} {found} is installed, versions.yaml says {named}")
    return wrong


def check_versions(stages: Iterable[Stage], layout: Layout) -> None:
    """Raises UserError that names every package of `stages` that is not installed as versions.yaml says."""
    wrong = sorted({line for stage in stages for line in wrong_versions(stage, layout)})
    if wrong:
        raise UserError("installed packages are not those of versions.yaml:\n" + "\n".join(f"  - {line}" for line in wrong)
                        + "\nRun: make setup (or state the new versions in versions.yaml: the stages that use them run again)")


REMEDIES = {"sources.yaml": "Run: lmworks run (it writes that file)", "params.yaml": "Run: lmworks use --upgrade",
            "versions.yaml": "Bring the file back: git checkout versions.yaml"}


def pick(tree: Any, key: str, path: Path) -> Any:
    """The value of a dotted key of a YAML file. Raises UserError where the file lacks it."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            raise UserError(f"{path.name} has no {key}; it is empty, damaged or of an older version. {REMEDIES[path.name]}")
        tree = tree[part]
    return tree


def fingerprint(stage: Stage, config: Config, layout: Layout, code: list[str]) -> dict[str, Any]:
    """Everything that the stage's result depends on; its hash is the KEY of work/STAGE/KEY. `code` is its `stage_code.of`."""
    params = config.model_dump(mode="json")
    if stage.sources and not layout.sources.exists():
        raise UserError(f"no {layout.sources.name} in {layout.root}; it lists the source files. Run: lmworks run (it writes it)")
    sources = files.load_yaml(layout.sources) if stage.sources else {}
    return {
        "code": {path: files.sha256_file(layout.root / path) for path in code},
        "params": {key: pick(params, key, layout.params) for key in stage.params},
        "sources": {key: pick(sources, key, layout.sources) for key in stage.sources},
        "inputs": {dep: files.manifest_hash(layout.out(dep)) for dep in stage.deps},
        "versions": {name: importlib.metadata.version(name) for name in {*stage.versions, "torch"}},
        "threads": config.training.threads,
        "python": sys.version.split()[0],
    }


def run_stage(stage: Stage, layout: Layout, config: Config | None = None, module: Any = None) -> Report:
    """Check, run, check again, publish. One stage at a time a checkout.

    Raises UserError (of any kind); then no out of the stage was written.
    """
    from components.operations import half_restored, recorded, unclean

    half_restored.refuse(layout)
    storage.check_open_files()
    with files.lock(layout.stage_lock, what=f"a stage (wanted: {stage.name})", wait_s=5) as fence:
        marker = unclean.mark(layout, "stage", stage=stage.name)
        try:
            recorded.drop_recorded(layout)
            return _run_locked(stage, layout, config or load(layout.params), module, fence)
        except OSError:
            fence()  # whoever took the lock away has removed our folders
            raise
        finally:
            marker.unlink(missing_ok=True)


def _run_locked(stage: Stage, layout: Layout, config: Config, module: Any, fence: Callable[[], None]) -> Report:
    from components.operations import recorded

    check_versions([stage], layout)
    for dep in stage.deps:
        files.verify_manifest(layout.out(dep))
    code = stage_code.of(stage.name, layout.root)
    before = fingerprint(stage, config, layout, code)
    key = files.sha256_bytes(files.canonical_json(before).encode())[:16]
    # folders of this process alone: one that was stopped and lost its lock must not write into ours (G4)
    staged = {out: layout.partial / f"{out.replace('/', '-')}.{os.getpid()}" for out in stage.outs}
    for out, folder in staged.items():
        for left in layout.partial.glob(f"{out.replace('/', '-')}.*"):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir(parents=True)
    work = layout.work_root / stage.name / key
    run: Callable[[Config, Layout], Report] = (module or importlib.import_module(stage.module)).run
    try:
        failpoints.hit("stage.start", stage.name)
        with storage.explained(layout.partial):
            report = run(config, Layout(root=layout.root, staged=staged, work=work))
        failpoints.hit("stage.done", stage.name)
        changed = [name for name, value in fingerprint(stage, load(layout.params), layout, code).items() if value != before[name]]
        if changed:
            at_fault = [p for p, h in before["code"].items() if files.sha256_file(layout.root / p) != h] or changed
            raise UserError(f"{stage.name}: {', '.join(at_fault)} changed while the stage ran, so its output has no one origin. Run again")
        fence()
        _check_inputs_again(stage, layout, work)
        with storage.explained(layout.partial):
            files.write_json(staged[stage.outs[0]] / "summary.json", {"stage": stage.name, **report.as_dict()})
            for out, folder in staged.items():
                files.publish(folder, layout.out(out))
        recorded.note_published(layout, work, stage.outs)
        failpoints.hit("stage.published", stage.name)
    finally:
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)
    return report


def _check_inputs_again(stage: Stage, layout: Layout, work: Path) -> None:
    """Raises Damaged for an input that was edited while the stage read it: neither its result nor its checkpoints are of verified bytes."""
    try:
        for dep in stage.deps:
            files.verify_manifest(layout.out(dep))
    except Damaged as error:
        shutil.rmtree(work, ignore_errors=True)
        raise Damaged(f"{stage.name}: an input changed while the stage ran, so its result is thrown away. {error}") from error


def attempt(stage: Stage, layout: Layout) -> dict[str, Any]:
    """Run a stage; how it ended: {"stage", "exit_code", "elapsed_s", "message", "blocked"}, the last two of a failure."""
    started_s = time.monotonic()
    outcome: dict[str, Any] = {"stage": stage.name, "exit_code": 1}
    try:
        run_stage(stage, layout)
        outcome["exit_code"] = 0
    except KeyboardInterrupt:
        outcome.update(exit_code=stop.exit_code, message="stopped by a signal; the next run goes on")
    except UserError as error:
        outcome.update(exit_code=error.exit_code, message=str(error), blocked=isinstance(error, Blocked))
    except OSError as error:
        words = storage.said(error, layout.partial)
        outcome.update(message=words or f"{error.strerror or error}: {error.filename or 'a file of this stage'}. Mend it, then run again")
    except Exception as error:  # noqa: BLE001 - a fault of ours or of a library: its traceback goes to the log, its name to the person
        say(masking.masked(traceback.format_exc()))
        memory = isinstance(error, MemoryError) or "out of memory" in str(error)
        outcome.update(message=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                       + (". Use smaller batches (training.rows, finetuning.rows), or free memory" if memory else ""))
    if "message" in outcome:
        outcome["message"] = masking.masked(outcome["message"])  # it goes to Prefect and into files
    outcome["elapsed_s"] = round(time.monotonic() - started_s, 3)
    return outcome


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
    from components.operations import environment, healing

    environment.apply(layout)  # a bare `dvc repro` gets the same quiet, pinned environment
    outcome = attempt(stage, layout)
    with contextlib.suppress(UserError, OSError):  # a full disk: what the stage says below is still the news
        files.write_sealed(layout.outcomes / f"{stage.name}.json", outcome)
    if outcome["exit_code"]:
        say(f"{stage.name}: {outcome['message']}")
        restored = healing.restore_previous(layout, stage.name)
        if restored:
            say(f"{stage.name}: the previous {', '.join(restored)} is back in place")
    return outcome["exit_code"]


def leave(exit_code: int) -> None:
    """End without tearing torch and Great Expectations down piece by piece: half a second a stage."""
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)  # every file is closed and fsynced, the tracking thread is joined


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
