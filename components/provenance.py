"""Where a training run comes from: code, data, machine and the Prefect run that asked for it.

All of it is read from files and the environment: no start waits for git. It goes to the tracker alone, never into a DVC out.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from components import files
from components.config import Config
from components.errors import UserError
from components.layout import Layout

CORPUS_DIGEST_CHARS = 12
PREFECT_RUN, DEPLOYMENT = "lmworks.prefect_run", "lmworks.deployment"


def size_in_words(parameters: int) -> str:
    """`13.9M`, `1.2B`."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def git_head(root: Path) -> tuple[str | None, str | None]:
    """(branch, commit) of the checkout that holds `root`; None for what is not known: no git, a detached head, no commit yet."""
    try:
        folder = next((path / ".git" for path in (root, *root.parents) if (path / ".git").exists()), None)
        if folder is None:
            return None, None
        if folder.is_file():  # a worktree or a submodule: `gitdir: PATH`
            folder = folder.parent / folder.read_text().partition(":")[2].strip()
        common = folder / (folder / "commondir").read_text().strip() if (folder / "commondir").exists() else folder
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return None, head
        ref = head.removeprefix("ref:").strip()
        if ref == "refs/heads/.invalid":  # the newer reftable format: only git reads it
            return None, None
        return ref.removeprefix("refs/heads/"), _commit(common, ref)
    except (OSError, ValueError):
        return None, None


def _commit(common: Path, ref: str) -> str | None:
    loose, packed = common / ref, common / "packed-refs"
    if loose.is_file():
        return loose.read_text().strip()
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), None)


def corpus_digest(layout: Layout) -> str | None:
    """First digits of the corpus that data/sources was made from: dvc.lock knows; before it does, sources.yaml says."""
    for path, keys in ((layout.dvc_lock, ("stages", "fetch", "params", layout.sources.name, "corpus.digest")), (layout.sources, ("corpus", "digest"))):
        try:
            value = files.load_yaml(path)
            for key in keys:
                value = value[key]
            return str(value)[:CORPUS_DIGEST_CHARS]
        except (OSError, UserError, KeyError, TypeError):
            continue
    return None


def processor(device: str) -> str:
    """What computes: the GPU by name, else the processor and how many cores of it this process may use."""
    torch = sys.modules.get("torch")
    if device == "cuda" and torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "") or platform.processor() or platform.machine()
    return f"{name}, {cores} core{'' if cores == 1 else 's'}"


def prefect_tags() -> dict[str, str | None]:
    """The Prefect run that this process works for, as tags; None takes away what an earlier run left. {} without Prefect."""
    address = os.environ.get("LMWORKS_FLOW_RUN")
    return {PREFECT_RUN: address, DEPLOYMENT: os.environ.get("LMWORKS_DEPLOYMENT") or None} if address else {}


def tags(config: Config, layout: Layout, *, parameters: int, languages: list[str]) -> dict[str, str]:
    """What runs are grouped, filtered and compared by in the tracker's page."""
    branch, commit = git_head(layout.root)
    known: dict[str, Any] = {
        "lmworks.name": config.name, "lmworks.preset": config.preset, "lmworks.seed": config.seed, "lmworks.size": size_in_words(parameters),
        "lmworks.languages": "+".join(sorted(languages)), "lmworks.corpus_digest": corpus_digest(layout), "lmworks.git_branch": branch,
        "lmworks.processor": processor(config.training.device), "mlflow.source.git.branch": branch, "mlflow.source.git.commit": commit,
        **prefect_tags()}
    return {key: str(value) for key, value in known.items() if value}
