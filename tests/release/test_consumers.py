"""Who uses a released model: a process that has nothing of this repository, `mlflow models serve`, `lmworks generate`."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import checkout
import pytest
from mlflow_server import free_port

from components.errors import Damaged, UserError
from components.release import calling, lineage, model_files, registry
from components.release import release as releasing
from components.serving import engine

PARAMS = {"max_new_tokens": 12, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def served(mlflow_url, tmp_path_factory):
    """(layout, url) of a released pair 'used', 'used-instruct'."""
    config = checkout.configuration(name="used")
    layout = checkout.make(tmp_path_factory.mktemp("used"), config)
    releasing.release(config, layout, say=lambda line: None)
    return layout, mlflow_url


CONSUMER = """
import sys, mlflow
model = mlflow.pyfunc.load_model("models:/used@champion")
first = model.predict(["The king", "\\u623f\\u95f4"], params={"max_new_tokens": 12, "seed": 3})
assert first == model.predict(["The king", "\\u623f\\u95f4"], params={"max_new_tokens": 12, "seed": 3})
assert not [name for name in sys.modules if name.split(".")[0] in ("components", "flows", "commands")]
import json; print(json.dumps(first))
"""


@pytest.mark.code
def test_consumer_without_the_repository_loads_it_and_sees_no_warning(served, tmp_path):
    layout, url = served
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")}
    environment |= {"MLFLOW_TRACKING_URI": url, "OMP_NUM_THREADS": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", CONSUMER], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and len(json.loads(done.stdout)) == 2
    assert list(tmp_path.iterdir()) == []  # nothing is dropped where the consumer stands


def page_blocks(client, name: str, language: str) -> list[str]:
    """The code blocks that the registry page shows, to be copied as they are."""
    return re.findall(rf"```{language}\n(.*?)```", client.get_registered_model(name).description, re.DOTALL)


@pytest.mark.code
def test_the_python_lines_of_the_registry_page_run_as_they_are(served, tmp_path):
    layout, _ = served
    (block,) = page_blocks(registry.client(layout), "used", "python")
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")}
    environment |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    told = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert told["name"] == "used" and told["version"] == 1 and told["weights_sha256"] == lineage.weights_of(layout.pretrained)


@pytest.mark.code
def test_generate_says_what_the_model_says_and_names_the_version(served):
    layout, _ = served
    result = engine.answer(layout, "used", ["The king"], PARAMS)
    assert result["version"] == 1 and result["texts"] == engine.answer(layout, "used", ["The king"], PARAMS, version=1)["texts"]
    assert result["texts"] != engine.answer(layout, "used", ["The king"], PARAMS | {"seed": 4})["texts"]
    assert list((layout.work_root / "models").iterdir()) == []


@pytest.mark.code
@pytest.mark.parametrize(("params", "words"), [({"temperature": 99.0}, "temperature=99.0 is out of range: from 0 to 10"), ({"max_new_tokens": 64}, "context is 64")])
def test_generate_refuses_in_one_line(served, params, words):
    layout, _ = served
    with pytest.raises(UserError, match=words) as caught:
        engine.answer(layout, "used", ["The king"], PARAMS | params)
    assert "\n" not in str(caught.value) and not str(caught.value).startswith("INVALID")


@pytest.mark.code
def test_D9_generate_runs_no_code_that_was_changed_in_the_store(served, tmp_path):
    layout, _ = served
    client = registry.client(layout)
    version = client.get_model_version_by_alias("used-instruct", "champion")
    marker = tmp_path / "ran"
    original = client.download_artifacts(version.run_id, "README.md")  # proves that the store answers
    assert original
    (tmp_path / "model_file.py").write_text(f"open({str(marker)!r}, 'w')")
    with model_files.fetched(version, layout) as folder:
        kept = (folder / "model_file.py").read_bytes()
    client.log_model_artifact(registry.model_id(version), str(tmp_path / "model_file.py"))
    try:
        with pytest.raises(Damaged, match="model_file.py.*sha256"):
            engine.answer(layout, "used-instruct", ["hi"], PARAMS)
        assert not marker.exists()
    finally:
        (tmp_path / "model_file.py").write_bytes(kept)
        client.log_model_artifact(registry.model_id(version), str(tmp_path / "model_file.py"))


@pytest.mark.code
def test_a_champion_can_be_imported_as_a_base(served, monkeypatch, capsys):
    from commands import imports
    from components import config as settings
    from components.operations import services

    layout, _ = served
    (layout.root / "texts.txt").write_text("A corpus of its own: the embedded one is not in this checkout.")
    (layout.root / "records.jsonl").write_text('{"application": "question_answering", "prompt": "Who?", "answer": "I."}\n')
    flat = settings.flatten(settings.load(layout.params).model_dump(mode="json"))
    own = settings.build(flat | {"corpus.source": "texts.txt", "corpus.records": "records.jsonl"}, where="test")
    layout.params.write_text(settings.render(own))
    monkeypatch.setattr(imports, "Layout", lambda: layout)
    monkeypatch.setattr(services, "ensure", lambda *_args, **_more: {})
    imports.import_model("models:/used@champion")
    base = settings.load(layout.params).corpus.base
    assert base.startswith("used-v1-") and "used-instruct will be fine-tuned" in capsys.readouterr().out
    assert not (layout.imported / base / "serving.json").exists()
    with pytest.raises(UserError, match="not in the registry"):
        imports.import_model("models:/used/99")
    imports.import_model("none")


def post(url: str, body: object, raw: bytes | None = None) -> tuple[int, str]:
    request = urllib.request.Request(f"{url}/invocations", data=raw if raw is not None else json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.e2e
def test_serve_answers_params_400s_and_concurrent_requests(served, tmp_path):
    layout, url = served
    port = free_port()
    serve, ask = (block.replace(":5330/", f":{port}/").replace("-p 5330", f"-p {port}") for block in page_blocks(registry.client(layout), "used", "sh"))
    assert " ".join(serve.replace("\\\n", " ").split()) == calling.serve_line(url, "used", port=port)  # the terminal says the same
    line = serve.strip().replace("mlflow models", f"{sys.executable} -m mlflow models", 1)
    log = tmp_path / "serve.log"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1", "UVICORN_LOG_LEVEL": "warning", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI")
    environment["PATH"] = os.path.dirname(sys.executable) + os.pathsep + environment["PATH"]
    with open(log, "wb") as out:
        server = subprocess.Popen(["/bin/sh", "-c", "exec env " + line], cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{base}/ping", server, log)
        body = {"inputs": ["The king", "房间"], "params": PARAMS}
        status, text = post(base, body)
        assert status == 200
        expected = json.loads(text)["predictions"]
        assert expected == engine.answer(layout, "used", ["The king", "房间"], PARAMS)["texts"]
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(lambda _: post(base, body)[1], range(12))) == {text}
        assert post(base, {"inputs": ["The king"]})[0] == 200
        assert json.loads(json.loads(post(base, {"inputs": ["a", "b"], "params": {"about": True}})[1])["predictions"][1])["version"] == 1
        if shutil.which("curl"):
            said = subprocess.run(["/bin/sh", "-e", "-c", ask], capture_output=True, text=True, check=True, timeout=60).stdout
            text, about = re.fullmatch(r'(\{.*\})(\{"predictions".*\})\s*', said, re.DOTALL).groups()
            assert json.loads(text)["predictions"] and json.loads(json.loads(about)["predictions"][0])["name"] == "used"
        for params, words in [({"temperature": -1.0}, "temperature=-1.0"), ({"max_new_tokens": 0}, "max_new_tokens=0"), ({"top_p": 0.0}, "top_p=0.0"),
                              ({"seed": -5}, "seed=-5"), ({"max_new_tokens": 64}, "context is 64")]:
            status, answer = post(base, {"inputs": ["The king"], "params": params})
            assert status == 400 and words in answer and len(json.loads(answer)["message"].splitlines()) == 1, answer
            assert "Traceback" not in answer and "site-packages" not in answer and len(answer) < 600
        assert post(base, {"inputs": "x"})[0] == 400 and post(base, None, raw=b"{")[0] == 400
        status, answer = post(base, None, raw=b'{"inputs": ["\\ud800"]}')
        assert status == 400 and "Traceback" not in answer
        status, answer = post(base, {"inputs": ["a"], "params": {"seed": 10**30}})
        assert status == 400, answer
        assert "Warning" not in log.read_text() and "WARNING" not in log.read_text(), log.read_text()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def wait_for(url: str, server: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(log.read_text()[-3000:])
