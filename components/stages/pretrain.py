"""pretrain: token shards -> a GPT in a Hugging Face folder, its curve and what it was trained with."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components import files, tracking
from components.config import Config, flatten
from components.corpus import shards
from components.errors import Damaged, UserError
from components.layout import Layout
from components.reporting import Report, say
from components.training import loop, model, threads
from components.training.batches import Batch, PackedRows, scored_rows
from components.training.checkpoint import Checkpoints
from components.training.optimizers import Optimizers
from components.training.precision import resolved
from components.training.results import copy_tokenizer, describe, write_results

# Weights that can run code when opened. An imported folder may hold them; they go no further.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")


def run(config: Config, layout: Layout) -> Report:
    """Train the model that params.yaml describes, or pass an imported base through.

    Raises UserError: too little text, a loss that is not finite, cuda asked for and absent, no space.
    """
    if files.read_json(layout.sources_base / "origin.json")["kind"] == "imported":
        return pass_through(layout)
    t = config.training
    threads.prepare(t.threads, t.device, compiled=t.compile)
    index = shards.read_index(layout.tokens)
    languages = shards.languages(layout.tokens, "train")
    opened = [shards.open_split(layout.tokens, "train", language, layout.tokenizer) for language in languages]
    data = PackedRows([tokens for tokens, _ in opened], [offsets for _, offsets in opened], eot_id=index["eot_id"],
                      rows=t.rows, row_tokens=t.row_tokens, seed=config.seed, isolate=t.isolate_documents)
    if data.total < 2 * t.row_tokens:
        raise UserError(f"the train split has {data.total:,} tokens; training needs at least {2 * t.row_tokens:,} (two rows). "
                        "Give more text, or fine-tune an imported base: lmworks import PATH")
    gpt = model.build(config, index["vocab_size"]).to(t.device)
    precision = resolved(t.precision, t.device)
    optimizers = Optimizers(gpt, kind=t.optimizer, learning_rate=t.learning_rate, muon_learning_rate=t.muon_learning_rate,
                            weight_decay=t.weight_decay, betas=(t.beta1, t.beta2), precision=precision)
    plan = loop.Plan(
        name="pretrain", steps=t.steps, warmup_steps=t.warmup_steps, min_ratio=t.min_learning_rate_ratio, accumulation=t.accumulation,
        clip_norm=t.clip_norm, learning_rate=t.learning_rate, precision=precision, device=t.device, compile=t.compile, seed=config.seed,
        validation_interval=t.validation_interval, checkpoint_interval=t.checkpoint_interval, log_interval=t.log_interval,
        flops_a_token=model.flops_a_token(gpt, t.row_tokens), peak_flops=loop.measured_peak_flops(precision, t.device))
    read_tokens = t.steps * t.accumulation * t.rows * t.row_tokens
    epochs = read_tokens / data.total
    say(f"pretrain: {model.parameter_count(gpt):,} parameters, {read_tokens:,} of {data.total:,} tokens ({epochs:.2f} epochs) in {t.steps} steps")
    about = describe(gpt, config, precision, imported=False) | {
        "accumulation": t.accumulation, "attention_isolated": t.isolate_documents, "epochs": round(epochs, 4), "languages": languages,
        "row_tokens": t.row_tokens, "rows": t.rows, "tokens_read": read_tokens}
    settings = {f"{section}.{key}": value for section in ("model", "training")
                for key, value in flatten(config.model_dump(mode="json")[section]).items()}
    assert layout.work is not None
    with tracking.tracked(
            config, layout, stage="pretrain", parameters=about["parameters"], languages=languages,
            params=settings | {"training.precision": precision, "seed": config.seed, "parameters": about["parameters"], "tokens_read": read_tokens}) as run_:
        curve = loop.train(gpt, optimizers, data.batch, plan, run=run_,
                           checkpoints=Checkpoints(layout.work / "checkpoints", f"pretrain {layout.work.name}"),
                           validate=validation(config, layout, index))
        folder = layout.pretrained
        model.export(gpt, folder / "model", eos_id=index["eot_id"])
        copy_tokenizer(layout.tokenizer, folder / "model", gpt.shape.context)
        weights = write_results(folder, curve, about)
        run_.tags["lmworks.weights_sha256"] = weights
    return Report(tokens=read_tokens, steps=t.steps, notes=[f"{about['parameters']:,} parameters, {epochs:.2f} epochs"])


def token_bytes(tokenizer_folder: Path, vocab_size: int) -> np.ndarray:
    """UTF-8 bytes that each id of our byte-level BPE stands for; special tokens stand for none."""
    tree = json.loads((tokenizer_folder / "tokenizer.json").read_bytes())
    sizes = np.zeros(vocab_size, dtype=np.int64)
    for token, token_id in tree["model"]["vocab"].items():
        sizes[token_id] = len(token)  # byte-level BPE spells one byte as one character
    for added in tree["added_tokens"]:
        sizes[added["id"]] = 0
    return sizes


def validation(config: Config, layout: Layout, index: dict[str, Any]) -> Callable[[Any], dict[str, float]]:
    """A function of the model: val/loss (nats a token, end-of-text included) and bits per byte by language.

    Scores the first documents of each language's validation split, `training.validation_tokens` of
    them, each token given its document as far as its row shows it. The bytes are those of the same documents.
    """
    t = config.training
    sizes = token_bytes(layout.tokenizer, index["vocab_size"])
    parts: dict[str, tuple[list[Batch], int]] = {}
    for language in shards.languages(layout.tokens, "validation"):
        tokens, offsets = shards.open_split(layout.tokens, "validation", language)
        if int(sizes[tokens].sum()) != index["splits"]["validation"][language]["bytes"]:
            raise Damaged(f"{layout.tokens}: the validation tokens of {language} do not spell as many bytes as index.json says. "
                          "Run: lmworks run --from shards")
        batches, documents = scored_rows(tokens, offsets, eot_id=index["eot_id"], row_tokens=t.row_tokens, max_tokens=t.validation_tokens, rows=t.rows)
        parts[language] = batches, int(sizes[tokens[:offsets[documents]]].sum())

    def validate(gpt: Any) -> dict[str, float]:
        nats = {language: loop.mean_loss(gpt, batches, t.device) * math.fsum(b.weight() for b in batches) for language, (batches, _) in parts.items()}
        scored = math.fsum(b.weight() for batches, _ in parts.values() for b in batches)
        if not scored:
            return {}
        total = math.fsum(nats.values())
        return {"val/loss": total / scored, "val/bits_per_byte": loop.bits_per_byte(total, sum(n for _, n in parts.values())),
                **{f"val/bits_per_byte_{language}": loop.bits_per_byte(nats[language], parts[language][1]) for language in parts}}

    return validate


def pass_through(layout: Layout) -> Report:
    """Copy an imported base, less pickles; its tokenizer comes from the stage before, which may have added a template."""
    folder = layout.pretrained / "model"
    folder.mkdir(parents=True)
    hf = model.read_config(layout.sources_base)
    copied = {name for name in files.list_files(layout.sources_base)
              if not name.endswith(PICKLES) and name not in ("origin.json", "summary.json")}
    for name in sorted(copied):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(layout.sources_base / name, folder / name)
    copy_tokenizer(layout.tokenizer, folder)
    weights = files.weights_sha256(folder)
    (layout.pretrained / "curve.csv").write_text("step,train/loss\n")
    files.write_json(layout.pretrained / "metrics.json", {"imported": True, "steps": 0, "weights_sha256": weights})
    files.write_json(layout.pretrained / "training.json", {
        "imported": True, "architecture": hf.get("model_type"), "lean": model.supports(hf), "torch": torch.__version__})
    return Report(steps=0, notes=["imported base; nothing was trained"])
