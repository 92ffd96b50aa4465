"""Checkpoints: safetensors and JSON in a folder that appears whole, with a manifest, or not at all.

    checkpoints/step-00000200/   model.safetensors  optimizer.safetensors  state.json  manifest.json
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components import files
from components.errors import Damaged, UserError
from components.reporting import say
from components.training.optimizers import Optimizers

FORMAT = 1
KEPT = 2  # a damaged newest one leaves its predecessor


@dataclass
class Checkpoints:
    """The checkpoints of one training, for one KEY: other settings or other code have another folder."""

    folder: Path
    key: str

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".partial-*"):  # a kill while writing
            shutil.rmtree(left, ignore_errors=True)

    def found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def save(self, step: int, model: torch.nn.Module, optimizers: Optimizers, scalars: dict[str, Any]) -> None:
        """Write the checkpoint of `step` finished updates, then drop all but the newest two.

        Raises UserError if the folder is gone or the disk has no room; the earlier ones stay good.
        """
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} was removed while training ran, so there is nothing to resume from. Run again: it starts at step 0")
        model_tensors = _on_cpu({name: p for name, p in model.named_parameters()})
        optimizer_tensors = _on_cpu(optimizers.tensors())
        needed = sum(t.numel() * t.element_size() for t in (*model_tensors.values(), *optimizer_tensors.values()))
        free = shutil.disk_usage(self.folder).free
        if free < needed * 1.1 + 2**20:
            raise UserError(f"no space in {self.folder}: a checkpoint needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free. "
                            "Free space, then run again: it goes on from the last checkpoint")
        partial = self.folder / f".partial-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            save_file(model_tensors, partial / "model.safetensors")
            save_file(optimizer_tensors, partial / "optimizer.safetensors")
            (partial / "state.json").write_text(files.canonical_json({"format": FORMAT, "key": self.key, "step": step, **scalars}))
            files.publish(partial, self.folder / f"step-{step:08d}")
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(f"cannot write a checkpoint in {self.folder}: {error}. Free space or mend permissions there, "
                            "then run again: it goes on from the last checkpoint") from error
        for old in self.found()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: torch.nn.Module, optimizers: Optimizers) -> dict[str, Any] | None:
        """Load the newest checkpoint that verifies into both. Returns its state.json, or None if there is none.

        A damaged one is named and removed, and the one before it is tried.
        """
        for path in reversed(self.found()):
            try:
                files.verify_manifest(path)
                state = files.read_json(path / "state.json")
                if state["format"] != FORMAT or state["key"] != self.key:
                    raise Damaged(f"{path} belongs to other settings or another format")
                model_tensors, optimizer_tensors = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
            except (Damaged, OSError, SafetensorError, KeyError) as error:
                say(f"checkpoint {path.name} cannot be used: {error}. Going back to the one before it")
                shutil.rmtree(path, ignore_errors=True)
                continue
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(model_tensors[name])
            optimizers.restore(optimizer_tensors)
            return state
        return None


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
