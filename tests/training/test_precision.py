"""bfloat16 only where the hardware multiplies it: emulated, a training takes ten times as long and more."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_training
import torch

from components.errors import UserError
from components.training import gpt, loop, precision
from components.training.optimizers import Muon, Optimizers

pytestmark = pytest.mark.code


@pytest.mark.parametrize(("machine", "instructions", "found"), [
    ("x86_64", set(), "float32"), ("x86_64", {"avx512_bf16"}, "bfloat16"), ("AMD64", {"amx_tile"}, "bfloat16"),
    ("aarch64", set(), "float32"), ("aarch64", {"mkldnn_bf16"}, "bfloat16")])
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, machine: str, instructions: set[str], found: str):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx_tile" in instructions)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: "mkldnn_bf16" in instructions)
    assert precision.resolved("auto", "cpu") == found


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_what_was_asked_for_is_taken(wanted: str):
    assert precision.resolved(wanted, "cpu") == wanted


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_muon_multiplies_in_the_precision_of_the_training(name: str):
    model = gpt.create(gpt.Shape(architecture="llama", vocab_size=31, n_layer=1, n_head=2, n_embd=8, n_hidden=16, context=8, tied=True), 0)
    parts = Optimizers(model, kind="muon", learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02, precision=name).parts
    assert {part.dtype for part in parts if isinstance(part, Muon)} == {getattr(torch, name)}


def test_a_training_does_not_go_on_in_another_precision_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`auto` is part of its KEY, not what a machine makes of it: a disk may come to another machine."""
    tiny_training.train(tmp_path, steps=9)
    plan = loop.Plan
    monkeypatch.setattr(loop, "Plan", lambda **settings: plan(**settings | {"precision": "bfloat16"}))
    with pytest.raises(UserError, match=r"are of a training in float32, and on this machine training.precision=auto is bfloat16\. .*run again") as refused:
        tiny_training.train(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)
