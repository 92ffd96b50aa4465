"""Calls to MLflow that fail, as one sentence with what helps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from components import storage
from components.layout import Layout
from components.operations import contention, rest
from components.operations.processes import MLFLOW
from components.release import registry

REFUSED = re.compile(r"UNAUTHENTICATED|PERMISSION_DENIED|error (code )?40[13]\b")


@contextlib.contextmanager
def explained(layout: Layout, then: str) -> Iterator[None]:
    """MLflow's errors inside become one: what it said, and what to do: free the disk, close who locks the database, sign in, else `then`.

    Raises rest.Unreachable, and Damaged where the database is.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        words = " ".join(str(error).split())[:300]
        todo = storage.said(error, layout.mlruns) or storage.tight(layout.mlruns)
        if not todo and (found := contention.trouble(layout, MLFLOW)):
            raise found from error
        if not todo and REFUSED.search(words):
            todo = f"Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) to who may do that. {then}"
        raise rest.Unreachable(f"MLflow at {registry.address(layout)} went away or refused a call: {words}. {todo or then}") from error
