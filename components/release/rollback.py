"""Back to a version that was champion before: verified, by compare-and-set, in the history; and the gate that keeps it so.

What was rolled back from is read from the history alone, with its weights: deleting the version does not bring them back.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from components import files, mlflow_rest
from components.errors import Busy, Passing, UserError
from components.layout import Layout
from components.masking import masked
from components.release import calls, gates, history, model_files, promotion, registry, registry_page

CRITERION = "not_rolled_back"
# what a version was held against on its day; a person who brings a former champion back has decided these
DECIDED_BY_PERSON = ("not_worse_than_champion", "contract", CRITERION)
MAX_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What was done: the champion moved `left` -> `to`."""

    name: str
    left: str | None  # None: there was no champion
    to: str
    why: str
    who: str
    skipped: list[tuple[str, str]]  # (version, why it could not be taken), newest first
    brought_back: bool  # `to` had itself been rolled back from; its weights may be promoted again

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "from": self.left, "to": self.to, "why": self.why, "who": self.who, "brought_back": self.brought_back,
                "skipped": [{"version": version, "why": why} for version, why in self.skipped]}


def roll_back(layout: Layout, name: str, *, to: str | None = None, why: str = "") -> Rollback:
    """Make the previous champion of `name` (or version `to`, which must have been champion) champion again.

    Its stored files are hashed first. Raises UserError (no such model, nothing to go back to, the version is deleted meanwhile, no
    server), Damaged (version `to` is) and Busy (the champion was moved meanwhile): then the champion is as it was.
    """
    client = registry.client(layout)
    from mlflow.exceptions import MlflowException

    with calls.explained(layout, f"See who is champion: lmworks models {name} --history"):
        try:
            return _roll_back(client, layout, name, to, why)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise UserError(f"no model {name!r} is registered. See what is: lmworks models") from None
            raise


def _roll_back(client: Any, layout: Layout, name: str, to: str | None, why: str) -> Rollback:
    from mlflow.exceptions import MlflowException

    before = promotion.model_of(client, name)
    champion = before["aliases"].get("champion")
    if to is None:
        version, skipped = _previous(client, layout, name, before)
    else:
        version, skipped = _asked_for(client, layout, name, before, to), []
    number, said = str(version.version), f"{history.ROLLBACK}{' '.join(masked(why).split()) or 'no reason given'}"
    brought_back = number in history.left_behind(before)
    weights = None
    if champion is not None and not brought_back:
        left = promotion.version_of(client, name, champion)
        weights = left and left.tags.get(registry.WEIGHTS)
    with files.lock(layout.promotion_lock, what="a promotion", wait_s=60):
        now = promotion.model_of(client, name)
        if now["aliases"].get("champion") != champion or history.history(now) != history.history(before):
            raise Busy(f"{name}: the champion was moved from version {champion or 'none'} to {now['aliases'].get('champion') or 'none'} meanwhile; "
                       f"nothing was changed. Look, then say it again: lmworks models {name} --history")
        try:
            _let_pass(client, name, version)
            promotion.move_champion(client, name, now, to=number, why=said, left_weights=weights)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" and promotion.version_of(client, name, number) is None:
                raise promotion.deleted(name, number) from None
            raise
    with contextlib.suppress(UserError, mlflow_rest.Unreachable):  # the champion was moved, and that is what was asked; `lmworks up` mends the page
        registry_page.bring_up_to_date(layout, name)
    return Rollback(name=name, left=champion, to=number, why=said, who=promotion.user(), skipped=skipped, brought_back=brought_back)


def _previous(client: Any, layout: Layout, name: str, model: dict[str, Any]) -> tuple[Any, list[tuple[str, str]]]:
    """The champion before this one that still can serve, and those that cannot. What was rolled back from is not gone back to."""
    champion, left = model["aliases"].get("champion"), history.left_behind(model)
    skipped = []
    for number in history.champions(model):
        if number == champion or number in left:
            continue
        version = promotion.version_of(client, name, number)
        try:
            return _usable(version, name, number, layout), skipped
        except Passing:  # it may be as good as it was
            raise
        except UserError as error:
            skipped.append((number, str(error)))
    tried = "".join(f"; version {number} cannot be taken: {why}" for number, why in skipped)
    given_up = "".join(f"; version {number} was rolled back from, --to {number} takes that back" for number in left if number != champion)
    raise UserError(f"{name} has no earlier champion to go back to{tried}{given_up}. {_known(name, model)}")


def _asked_for(client: Any, layout: Layout, name: str, model: dict[str, Any], number: str) -> Any:
    if number == model["aliases"].get("champion"):
        raise UserError(f"{name}: version {number} is the champion already. {_known(name, model)}")
    if number not in history.champions(model):
        raise UserError(f"{name}: version {number} was never made champion by its gate, so it cannot be rolled back to. {_known(name, model)}")
    return _usable(promotion.version_of(client, name, number), name, number, layout)


def _known(name: str, model: dict[str, Any]) -> str:
    """The history in one sentence, and where it stands in full."""
    moves = history.history(model)
    told = ", ".join(f"{move['from'] or 'none'} -> {move['to'] or 'none'} ({move['when'][:10]})" for move in moves[-MAX_NAMED:])
    return f"History: {told or 'no version was champion yet'}. All of it: lmworks models {name} --history"


def _usable(version: Any | None, name: str, number: str, layout: Layout) -> Any:
    """The version itself if it is there, its gate passed what is no comparison, and every stored byte is as registered.

    Raises UserError and Damaged.
    """
    if version is None:
        raise UserError(f"{name} version {number} was deleted from the registry")
    failed = [f"{criterion}: {value.removeprefix('no: ')}" for criterion, value in _noes(version).items() if criterion not in DECIDED_BY_PERSON]
    if failed:
        raise UserError(f"{name} version {number} does not pass its gate any more ({'; '.join(failed)})")
    if version.tags.get(registry.VERDICT) not in ("passed", "failed"):
        raise UserError(f"{name} version {number} has no verdict of a gate")
    with model_files.fetched(version, layout):
        return version


def _noes(version: Any) -> dict[str, str]:
    return {key.removeprefix(registry.REASON): value for key, value in sorted(version.tags.items())
            if key.startswith(registry.REASON) and value.startswith("no: ")}


def _let_pass(client: Any, name: str, version: Any) -> None:
    """A version that was judged again since, as a candidate, carries that gate's no; as champion it would not be served."""
    for criterion in _noes(version):
        client.set_model_version_tag(name, version.version, registry.REASON + criterion, f"yes: it was champion before, and {promotion.user()} brought it back")
    if version.tags.get(registry.VERDICT) != "passed":
        client.set_model_version_tag(name, version.version, registry.VERDICT, "passed")


# --- the gate ------------------------------------------------------------------------------------

def criteria(client: Any, name: str, version: str, weights_sha256: str) -> list[gates.Criterion]:
    """not_rolled_back, whatever the gate lists; [] for a model that never was rolled back."""
    model = promotion.model_of(client, name)
    return [criterion(name, model, version, weights_sha256)] if history.was_rolled_back(model) else []


def criterion(name: str, model: dict[str, Any], version: str, weights_sha256: str) -> gates.Criterion:
    """Weights that somebody rolled back from do not become champion again by themselves, under whatever version number."""
    required = "nobody rolled back from these weights"
    left = history.left_behind(model)
    found = next((number for number, move in left.items() if number == version or move["left_weights"] == weights_sha256), None)
    if found is None:
        return gates.Criterion(criterion=CRITERION, passed=True, observed="no", required=required, sentence="nobody rolled back from these weights")
    move = left[found]
    return gates.Criterion(
        criterion=CRITERION, passed=False, observed=f"rolled back from version {found}", required=required,
        sentence=f"{move['who']} rolled back from version {found} to {move['to']} on {move['when'][:10]} ({move['why'].removeprefix(history.ROLLBACK)}) "
                 f"and these are its weights; to take that back: lmworks rollback {name} --to {found}")
