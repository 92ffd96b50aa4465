"""The environment of every child process: quiet, offline, hardened, the same on every machine."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from components import files
from components.layout import Layout

LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Values that are ours whoever calls: no telemetry, no downloads, no pickled results, no noise.
FIXED = {
    "SHELL": "/bin/sh",  # DVC runs stages under $SHELL; a service user's nologin would end them
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
    # telemetry; MLflow takes only 'true', not 1
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # nothing is fetched
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "MLFLOW_MODEL_CATALOG_URI": "",
    # quiet
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    # hardened
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",
    "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_RUNNER_SERVER_ENABLE": "false",
    "PREFECT_SERVER_DOCKET_URL": "memory://lmworks",  # its queue holds pickles: in its own memory, never in a Redis that others write to
    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # no server: an error, never a hidden second one
    # How long a torch thread spins for the next parallel piece of work before it sleeps. Two spinning threads on one core make a step
    # many times slower; one that sleeps at once wakes late. Fine-tuning of tiny, 12 to 30 steps on 2 cores, one or two trials each, tokens/s
    # against no spinning: 3,000 gives +16 % on a quiet machine and -24 % beside a busy program; 100,000 gives +15 % and -71 %;
    # OpenMP's own 300,000 gives +18 %, and a fifteenth on a machine with several busy programs.
    "OMP_WAIT_POLICY": "passive",  # for the OpenMP of other builds; GNU's obeys the line below
    "GOMP_SPINCOUNT": "3000",
}


def child(layout: Layout) -> dict[str, str]:
    """The environment of a server, a stage or a worker of this checkout."""
    env = {**os.environ, **FIXED}
    bin_dir = layout.venv / "bin"
    path = env.get("PATH") or os.defpath
    if bin_dir.is_dir() and path.split(os.pathsep)[0] != str(bin_dir):
        env["PATH"] = os.pathsep.join([str(bin_dir), path])
    env["PYTHONPATH"] = str(layout.root)
    env["LMWORKS_ROOT"] = str(layout.root)
    env["DVC_SITE_CACHE_DIR"] = str(layout.root / ".dvc" / "site")
    env["PREFECT_HOME"] = str(layout.prefect_home)
    env["PREFECT_PROFILES_PATH"] = str(layout.prefect_home / "profiles.toml")
    spare_loopback(env)
    env.pop("PYTHONHOME", None)
    return env


def spare_loopback(env: MutableMapping[str, str]) -> None:
    """A proxy that the environment names for the outside must never see a call to our own servers (F7)."""
    for name in ("NO_PROXY", "no_proxy"):
        known = [host for host in env.get(name, "").split(",") if host]
        env[name] = ",".join([*known, *(host for host in LOOPBACK if host not in known)])


def apply(layout: Layout, **extra: str) -> None:
    """The same for this process. Before the first import of Prefect, MLflow or DVC."""
    os.environ.update(child(layout) | extra)
    allow_no_git(layout)


def make_private(layout: Layout) -> None:
    """Make the folders that their owner alone may read, whatever the umask: Prefect's database (it keeps the alert's address) and results
    (J4), logs and spooled runs (J15)."""
    for folder in (layout.prefect_home, layout.prefect_home / "storage", layout.state, layout.logs):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)


def allow_no_git(layout: Layout) -> None:
    """A checkout from a tarball has no git; DVC must be told, in the file that is not committed."""
    config = layout.root / ".dvc" / "config.local"
    if not _in_git(layout.root) and not config.exists():
        files.write_atomic(config, "[core]\n    no_scm = true\n")


def _in_git(root: Path) -> bool:
    # DVC looks in the root alone: a repository further up is another project's
    return (root / ".git").exists()


def python(layout: Layout) -> str:
    """The checkout's interpreter, as an absolute path."""
    own = layout.venv / "bin" / "python"
    if own.exists():
        return str(own)
    import sys

    return sys.executable
