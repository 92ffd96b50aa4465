"""Plain REST to the servers on loopback: no client library to import, no proxy, bounded waits."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

from components.errors import UserError

# an empty ProxyHandler: proxy variables of the environment never touch these calls
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unreachable(UserError):
    """The server does not answer, or answers with an error of its own."""

    exit_code = 1

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def call(url: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None,
         timeout_s: float = 10) -> Any:
    """The JSON that `url` answers with (None for an empty answer). Raises Unreachable."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method or ("GET" if body is None else "POST"),
                                     headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        detail = error.read()[:300].decode(errors="replace")
        raise Unreachable(f"{url} answered {error.code}: {detail}", error.code) from error
    except (OSError, ValueError) as error:
        raise Unreachable(f"{url} does not answer ({getattr(error, 'reason', error)})") from error
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text.decode(errors="replace")  # MLflow's health page is plain text


def healthy(url: str, timeout_s: float = 2) -> bool:
    try:
        call(url, timeout_s=timeout_s)
        return True
    except Unreachable:
        return False


class Prefect:
    """Prefect's REST API with the CSRF token that our server asks for."""

    def __init__(self, api: str):
        self.api = api.rstrip("/")
        self._headers: dict[str, str] | None = None

    def _csrf(self) -> dict[str, str]:
        if self._headers is None:
            client = str(uuid.uuid4())
            try:
                token = call(f"{self.api}/csrf-token?client={client}")["token"]
                self._headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}
            except Unreachable as error:
                if error.status not in (404, 422):  # 422: this server has the protection switched off
                    raise
                self._headers = {}
        return self._headers

    def send(self, path: str, body: Any = None, *, method: str = "POST") -> Any:
        """POST (or another method) to the API; 503 ('database is locked') is tried again. Raises Unreachable."""
        for wait_s in (0.2, 0.5, 1.0, None):
            try:
                return call(self.api + path, {} if body is None else body, method=method, headers=self._csrf())
            except Unreachable as error:
                if error.status != 503 or wait_s is None:
                    raise
                time.sleep(wait_s)

    def get(self, path: str) -> Any:
        return call(self.api + path)

    def close(self, kind: str, run_id: str, *, state: str, name: str | None = None, message: str) -> None:
        """End a flow run or a task run (`kind` 'flow_runs' or 'task_runs') that no process will end."""
        body: dict[str, Any] = {"type": state, "message": message}
        if name:
            body["name"] = name
        self.send(f"/{kind}/{run_id}/set_state", {"force": True, "state": body})
