"""Moving the champion: compare-and-set of the alias, with its history written first. Nothing else moves it."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from components import files
from components.errors import UserError
from components.layout import Layout
from components.release import history
from components.release.registry import aliased


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in passwd
        return f"uid {os.getuid()}"


def model_of(client: Any, name: str) -> dict[str, Any]:
    """The registered model as the functions of `history` take it."""
    model = client.get_registered_model(name)
    return {"aliases": {alias: str(version) for alias, version in model.aliases.items()}, "tags": dict(model.tags)}


def last_gated(client: Any, name: str) -> Any | None:
    """The version that a gate made champion last, if it is still there."""
    from mlflow.exceptions import MlflowException

    number = history.recorded(model_of(client, name))
    try:
        return client.get_model_version(name, number) if number else None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def move_champion(client: Any, name: str, model: dict[str, Any], *, to: str, why: str, left_weights: str | None = None) -> None:
    """Write history, then move the alias. The caller holds the promotion lock and has just read `model`."""
    entries = history.planned(model, to=to, who=user(), when=datetime.now(UTC).isoformat(timespec="seconds"), why=why, left_weights=left_weights)
    for number, entry in entries.items():
        client.set_registered_model_tag(name, f"{history.HISTORY}{number:06d}", json.dumps(entry, ensure_ascii=False, sort_keys=True))
    client.set_registered_model_alias(name, "champion", to)
    client.set_registered_model_tag(name, history.DONE, str(max(entries)))


def promote(client: Any, name: str, version: str, layout: Layout,
            judge: Callable[[Any | None], tuple[bool, str]]) -> tuple[bool, Any | None]:
    """Compare-and-set of the alias champion. Returns (moved or already there, the champion before).

    `judge(champion)` says whether `version` passes against that champion, and why. Judging takes minutes, so it runs
    outside the lock; when the champion changed meanwhile, it is judged again against the new one. A version that somebody
    made champion by hand is judged against the champion that a gate made last: it is no judge of itself. Raises UserError
    when other promotions keep moving the alias.
    """
    for _attempt in range(5):
        champion = aliased(client, name, "champion")
        passed, why = judge(last_gated(client, name) if champion and str(champion.version) == version else champion)
        if not passed:
            return False, champion
        with files.lock(layout.promotion_lock, what="a promotion", wait_s=60):
            model = model_of(client, name)
            now = model["aliases"].get("champion")
            if now != (champion and str(champion.version)):
                continue
            if now != version or history.by_hand(model):
                move_champion(client, name, model, to=version, why=why)
            return True, champion
    raise UserError(f"{name}: other promotions kept moving the champion; version {version} stays a candidate. Run again: lmworks run")
