"""A stand-in for the MLflow server, which can be away and can refuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_stand_in import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    yield server
    server.http.shutdown()
    server.http.server_close()
