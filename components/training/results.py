"""What pretraining and fine-tuning leave beside the model."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import torch

from components import files
from components.config import Config
from components.training import model as models

NOT_TOKENIZER = {files.MANIFEST, "summary.json"}


def describe(model: Any, config: Config, precision: str, *, imported: bool) -> dict[str, Any]:
    """training.json: shape and what else decides bits. No clock, no host."""
    return {
        "imported": imported, "architecture": model.shape.architecture, "context": model.shape.context, "lean": isinstance(model, models.GPT),
        "n_embd": model.shape.n_embd, "n_head": model.shape.n_head, "n_layer": model.shape.n_layer, "vocab_size": model.shape.vocab_size,
        "parameters": models.parameter_count(model), "precision": precision, "device": config.training.device,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "seed": config.seed}


def copy_tokenizer(source: Path, model: Path, context: int | None = None) -> None:
    """The tokenizer's files into a model folder, with the model's context in them as longest text (model_max_length, in tokens).

    An imported tokenizer knows its own: None leaves it."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in NOT_TOKENIZER:
            shutil.copyfile(path, model / path.name)
    settings = model / "tokenizer_config.json"
    if context and settings.is_file():
        files.write_json(settings, files.read_json(settings) | {"model_max_length": context})


def write_results(folder: Path, curve: list[dict[str, float]], about: dict[str, Any]) -> str:
    """curve.csv, metrics.json and training.json beside model/. Returns the weights hash."""
    columns = ["step", *sorted({key for point in curve for key in point} - {"step"})]
    with open(folder / "curve.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)
    weights = files.weights_sha256(folder / "model")
    final = {key: value for key, value in curve[-1].items() if key.startswith(("train/loss", "val/"))}
    files.write_json(folder / "metrics.json", final | {
        "imported": about["imported"], "parameters": about["parameters"], "steps": int(curve[-1]["step"]), "weights_sha256": weights})
    files.write_json(folder / "training.json", about)
    return weights
