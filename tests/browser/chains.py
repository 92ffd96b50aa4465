"""Four chains in one checkout with real servers, for whoever looks at the pages: one promoted, one not, one blocked, one killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components import files
from components.operations import last_run
from tests.checkout import Checkout

NAME = "faces"
BLOCKED_NAME = "blocked"
FAULTY_FILE = "坏.jsonl"
SCRIPT = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"  # as text; no page may run it
SMALL = ("corpus.embedded_mb=1.0", "corpus.docstring_files_a_package=5", "training.steps=100", "training.validation_interval=25",
         "training.checkpoint_interval=25", "finetuning.max_records=100", "evaluation.max_records=30", "evaluation.max_test_bytes=30000")
# too few updates to learn even how often each byte comes, or which label does
TOO_SHORT = ("training.steps=2", "training.warmup_steps=1", "training.validation_interval=2", "training.checkpoint_interval=2",
             "gates.instruct=[finite_loss, verified_manifest, above_majority]")
LONGER = ("training.steps=120",)
RECORD = "chains.json"


@dataclass(frozen=True)
class Chain:
    """One run of the chain: the page of its Prefect run, its verdict, {stage: MLflow run}."""

    flow_run: str
    verdict: str
    runs: dict[str, str]


@dataclass(frozen=True)
class Chains:
    root: str
    home: str
    experiment: str
    promoted: Chain
    refused: Chain
    killed: Chain  # the life that was ended with -9; `resumed` went on with its training
    resumed: Chain
    blocked: Chain

    @property
    def checkout(self) -> Checkout:
        return Checkout(Path(self.root), Path(self.home))

    @property
    def mlflow(self) -> str:
        return self.checkout.services()["mlflow"]["url"]

    @property
    def prefect(self) -> str:
        return self.checkout.services()["prefect"]["url"]


def make(checkout: Checkout) -> Chains:
    """Runs all four; the servers stay up. About three minutes on two cores."""
    checkout.lmworks("up")
    promoted = _run(checkout, SMALL)
    refused = _run(checkout, SMALL + TOO_SHORT)
    killed = _killed(checkout, SMALL + LONGER)
    resumed = _run(checkout, SMALL + LONGER)
    blocked = _blocked(checkout)
    experiment = checkout.mlflow("GET", f"experiments/get-by-name?experiment_name={NAME}")["experiment"]["experiment_id"]
    runs = {key: _models(checkout, experiment, chain) for key, chain in
            {"promoted": promoted, "refused": refused, "killed": killed, "resumed": resumed, "blocked": blocked}.items()}
    made = Chains(str(checkout.root), str(checkout.home), experiment, **runs)
    files.write_json(checkout.root.parent / RECORD, asdict(made))
    return made


def read(folder: Path) -> Chains:
    """What `make` left in the folder around its checkout."""
    told = json.loads((folder / RECORD).read_text())
    return Chains(**{key: Chain(**value) if isinstance(value, dict) else value for key, value in told.items()})


def _use(checkout: Checkout, settings: tuple[str, ...], *more: str) -> None:
    checkout.lmworks("use", "smoke", *more, *(word for setting in settings for word in ("--set", setting)))


def _run(checkout: Checkout, settings: tuple[str, ...]) -> dict[str, Any]:
    _use(checkout, settings, "--name", NAME)
    checkout.lmworks("run")
    return _last(checkout)


def _last(checkout: Checkout) -> dict[str, Any]:
    told = last_run.read(checkout.layout)
    assert told and told["flow_run"], told
    return told


def _checkpoints(checkout: Checkout) -> set[Path]:
    return {path for path in (checkout.root / "work" / "pretrain").glob("*/checkpoints/*") if re.fullmatch(r"step-\d+", path.name)}


def _killed(checkout: Checkout, settings: tuple[str, ...]) -> dict[str, Any]:
    """As if somebody pulled the plug in training, after a checkpoint. What it was called in Prefect, its list of runs tells."""
    _use(checkout, settings, "--name", NAME)
    before = _checkpoints(checkout)
    running = checkout.popen("commands", "run", start_new_session=True)
    deadline = time.monotonic() + 240
    while not _checkpoints(checkout) - before:
        assert running.poll() is None and time.monotonic() < deadline, "no checkpoint to be killed after"
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    from components.operations import rest

    api = rest.Prefect(f"{checkout.services()['prefect']['url']}/api")
    run, = api.send("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    return {"flow_run": f"{checkout.services()['prefect']['url']}/runs/flow-run/{run['id']}", "verdict": "killed"}


def _blocked(checkout: Checkout) -> dict[str, Any]:
    corpus = checkout.root.parent / "我的 语料"
    corpus.mkdir(exist_ok=True)
    good = [json.dumps({"text": f"这家店味道很好，下次还会再来，第 {number} 次。"}, ensure_ascii=False) for number in range(60)]
    rows = [f"服务很好\u0000{SCRIPT}", "味道\ufffd\ufffd\ufffd", " 　\t", "", "\u0001\u0002\u0003 很好"] * 3
    (corpus / FAULTY_FILE).write_text("\n".join([*good, *(json.dumps({"text": row}, ensure_ascii=False) for row in rows), '{"text": "断'] ) + "\n")
    _use(checkout, (), "--corpus", str(corpus), "--name", BLOCKED_NAME)
    try:
        checkout.lmworks("run", code=3)
        return _last(checkout)
    finally:
        _use(checkout, SMALL + LONGER, "--name", NAME)


def _models(checkout: Checkout, experiment: str, chain: dict[str, Any]) -> Chain:
    """With the MLflow runs that name this Prefect run."""
    found = checkout.mlflow("POST", "runs/search", {"experiment_ids": [experiment]}).get("runs", [])
    runs = {}
    for run in found:
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        if tags.get("lmworks.prefect_run") == chain["flow_run"] and "lmworks.stage" in tags:
            runs[tags["lmworks.stage"]] = run["info"]["run_id"]
    return Chain(chain["flow_run"], chain["verdict"], runs)


