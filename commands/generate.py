"""`lmworks generate`: ask a registered model."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from components import config as settings
from components.layout import Layout


def generate(
    prompt: Annotated[str, typer.Argument(help="the beginning of a text, or with --instruct a question", show_default=False)],
    name: Annotated[str | None, typer.Option(help="registered model (default: the name in params.yaml)")] = None,
    instruct: Annotated[bool, typer.Option("--instruct", help="ask NAME-instruct, the model fine-tuned on the applications")] = False,
    version: Annotated[int | None, typer.Option(help="a version instead of the champion")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to write; prompt and answer together fit the model's context")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is freer")] = 0.8,
    top_k: Annotated[int, typer.Option(help="draw from the k likeliest tokens (0 = all)")] = 0,
    top_p: Annotated[float, typer.Option(help="draw from the likeliest tokens that together have this probability")] = 1.0,
    seed: Annotated[int, typer.Option(help="the same seed gives the same text")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Ask the champion, loaded from the registry as any consumer would.

    Examples:  lmworks generate "The king" --seed 1  ·  lmworks generate "房间" --temperature 0  ·  lmworks generate "这家酒店怎么样？" --instruct
    """
    from components.operations import services
    from components.serving import engine

    layout = Layout()
    if name is None:
        config = settings.load(layout.params)
        # an imported base is not registered: only its fine-tuned child can be asked
        instruct = instruct or config.corpus.base != "none"
        name = config.name
    model = f"{name}-instruct" if instruct and not name.endswith("-instruct") else name
    services.ensure(layout, prefect=False)
    params = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    result = engine.answer(layout, model, [prompt], params, version)
    if as_json:
        typer.echo(json.dumps({"name": model, "version": result["version"], "prompt": prompt, "params": params, "text": result["texts"][0]},
                              ensure_ascii=False))
    else:
        typer.echo(result["texts"][0] if model.endswith("-instruct") else prompt + result["texts"][0])
