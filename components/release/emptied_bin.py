"""Runs that were put into MLflow's bin, out of its database for good."""

from __future__ import annotations

from components import storage
from components.errors import UserError
from components.layout import Layout
from components.release import registry


def remove(layout: Layout, run_ids: list[str]) -> None:
    """By the function that `mlflow gc` calls for each. The database must be of the installed MLflow, which would migrate another one.
    Raises UserError."""
    registry.quiet()  # before the import
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import SQLAlchemyError

    try:
        store = SqlAlchemyStore(f"sqlite:///{layout.mlflow_database.absolute()}", layout.artifacts.absolute().as_uri())
        try:
            for run_id in run_ids:
                if store.get_run(run_id).info.lifecycle_stage == "deleted":  # a person may have brought it back in this moment
                    store._hard_delete_run(run_id)
        finally:
            store.engine.dispose()
    except (MlflowException, SQLAlchemyError) as error:
        said = storage.said(error, layout.mlruns) or " ".join(str(error).split())[:200]
        raise UserError(f"MLflow's database does not let go of runs in its bin: {said}. Mend that, then run again") from error
