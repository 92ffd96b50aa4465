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

CONSUMER = Path(__file__).with_name("consumer.py")


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
    shutil.copy(CONSUMER, tmp_path)
    python = Path(sys.prefix).resolve() / "bin" / "python"
    command = ["ip", "netns", "exec", other_host, "env", "-i", f"PATH={python.parent}:/usr/bin:/bin", f"HOME={tmp_path}", "LANG=C.UTF-8",
               f"MLFLOW_TRACKING_URI={url}", "OMP_NUM_THREADS=1", "MLFLOW_DISABLE_TELEMETRY=true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false",
               str(python), "-P", "consumer.py", "models:/afar-instruct@champion", "5330"]
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
