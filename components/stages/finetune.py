"""finetune: the base learns to answer, from application records in chat form, with the loss on the answers alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components import files, tracking
from components.applications import chat
from components.config import Config, flatten
from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.layout import Layout
from components.reporting import Report, say
from components.training import loop, model, threads
from components.training.batches import RecordRows
from components.training.checkpoint import Checkpoints
from components.training.optimizers import Optimizers
from components.training.precision import resolved
from components.training.results import copy_tokenizer, describe, write_results


def run(config: Config, layout: Layout) -> Report:
    """Fine-tune data/pretrained/model, ours or imported, on data/clean/records.parquet.

    Raises UserError: no records for the chosen applications, ids outside the base's vocabulary, and what `loop.train` raises.
    """
    f, t = config.finetuning, config.training
    threads.prepare(t.threads, t.device)
    base_folder = layout.pretrained / "model"
    imported = bool(files.read_json(layout.pretrained / "training.json")["imported"])
    base = model.load_any(base_folder).to(t.device)
    tokenizer = bpe.load_for_chat(layout.tokenizer)
    row_tokens = min(f.max_row_tokens, base.shape.context)
    train, validation = (choose(layout.clean / "records.parquet", split, config) for split in ("train", "validation"))
    encoded, counts = chat.encode_all(train, tokenizer, row_tokens)
    held_out, _ = chat.encode_all(validation, tokenizer, row_tokens)
    if not encoded:
        raise UserError(f"no record of {', '.join(f.applications)} can be learned from ({dict(counts) or 'none in the train split'}); "
                        "give records with --records PATH, or choose other applications: --set finetuning.applications")
    largest = max(max(ids) for ids, _ in [*encoded, *held_out])
    if largest >= base.shape.vocab_size:
        raise UserError(f"the tokenizer gives id {largest}, the base model has {base.shape.vocab_size} entries; they do not belong together. "
                        "Import a folder whose tokenizer and weights match: lmworks import PATH")
    stops = chat.stop_ids(tokenizer)
    data = RecordRows(encoded, rows=f.rows, seed=config.seed, pad_id=stops[-1])
    validation_batches = RecordRows(held_out, rows=f.rows, seed=config.seed, pad_id=stops[-1]).in_order()
    steps = data.batches_an_epoch * f.epochs
    optimizers = Optimizers(base, kind="adamw", learning_rate=f.learning_rate, weight_decay=f.weight_decay, betas=(f.beta1, f.beta2))
    precision = resolved(t.precision, t.device)
    plan = loop.Plan(
        name="finetune", steps=steps, warmup_steps=min(f.warmup_steps, steps - 1), min_ratio=f.min_learning_rate_ratio, accumulation=1,
        clip_norm=t.clip_norm, learning_rate=f.learning_rate, precision=precision, device=t.device, compile=False, seed=config.seed,
        validation_interval=data.batches_an_epoch, checkpoint_interval=f.checkpoint_interval, log_interval=f.log_interval,
        flops_a_token=model.flops_a_token(base, row_tokens), peak_flops=loop.measured_peak_flops(precision, t.device))
    languages = sorted({record["language"] for record in train})
    learned = sum(sum(mask) for _, mask in encoded)
    say(f"finetune: {len(encoded):,} records ({learned:,} answer tokens), {f.epochs} epochs, {steps} steps")
    about = describe(base, config, precision, imported=imported) | {
        "applications": sorted(f.applications), "epochs": f.epochs, "languages": languages, "records": len(encoded),
        "records_skipped": {reason: n for reason, n in sorted(counts.items()) if reason != "kept"},
        "answer_tokens": learned, "row_tokens": row_tokens, "rows": f.rows}
    settings = {f"finetuning.{key}": str(value) for key, value in flatten(config.model_dump(mode="json")["finetuning"]).items()}
    assert layout.work is not None
    with tracking.tracked(
            config, layout, stage="finetune", parameters=about["parameters"], languages=languages,
            params=settings | {"seed": config.seed, "parameters": about["parameters"], "records": len(encoded), "steps": steps,
                               "imported": imported}) as run_:
        curve = loop.train(
            base, optimizers, data.batch, plan, run=run_, checkpoints=Checkpoints(layout.work / "checkpoints", f"finetune {layout.work.name}"),
            validate=lambda m: {"val/loss": loop.mean_loss(m, validation_batches, t.device)} if validation_batches else {})
        folder = layout.finetuned
        model.export(base, folder / "model", eos_id=stops[-1], stop_ids=stops,
                     base_config=files.read_json(base_folder / "config.json") if imported else None)
        copy_tokenizer(layout.tokenizer, folder / "model", None if imported else base.shape.context)
        run_.tags["lmworks.weights_sha256"] = write_results(folder, curve, about)
    return Report(tokens=learned * f.epochs, steps=steps, counts={f"records_{reason}": n for reason, n in sorted(counts.items())})


def choose(path: Path, split: str, config: Config) -> list[dict[str, Any]]:
    """Records of one split, at most `max_records` an application and language, the first by id.

    Ids are hashes, so the first ones are an unbiased choice, and it stays when records are added elsewhere.
    """
    # ParquetFile, not read_table: its dataset engine imports pandas, half a second at every start
    table = pq.ParquetFile(path).read(columns=["id", "application", "language", "prompt", "answer", "split"])
    chosen: list[dict[str, Any]] = []
    taken: Counter[tuple[str, str]] = Counter()
    for record in table.sort_by("id").to_pylist():
        kind = record["application"], record["language"]
        if record.pop("split") != split or kind[0] not in config.finetuning.applications:
            continue
        taken[kind] += 1
        if taken[kind] <= config.finetuning.max_records:
            chosen.append(record)
    return chosen
