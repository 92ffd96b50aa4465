"""A model from the registry, loaded as any consumer loads it, after its bytes and its gate were checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.errors import Damaged, UserError
from components.layout import Layout
from components.release import calls, model_files, promotion, registry


def no_champion(client: Any, name: str) -> str:
    """Why there is no champion, in one line: it was deleted, or the criteria that the candidate failed, from its tags."""
    from mlflow.exceptions import MlflowException

    try:
        model = promotion.model_of(client, name)
    except MlflowException as error:
        if error.error_code not in registry.NOT_THERE:
            raise
        return f"no model {name!r} is registered yet. Run: lmworks run"
    if gone := registry.champion_gone(model):
        return f"{name} has no champion: {gone}"
    candidate = registry.aliased(client, name, "candidate")
    if candidate is None:
        return f"{name} has no champion and no candidate yet. Run: lmworks run"
    reasons = [value for key, value in sorted(candidate.tags.items()) if key.startswith(registry.REASON) and value.startswith("no: ")]
    why = "; ".join(reason.removeprefix("no: ") for reason in reasons) or "its gate has not decided yet"
    return (f"{name} has no champion: version {candidate.version} is only a candidate ({why}). Train longer or on more text and run again, "
            f"or ask that version all the same: lmworks generate … --version {candidate.version}")


def chosen(client: Any, name: str, version: int | None) -> Any:
    """The version to ask: the champion, whose gate must have passed, or the one that the user names. Raises UserError."""
    from mlflow.exceptions import MlflowException

    if version is not None:
        try:
            return client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code not in registry.NOT_THERE:
                raise
            raise UserError(f"{name} has no version {version}. See the versions with: lmworks models") from None
    champion = registry.aliased(client, name, "champion")
    if champion is None:
        raise UserError(no_champion(client, name))
    verdict = champion.tags.get(registry.VERDICT)
    if verdict != "passed":
        raise UserError(f"{name}: the alias champion points at version {champion.version}, whose gate says {verdict or 'nothing'}: somebody "
                        "moved it by hand, or the gate was changed since. Run: lmworks run (the gate decides again), or name a version with --version")
    return champion


def answer(layout: Layout, name: str, prompts: list[str], params: dict[str, Any], version: int | None = None) -> dict[str, Any]:
    """{"name", "version", "texts"}: what the model says to each prompt.

    Raises UserError (no champion, a value out of range, a prompt too long) and Damaged (bytes are not those registered).
    """
    client = registry.client(layout)
    import mlflow
    from mlflow.exceptions import MlflowException

    with calls.explained(layout, "Look at `lmworks status`, then ask again"):
        model_version = chosen(client, name, version)
    with _verified(model_version, layout) as folder:
        try:
            model = mlflow.pyfunc.load_model(str(folder))
            texts = model.predict(prompts, params=params)
        except MlflowException as error:
            raise UserError(one_line(error)) from None
    return {"name": name, "version": int(model_version.version), "texts": list(texts)}


@contextlib.contextmanager
def _verified(version: Any, layout: Layout) -> Iterator[Path]:
    """`model_files.fetched`; where the bytes are damaged the receipt goes, so that `lmworks run` releases again and does not call it unchanged."""
    try:
        with model_files.fetched(version, layout) as folder:
            yield folder
    except Damaged:
        layout.receipt.unlink(missing_ok=True)
        raise


def one_line(error: Exception) -> str:
    """MLflow's message without its error code in front and without line breaks."""
    return " ".join(str(error).removeprefix("INVALID_PARAMETER_VALUE: ").removeprefix("INTERNAL_ERROR: ").split())
