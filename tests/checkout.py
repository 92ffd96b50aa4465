"""A working copy of this checkout, driven as a user drives it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.layout import ROOT, Layout


@dataclass(frozen=True)
class Checkout:
    """A working copy: `lmworks`, `dvc` and REST calls in it."""

    root: Path
    home: Path

    @property
    def layout(self) -> Layout:
        return Layout(root=self.root)

    @property
    def env(self) -> dict[str, str]:
        # an empty home, and nothing of the developer's own servers
        drop = ("MLFLOW_", "PREFECT_", "DVC_", "LMWORKS_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
        return {**clean, "HOME": str(self.home), "PATH": f"{self.root / '.venv' / 'bin'}:{clean['PATH']}", "PYTHONPATH": str(self.root), "COLUMNS": "100"}

    def popen(self, *arguments: str, **kw: Any) -> subprocess.Popen:
        return subprocess.Popen([str(self.root / ".venv/bin/python"), "-m", *arguments], cwd=self.root, env=self.env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)

    def run(self, *arguments: str, code: int | None = 0, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([str(self.root / ".venv/bin/python"), "-m", *arguments], cwd=self.root, env=self.env, text=True,
                              capture_output=True, timeout=timeout_s)
        if code is not None:
            assert done.returncode == code, f"{arguments} ended with {done.returncode}\n--- stdout\n{done.stdout[-4000:]}\n--- stderr\n{done.stderr[-4000:]}"
        return done

    def lmworks(self, *arguments: str, code: int | None = 0, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        return self.run("commands", *arguments, code=code, timeout_s=timeout_s)

    def dvc(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", *arguments, code=code)

    def services(self) -> dict[str, Any]:
        return json.loads((self.root / ".lmworks" / "services.json").read_text())

    def mlflow(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        url = f"{self.services()['mlflow']['url']}/api/2.0/mlflow/{path}"
        request = urllib.request.Request(url, method=method, data=None if body is None else json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def aliases(self, name: str) -> dict[str, str]:
        model = self.mlflow("GET", f"registered-models/get?name={name}")["registered_model"]
        return {a["alias"]: a["version"] for a in model.get("aliases", [])}

    def weights(self, out: str) -> str:
        return json.loads((self.root / "data" / out / "metrics.json").read_text())["weights_sha256"]


def copy_checkout(target: Path) -> Checkout:
    """What git would commit, in a repository of its own; `.venv` and the embedded packages by symlink."""
    if not (ROOT / "data" / "packages").exists():
        pytest.skip("data/packages is missing: make setup")
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=True).stdout
    for name in names.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / "dvc.lock").unlink(missing_ok=True)
    (target / ".venv").symlink_to(ROOT / ".venv")
    (target / "data").mkdir(exist_ok=True)
    (target / "data" / "packages").symlink_to(ROOT / "data" / "packages")
    git = ["git", "-C", str(target), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "copy"], check=True)
    home = target.parent / f"{target.name}-home"
    home.mkdir()
    return Checkout(target, home)


@dataclass(frozen=True)
class Finished:
    checkout: Checkout
    stdout: str
    stderr: str
