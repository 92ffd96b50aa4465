"""What whoever calls a model relies on, and whether a new version keeps it: the signature, the context, the chat template, the requirements.

Additions (a param more, a longer context, a wider range of versions) break nobody; what is taken away or changed does, a param's
default too (that of max_new_tokens follows a context below 128 tokens).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components import files
from components.errors import Damaged, Passing, UserError
from components.layout import Layout
from components.release import gates, model_files

CONTRACT = "lmworks.contract"  # tag of a version
ARTIFACT = "contract.json"  # in the run that trained it
FORMAT = 1
REQUIRED = "whoever calls the champion can call this version unchanged"


# --- reading it ----------------------------------------------------------------------------------

def of_folder(folder: Path) -> dict[str, Any]:
    """{"format", "inputs", "outputs", "params", "context", "chat_template", "requirements", "python"} of a stored model.

    `context` is in tokens, None where the model states none; `chat_template` a sha256, None for a base. Raises Damaged.
    """
    try:
        signature = files.load_yaml(folder / "MLmodel")["signature"]
        model = folder / "artifacts" / "model"
        shape = files.read_json(model / "config.json")
        instruct = files.read_json(model / "serving.json")["kind"] == "instruct"
        template = chat_template(model) if instruct else None
        return {
            "format": FORMAT, **{part: json.loads(signature.get(part) or "[]") for part in ("inputs", "outputs", "params")},
            "context": shape.get("max_position_embeddings") or shape.get("n_positions"),
            "chat_template": None if template is None else files.sha256_bytes(template.encode()),
            "requirements": sorted((folder / "requirements.txt").read_text().split("\n") if (folder / "requirements.txt").exists() else []),
            "python": ".".join(str(files.load_yaml(folder / "python_env.yaml")["python"]).split(".")[:2])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise Damaged(f"the stored model says no contract ({' '.join(str(error).split())[:200]})") from None


def chat_template(model: Path) -> str | None:
    """The template as transformers finds it: a file of its own, or a field of tokenizer_config.json."""
    if (model / "chat_template.jinja").exists():
        return (model / "chat_template.jinja").read_text()
    config = files.read_json(model / "tokenizer_config.json") if (model / "tokenizer_config.json").exists() else {}
    return config.get("chat_template")


def text_of(contract: dict[str, Any]) -> str:
    return json.dumps(contract, ensure_ascii=False, sort_keys=True)


def of_version(client: Any, version: Any, layout: Layout) -> dict[str, Any]:
    """The contract of a registered version: its tag, else (a version from before there were contracts, or a tag that somebody
    edited) read off its files and tagged. Raises UserError and Damaged when the files cannot be had."""
    try:
        kept = json.loads(version.tags.get(CONTRACT, "null"))
        if isinstance(kept, dict) and kept["format"] == FORMAT and set(kept) == {"format", "python", "inputs", "outputs", "params", "context",
                                                                               "chat_template", "requirements"}:
            return kept
    except (ValueError, KeyError):
        pass
    with model_files.fetched(version, layout) as folder:
        found = of_folder(folder)
    client.set_model_version_tag(version.name, str(version.version), CONTRACT, text_of(found))
    return found


def known(client: Any, version: Any | None, layout: Layout) -> dict[str, Any] | None:
    """`of_version`, or None where there is no version or its files cannot be had."""
    try:
        return None if version is None else of_version(client, version, layout)
    except UserError:
        return None


# --- comparing two -------------------------------------------------------------------------------

def breaks(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
    """{part: what whoever relies on `theirs` loses with `ours`}."""
    found = {
        "inputs": _columns(ours["inputs"], theirs["inputs"], asked=True), "outputs": _columns(ours["outputs"], theirs["outputs"], asked=False),
        "params": _params(ours["params"], theirs["params"]), "context": _context(ours["context"], theirs["context"]),
        "chat_template": [] if ours["chat_template"] == theirs["chat_template"] else
        [f"{(theirs['chat_template'] or 'none')[:12]} → {(ours['chat_template'] or 'none')[:12]} (sha256)"],
        "requirements": _requirements(ours, theirs)}
    return {part: "; ".join(sentences) for part, sentences in found.items() if sentences}


def _columns(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], *, asked: bool) -> list[str]:
    """Columns of inputs or outputs, by place. A column more is a break only where callers must now send it (`asked`)."""
    def kind(column: dict[str, Any]) -> tuple[Any, Any]:
        return column.get("name"), column.get("type")

    sentences = [f"{_column(theirs[n])} → {_column(ours[n]) if n < len(ours) else 'nothing'}" for n in range(len(theirs))
                 if n >= len(ours) or kind(ours[n]) != kind(theirs[n])]
    if asked:
        sentences += [f"{_column(column)} is asked for now" for column in ours[len(theirs):] if column.get("required", True)]
    return sentences


def _column(column: dict[str, Any]) -> str:
    return " ".join(str(column[key]) for key in ("name", "type") if column.get(key) is not None) or json.dumps(column)


def _params(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    now = {param["name"]: param for param in ours}
    sentences = []
    for param in theirs:
        mine = now.get(param["name"])
        if mine is None:
            sentences.append(f"{param['name']} is gone")
        elif (mine.get("type"), mine.get("shape")) != (param.get("type"), param.get("shape")):
            sentences.append(f"{param['name']} {param.get('type')} → {mine.get('type')}" if mine.get("type") != param.get("type")
                             else f"{param['name']} has another shape")
        elif mine.get("default") != param.get("default"):  # who leaves it out gets another answer
            sentences.append(f"{param['name']}: default {json.dumps(param.get('default'))} → {json.dumps(mine.get('default'))}")
    return sentences


def _context(ours: int | None, theirs: int | None) -> list[str]:
    if ours is None or (theirs is not None and ours >= theirs):
        return []
    return [f"{'unbounded' if theirs is None else theirs} → {ours} tokens"]


def _requirements(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """An environment in which the champion runs must do for the new version."""
    before = dict(map(_requirement, theirs["requirements"]))
    sentences = []
    for package, specifier in map(_requirement, ours["requirements"]):
        if package not in before:
            sentences.append(f"{package} is needed now")
        elif not admits(specifier, before[package]):
            sentences.append(f"{package}{before[package]} → {specifier or 'any'}")
    if ours["python"] != theirs["python"]:
        sentences.append(f"Python {theirs['python']} → {ours['python']}")
    return sentences


def _requirement(line: str) -> tuple[str, str]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        found = Requirement(line)
    except InvalidRequirement:  # a file or an address: only the same words are the same
        return line.strip(), ""
    return canonicalize_name(found.name), str(found.specifier)


def admits(new: str, old: str) -> bool:
    """Whether every release that the specifier `old` admits is admitted by `new`. Of what is no plain range, only the same words."""
    mine, theirs = _range(new), _range(old)
    if mine is None or theirs is None:
        return new == old or new == ""
    (low, low_in), (high, high_in) = mine
    (their_low, their_low_in), (their_high, their_high_in) = theirs
    from_below = low is None or (their_low is not None and (low < their_low or (low == their_low and (low_in or not their_low_in))))
    from_above = high is None or (their_high is not None and (high > their_high or (high == their_high and (high_in or not their_high_in))))
    return from_below and from_above


def _range(specifier: str) -> tuple[tuple[Any, bool], tuple[Any, bool]] | None:
    """((lowest, itself included), (highest, itself included)); None where it is no range of >=, >, <, <= and ==."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    low: tuple[Any, bool] = (None, True)
    high: tuple[Any, bool] = (None, True)
    for part in SpecifierSet(specifier):
        if part.operator not in (">=", ">", "<", "<=", "==") or "*" in part.version:
            return None
        bound = Version(part.version)
        if part.operator in (">=", ">", "=="):
            low = (bound, part.operator != ">")
        if part.operator in ("<=", "<", "=="):
            high = (bound, part.operator != "<")
    return low, high


# --- the criterion -------------------------------------------------------------------------------

def criterion(ours: dict[str, Any], theirs: dict[str, Any] | None, version: str | None, allowed: list[str]) -> gates.Criterion:
    """`contract`, whatever the gate lists. `theirs`: of champion `version`, None where there is none."""
    if theirs is None:
        return _criterion(True, "no champion yet", "there is no champion yet, so there is no contract to break")
    broken = breaks(ours, theirs)
    added = [param["name"] for param in ours["params"] if param["name"] not in {other["name"] for other in theirs["params"]}]
    if not broken:
        new = f"; new: {', '.join(added)}" if added else ""
        return _criterion(True, "kept", f"it keeps the contract of champion version {version}{new}")
    said = "; ".join(f"{part}: {what}" for part, what in broken.items())
    refused = [part for part in broken if part not in allowed]
    if not refused:
        return _criterion(True, said, f"it breaks the contract of champion version {version}, as gates.allow_contract_break allows: {said}")
    return _criterion(False, said, f"it breaks the contract of champion version {version} ({said}); if that is meant, set "
                      f"gates.allow_contract_break to [{', '.join(sorted({*allowed, *refused}))}] in params.yaml")


def unreadable(version: str, why: str) -> gates.Criterion:
    """The champion's contract is not to be had: no evidence, so no pass (A21)."""
    return _criterion(False, "the champion's contract could not be read", f"the contract of champion version {version} could not be read ({why}); "
                      "to start over without a champion, remove its alias in the MLflow page")


def _criterion(passed: bool, observed: str, sentence: str) -> gates.Criterion:
    return gates.Criterion(criterion="contract", passed=passed, observed=observed, required=REQUIRED, sentence=sentence)


def judged(client: Any, version: Any, champion: Any | None, allowed: list[str], layout: Layout) -> gates.Criterion:
    """The criterion of a registered version against the champion of this moment."""
    if champion is None:
        return criterion({}, None, None, allowed)
    ours = of_version(client, version, layout)
    try:
        theirs = of_version(client, champion, layout)
    except Passing:
        raise
    except UserError as error:
        return unreadable(str(champion.version), str(error))
    return criterion(ours, theirs, str(champion.version), allowed)
