"""The chain as a user runs it: real servers, DVC, MLflow, Prefect; one `smoke` run serves most tests."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.checkout import Checkout, Finished, copy_checkout

pytestmark = pytest.mark.e2e

NOISE = re.compile(r"Traceback|Warning|WARNING|DeprecationWarning|\bERROR\b")


def test_a_good_run_is_clean_and_tells_everything(finished: Finished):
    assert not NOISE.search(finished.stdout + finished.stderr), finished.stdout + finished.stderr
    out = finished.stdout
    assert out.index("MLflow ") < out.index("Prefect ") < out.index("fetch")  # addresses first
    for part in ("why it ran", "it never ran", "bits per byte", "unigram", "5-gram", "xz", "[en]", "[zh]", "smoke version 1: gate passed",
                 "smoke-instruct version 1", "below_unigram", "the platform itself", "MLFLOW_TRACKING_URI=http://127.0.0.1:"):
        assert part in out, part
    checkout = finished.checkout
    assert checkout.aliases("smoke") == {"candidate": "1", "champion": "1"}
    assert checkout.aliases("smoke-instruct") == {"candidate": "1", "champion": "1"}


def test_one_finished_run_a_model_with_curves_data_and_report(finished: Finished):
    checkout = finished.checkout
    experiment = checkout.mlflow("GET", "experiments/get-by-name?experiment_name=smoke")["experiment"]["experiment_id"]
    runs = checkout.mlflow("POST", "runs/search", {"experiment_ids": [experiment]})["runs"]
    tags = {run["info"]["run_id"]: {tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs}
    by_stage = {tags[run["info"]["run_id"]]["lmworks.stage"]: run for run in runs if "lmworks.stage" in tags[run["info"]["run_id"]]}
    (judged,) = (run for run in runs if "lmworks.stage" not in tags[run["info"]["run_id"]])
    assert sorted(by_stage) == ["finetune", "pretrain"] and len(runs) == 3
    assert judged["info"]["run_name"].startswith("judged items smoke-instruct ") and judged["info"]["status"] == "FINISHED"
    for run in by_stage.values():
        assert run["info"]["status"] == "FINISHED"
        keys = {m["key"] for m in run["data"]["metrics"]}
        assert "train/loss" in keys and any(k.startswith("eval/") for k in keys)
    pretrain = by_stage["pretrain"]
    assert {d["dataset"]["name"] for d in pretrain["inputs"]["dataset_inputs"]} == {"tokens/train", "tokens/validation", "tokens/test"}
    history = checkout.mlflow("GET", f"metrics/get-history?run_id={pretrain['info']['run_id']}&metric_key=train/loss")["metrics"]
    steps = [m["step"] for m in history]
    assert sorted(steps) == sorted(set(steps)) and max(steps) == 120
    files = {f["path"] for f in checkout.mlflow("GET", f"artifacts/list?run_id={pretrain['info']['run_id']}")["files"]}
    assert {"evaluation", "settings", "promotion.json", "README.md"} <= files


def test_unchanged_rerun_runs_nothing_and_imports_neither_prefect_nor_mlflow(finished: Finished):
    checkout = finished.checkout
    lock = (checkout.root / "dvc.lock").read_bytes()
    script = ("import os, sys\nfrom commands import main\nos._exit = sys.exit\nsys.argv = ['lmworks', 'run', '--json']\n"
              "try:\n main.main()\nfinally:\n print(sorted(m for m in ('prefect', 'mlflow', 'torch', 'transformers') if m in sys.modules), file=sys.stderr)")
    import subprocess

    done = subprocess.run([str(checkout.root / ".venv/bin/python"), "-c", script], cwd=checkout.root, env=checkout.env, text=True, capture_output=True)
    result = json.loads(done.stdout)
    assert result["verdict"] == "Nothing changed" and {s["state"] for s in result["stages"]} == {"cached"}
    assert done.stderr.strip() == "[]"
    assert (checkout.root / "dvc.lock").read_bytes() == lock


def test_generate_answers_in_both_languages_and_one_seed_gives_one_answer(finished: Finished):
    checkout = finished.checkout
    english = [checkout.lmworks("generate", "The king", "--max-new-tokens", "12", "--seed", "3").stdout for _ in range(2)]
    assert english[0] == english[1] and english[0].strip()
    chinese = json.loads(checkout.lmworks("generate", "--instruct", "这家店怎么样？", "--max-new-tokens", "12", "--json").stdout)
    assert chinese["name"] == "smoke-instruct" and chinese["version"] == 1
    refused = checkout.lmworks("generate", "x", "--temperature", "99", code=2)
    assert "temperature" in refused.stderr and "Traceback" not in refused.stderr


def test_dvc_says_the_same_in_a_shell(finished: Finished):
    checkout = finished.checkout
    assert "up to date" in checkout.dvc("status").stdout
    assert "pretrain" in checkout.dvc("dag").stdout
    assert "eval/bits_per_byte_zh" in checkout.dvc("metrics", "show").stdout
    checkout.dvc("params", "diff")
    checkout.dvc("metrics", "diff")


def test_changed_finetuning_leaves_pretraining_fresh(finished: Finished):
    checkout = finished.checkout
    checkout.lmworks("use", "smoke", "--set", "finetuning.epochs=3")
    try:
        told = json.loads(checkout.lmworks("run", "--dry-run", "--json").stdout)
        assert told["pretrain"] == [] and told["shards"] == []
        assert told["finetune"] == ["params.yaml finetuning.epochs: 1 -> 3"]
        assert told["evaluate"]
        assert "finetuning.epochs: 1 -> 3" in checkout.lmworks("why", "finetune").stdout
    finally:
        checkout.lmworks("use", "smoke")


def test_the_same_name_with_another_corpus_is_refused_before_anything_runs(finished: Finished, tmp_path: Path):
    checkout = finished.checkout
    (tmp_path / "a.txt").write_text("Some words. " * 10_000)
    checkout.lmworks("use", "smoke", "--corpus", str(tmp_path), "--name", "smoke")
    try:
        done = checkout.lmworks("run", code=2)
        told = " ".join((done.stdout + done.stderr).split())
        assert "registered with corpus 'embedded'" in told and "write it into the line `name:` of params.yaml" in told
        assert "✓ fetch" not in done.stdout
    finally:
        checkout.lmworks("use", "smoke")


def test_A3_blocked_data_starts_no_training_run_and_the_last_good_data_is_back(finished: Finished, tmp_path: Path):
    checkout = finished.checkout
    before = checkout.mlflow("GET", "experiments/search?max_results=100")["experiments"]
    (tmp_path / "坏.jsonl").write_text("".join(json.dumps({"text": f"A good line number {i}."}) + "\n" for i in range(50)) + '{"text": "broken\n' * 30)
    checkout.lmworks("use", "smoke", "--corpus", str(tmp_path), "--name", "blocked")
    try:
        done = checkout.lmworks("run", code=3)
        assert "Blocked" in done.stdout and "坏.jsonl" in done.stdout and not NOISE.search(done.stdout + done.stderr)
        assert checkout.mlflow("GET", "experiments/search?max_results=100")["experiments"] == before
        page = checkout.root / ".lmworks" / "blocked" / "ingest" / "validation.html"
        assert "坏.jsonl" in page.read_text()
        assert (checkout.root / "data" / "raw" / "documents.parquet").exists()
    finally:
        checkout.lmworks("use", "smoke")
    checkout.lmworks("run")  # restored from the run cache, nothing trains again
    assert checkout.aliases("smoke") == {"candidate": "1", "champion": "1"}


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def whole_checkpoint(checkout: Checkout) -> bool:
    """Whether one lies under its final name (a partial one is another test's business)."""
    return any(re.fullmatch(r"step-\d+", path.name) for path in (checkout.root / "work" / "pretrain").glob("*/checkpoints/*"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Another folder, an own DVC cache, no servers: everything is computed again."""
    checkout = copy_checkout(tmp_path_factory.mktemp("second") / "other checkout 另一个")
    checkout.lmworks("use", "smoke")
    return checkout


@pytest.mark.slow  # tests/flows/test_short_drill.py kills a smaller chain in `make test`
def test_C2_killed_training_resumes_bit_for_bit_and_dvc_repro_ends_in_the_same_lock(finished: Finished, second: Checkout):
    running = second.popen("dvc", "repro", start_new_session=True)
    wait_for(lambda: whole_checkpoint(second))
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    wait_for(lambda: not [p for p in psutil.process_iter(["cmdline"]) if "components.chain" in (p.info["cmdline"] or []) and p.cwd() == str(second.root)])
    done = second.dvc("repro")
    assert re.search(r"resum", done.stdout + done.stderr, re.I), "it started from step 0"
    assert yaml.safe_load((second.root / "dvc.lock").read_text()) == yaml.safe_load((finished.checkout.root / "dvc.lock").read_text())
    assert (second.root / "dvc.lock").read_bytes() == (finished.checkout.root / "dvc.lock").read_bytes()


@pytest.mark.slow
def test_G1_two_runs_at_once_and_ctrl_c(second: Checkout, finished: Finished):
    second.lmworks("use", "smoke", "--set", "training.steps=400")
    running = second.popen("commands", "run", start_new_session=True)
    try:
        wait_for(lambda: whole_checkpoint(second))
        busy = second.lmworks("run", code=75)
        assert f"pid {running.pid}" in busy.stderr
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 130 and not NOISE.search(out + err), out + err
        assert "Stopped" in out
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        second.lmworks("down", "--force", code=None)


@pytest.mark.slow  # tests/release/test_consumers.py serves a smaller model in `make test`
def test_concurrent_requests_with_one_seed_give_one_answer(finished: Finished):
    checkout = finished.checkout
    port = 5377
    env = {**checkout.env, "MLFLOW_TRACKING_URI": checkout.services()["mlflow"]["url"]}
    import subprocess
    import urllib.request

    server = subprocess.Popen([str(checkout.root / ".venv/bin/python"), "-m", "mlflow", "models", "serve", "-m", "models:/smoke@champion", "--env-manager", "local",
                               "-h", "127.0.0.1", "-p", str(port)], cwd=checkout.root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def ask(body: dict) -> tuple[int, dict]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def up() -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).status == 200
        except OSError:
            return False

    try:
        wait_for(up)
        body = {"inputs": ["国王", "The king"], "params": {"max_new_tokens": 12, "temperature": 0.9, "seed": 5}}
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, [body] * 6))
        assert all(a == answers[0] for a in answers) and answers[0][0] == 200
        code, told = ask({"inputs": ["x"], "params": {"top_p": 7.0}})
        assert code == 400 and "top_p" in told["message"] and "\n" not in told["message"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
