"""The MLflow server over its REST API, by urllib: `import mlflow` would cost every stage and every look seconds."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from components.layout import Layout
from components.operations import addresses

REQUEST_TIMEOUT_S = 5.0  # for the answer to begin, and once more for the rest of it: no call takes longer than twice this


class Unreachable(Exception):
    """The server did not answer, or answered that it cannot now."""


class Refused(Unreachable):
    """The server will never take this, however often it is sent."""


class Gone(Unreachable):
    """The server does not know the run: it is another server, or its store was cleared."""


def server_url(layout: Layout) -> str | None:
    """Address of the MLflow server: the environment's, else that of our own server if it runs."""
    from components.operations import processes, services

    return services.address(layout, processes.MLFLOW)


def _authorisation() -> dict[str, str]:
    """The header for a server that asks who calls, from the variables that MLflow's own client reads."""
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def call(url: str, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
    """One MLflow REST call (`path` below /api/2.0/mlflow/). Returns None on 404. Raises Unreachable, Refused."""
    answer = _ask(f"{url.rstrip('/')}/api/2.0/mlflow/{path}", method, None if body is None else json.dumps(body).encode(), path, timeout_s)
    try:
        return None if answer is None else json.loads(answer or b"{}")
    except ValueError as error:
        raise Unreachable(f"{path}: {error}") from error


def artifact(url: str, run_id: str, path: str, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes | None:
    """A file among the artifacts of a run, as the page downloads it. Returns None if there is none. Raises Unreachable."""
    query = urllib.parse.urlencode({"run_uuid": run_id, "path": path})
    return _ask(f"{url.rstrip('/')}/get-artifact?{query}", "GET", None, path, timeout_s)


def _ask(address: str, method: str, data: bytes | None, what: str, timeout_s: float) -> bytes | None:
    request = urllib.request.Request(address, method=method, data=data, headers={"Content-Type": "application/json", **_authorisation()})
    # loopback must not go through a proxy that the environment names for the outside
    loopback = "://127.0.0.1" in address or "://localhost" in address
    opener = addresses.opener(proxies=not loopback)
    deadline_s = time.monotonic() + timeout_s
    try:
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return addresses.read(answer, deadline_s)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            kind = Refused if error.code in (400, 413, 422) else Unreachable
            said = str(error.reason) if 300 <= error.code < 400 else addresses.read(error, deadline_s)[:300].decode(errors="replace")
            raise kind(f"{what}: {error.code} {said}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: cut in mid-answer, or no HTTP at all
        raise Unreachable(f"{what}: {error or type(error).__name__}") from error
