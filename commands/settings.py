"""`lmworks use`: write the resolved, complete params.yaml."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout
from components.plain_yaml import NOT_YAML, parse_yaml


def slug(path: Path) -> str:
    """A model name from a folder's or file's name; names without Latin letters keep a short hash of their own."""
    stem = path.resolve().name.split(".")[0]
    text = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:48]
    return text or f"corpus-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:6]}"


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """['training.steps=200'] -> {'training.steps': 200}. Raises UserError."""
    flat: dict[str, Any] = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"--set {text[:80]!r}: KEY=VALUE was expected, e.g. --set training.steps=200")
        try:
            flat[key.strip()] = parse_yaml(value)
        except NOT_YAML as error:
            raise UserError(f"--set {key}=…: what stands behind = is not a YAML value ({' '.join(str(error).split())[:200]})") from error
    return flat


def _existing(path: Path, option: str, layout: Layout) -> str:
    from components.corpus import sources

    try:
        path = path.expanduser()
    except RuntimeError as error:  # ~SOMEBODY, whom nobody knows here
        raise UserError(f"{option} {path}: {error}. Give the path of your text") from None
    if not path.exists():
        raise UserError(f"{option} {path}: no such file or folder (looked in {path.resolve().parent}). Give the path of your text")
    return sources.shipped(path, layout)


def preset_path(layout: Layout, preset: str) -> Path:
    names = sorted(p.stem for p in layout.presets.glob("*.yaml"))
    if preset not in names:
        near = difflib.get_close_matches(preset, names, n=1)
        raise UserError(f"no preset {preset!r}; " + (f"did you mean {near[0]!r}? " if near else "") + f"There are: {', '.join(names)}")
    return layout.presets / f"{preset}.yaml"


def present(layout: Layout) -> dict[str, Any]:
    """The settings of params.yaml as dotted keys, complete or not. Raises UserError."""
    if not layout.params.exists():
        raise UserError(f"no params.yaml in {layout.root}. Run: lmworks use tiny")
    return settings.read(layout.params, mend="Run: lmworks use tiny")


def upgrade(layout: Layout) -> list[str]:
    """Complete an old params.yaml with the defaults of its preset. Returns the keys added."""
    flat = present(layout)
    defaults = settings.flatten(settings.resolve(preset_path(layout, str(flat.get("preset", "tiny")))).model_dump(mode="json"))
    added = [key for key in defaults if key not in flat]
    complete = settings.render(settings.build(defaults | flat, where=layout.params.name))
    with files.lock(layout.run_lock, what="lmworks run"):
        files.write_atomic(layout.params, complete)
    return added


def use(
    preset: Annotated[str, typer.Argument(help="smoke, tiny, gpt2-124m, or another file of presets/", show_default=False)] = "",
    corpus: Annotated[Path | None, typer.Option(help="your own text: a file or folder of txt, md, jsonl, csv, tsv, parquet, gz")] = None,
    records: Annotated[Path | None, typer.Option(help="your own application records (jsonl)")] = None,
    name: Annotated[str | None, typer.Option(help="name of the registered model (default: the preset's, with --corpus the folder's)")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as often as you like", metavar="KEY=VALUE")] = None,
    upgrade_: Annotated[bool, typer.Option("--upgrade", help="complete an old params.yaml with new settings")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines: the settings, or with --upgrade those that were added")] = False,
) -> None:
    """Write the resolved, complete [bold]params.yaml[/bold]; `git diff` shows what changed.

    Examples:  lmworks use tiny  ·  lmworks use tiny --corpus ./my-texts --set training.steps=200  ·  lmworks use --upgrade
    """
    layout = Layout()
    if upgrade_:
        added = upgrade(layout)
        typer.echo(json.dumps({"added": added}) if as_json else f"params.yaml: {len(added)} settings added" + (f": {', '.join(added)}" if added else ""))
        return
    if not preset:
        raise UserError("which preset? e.g. lmworks use tiny (or: lmworks use --upgrade)")
    overrides: dict[str, Any] = {}
    if corpus is not None:
        overrides |= {"corpus.source": _existing(corpus, "--corpus", layout), "name": slug(corpus)}
    if records is not None:
        overrides["corpus.records"] = _existing(records, "--records", layout)
    if name is not None:
        overrides["name"] = name
    resolved = settings.resolve(preset_path(layout, preset), overrides | parse_set(assign or []))
    base = "none"
    with contextlib.suppress(UserError):  # one that cannot be read is what this command mends
        base = present(layout).get("corpus.base", "none")
    from components.corpus import sources

    with files.lock(layout.run_lock, what="lmworks run"):  # a run that goes on is of the settings that it began with
        sources.update(resolved, layout)  # first: a corpus that cannot be read changes nothing; and a bare `dvc repro` reads sources.yaml
        files.write_atomic(layout.params, settings.render(resolved))
    if base != "none" and resolved.corpus.base == "none":
        typer.echo(f"the imported base {base} is no longer used; to start from it again: lmworks import {base}", err=as_json)
    if as_json:
        typer.echo(json.dumps(resolved.model_dump(mode="json"), ensure_ascii=False))
        return
    where = "the embedded English and Chinese text" if resolved.corpus.source == "embedded" else resolved.corpus.source
    typer.echo(f"params.yaml: preset {preset}, model {resolved.name!r}, from {where}. Next: lmworks run")
