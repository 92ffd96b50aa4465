"""Weights that do not fit their model: whole by every hash, and still refused by whoever loads them (transformers would fill in noise)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from safetensors.torch import load_file, save_file
from torch import Tensor

from components import files
from components.errors import UserError
from components.layout import ROOT, Layout
from components.release import imported
from components.training import model as models

pytestmark = pytest.mark.code

NAME = "model.layers.1.mlp.up_proj.weight"
MISFITS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "missing": lambda tensors: tensors.pop(NAME),
    "extra": lambda tensors: tensors.update({"model.layers.7.mlp.up_proj.weight": tensors[NAME].clone()}),
    "renamed": lambda tensors: tensors.update({NAME.replace("up_proj", "up_pro"): tensors.pop(NAME)}),
    "wrong shape": lambda tensors: tensors.update({NAME: tensors[NAME][:-1].contiguous()}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_model(tmp_path_factory.mktemp("whole") / "model", seed=5)


@pytest.fixture(scope="module")
def served():
    """The code that MLflow runs, as a module: it imports nothing of ours."""
    spec = importlib.util.spec_from_file_location("served_model_file", ROOT / "components/serving/model_file.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=MISFITS)
def misfit(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    tensors = load_file(folder / "model.safetensors")
    MISFITS[request.param](tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    files.write_manifest(folder)  # every hash is right
    files.verify_manifest(folder)
    return folder


def test_D5_no_loader_fills_a_gap_with_noise(misfit: Path, served, whole: Path):
    models.load_any(whole)
    served.load(whole, "cpu")
    for load in (models.load_any, models.Wrapped.open, lambda folder: served.load(folder, "cpu")):
        with pytest.raises((UserError, served.MlflowException)) as refused:
            load(misfit)
        told = str(refused.value)
        assert NAME[:-8] in told or NAME.replace("up_proj", "up_pro") in told or "model.layers.7" in told, told


def test_D5_nor_is_such_a_model_imported(misfit: Path, tmp_path: Path):
    layout = Layout(root=tmp_path / "checkout")
    with pytest.raises(UserError, match="random numbers|does not open as a causal language model"):
        imported.bring_in(misfit, "misfit", layout)
    assert not layout.imported.exists()


@pytest.mark.parametrize("keep", ["all but one", "half", "the header", "one", "nothing"])
def test_D4_cut_weights_are_one_clear_error_even_where_no_manifest_vouches_for_them(whole: Path, served, tmp_path: Path, keep: str):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    left = {"all but one": len(data) - 1, "half": len(data) // 2, "the header": 8 + int.from_bytes(data[:8], "little"), "one": 1, "nothing": 0}[keep]
    path.write_bytes(data[:left])
    for load in (models.load_any, models.Wrapped.open):
        with pytest.raises(UserError, match=r"model.safetensors|transformers cannot open this model"):
            load(folder)
    with pytest.raises(served.MlflowException, match="manifest.json is missing or damaged"):
        served.verify(folder)  # what is served always has a manifest
