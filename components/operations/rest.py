"""Plain REST to the servers on loopback: no client library to import, no proxy, bounded waits."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

from components.errors import Passing
from components.operations import addresses

# proxy variables of the environment never touch these calls
_OPENER = addresses.opener(proxies=False)


class Unreachable(Passing):
    """The server does not answer, or answers with an error of its own."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def call(url: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None,
         timeout_s: float = 10) -> Any:
    """The JSON that `url` answers with (None for an empty answer). Raises Unreachable.

    `timeout_s`: for the answer to begin, and once more for the rest of it.
    """
    deadline_s = time.monotonic() + timeout_s
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method or ("GET" if body is None else "POST"),
                                     headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            text = addresses.read(answer, deadline_s)
    except urllib.error.HTTPError as error:
        raise Unreachable(f"{url} answered {error.code}: {_detail(error, deadline_s)}", error.code) from error
    except http.client.HTTPException as error:  # cut in mid-answer, or no HTTP at all
        raise Unreachable(f"{url} gives no whole answer ({type(error).__name__}: {error})") from error
    except (OSError, ValueError) as error:
        raise Unreachable(f"{url} does not answer ({getattr(error, 'reason', error)})") from error
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text.decode(errors="replace")  # MLflow's health page is plain text


def _detail(error: urllib.error.HTTPError, deadline_s: float) -> str:
    """What the server says of its refusal; '' where even that does not arrive."""
    if 300 <= error.code < 400:
        return str(error.reason)
    try:
        return addresses.read(error, deadline_s)[:300].decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def healthy(url: str, timeout_s: float = 2) -> bool:
    try:
        call(url, timeout_s=timeout_s)
        return True
    except Unreachable:
        return False


def _authorisation() -> dict[str, str]:
    """The header for a server that asks who calls, from the variables that Prefect's own client reads."""
    pair, key = os.environ.get("PREFECT_API_AUTH_STRING"), os.environ.get("PREFECT_API_KEY")
    if pair:
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {key}"} if key else {}


class Prefect:
    """Prefect's REST API with the CSRF token that our server asks for. Each call waits at most `timeout_s`."""

    def __init__(self, api: str, timeout_s: float = 10):
        self.api, self.timeout_s = api.rstrip("/"), timeout_s
        self._headers: dict[str, str] | None = None

    def _csrf(self) -> dict[str, str]:
        if self._headers is None:
            client = str(uuid.uuid4())
            try:
                token = call(f"{self.api}/csrf-token?client={client}", headers=_authorisation(), timeout_s=self.timeout_s)["token"]
                self._headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client, **_authorisation()}
            except Unreachable as error:
                if error.status not in (404, 422):  # 422: this server has the protection switched off
                    raise
                self._headers = _authorisation()
        return self._headers

    def send(self, path: str, body: Any = None, *, method: str = "POST") -> Any:
        """POST (or another method) to the API; 503 ('database is locked') is tried again. Raises Unreachable."""
        for wait_s in (0.2, 0.5, 1.0, None):
            try:
                return call(self.api + path, {} if body is None else body, method=method, headers=self._csrf(), timeout_s=self.timeout_s)
            except Unreachable as error:
                if error.status != 503 or wait_s is None:
                    raise
                time.sleep(wait_s)

    def get(self, path: str) -> Any:
        return call(self.api + path, headers=_authorisation(), timeout_s=self.timeout_s)

    def close(self, kind: str, run_id: str, *, state: str, name: str | None = None, message: str) -> None:
        """End a flow run or a task run (`kind` 'flow_runs' or 'task_runs') that no process will end."""
        body: dict[str, Any] = {"type": state, "message": message}
        if name:
            body["name"] = name
        self.send(f"/{kind}/{run_id}/set_state", {"force": True, "state": body})
