"""A real MLflow server in a temporary folder, one for the whole session."""

from __future__ import annotations

import os

import pytest
from mlflow_server import start_server
from nursery import Nursery


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory):
    """Where the server's database and artifacts lie."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def mlflow_url(mlflow_folder):
    """Address of a real MLflow server, for the whole test session."""
    server, url = start_server(mlflow_folder)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = url
    yield url
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before
    os.killpg(server.pid, 15)
    server.wait(20)


@pytest.fixture(scope="session")
def nursery(mlflow_url):
    """Forks releases and consumers that may be killed, with everything imported."""
    forks = Nursery(mlflow_url)
    yield forks
    forks.close()
