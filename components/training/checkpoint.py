"""Checkpoints: safetensors and JSON in a folder that appears whole, with a manifest, or not at all.

    checkpoints/step-00000200/   model.safetensors  optimizer.safetensors  state.json  manifest.json
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components import failpoints, files, storage
from components.errors import Damaged, UserError
from components.reporting import say
from components.training.optimizers import Optimizers

FORMAT = 1
KEPT = 2  # a damaged newest one leaves its predecessor
MODELS_TO_COME = 2  # the finished model, and DVC's copy of it
ON = "run again: it goes on from the last checkpoint"


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
        needed = _size(model_tensors) + _size(optimizer_tensors)
        storage.check_room(self.folder, needed * 1.1 + 2**20, "a checkpoint", ON)
        partial = self.folder / f".partial-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            failpoints.hit("train.ckpt.before_write", step)
            save_file(model_tensors, partial / "model.safetensors")
            failpoints.hit("train.ckpt.mid_write", step)
            save_file(optimizer_tensors, partial / "optimizer.safetensors")
            (partial / "state.json").write_text(files.canonical_json({"format": FORMAT, "key": self.key, "step": step, **scalars}))
            failpoints.hit("train.ckpt.before_rename", step)
            files.publish(partial, self.folder / f"step-{step:08d}")
            failpoints.hit("train.ckpt.after_rename", step)
        except (OSError, SafetensorError, UserError) as error:
            why = storage.said(error, self.folder) or f"{error}. Mend that, then run again"  # before what was written of it goes
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(f"cannot write a checkpoint in {self.folder}: {why}: it goes on from the last checkpoint") from error
        for old in self.found()[:-KEPT]:
            going = self.folder / f".partial-{old.name}"
            with contextlib.suppress(OSError):
                old.rename(going)  # a kill in the middle must leave no half checkpoint under a name
            failpoints.hit("train.ckpt.mid_purge", step)
            shutil.rmtree(going, ignore_errors=True)

    def check_room(self, model: torch.nn.Module, optimizers: Optimizers) -> None:
        """Before the first step: room for the checkpoints to come, one of them half-written beside those that are kept, and for the
        finished model. Raises UserError."""
        weights = _size(dict(model.named_parameters()))
        checkpoints = max(1, KEPT + 1 - len(self.found())) * (weights + _size(optimizers.tensors()))
        storage.check_room(self.folder, (checkpoints + MODELS_TO_COME * weights) * 1.1 + 2**20, "this training, with its checkpoints and its model,")

    def restore(self, model: torch.nn.Module, optimizers: Optimizers) -> dict[str, Any] | None:
        """Load the newest checkpoint that verifies into both. Returns its state.json, or None if there is none.

        A damaged one is named and removed, and the one before it is tried. One that the disk does not read just now stays: raises
        UserError, or OSError where trying again can help.
        """
        left = self.found()
        while left:
            path = left.pop()
            try:
                state, model_tensors, optimizer_tensors = self._load(path)
            except Damaged as error:
                then = "Going back to the one before it" if left else "No other is left: training starts at step 0 again"
                say(f"checkpoint {path.name} cannot be used: {error}. {then}")
                shutil.rmtree(path, ignore_errors=True)
                continue
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(model_tensors[name])
            optimizers.restore(optimizer_tensors)
            return state
        return None

    def _load(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """state.json and the tensors of one checkpoint. Raises Damaged for bytes that are wrong or missing; what `_unreadable` says for
        a disk that does not give them."""
        try:
            files.verify_manifest(path)
            state = files.read_json(path / "state.json")
            if state["format"] != FORMAT or state["key"] != self.key:
                raise Damaged(f"{path} belongs to other settings or another format")
            return state, load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
        except (OSError, SafetensorError, KeyError) as error:
            if isinstance(error, OSError) or storage.number(error) is not None:
                raise _unreadable(path, error) from error
            raise Damaged(f"{path} holds no checkpoint ({type(error).__name__}: {error})") from error


def _unreadable(path: Path, error: Exception) -> Exception:
    """The error to raise for a checkpoint that may be whole: without a word of it, hours of training would be done again."""
    code = storage.number(error)
    if code in storage.BROKEN:
        return OSError(code, os.strerror(code), str(path))  # no UserError: a network drive comes back
    return UserError(f"cannot read the checkpoint {path}: {storage.said(error, path) or f'{error}. Mend that, then run again'}: it stays, and training goes on from it")


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
