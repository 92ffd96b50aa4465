"""What MLflow's registry page says: of a model what it is, how to call it and who was champion; of a version what changed and why its gate decided so.

Rewritten at each release, so the server's address in it is the present one; who is champion, at a rollback and `lmworks up`
too. Text that others wrote is escaped (J12).
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from components import mlflow_rest
from components.config import Config
from components.errors import UserError
from components.layout import Layout
from components.markdown import code, escape, table
from components.release import calling, card, changes, gates, history, promotion, registry
from components.release.lineage import Subject

MAX_CHARS = 5000  # what MLflow's column for a description takes
# how the paragraph that `standing` wrote begins, and what `history.page` wrote: found again whatever version they name, and whatever others wrote around them
STANDING = re.compile(r"^\*\*(?:Version \d+ is the champion\.|There is no champion yet|Not gated: |The alias champion )[^\n]*$", re.MULTILINE)
MOVES = re.compile(r"(?<=^## Who was champion\n\n)(?:No version was champion yet\.|\| When [^\n]*(?:\n\|[^\n]*)*(?:\n\n\d+ earlier moves stand in [^\n]*)?)",
                   re.MULTILINE)


def fitted(parts: list[str], *, limit: int = MAX_CHARS) -> str:
    """As many of the parts as fit, in order, one paragraph each; one that does not is left out whole."""
    text = ""
    for part in parts:
        longer = f"{text}\n\n{part}" if text else part
        if len(longer) <= limit:
            text = longer
    return text


# --- a version -----------------------------------------------------------------------------------

def of_version(subject: Subject, config: Config, criteria: list[gates.Criterion], changed: changes.Lines, contract: dict[str, Any],
               unpromoted_base: bool) -> str:
    """First what changed since the champion, in at most three lines."""
    news = "\n".join(f"- **{escape(label)}**: {escape(words)}" for label, words in changed)
    failed = "; ".join(criterion.sentence for criterion in criteria if not criterion.passed)
    verdict = f"**Its gate said no**: {escape(failed)}" if failed else "**Its gate passed.**"
    return fitted([news, *card.base_notice(config, unpromoted_base), verdict, escape(card.headline(subject, config)), card.gate_table(criteria),
                   contract_table(contract)])


# --- a registered model --------------------------------------------------------------------------

def of_model(subject: Subject, config: Config, model: dict[str, Any], contract: dict[str, Any] | None, url: str) -> str:
    """`model`: as `registry.registered` gives it; `contract`: of the champion."""
    return fitted([
        escape(card.headline(subject, config)), standing(subject.name, model),
        "## How to call it", calling.usage(subject.name, subject.languages, url, f"models:/{subject.name}@champion"),
        *(["## What callers can rely on", contract_table(contract)] if contract else []),
        "## Who was champion", history.page(model),
        "lmworks writes this text anew at each release. Keep notes of your own in tags."])


def standing(name: str, model: dict[str, Any]) -> str:
    """Which version answers, and whether a gate put it there."""
    champion, candidate = model["aliases"].get("champion"), model["aliases"].get("candidate")
    moved = history.by_hand(model)
    if moved:
        return f"**{escape(moved[0].upper() + moved[1:])}.** The next version that passes its gate takes its place."
    if champion is None:
        return f"**There is no champion yet**: version {candidate or 'none'} is a candidate whose gate said no (its page says why), so " \
               f"`models:/{name}@champion` names nothing."
    newer = f" Version {candidate} is a candidate." if candidate not in (None, champion) else ""
    return f"**Version {champion} is the champion.**{newer}"


def contract_table(contract: dict[str, Any]) -> str:
    """Signature, context, template and requirements. A promotion that breaks them is blocked unless gates.allow_contract_break names the part."""
    params = ", ".join(f"{param['name']} ({param.get('type')}, default {json.dumps(param.get('default'))})" for param in contract["params"])
    return table(["Part", "What it is"], [
        ["inputs → outputs", escape(f"{_kinds(contract['inputs'])} → {_kinds(contract['outputs'])}")], ["params", escape(params)],
        ["context", escape(f"{contract['context']} tokens" if contract["context"] else "no limit stated")],
        ["chat template", code(contract["chat_template"][:12]) if contract["chat_template"] else "none"],
        ["requirements", escape(", ".join([*contract["requirements"], f"Python {contract['python']}"]))]])


def _kinds(columns: list[dict[str, Any]]) -> str:
    return ", ".join(f"list of {column.get('type')}" for column in columns) or "nothing stated"


def write(client: Any, subject: Subject, config: Config, contract: dict[str, Any] | None, url: str) -> None:
    """Bring the model's description up to date; what is there already is not written again."""
    registered = client.get_registered_model(subject.name)
    text = of_model(subject, config, promotion.model_of(client, subject.name), contract, url)
    if registered.description != text:
        client.update_registered_model(subject.name, text)


def bring_up_to_date(layout: Layout, name: str) -> bool:
    """Tell anew who is champion, and the history, where the champion was moved without a release; whether the page was changed.

    The rest stays as it is, notes of others among it. Raises UserError and mlflow_rest.Unreachable when the server does not answer.
    """
    model = registry.registered(layout, name)
    if model is None or is_current(name, model):
        return False
    text = anew(name, model)
    if len(text) <= MAX_CHARS:
        mlflow_rest.call(registry.address(layout), "PATCH", "registered-models/update", {"name": name, "description": text})
    return len(text) <= MAX_CHARS


def bring_all_up_to_date(layout: Layout) -> list[str]:
    """The same for every model that lmworks registered; what was done, in words. No model and no server are no error."""
    done = []
    with contextlib.suppress(UserError, mlflow_rest.Unreachable):  # the pages wait for the next time
        found = mlflow_rest.call(registry.address(layout), "GET", "registered-models/search?max_results=200") or {}
        for name in sorted(model["name"] for model in found.get("registered_models", [])
                           if any(tag["key"] == registry.CORPUS for tag in model.get("tags", []))):
            if bring_up_to_date(layout, name):
                done.append(f"MLflow: the page of {name} says again who is champion")
    return done


def is_current(name: str, model: dict[str, Any]) -> bool:
    """Whether its page says who is champion (`model`: as `registry.registered` gives it). A page that says nothing of it says nothing wrong."""
    return anew(name, model) == model["description"]


def anew(name: str, model: dict[str, Any]) -> str:
    """The page's text with the first paragraph that says who is champion, and the table of moves, as they are now."""
    text = STANDING.sub(lambda _: standing(name, model), model["description"], count=1)
    return MOVES.sub(lambda _: history.page(model), text, count=1)
