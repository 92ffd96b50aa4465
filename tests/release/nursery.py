"""A process that has imported everything and forks for each order, so that a release or a consumer can be killed without waiting for imports.

    {"do": "release", "root": …, "name": …, "overrides": {…}, "failpoints": …, "killed_upload": N}   a release, as the flow makes it
    {"do": "consume", "uri": "models:/NAME@champion", "times": N, "prompt": …}        what two servers do at a start
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


class Nursery:
    """Orders go in as lines, answers come out as lines: {"status": exit code, or -9, "told": …}."""

    def __init__(self, url: str) -> None:
        environment = os.environ | {"MLFLOW_TRACKING_URI": url, "OMP_NUM_THREADS": "1"}
        environment.pop("FAILPOINTS", None)
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True, env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)})

    def ask(self, orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All at once; the answers in their order."""
        self.begin(orders)
        return self.answers()

    def begin(self, orders: list[dict[str, Any]]) -> None:
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()

    def answers(self) -> list[dict[str, Any]]:
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


def release(root: str, name: str, overrides: dict[str, Any], failpoints: str = "", killed_upload: int = 0) -> list[dict[str, Any]]:
    import checkout

    from components import failpoints as places
    from components.layout import Layout
    from components.release import release as releasing

    os.environ["FAILPOINTS"] = failpoints
    importlib.reload(places)
    if killed_upload:
        _killed_at_upload(killed_upload)
    decisions = releasing.release(checkout.configuration(name=name, **overrides), Layout(root=Path(root)), say=lambda _line: None)
    return [decision.as_dict() for decision in decisions]


def _killed_at_upload(number: int) -> None:
    """kill -9 with `number` files of the model in the store, the next one begun."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository as Store

    send, sent = Store.log_artifact, []

    def counted(self: Any, local_file: str, artifact_path: str | None = None) -> None:
        if "/models/" in self.artifact_uri:
            sent.append(local_file)
            if len(sent) > number:
                half = Path(local_file).with_name("half") / Path(local_file).name
                half.parent.mkdir()
                half.write_bytes(Path(local_file).read_bytes()[: Path(local_file).stat().st_size // 2])
                send(self, str(half), artifact_path)
                os.kill(os.getpid(), signal.SIGKILL)
        send(self, local_file, artifact_path)

    Store.log_artifact = counted


def consume(uri: str, times: int, prompt: str) -> list[dict[str, Any]]:
    import mlflow

    found = []
    for _ in range(times):
        model = mlflow.pyfunc.load_model(uri)
        about = model.unwrap_python_model().about()
        found.append({"version": about["version"], "weights_sha256": about["weights_sha256"],
                      "text": model.predict([prompt], params={"max_new_tokens": 12, "seed": 3})[0]})
    return found


def _forked(order: dict[str, Any]) -> tuple[int, int]:
    """(pid, end of a pipe with what it tells)."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return pid, told
    status = 1
    try:
        do = {"release": release, "consume": consume}[order.pop("do")]
        os.write(tell, json.dumps(do(**order)).encode())
        status = 0
    except BaseException as error:  # noqa: BLE001 - the answer says what it was
        os.write(tell, json.dumps("".join(traceback.format_exception(error))[-3000:]).encode())
    os._exit(status)


def main() -> None:
    from components.release import release as releasing

    releasing.preload()
    assert threading.active_count() == 1, "a fork of a process with threads may hang"
    for line in sys.stdin:
        children = [_forked(order) for order in json.loads(line)]
        answers = []
        for pid, told in children:
            with open(told, "rb") as pipe:
                said = pipe.read()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answers.append({"status": status, "told": json.loads(said) if said else None})
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
