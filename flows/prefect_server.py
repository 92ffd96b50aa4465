"""Prefect's server as this checkout starts it: `prefect server start` behind a doorkeeper.

    python -m flows.prefect_server --host 127.0.0.1 --port 4311

Prefect looks at neither Host nor Origin, and its websockets know no CSRF token: any page of the web that a browser on this machine
opens could write events and read those of every run, and a name that its owner points at 127.0.0.1 (DNS rebinding) could do all that
the page of Prefect itself can (J7).
"""

from __future__ import annotations

import argparse
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NOT_ALLOWED = b"refused: this server answers pages of its own address alone"
POLICY_VIOLATION = 1008

Scope = dict[str, Any]
App = Callable[[Scope, Callable[..., Any], Callable[..., Any]], Awaitable[None]]


def own(scope: Scope) -> bool:
    """Whether a request names this machine as Host, and comes from no page or from one of the very same address.

    The port is left open: a tunnel may have another one.
    """
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", [])}
    try:
        host, origin = urllib.parse.urlsplit(f"//{headers.get('host', '')}"), urllib.parse.urlsplit(headers.get("origin", ""))
        return host.hostname in LOOPBACK and ("origin" not in headers or origin.netloc == host.netloc or _alike(origin, host))
    except ValueError:
        return False


def _alike(origin: urllib.parse.SplitResult, host: urllib.parse.SplitResult) -> bool:
    """localhost and 127.0.0.1 at one port are one server."""
    return origin.hostname in LOOPBACK and origin.port == host.port


def doorkeeper(app: App) -> App:
    """Requests and websockets that are not `own` end here, with 403."""
    async def guarded(scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] not in ("http", "websocket") or own(scope):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": NOT_ALLOWED})

    return guarded


def main() -> None:
    asked = argparse.ArgumentParser(prog="flows.prefect_server")
    asked.add_argument("--host", required=True)
    asked.add_argument("--port", type=int, required=True)
    wanted = asked.parse_args()
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    server = get_current_settings().server
    uvicorn.run(doorkeeper(create_app(final=True)), host=wanted.host, port=wanted.port, timeout_keep_alive=server.api.keepalive_timeout,
                ws_ping_interval=server.api.websocket_ping_interval, ws_ping_timeout=server.api.websocket_ping_timeout,
                log_level=server.logging_level.lower())


if __name__ == "__main__":
    main()
