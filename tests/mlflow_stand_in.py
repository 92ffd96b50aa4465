"""A stand-in for MLflow's REST API that can be away; the chain's own tests use the real one."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

from components import tracking
from components.config import Config
from components.layout import Layout


class Server:
    """What it was told, and how it shall misbehave."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.points: list[tuple] = []
        self.samples: list[tuple] = []  # points of the machine
        self.down = False
        self.refused: tuple[str, ...] = ()  # keys of points that are never taken
        self.deleted = False  # a person deleted the runs
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                self.answer({"run": {"info": {"lifecycle_stage": "deleted" if outer.deleted else "active"}}} if "runs/get" in self.path
                            else {"experiment": {"experiment_id": "1"}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                path = self.path.removeprefix("/api/2.0/mlflow/")
                refused = any(m["key"] in outer.refused for m in body.get("metrics", [])) or (outer.deleted and "run_id" in body)
                unknown = "run_id" in body and body["run_id"] not in outer.runs
                if outer.down or refused or unknown:
                    self.send_response(503 if outer.down else 404 if unknown else 400)
                    self.end_headers()
                    return
                if path == "runs/search":
                    found = [r for r in outer.runs.values() if r["uuid"] in body["filter"]]
                    self.answer({"runs": [{"info": {"run_id": r["id"]}} for r in found]})
                elif path == "runs/create":
                    run_id = f"r{len(outer.runs)}"
                    tags = {tag["key"]: tag["value"] for tag in body["tags"]}
                    outer.runs[run_id] = {"id": run_id, "uuid": tags["lmworks.run_uuid"], "name": body["run_name"], "status": "RUNNING", "tags": tags}
                    self.answer({"run": {"info": {"run_id": run_id}}})
                elif path == "runs/delete-tag":
                    outer.runs[body["run_id"]]["tags"].pop(body["key"], None)
                    self.answer({})
                elif path == "runs/delete":
                    del outer.runs[body["run_id"]]
                    self.answer({})
                elif path == "runs/update":
                    outer.runs[body["run_id"]]["status"] = body["status"]
                    self.answer({})
                else:
                    for m in body.get("metrics", []):
                        (outer.samples if m["key"].startswith("system/") else outer.points).append((m["key"], m["step"], m["value"]))
                    outer.runs[body["run_id"]]["tags"].update({tag["key"]: tag["value"] for tag in body.get("tags", [])})
                    self.answer({})

            def answer(self, value: dict) -> None:
                payload = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


def layout_of(root: Path) -> Layout:
    return Layout(root=root, work=root / "work" / "pretrain" / "k1")


def open_run(layout: Layout) -> tracking.Run:
    return tracking.open_run(Config(), layout, stage="pretrain", parameters=13_900_000, languages=["en", "zh"], params={"a": 1})


def killed(run: tracking.Run) -> None:
    """As a kill leaves it: no last state, the sender gone."""
    run._ended.set()
    run._sender.join()
