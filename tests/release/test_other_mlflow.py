"""A consumer in an environment of its own, of mlflow, torch and transformers alone, once with each MLflow that a card names as tried."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import checkout
import pytest
from mlflow_server import free_port

from components.release import lineage, package
from components.release import release as releasing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "elsewhere"
CONSUMER = Path(__file__).with_name("consumer.py")
LARGE = ("torch", "triton")  # linked, not fetched: the consumer has the very torch that is tested, and its wheel may have gigabytes
TRANSFORMERS = next(requirement for requirement in package.REQUIREMENTS if requirement.startswith("transformers"))


@pytest.fixture(scope="module")
def released(mlflow_url: str, tmp_path_factory: pytest.TempPathFactory):
    layout = checkout.make(tmp_path_factory.mktemp(NAME), checkout.configuration(name=NAME))
    releasing.release(layout=layout, config=checkout.configuration(name=NAME), say=lambda _: None)
    return mlflow_url, layout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds torch and nothing else yet."""
    home = tmp_path_factory.mktemp("consumer") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    made = home / "bin" / "python"
    told = subprocess.run([made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
    here, there = Path(sysconfig.get_path("purelib")), Path(told.stdout.strip())
    for distribution in importlib.metadata.distributions(path=[str(here)]):
        if distribution.metadata["Name"].lower() in LARGE or distribution.metadata["Name"].lower().startswith("nvidia"):
            for top in {path.parts[0] for path in distribution.files or [] if path.parts[0] not in ("..", "__pycache__")}:
                if not (there / top).exists():
                    (there / top).symlink_to(here / top)
    return made


@pytest.mark.parametrize("mlflow", package.TRIED_MLFLOW)
def test_it_loads_answers_and_serves_without_a_warning(released, python: Path, mlflow: str, tmp_path: Path):
    url, layout = released
    done = subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"mlflow=={mlflow}", TRANSFORMERS,
                           f"torch=={importlib.metadata.version('torch').partition('+')[0]}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.copy(CONSUMER, tmp_path)
    alone = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8", "MLFLOW_TRACKING_URI": url, "OMP_NUM_THREADS": "1",
             "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    done = subprocess.run([python, "-P", "consumer.py", f"models:/{NAME}-instruct@champion", str(free_port())], cwd=tmp_path, env=alone,
                          capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0 and done.stderr == "", done.stderr + done.stdout
    told = json.loads(done.stdout)
    weights = lineage.weights_of(layout.finetuned)
    assert told["mlflow"] == mlflow and told["about"] == told["served_about"] and told["about"]["weights_sha256"] == told["weights"] == weights
    assert told["text"] == told["served"] and told["strangers"] == []
    assert "warn" not in told["serve_log"].lower(), told["serve_log"]
