"""A consumer on another host: a network namespace that sees only the server's port, and a file system without the checkout."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import checkout
import pytest
from mlflow_server import start_server

from components.layout import ROOT
from components.release import lineage, package
from components.release import release as releasing

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
HERE, THERE = "10.77.41.1", "10.77.41.2"

CONSUMER = r"""
import hashlib, json, os, signal, subprocess, sys, time, urllib.error, urllib.request
import mlflow
from pathlib import Path

URI, PORT, PARAMS = "models:/afar-instruct@champion", 5330, {"max_new_tokens": 8, "seed": 3}
try:
    import components
except ImportError:
    pass
else:
    raise SystemExit(f"the checkout is in sight: {components.__path__}")
model = mlflow.pyfunc.load_model(URI)
told = {"text": model.predict(["The king"], params=PARAMS)[0], "about": model.unwrap_python_model().about(), "metadata": model.metadata.metadata}
folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=URI, dst_path="kept"), "artifacts", "model")
for name, entry in json.loads((folder / "manifest.json").read_bytes())["files"].items():
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
told["weights"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
told["strangers"] = sorted({name.split(".")[0] for name in sys.modules} & {"components", "flows", "prefect", "dvc", "great_expectations"})
try:
    urllib.request.urlopen("http://127.0.0.1:" + os.environ["MLFLOW_TRACKING_URI"].rsplit(":", 1)[1], timeout=2)
except OSError:
    told["alone"] = True  # this is another host: nothing listens on its own loopback

def ask(params, prompt="The king"):
    body = json.dumps({"inputs": [prompt], "params": params}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/invocations", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["predictions"][0]

with open("serve.log", "wb") as log:
    line = [sys.executable, "-m", "mlflow", "models", "serve", "-m", URI, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(PORT)]
    server = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
try:
    for _ in range(600):
        try:
            told["served"] = ask(PARAMS)
            break
        except urllib.error.URLError:
            if server.poll() is not None:
                raise SystemExit(Path("serve.log").read_text())
            time.sleep(0.2)
    told["served_about"] = json.loads(ask({"about": True}, ""))
finally:
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)
told["serve_log"] = Path("serve.log").read_text()
print(json.dumps(told))
"""


def ip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def other_host():
    """Name of a network namespace at THERE, from which HERE is reached."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("a second host is made with root, iproute2 and unshare, which are not all here")
    name = f"lmw{os.getpid()}"
    steps = [("netns", "add", name), ("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name),
             ("addr", "add", f"{HERE}/24", "dev", name), ("link", "set", name, "up"),
             ("-n", name, "addr", "add", f"{THERE}/24", "dev", "eth0"), ("-n", name, "link", "set", "eth0", "up"), ("-n", name, "link", "set", "lo", "up")]
    try:
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"this machine makes no network namespace: ip {' '.join(step)}: {done.stderr.strip()}")
        yield name
    finally:
        ip("link", "del", name)
        ip("netns", "del", name)


@pytest.fixture(scope="module")
def afar(other_host, mlflow_url, mlflow_folder, tmp_path_factory):
    """(address that the other host reaches, layout) of a released pair; the server there serves the same folder."""
    config = checkout.configuration(name="afar")
    layout = checkout.make(tmp_path_factory.mktemp("afar"), config)
    releasing.release(config, layout, say=lambda _: None)
    server, url = start_server(mlflow_folder, HERE)
    yield url, layout
    os.killpg(server.pid, 15)
    server.wait(20)


def without_checkout(folder: Path, command: list[str]) -> list[str]:
    """The command in a mount namespace in which an empty file system lies over every checkout; the Python environment stays."""
    environment = Path(sys.prefix).resolve()
    hidden = [place for place in {ROOT.resolve(), environment.parent} if (place / "components").is_dir()]
    lines = ["set -e", "mount --make-rprivate /", f"mkdir {folder}/env", f"mount --bind {shlex.quote(str(environment))} {folder}/env"]
    lines += [f"mount -t tmpfs none {shlex.quote(str(place))}" for place in hidden]
    if any(environment.is_relative_to(place) for place in hidden):
        lines += [f"mkdir -p {shlex.quote(str(environment))}", f"mount --bind {folder}/env {shlex.quote(str(environment))}"]
    return ["unshare", "-m", "sh", "-c", "\n".join([*lines, f"cd {folder}", "exec " + shlex.join(command)])]


def test_consumer_on_another_host_answers_says_who_and_sees_no_warning(afar, other_host, tmp_path):
    url, layout = afar
    (tmp_path / "consumer.py").write_text(CONSUMER)
    python = Path(sys.prefix).resolve() / "bin" / "python"
    command = ["ip", "netns", "exec", other_host, "env", "-i", f"PATH={python.parent}:/usr/bin:/bin", f"HOME={tmp_path}", "LANG=C.UTF-8",
               f"MLFLOW_TRACKING_URI={url}", "OMP_NUM_THREADS=1", "MLFLOW_DISABLE_TELEMETRY=true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false",
               str(python), "-P", "consumer.py"]
    done = subprocess.run(without_checkout(tmp_path, command), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    told = json.loads(done.stdout)
    weights = lineage.weights_of(layout.finetuned)
    assert told["about"] == told["served_about"] == {"name": "afar-instruct", "version": 1, "kind": "instruct", "weights_sha256": weights, "context": 64}
    assert told["metadata"]["weights_sha256"] == told["weights"] == weights
    assert told["text"] == told["served"] and told["strangers"] == [] and told["alone"]
    assert "warn" not in told["serve_log"].lower(), told["serve_log"]
    import mlflow

    assert mlflow.__version__ in package.TRIED_MLFLOW
