"""The MLflow server over its REST API, by urllib: `import mlflow` would cost every stage and every look seconds."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from typing import Any

from components.layout import Layout

REQUEST_TIMEOUT_S = 5.0


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
    request = urllib.request.Request(f"{url.rstrip('/')}/api/2.0/mlflow/{path}", method=method,
                                     data=None if body is None else json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json", **_authorisation()})
    # loopback must not go through a proxy that the environment names for the outside
    loopback = "://127.0.0.1" in url or "://localhost" in url
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if loopback else urllib.request.build_opener()
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        kind = Refused if error.code in (400, 413, 422) else Unreachable
        raise kind(f"{path}: {error.code} {error.read()[:300].decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise Unreachable(f"{path}: {error}") from error
