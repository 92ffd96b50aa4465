"""`lmworks run`: text to champion. The unchanged rerun is answered here, without Prefect or MLflow."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated, Any

import typer

from commands import display, summary
from components import chain, files, storage
from components import config as settings
from components.errors import Busy, UserError
from components.layout import Layout
from components.operations import half_restored, last_run, lock_file, staleness

SUMMARY = "summary.json"
SMALL = ("tokenizer", "evaluation")  # published folders that even an unchanged rerun hashes again
COARSE_NS = 100_000_000  # a file system's clock may be that far behind


def unchanged(config: settings.Config, layout: Layout) -> bool:
    """Whether nothing would run and the registry agrees with the last release's receipt."""
    if any(layout.unclean.glob("*.json")):
        return False
    if not layout.receipt.exists() or not layout.dvc_lock.exists():
        return False
    if staleness.stale(layout):
        return False
    for name in SMALL:
        files.verify_manifest(layout.out(name))
    for stage in chain.STAGES:  # what is shown of each
        files.read_published(layout.out(stage.outs[0]), SUMMARY)
    if lock_file.wrong(layout, chain.BY_NAME):
        return False
    verify_touched(layout)
    from components.release.release import receipt_current

    return receipt_current(config, layout)


def verify_touched(layout: Layout) -> None:
    """Hash the outputs that somebody touched since the last release, whatever their time stamps say: DVC looks at size, inode and time of
    change alone, and those can be put back. Raises Damaged."""
    began_ns, released_ns = time.time_ns() - COARSE_NS, layout.receipt.stat().st_mtime_ns
    touched = [folder for stage in chain.STAGES for folder in map(layout.out, stage.outs)
               if any(path.lstat().st_ctime_ns > released_ns for path in (folder, *folder.rglob("*")))]
    for folder in touched:
        files.verify_manifest(folder)
    if touched:
        os.utime(layout.receipt, ns=(began_ns, began_ns))  # what was found whole is not hashed again the next time; what was touched meanwhile is


def check_devices(config: settings.Config) -> None:
    """Raises UserError for a GPU that is asked for and not there: now, and not after the stages that need none."""
    wanted = {f"{section}.device": part.device for section, part in (("training", config.training), ("evaluation", config.evaluation))}
    if "cuda" not in wanted.values():
        return
    import torch  # takes a second: only where a GPU is asked for

    if not torch.cuda.is_available():
        built = "this torch is built for CPU only" if torch.version.cuda is None else "torch finds no GPU"
        names = [name for name, device in wanted.items() if device == "cuda"]
        raise UserError(f"{' and '.join(names)}: 'cuda' is asked for, but {built}. Run: lmworks use {config.preset} "
                        f"{' '.join(f'--set {name}=cpu' for name in names)}, or install the CUDA build: make setup TORCH=cuda")


def dry_run(layout: Layout, as_json: bool) -> None:
    from components.corpus import sources

    with files.lock(layout.run_lock, what="lmworks run"):
        sources.update(settings.load(layout.params), layout)
        reasons = staleness.stale(layout)
    if as_json:
        typer.echo(json.dumps({name: reasons.get(name, []) for name in chain.BY_NAME}, ensure_ascii=False, indent=1))
        return
    for name in chain.BY_NAME:
        why = reasons.get(name)
        typer.echo(f"{name:<10} " + ("up to date" if not why else f"would run: {why[0]}"))
        for line in (why or [])[1:]:
            typer.echo(f"           and {line}")
    typer.echo("release    " + ("would compare and log the models" if reasons else "only if the registry lacks these models"))


def run(
    from_stage: Annotated[str | None, typer.Option("--from", help="start at this stage; earlier outputs are taken as they stand")] = None,
    to_stage: Annotated[str | None, typer.Option("--to", help="end after this stage; no release is made")] = None,
    release: Annotated[bool, typer.Option(help="log, register and judge the models at the end")] = True,
    dry: Annotated[bool, typer.Option("--dry-run", help="say what would run and why, and run nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the result for machines; progress goes to stderr")] = False,
) -> None:
    """Run the chain: only what is stale, then the gates and the registry.

    Examples:  lmworks run  ·  lmworks run --dry-run  ·  lmworks run --from finetune  ·  lmworks run --to shards
    """
    began_s = time.monotonic()
    layout = Layout()
    half_restored.refuse(layout)
    storage.check_open_files()
    chain.check_interpreter()
    config = settings.load(layout.params)
    chain.selection(list(chain.BY_NAME), from_stage, to_stage)
    chain.check_versions(chain.STAGES, layout)
    check_devices(config)
    staleness.check_dvc_yaml(layout)
    if dry:
        dry_run(layout, as_json)
        return
    out = display.console(stderr=as_json)
    if from_stage is None and to_stage is None and release and _nothing_to_do(config, layout):
        result: Any = summary.nothing_changed(layout, began_s)
    else:
        result = _execute(layout, out, from_stage=from_stage, to_stage=to_stage, release=release)
    result.seconds["wall"] = time.monotonic() - began_s
    last_run.write(layout, verdict=result.verdict, message=result.message, exit_code=result.exit_code, elapsed_s=result.seconds["wall"], flow_run=result.flow_run)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), ensure_ascii=False, indent=1, default=str))
    else:
        summary.show(result, config, layout, out)
    sys.stdout.flush()
    if "prefect" in sys.modules and result.reported:
        from flows.run import deliver

        deliver()
    # at once: with torch, MLflow and Prefect loaded the interpreter takes seconds to tear itself down, and where Prefect's
    # server is away its threads would try to reach it for minutes
    os._exit(result.exit_code)


def _nothing_to_do(config: settings.Config, layout: Layout) -> bool:
    """The fast path. Damage found on the way is no reason to stop here: the run heals it or names it. Raises Busy."""
    from components.corpus import sources

    with files.lock(layout.run_lock, what="lmworks run"):
        sources.update(config, layout)
        try:
            return unchanged(config, layout)
        except Busy:  # a `dvc repro` in another shell: starting servers would not help
            raise
        except UserError:
            lock_file.read(layout)  # where it is damaged: said now, not by every stage
            return False


def _execute(layout: Layout, out: Any, **asked: Any) -> Any:
    from components.operations import services
    from flows import run as flow

    addresses = services.ensure(layout, say=lambda line: out.print(line, style="dim", markup=False))
    out.print(f"MLflow   {addresses['mlflow']['url']}\nPrefect  {addresses['prefect']['url']}\n", markup=False)
    with display.Live(out) as live:
        return flow.execute(layout, listener=live, **asked)
