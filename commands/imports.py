"""`lmworks import`: start from a base model of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout

REGISTERED = "models:/"


def set_base(layout: Layout, value: str) -> settings.Config:
    """Write corpus.base into params.yaml; everything else stays. For who holds the run's lock. Raises UserError, and then nothing is written."""
    flat = settings.flatten(settings.load(layout.params).model_dump(mode="json"))
    config = settings.build(flat | {"corpus.base": value}, where=layout.params.name, complete=True)
    from components.corpus import sources

    sources.update(config, layout)
    files.write_atomic(layout.params, settings.render(config))
    return config


def bring_in(source: str, layout: Layout) -> tuple[str, dict[str, Any]]:
    """(name below data/imported/, facts) of a folder or of a registered model. Raises UserError or Damaged."""
    from components.release import imported

    if not source.startswith(REGISTERED):
        earlier = layout.imported / source  # the name that corpus.base has
        try:
            folder = earlier if "/" not in source and earlier.is_dir() and not Path(source).exists() else Path(source).expanduser()
        except RuntimeError as error:  # ~SOMEBODY, whom nobody knows here
            raise UserError(f"{source}: {error}. Give a Hugging Face folder, models:/NAME@champion, or none") from None
        if folder.resolve().is_relative_to(layout.imported.resolve()) and folder.is_dir():
            files.verify_manifest(folder)
            return folder.resolve().relative_to(layout.imported.resolve()).as_posix(), imported.try_to_load(folder)
        return imported.bring_in(folder, folder.resolve().name, layout)
    from components.operations import services
    from components.release import calls, model_files, registry
    from components.serving import engine

    services.ensure(layout, prefect=False)
    client = registry.client(layout)
    name, _, alias = source.removeprefix(REGISTERED).partition("@")
    with calls.explained(layout, "Look at `lmworks status`, then import again"):
        version = engine.chosen(client, name, None) if alias == "champion" else registry.named(client, source)  # a champion that its gate passed
    with model_files.fetched(version, layout) as folder:
        return imported.bring_in(folder / "artifacts" / "model", f"{version.name}-v{version.version}", layout)


def import_model(
    source: Annotated[str, typer.Argument(metavar="PATH|models:/NAME@champion|none", show_default=False,
                                          help="a Hugging Face folder (safetensors), a registered model, or none to pretrain again")],
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Fine-tune and evaluate a base model of your own instead of pretraining one.

    Examples:  lmworks import ./Qwen3-0.6B  ·  lmworks import models:/tiny@champion  ·  lmworks import none
    """
    layout = Layout()
    with files.lock(layout.run_lock, what="lmworks run"):  # a run that goes on is of the settings that it began with
        before = settings.load(layout.params)
        if source == "none":
            set_base(layout, "none")
            typer.echo(json.dumps({"base": "none"}) if as_json else "params.yaml: corpus.base = none; the next run pretrains. Next: lmworks run")
            return
        name, facts = bring_in(source, layout)
        context = facts["context"]
        if context and before.finetuning.max_row_tokens > context:
            raise UserError(f"{source} reads at most {context} tokens, finetuning.max_row_tokens is {before.finetuning.max_row_tokens}. "
                            f"Run: lmworks use {before.preset} --set finetuning.max_row_tokens={context}, then import again")
        set_base(layout, name)
    if as_json:
        typer.echo(json.dumps({"base": name, **facts}, ensure_ascii=False))
        return
    typer.echo(f"data/imported/{name}: {facts['parameters'] / 1e6:,.1f} million parameters, vocabulary {facts['vocabulary']:,}, context {context}\n"
               f"params.yaml: corpus.base = {name}; {before.name}-instruct will be fine-tuned from it, nothing is pretrained. Next: lmworks run")
