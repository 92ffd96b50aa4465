"""A fresh checkout with no way out to any network, and one in which eight commands start at once."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.reliability import starts
from tests.checkout import copy_checkout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# all that a user does, in a network of its own that has a loopback and nothing else, with proxies named that nobody answers for
OFFLINE = """
import json, os, pathlib, signal, subprocess, sys, time, urllib.error, urllib.request

def lmworks(*arguments):
    running = subprocess.Popen([sys.executable, "-m", "commands", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if arguments == ("run",):
        kill_mlflow_in_training(running)
    out, err = running.communicate()
    print(json.dumps({"command": arguments, "code": running.returncode, "out": out, "err": err}), flush=True)

def kill_mlflow_in_training(running):
    while running.poll() is None and not any(pathlib.Path("work/pretrain").glob("*/checkpoints/step-*")):
        time.sleep(0.1)
    os.kill(json.loads(pathlib.Path(".lmworks/services.json").read_text())["mlflow"]["pid"], signal.SIGKILL)
    print(json.dumps({"killed": running.poll() is None}), flush=True)

try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://192.0.2.1/", timeout=3)
except urllib.error.URLError as error:
    print(json.dumps({"network": str(error.reason)}), flush=True)
try:
    for arguments in (["use", "smoke"], ["up"], ["run"], ["models", "--json"], ["status", "--json"], ["generate", "The king", "--max-new-tokens", "8"]):
        lmworks(*arguments)
finally:
    lmworks("down", "--force")
"""


@pytest.mark.skipif(not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0,
                    reason="this machine lets nobody make a network of his own (unshare -rn)")
def test_F1_F6_F7_text_to_champion_without_any_network_past_dead_proxies_and_over_a_server_that_dies(tmp_path: Path):
    checkout = copy_checkout(tmp_path / "checkout")
    proxies = {name: "http://127.0.0.1:1" for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (upper, upper.lower())}
    done = subprocess.run(["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", str(checkout.root / ".venv/bin/python"), "-c", OFFLINE],
                          cwd=checkout.root, env=checkout.env | proxies, text=True, capture_output=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert "unreachable" in told[0]["network"].lower(), "there is no network at all"
    assert {"killed": True} in told, "MLflow died while the model trained"
    ended = {step["command"][0]: step for step in told if "command" in step}
    for step in ended.values():
        assert step["code"] == 0 and "Traceback" not in step["err"], step
    assert "smoke version 1: gate passed" in ended["run"]["out"]
    state = json.loads(ended["status"]["out"])
    assert {name: service["state"] for name, service in state["services"].items()} == {"mlflow": "up", "prefect": "up", "worker": "up"}
    assert state["last_run"]["verdict"] == "Promoted" and state["unsent"] == 0
    assert {model["name"] for model in json.loads(ended["models"]["out"])} == {"smoke", "smoke-instruct"}
    assert ended["generate"]["out"].strip()


def test_E1_eight_commands_at_once_in_a_fresh_checkout_end_as_they_should(tmp_path: Path):
    checkout = copy_checkout(tmp_path / "checkout")
    checkout.lmworks("use", "smoke")
    try:
        found = starts.at_once(checkout.root, checkout.home, starts.MIXED)
        assert found["met"], json.dumps(found, indent=1)
        assert found["right"] == 8 and found["servers"] == {"mlflow": 1, "prefect": 1, "worker": 1}
    finally:
        checkout.lmworks("down", "--force", code=None)
    assert sum(starts.started(checkout.root).values()) == 0
