"""The servers as this checkout starts them: who may write to them, where they listen, what they hand out, what they keep (J4, J5, J6, J7, J10)."""

from __future__ import annotations

import base64
import http.client
import json
import os
import pickle
import socket
import stat
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.operations import environment, processes, rest, services

pytestmark = pytest.mark.e2e

SERVERS = pytest.mark.parametrize("service", processes.SERVERS, ids=lambda service: service.name)
WRITES = {"mlflow": ("/api/2.0/mlflow/experiments/create", {"name": "evil"}), "prefect": ("/api/variables/", {"name": "evil", "value": "evil"})}


def ask(checkout: Any, service: Any, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request, with headers as an attacker would have them; `Host` too."""
    address = urllib.parse.urlsplit(services.address(checkout.layout, service))
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    got = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return got


def evil_things(checkout: Any) -> list[str]:
    """What an attack would have left."""
    url = services.address(checkout.layout, processes.MLFLOW)
    found = rest.call(f"{url}/api/2.0/mlflow/experiments/search", {"max_results": 100, "view_type": "ALL"}).get("experiments", [])
    variables = checkout.api().send("/variables/filter", {})
    return [thing["name"] for thing in [*found, *variables] if "evil" in thing["name"]]


@SERVERS
@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example", "Content_Type": "application/json"}, {"Origin": "null", "Content_Type": "application/json"},
    {"Origin": "http://evil.example", "Content_Type": "text/plain"}, {"Origin": "http://127.0.0.1.evil.example", "Content_Type": "application/x-www-form-urlencoded"},
    {"Host": "evil.example", "Content_Type": "application/json"}, {"Host": "127.0.0.1.evil.example:80", "Origin": "http://127.0.0.1.evil.example:80", "Content_Type": "application/json"}],
    ids=["another origin", "no origin of its own", "text/plain", "a form", "a foreign host", "a name pointed here"])
def test_J7_a_page_of_another_site_cannot_write(checkout: Any, service: Any, headers: dict[str, str]):
    path, body = WRITES[service.name]
    status, got, _ = ask(checkout, service, "POST", path, json.dumps(body).encode(), **headers)
    assert status == 403 and "access-control-allow-origin" not in got
    assert evil_things(checkout) == []


@pytest.mark.parametrize("headers", [{"Content_Type": "text/plain"}, {"Content_Type": "application/json"}], ids=lambda headers: headers["Content_Type"])
def test_J7_prefect_takes_no_write_without_its_token_even_from_here(checkout: Any, headers: dict[str, str]):
    path, body = WRITES["prefect"]
    assert ask(checkout, processes.PREFECT, "POST", path, json.dumps(body).encode(), **headers)[0] == 403
    assert ask(checkout, processes.MLFLOW, "POST", WRITES["mlflow"][0], b'{"name": "evil"}', Content_Type="text/plain")[0] == 400
    assert evil_things(checkout) == []


@SERVERS
def test_J7_a_page_of_another_site_cannot_read(checkout: Any, service: Any):
    status, got, body = ask(checkout, service, "GET", "/", Host="evil.example")
    assert status == 403 and len(body) < 200
    status, got, _ = ask(checkout, service, "GET", service.health, Origin="http://evil.example")
    assert "access-control-allow-origin" not in got


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}], ids=["another origin", "no origin of its own", "a foreign host"])
def test_J7_a_page_of_another_site_opens_no_websocket(checkout: Any, path: str, headers: dict[str, str]):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": base64.b64encode(os.urandom(16)).decode()}
    assert ask(checkout, processes.PREFECT, "GET", path, **upgrade, **headers)[0] == 403


@SERVERS
def test_its_own_page_and_a_tunnel_may(checkout: Any, service: Any):
    address = urllib.parse.urlsplit(services.address(checkout.layout, service))
    for host in (address.netloc, f"localhost:{address.port}"):
        assert ask(checkout, service, "GET", service.health, Host=host, Origin=f"http://{host}")[0] == 200
    if service is processes.PREFECT:
        assert ask(checkout, service, "GET", service.health, Host="localhost:9000", Origin="http://localhost:9000")[0] == 200


def listening(pid: int) -> list[tuple[str, int]]:
    parent = psutil.Process(pid)
    return [tuple(connection.laddr) for process in (parent, *parent.children(recursive=True)) for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN]


def test_J10_servers_and_worker_listen_on_loopback_alone(checkout: Any):
    recorded = services.read(checkout.layout)
    found = {name: listening(recorded[name]["pid"]) for name in ("mlflow", "prefect", "worker") if name in recorded}
    assert {"mlflow", "prefect"} <= found.keys() and found["mlflow"] and found["prefect"]
    assert {ip for sockets in found.values() for ip, _ in sockets} == {"127.0.0.1"}
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        for service in processes.SERVERS:
            with socket.socket() as outside:
                assert outside.connect_ex((own, int(recorded[service.name]["url"].rpartition(":")[2]))) != 0


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%252e%252e%252fetc%252fpasswd", "/etc/passwd", "//etc/passwd", "a/../../../../etc/passwd",
                                  "....//....//etc/passwd", "..\\..\\etc\\passwd", "%00/etc/passwd", "#/../../etc/passwd", "file:///etc/passwd"])
def test_J5_no_path_of_the_tracking_server_leads_out_of_its_artifacts(checkout: Any, path: str):
    url = services.address(checkout.layout, processes.MLFLOW)
    run = rest.call(f"{url}/api/2.0/mlflow/runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    quoted = path if "%" in path else urllib.parse.quote(path, safe="")
    for address in (f"/get-artifact?run_uuid={run}&path={quoted}", f"/api/2.0/mlflow-artifacts/artifacts/{quoted}", f"/ajax-api/2.0/mlflow/get-artifact?run_uuid={run}&path={quoted}",
                    f"/model-versions/get-artifact?name=x&version=1&path={quoted}", f"/api/2.0/mlflow/artifacts/list?run_id={run}&path={quoted}"):
        status, _, body = ask(checkout, processes.MLFLOW, "GET", address)
        assert b"root:" not in body and (status >= 400 or b'"files"' not in body), (address, status, body[:200])
    status, _, _ = ask(checkout, processes.MLFLOW, "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{quoted}", b"x", Content_Type="application/octet-stream")
    assert status >= 400 or not list(checkout.root.rglob("passwd")), "written nowhere but below its artifacts"


@pytest.mark.parametrize("source", ["http://169.254.169.254/latest", "file:///etc", "ftp://127.0.0.1/x", "http://127.0.0.1:9/x"])
def test_J6_the_tracking_server_takes_no_model_from_an_address(checkout: Any, source: str):
    url = services.address(checkout.layout, processes.MLFLOW)
    rest.call(f"{url}/api/2.0/mlflow/registered-models/create", {"name": "odd"})
    try:
        with pytest.raises(rest.Unreachable) as refused:
            rest.call(f"{url}/api/2.0/mlflow/model-versions/create", {"name": "odd", "source": source})
        assert refused.value.status == 400
    finally:
        rest.call(f"{url}/api/2.0/mlflow/registered-models/delete", {"name": "odd"}, method="DELETE")


SWAPPED = ("x", "first", "run_stage_task", "lmworks-chain")


class Touch:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_J4_no_result_is_kept_and_a_swapped_one_is_never_opened(checkout: Any, tmp_path: Path):
    storage, marker = checkout.layout.prefect_home / "storage", tmp_path / "executed"
    for folder in (checkout.layout.prefect_home, storage, checkout.layout.state, checkout.layout.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    code, _, err = checkout.run(to_stage="first")
    assert code == 0, err
    assert list(storage.iterdir()) == [], "no flow and no task of ours keeps a result"
    evil = json.dumps({"metadata": {"storage_key": "x", "prefect_version": "3", "serializer": {"type": "pickle"}},
                       "result": base64.b64encode(pickle.dumps(Touch(marker))).decode()})
    for name in SWAPPED:
        (storage / name).write_text(evil)
    script = ("from prefect import flow, task\nfrom prefect.cache_policies import INPUTS\n@task(persist_result=True, cache_policy=INPUTS)\ndef one(n): return {'a': n}\n"
              "@flow\ndef two(): return one(1)\nprint(two())")
    env = environment.child(checkout.layout) | {"PREFECT_API_URL": f"{services.address(checkout.layout, processes.PREFECT)}/api"}
    done = subprocess.run([environment.python(checkout.layout), "-c", script], cwd=checkout.root, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = [json.loads(path.read_text()) for path in storage.iterdir() if path.name not in SWAPPED]
    assert [record["metadata"]["serializer"]["type"] for record in kept] == ["json"], "who keeps results all the same keeps them as JSON"
    code, _, err = checkout.run(to_stage="first")
    assert code == 0 and not marker.exists(), err
    for path in storage.iterdir():
        path.unlink()
