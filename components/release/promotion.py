"""Moving the champion: compare-and-set of the alias, with its history written first. Nothing else moves it."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from components import failpoints, files
from components.errors import UserError
from components.layout import Layout
from components.release import history

MAX_ATTEMPTS = 5


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in passwd
        return f"uid {os.getuid()}"


def model_of(client: Any, name: str) -> dict[str, Any]:
    """The registered model as the functions of `history` take it."""
    model = client.get_registered_model(name)
    return {"aliases": {alias: str(version) for alias, version in model.aliases.items()}, "tags": dict(model.tags)}


def version_of(client: Any, name: str, number: str | None) -> Any | None:
    """The version with its tags; None where it was deleted (or `number` is None)."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, number) if number else None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def last_gated(client: Any, name: str) -> Any | None:
    """The version that a gate made champion last, if it is still there."""
    return version_of(client, name, history.recorded(model_of(client, name)))


def move_champion(client: Any, name: str, model: dict[str, Any], *, to: str, why: str, left_weights: str | None = None) -> None:
    """Write history, then move the alias. The caller holds the promotion lock and has just read `model`.

    Raises UserError where version `to` is deleted meanwhile: then the alias is where it was (G6).
    """
    from mlflow.exceptions import MlflowException

    for number in history.unmade(model):  # what a kill before its move left
        client.delete_registered_model_tag(name, history.key(number))
    entries = history.planned(model, to=to, who=user(), when=datetime.now(UTC).isoformat(timespec="seconds"), why=why, left_weights=left_weights)
    for number, entry in sorted(entries.items(), reverse=True):  # the move itself first: what a kill leaves then is seen to be unmade
        client.set_registered_model_tag(name, history.key(number), json.dumps(entry, ensure_ascii=False, sort_keys=True))
    failpoints.hit("registry.history_written", name)
    try:
        client.set_registered_model_alias(name, "champion", to)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            _unplan(client, name, entries)
        raise
    failpoints.hit("registry.alias_moved", name)
    if version_of(client, name, to) is None:  # MLflow looks whether it is there before it writes the alias, not while
        _unplan(client, name, entries)
        _put_back(client, name, model["aliases"].get("champion"))
        raise deleted(name, to)
    client.set_registered_model_tag(name, history.DONE, str(max(entries)))


def _unplan(client: Any, name: str, entries: dict[int, Any]) -> None:
    """Take the entries of a move back that cannot be made. Where the champion of before is gone too, nothing else tells them from a move that was."""
    for number in sorted(entries):
        client.delete_registered_model_tag(name, history.key(number))


def _put_back(client: Any, name: str, number: str | None) -> None:
    """The alias as it was before a move to a version that is gone."""
    if number is not None and version_of(client, name, number) is not None:
        client.set_registered_model_alias(name, "champion", number)
    else:
        client.delete_registered_model_alias(name, "champion")


def deleted(name: str, version: str) -> UserError:
    return UserError(f"{name}: version {version} was deleted from the registry before it could be champion; the champion is as it was. "
                     f"See what is left: lmworks models {name}; lmworks run registers the weights of data/ anew")


def promote(client: Any, name: str, version: str, layout: Layout,
            judge: Callable[[Any | None], tuple[bool, str]]) -> tuple[bool, Any | None]:
    """Compare-and-set of the alias champion. Returns (moved or already there, the champion before).

    `judge(champion)` says whether `version` passes against that champion, and why. Judging takes minutes, so it runs
    outside the lock; when the champion changed meanwhile, or was another in between, it is judged again. A version that somebody
    made champion by hand is judged against the champion that a gate made last: it is no judge of itself. A champion that
    was deleted is none. Raises UserError when other promotions keep moving the alias, and when `version` is deleted meanwhile.
    """
    from mlflow.exceptions import MlflowException

    try:
        for _attempt in range(MAX_ATTEMPTS):
            before = model_of(client, name)
            champion = version_of(client, name, before["aliases"].get("champion"))
            passed, why = judge(last_gated(client, name) if champion and str(champion.version) == version else champion)
            if not passed:
                return False, champion
            with files.lock(layout.promotion_lock, what="a promotion", wait_s=60):
                now = model_of(client, name)
                if now["aliases"].get("champion") != before["aliases"].get("champion") or history.history(now) != history.history(before):
                    continue
                if now["aliases"].get("champion") != version or history.by_hand(now):
                    move_champion(client, name, now, to=version, why=why)
                return True, champion
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" and version_of(client, name, version) is None:
            raise deleted(name, version) from None
        raise
    raise UserError(f"{name}: other promotions kept moving the champion; version {version} stays a candidate. Run again: lmworks run")
