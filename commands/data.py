"""`lmworks why`, `lmworks accept`: what is stale, why, and the decision that a change does not matter."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Annotated

import typer

from components import config as settings
from components.chain import BY_NAME
from components.errors import UserError
from components.layout import Layout
from components.masking import masked


def _known(stage: str) -> None:
    if stage not in BY_NAME:
        raise UserError(f"no stage {stage!r}; the chain is: {', '.join(BY_NAME)}")


def why(
    stage: Annotated[str, typer.Argument(help="a stage; without one, the whole chain")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Say which stages would run, and what changed.  Example:  lmworks why pretrain"""
    from components.operations import staleness

    if stage:
        _known(stage)
    layout = Layout()
    settings.load(layout.params)  # a stage would refuse settings that do not fit, so they are told here too
    staleness.check_dvc_yaml(layout)
    reasons = staleness.stale(layout)
    shown = {name: reasons.get(name, []) for name in ([stage] if stage else BY_NAME)}
    if as_json:
        typer.echo(json.dumps(shown, ensure_ascii=False, indent=1))
        return
    for name, lines in shown.items():
        typer.echo(f"{name:<10} {'would run' if lines else 'up to date'}")
        for line in lines:
            typer.echo(f"           - {line}")


def accept(
    stage: Annotated[str, typer.Argument(help="the stage whose change does not matter")],
    reason: Annotated[str, typer.Option(help="why it does not matter; recorded")],
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Record that a stage's outputs stand although something it depends on changed (a `dvc commit` with a reason).

    Example:  lmworks accept clean --reason "renamed a variable"
    """
    from components import files
    from components.operations.environment import child

    _known(stage)
    if not reason.strip():
        raise UserError("--reason is empty: say in a sentence why the change does not matter")
    layout = Layout()
    settings.load(layout.params)
    with files.lock(layout.run_lock, what="lmworks run"):
        for out in BY_NAME[stage].outs:
            files.verify_manifest(layout.out(out))
        done = subprocess.run([sys.executable, "-m", "dvc", "commit", "-q", "-f", stage], cwd=layout.root, env=child(layout), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc commit {stage} failed: {done.stderr.strip()}")
    layout.state.mkdir(exist_ok=True)
    entry = json.dumps({"stage": stage, "reason": masked(reason), "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}, ensure_ascii=False)
    with open(layout.state / "accepted.jsonl", "a") as log:
        log.write(entry + "\n")
    typer.echo(entry if as_json else f"{stage}: its outputs stand; dvc.lock now names the present code and settings. Commit dvc.lock with your reason")
