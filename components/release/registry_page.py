"""What MLflow's registry page says: of a model what it is, how to call it and who was champion; of a version what changed and why its gate decided so.

Rewritten at each release, so the server's address in it is the present one. Text that others wrote is escaped (J12).
"""

from __future__ import annotations

import json
from typing import Any

from components.config import Config
from components.markdown import code, escape, table
from components.release import calling, card, changes, gates, history, promotion
from components.release.lineage import Subject

MAX_CHARS = 5000  # what MLflow's column for a description takes


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


def moved(client: Any, name: str, before: dict[str, Any]) -> None:
    """The champion was moved without a release: who is champion, and the history, are told anew; the rest stays as it is.

    `before`: the model as it was. A text that somebody changed there is left alone.
    """
    after = promotion.model_of(client, name)
    old = client.get_registered_model(name).description or ""
    text = old.replace(standing(name, before), standing(name, after)).replace(history.page(before), history.page(after))
    if old != text and len(text) <= MAX_CHARS:
        client.update_registered_model(name, text)
