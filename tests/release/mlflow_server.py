"""A real MLflow server on a free loopback port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_server(folder: Path, host: str = "127.0.0.1") -> tuple[subprocess.Popen, str]:
    """A second server on the same folder, on another address of this machine, serves the same models."""
    port = free_port()
    allowed = [] if host == "127.0.0.1" else ["--allowed-hosts", f"{host}:*,localhost:*,127.0.0.1:*"]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_MODEL_CATALOG_URI": "", "PYTHONWARNINGS": "ignore:starlette.middleware.wsgi is deprecated"}
    log = open(folder / f"server-{port}.log", "wb")  # noqa: SIM115  the server writes to it until the end
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db",
         "--artifacts-destination", "artifacts", "--host", host, "--port", str(port), "--workers", "1", *allowed,
         "--uvicorn-opts", "--log-level warning --no-access-log"],
        cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    log.close()
    url = f"http://{host}:{port}"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return server, url
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server did not start:\n{(folder / f'server-{port}.log').read_text()[-2000:]}")
