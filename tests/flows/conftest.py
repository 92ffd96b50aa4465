"""A checkout of its own with two trivial stages and real servers: what the flows need, in seconds."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from components import config as settings
from components.layout import ROOT, Layout
from components.operations import addresses, environment, processes, rest, services, silence

TOKEN = "token-that-nobody-may-see"
ALERT_PATH = f"/alert/{TOKEN}"

DVC_YAML = """\
stages:
  first:
    cmd: exec python fake_stage.py first
    deps: [fake_stage.py, first.txt]
    outs: [data/first]
  second:
    cmd: exec python fake_stage.py second
    deps: [fake_stage.py, data/first, second.txt]
    outs: [data/second]
"""

# a stage as components/chain.py runs one: dies with its parent, holds the stage lock, writes its outcome
FAKE_STAGE = '''
import json, os, pathlib, signal, sys, time
from components import files
from components.chain import die_with_parent
from components.errors import UserError
from components.layout import Layout
from components.reporting import say, stop

name = sys.argv[1]
die_with_parent()
stop.install()
layout = Layout()
wish = pathlib.Path(f"{name}.txt").read_text().split()
pathlib.Path("told.json").write_text(json.dumps({k: v for k, v in os.environ.items() if k.startswith("LMWORKS_")}))
outcome = {"stage": name, "exit_code": 1, "message": "it ended without a word"}
marker = layout.unclean / f"stage-{os.getpid()}.json"
try:
    with files.lock(layout.stage_lock, what="a stage"):
        for n in range(1, 6):
            say(f"{name} {n}/5 loss 3.21")
        say(f"{name} says 你好")
        if "sleep" in wish:
            if "stubborn" in wish:  # as one that writes a large checkpoint when it is asked to stop
                signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("asked").write_text(""))
            pathlib.Path("asleep").write_text("")
            time.sleep(60)
        if "wait" in wish:
            pathlib.Path("asleep").write_text("")
            while not pathlib.Path("go").exists():
                time.sleep(0.05)
        if "fail" in wish:
            say("the line before the end")
            raise UserError("row 7 of first.txt has no text; mend it")
        out = pathlib.Path("data") / name
        out.mkdir(parents=True)
        files.write_json(out / "summary.json", {"stage": name, "documents_in": 3, "documents_out": 2})
        (out / "wish.txt").write_text(" ".join(wish))
        files.write_manifest(out)
    outcome = {"stage": name, "exit_code": 0, "elapsed_s": 0.25}
except UserError as error:
    outcome.update(exit_code=3 if "block" in wish else 2, message=str(error))
except KeyboardInterrupt:
    outcome.update(exit_code=130, message="stopped by a signal")
finally:
    files.write_json(layout.state / "outcome" / f"{name}.json", outcome)
if outcome["exit_code"]:
    say(f"{name}: {outcome['message']}")
sys.exit(outcome["exit_code"])
'''

DRIVER = '''
import json, os, sys
from components.errors import UserError
from components.layout import Layout
from flows.run import execute

class Seen:
    lines, events = [], []
    def stage_started(self, stage, why): self.events.append(f"start {stage}")
    def stage_ended(self, record): self.events.append(f"{record.state} {record.stage}")
    def line(self, stage, line): self.lines.append(f"{stage}|{line}")

try:
    result = execute(Layout(), listener=Seen(), release=False, **json.loads(sys.argv[1]))
except UserError as error:
    print(str(error), file=sys.stderr)
    sys.exit(error.exit_code)
print(json.dumps({**result.as_dict(), "lines": Seen.lines, "events": Seen.events}), flush=True)
if not result.reported:
    os._exit(result.exit_code)
sys.exit(result.exit_code)
'''


class Checkout:
    """A temporary checkout and what a test does in it."""

    def __init__(self, root: Path):
        self.root, self.layout = root, Layout(root=root)
        for folder in ("components", "flows", "commands"):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("versions.yaml", "prefect.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, root / name)
        (root / ".dvc").mkdir()
        shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
        (root / ".venv").symlink_to(ROOT / ".venv")
        (root / "语料").mkdir()
        (root / "语料" / "a.txt").write_text("A short text. 一段短文。\n" * 50)
        (root / "records.jsonl").write_text('{"application": "classification", "prompt": "x", "answer": "y"}\n')
        flat = settings.flatten(settings.Config().model_dump(mode="json"))
        (root / "params.yaml").write_text(settings.render(settings.build(
            flat | {"corpus.source": "语料", "corpus.records": "records.jsonl", "name": "mini"}, where="test")))
        (root / "dvc.yaml").write_text(DVC_YAML)
        with open(root / "components" / "chain.py", "a") as code:  # the stage table of this checkout
            code.write(f"\n\ndef render_dvc_yaml(root=ROOT):\n    return {DVC_YAML!r}\n")
        (root / "fake_stage.py").write_text(FAKE_STAGE)
        (root / "driver.py").write_text(DRIVER)
        self.wish("first", "1")
        self.wish("second", "1")

    def wish(self, stage: str, words: str) -> None:
        (self.root / f"{stage}.txt").write_text(words)

    def start(self, **arguments: Any) -> subprocess.Popen:
        """The driver, as `lmworks run` is: a process of its own."""
        env = environment.child(self.layout)
        return subprocess.Popen([environment.python(self.layout), "driver.py", json.dumps(arguments)], cwd=self.root, env=env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, **arguments: Any) -> tuple[int, dict[str, Any], str]:
        process = self.start(**arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, json.loads(out) if out.strip() else {}, err

    # --- what the servers and the machine say ---

    def api(self) -> rest.Prefect:
        return rest.Prefect(f"{services.address(self.layout, processes.PREFECT)}/api")

    def last_flow_run(self) -> dict[str, Any]:
        return self.api().send("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]

    def task_runs(self, flow_run: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """{name: (state type, state name)}; task runs arrive over a websocket, a moment later."""
        before: set[str] = set()
        for _ in range(50):
            runs = self.api().send("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run["id"]]}}})
            there = {run["id"] for run in runs}
            if runs and there == before and all(run["state_type"] not in ("RUNNING", "PENDING", "SCHEDULED") for run in runs):
                break  # one of them may come before the others
            before = there
            time.sleep(0.3)
        return {run["name"]: (run["state_type"], run["state_name"]) for run in runs}

    def artifacts(self, flow_run_id: str) -> list[dict[str, Any]]:
        return self.api().send("/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})

    def logs(self, flow_run: dict[str, Any]) -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [flow_run["id"]]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.api().send("/logs/filter", wanted)]

    def last_scheduled(self, flow_run_id: str) -> dict[str, Any]:
        """What is written down of this run's end, once it is."""
        def ends() -> list[dict[str, Any]]:
            return [one["last"] for one in silence.read(self.layout).values() if one["last"]["flow_run"].endswith(flow_run_id)]

        self.wait_for(ends, "the end is written down")
        return ends()[0]

    def wait_for(self, condition: Any, what: str, within_s: float = 120) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.1)

    def processes_in(self) -> list[str]:
        """Live stage and DVC processes of this checkout."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                if process.cwd() == str(self.root) and ("fake_stage" in words or "dvc" in words) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(words)
            except psutil.Error:
                continue
        return found


@dataclass
class Receiver:
    """What an alert's or a ping's receiver on another machine would get."""

    url: str
    token: str = TOKEN
    calls: list[tuple[str, str, str]] = field(default_factory=list)  # (method, path, body)

    def pings(self) -> list[str]:
        return [path for method, path, _ in self.calls if method == "GET"]

    def alerts(self) -> list[dict[str, Any]]:
        return [json.loads(body) for method, path, body in self.calls if (method, path) == ("POST", ALERT_PATH)]


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    calls: list[tuple[str, str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            calls.append((self.command, self.path, body))
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Receiver(f"http://127.0.0.1:{server.server_port}", calls=calls)
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Checkout]:
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        os.environ.pop(variable, None)
    os.environ |= {addresses.ALERT_WEBHOOK: receiver.url + ALERT_PATH, addresses.PING_URL: f"{receiver.url}/ping/{TOKEN}"}
    root = tmp_path_factory.mktemp("checkout") / "a folder with 空格"
    root.mkdir()
    made = Checkout(root)
    try:
        services.ensure(made.layout)
        yield made
    finally:
        services.down(made.layout, force=True)
        for variable in addresses.SECRETS:
            os.environ.pop(variable, None)
