"""`lmworks doctor`: is this machine fit, and what to do about each finding."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from components import files
from components.errors import UserError
from components.layout import Layout

MIN_FREE_GB = 5


def _finding(name: str, ok: bool, found: str, advice: str = "") -> dict[str, Any]:
    return {"check": name, "ok": ok, "found": found, "advice": "" if ok else advice}


def _versions(layout: Layout) -> list[dict[str, Any]]:
    rows = []
    for package, wanted in (files.load_yaml(layout.versions) or {}).items():
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


def _gpu(wanted: str) -> dict[str, Any]:
    import torch

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


def findings(layout: Layout) -> list[dict[str, Any]]:
    """One row a check: {check, ok, found, advice}."""
    from components import config as settings
    from components.operations import half_restored, migrations, processes, status

    rows = [_finding("Python", (3, 11) <= sys.version_info[:2] < (3, 14), sys.version.split()[0], "install Python 3.11 to 3.13, then make setup"),
            _finding("interpreter", Path(sys.prefix).resolve() == layout.venv.resolve(), sys.prefix, f"run {layout.venv / 'bin' / 'lmworks'}"),
            *_versions(layout)]
    device = "cpu"
    try:
        device = settings.load(layout.params).training.device
        rows.append(_finding("params.yaml", True, "complete and valid"))
    except UserError as error:
        rows.append(_finding("params.yaml", False, str(error), "mend it, or: lmworks use tiny"))
    rows += _small_files(layout)
    free_gb = shutil.disk_usage(layout.root).free / 1e9
    rows.append(_finding("disk", free_gb >= MIN_FREE_GB, f"{free_gb:.0f} GB free", f"free {MIN_FREE_GB} GB; `lmworks clean --dry-run` says what takes it"))
    blocked = [str(f.relative_to(layout.root)) for f in (layout.root / "data", layout.work_root, layout.mlruns, layout.state, layout.root / ".dvc") if not _writable(f)]
    rows.append(_finding("writable folders", not blocked, "all" if not blocked else f"not writable: {', '.join(blocked)}", "chown them to yourself"))
    rows.append(_finding("embedded corpus", layout.packages.exists(), str(layout.packages) if layout.packages.exists() else "missing", "make setup"))
    half = half_restored.told(layout)
    rows.append(_finding("restore", half is None, "none was cut short" if half is None else half, "lmworks restore PATH, the same as before"))
    for service in processes.SERVERS:
        wrong = migrations.wrong_with(layout, service)
        rows.append(_finding(f"database of {service.name}", wrong is None, wrong or "whole, or not there yet", "lmworks restore PATH --databases"))
    for name, service in status.state(layout).items():
        where = service.get("url") or f"pid {service.get('pid', '?')}"
        down = service["state"] == "down"
        found = f"down (lmworks up starts it{status.port_in_words(name)})" if down else f"{service['state']} at {where}"
        rows.append(_finding(name, service["state"] in ("up", "down"), found, f"lmworks down --force, then lmworks up; its log: .lmworks/logs/{name}.log"))
    rows.append(_gpu(device))
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
