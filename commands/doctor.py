"""`lmworks doctor`: is this machine fit, and what to do about each finding."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from components import files
from components.chain import REMEDIES
from components.errors import UserError
from components.layout import Layout

MIN_FREE_GB = 5


def _finding(name: str, ok: bool, found: str, advice: str = "") -> dict[str, Any]:
    return {"check": name, "ok": ok, "found": found, "advice": "" if ok else advice}


def _versions(layout: Layout) -> list[dict[str, Any]]:
    rows, versions = [], files.load_yaml(layout.versions)
    if not isinstance(versions, dict) or not versions:
        raise UserError(f"{layout.versions} names no package: it was emptied or damaged. {REMEDIES[layout.versions.name]}")
    for package, wanted in versions.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        rows.append(_finding(f"version of {package}", found.split("+")[0] == str(wanted), f"{found} (versions.yaml: {wanted})", "make setup"))
    return rows


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _gpu(layout: Layout) -> dict[str, Any]:
    import torch

    from components import config as settings

    try:
        wanted = settings.load(layout.params).training.device
    except UserError:  # which has a row of its own
        wanted = "cpu"
    found = f"{torch.cuda.device_count()} CUDA device(s)" if torch.cuda.is_available() else "no CUDA device (training on the CPU)"
    return _finding("GPU", wanted == "cpu" or torch.cuda.is_available(), found,
                    "set training.device: cpu in params.yaml, or install a CUDA build: make setup TORCH=cuda")


def _small_files(layout: Layout) -> list[dict[str, Any]]:
    """The part of `lmworks verify` that takes a moment, and what would let damage in."""
    from components.operations import healing, verification

    wrong = [_finding(problem.kind, False, f"{problem.where}: {problem.wrong}", problem.todo) for problem in verification.small(layout)
             if problem.damaged and problem.where != layout.params.name]  # which has a row of its own
    rows = wrong or [_finding("settings and records", True, "as written (lmworks verify hashes everything)")]
    rows += [_finding(f"DVC remote {name}", False, "what it sends is not hashed", f".venv/bin/dvc remote modify {name} verify true")
             for name in healing.unverified_remotes(layout)]
    return rows


def _python(layout: Layout) -> list[dict[str, Any]]:
    return [_finding("Python", (3, 11) <= sys.version_info[:2] < (3, 14), sys.version.split()[0], "install Python 3.11 to 3.13, then make setup"),
            _finding("interpreter", Path(sys.prefix).resolve() == layout.venv.resolve(), sys.prefix, f"run {layout.venv / 'bin' / 'lmworks'}")]


def _params(layout: Layout) -> list[dict[str, Any]]:
    from components import config as settings

    try:
        settings.load(layout.params)
    except UserError as error:
        return [_finding("params.yaml", False, str(error), "mend it, or: lmworks use tiny")]
    return [_finding("params.yaml", True, "complete and valid")]


def _places(layout: Layout) -> list[dict[str, Any]]:
    free_gb = shutil.disk_usage(layout.root).free / 1e9
    blocked = [str(f.relative_to(layout.root)) for f in (layout.root / "data", layout.work_root, layout.mlruns, layout.state, layout.root / ".dvc") if not _writable(f)]
    return [_finding("disk", free_gb >= MIN_FREE_GB, f"{free_gb:.0f} GB free", f"free {MIN_FREE_GB} GB; `lmworks clean --dry-run` says what takes it"),
            _finding("writable folders", not blocked, "all" if not blocked else f"not writable: {', '.join(blocked)}", "chown them to yourself"),
            _finding("embedded corpus", layout.packages.exists(), str(layout.packages) if layout.packages.exists() else "missing", "make setup")]


def _restore(layout: Layout) -> list[dict[str, Any]]:
    from components.operations import half_restored

    half = half_restored.told(layout)
    return [_finding("restore", half is None, "none was cut short" if half is None else half, "lmworks restore PATH, the same as before")]


def _database(layout: Layout, service: Any) -> list[dict[str, Any]]:
    from components.operations import migrations

    wrong = migrations.wrong_with(layout, service)
    return [_finding(f"database of {service.name}", wrong is None, wrong or "whole, or not there yet", "lmworks restore PATH --databases")]


def _servers(layout: Layout) -> list[dict[str, Any]]:
    from components.operations import status

    rows = []
    for name, service in status.state(layout).items():
        where = service.get("url") or f"pid {service.get('pid', '?')}"
        down = service["state"] == "down"
        found = f"down (lmworks up starts it{status.port_in_words(name)})" if down else f"{service['state']} at {where}"
        rows.append(_finding(name, service["state"] in ("up", "down"), found, f"lmworks down --force, then lmworks up; its log: .lmworks/logs/{name}.log"))
    return rows


def findings(layout: Layout) -> list[dict[str, Any]]:
    """One row a check: {check, ok, found, advice}. A check that could not be made is a finding, and the others are made."""
    from components.operations import processes

    checks: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "Python": lambda: _python(layout), "versions.yaml": lambda: _versions(layout), "params.yaml": lambda: _params(layout),
        "settings and records": lambda: _small_files(layout), "disk and folders": lambda: _places(layout), "restore": lambda: _restore(layout),
        **{f"database of {service.name}": lambda service=service: _database(layout, service) for service in processes.SERVERS},
        "servers": lambda: _servers(layout), "GPU": lambda: [_gpu(layout)]}
    rows = []
    for name, check in checks.items():
        try:
            rows += check()
        except (UserError, OSError) as error:
            rows.append(_finding(name, False, str(error), "mend that, then: lmworks doctor"))
    return rows


def doctor(as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False) -> None:
    """Check versions, disk, ports, GPU, writable folders, and say what to do about each finding.  Example:  lmworks doctor"""
    rows = findings(Layout())
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        for row in rows:
            typer.secho("ok   " if row["ok"] else "FIX  ", fg="green" if row["ok"] else "red", nl=False)
            typer.echo(f"{row['check']:<30} {row['found']}" + (f"\n     -> {row['advice']}" if row["advice"] else ""))
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)
