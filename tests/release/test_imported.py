"""A base model from outside: what is taken, what is refused, and that nothing of it runs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_models
from safetensors.torch import load_file, save_file

from commands import imports
from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout
from components.release import imported

pytestmark = pytest.mark.code


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return tiny_models.make_model(tmp_path_factory.mktemp("hf") / "Tiny Llama 微型")


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "Tiny Llama 微型"))


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(root=tmp_path / "checkout")
    files.write_atomic(layout.params, settings.render(settings.build({"name": "mine", "finetuning.max_row_tokens": 48}, where="test")))
    return layout


def refused(folder: Path, layout: Layout) -> str:
    """The message; nothing is left behind."""
    before = layout.params.read_bytes()
    with pytest.raises(UserError) as caught:
        imported.bring_in(folder, folder.name, layout)
    assert not layout.imported.exists() and not (layout.partial / "import").exists() and layout.params.read_bytes() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_import_copies_verifies_and_sets_the_base(folder, layout, monkeypatch, capsys):
    monkeypatch.setattr(imports, "Layout", lambda: layout)
    (layout.root / "texts.txt").write_text("A corpus of its own: the embedded one is not in this checkout.")
    (layout.root / "records.jsonl").write_text("{}")
    flat = settings.flatten(settings.load(layout.params).model_dump(mode="json"))
    own = settings.build(flat | {"corpus.source": "texts.txt", "corpus.records": "records.jsonl"}, where="test")
    files.write_atomic(layout.params, settings.render(own))
    imports.import_model(str(folder))
    base = settings.load(layout.params).corpus.base
    assert base.startswith("tiny-llama-") and files.verify_manifest(layout.imported / base)
    assert "lmworks run" in capsys.readouterr().out
    (folder / "README.md").write_text("not part of it yet")
    imports.import_model(base)  # by the name that params.yaml has
    assert settings.load(layout.params).corpus.base == base and len(list(layout.imported.iterdir())) == 1
    imports.import_model("none")
    assert settings.load(layout.params).corpus.base == "none"


def test_importing_twice_is_the_same_folder(folder, layout):
    assert imported.bring_in(folder, "a", layout)[0] == imported.bring_in(folder, "a", layout)[0]


def test_sharded_model_needs_every_shard(pristine, tmp_path, layout):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    shutil.copytree(pristine, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    name, _ = imported.bring_in(folder, "sharded", layout)
    shutil.rmtree(layout.imported)
    lost = sorted(folder.glob("*.safetensors"))[-1]
    lost.unlink()
    assert lost.name in refused(folder, layout) and name
    index = folder / "model.safetensors.index.json"
    edit(index, weight_map={"a": "../../etc/passwd.safetensors"})
    assert "same folder was expected" in refused(folder, layout)  # J5


class Marker:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "model.ckpt"])
def test_J1_pickles_are_refused_and_never_opened(folder, layout, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Marker(str(tmp_path / "ran"))))
    assert name in (message := refused(folder, layout)) and "safetensors" in message
    assert not (tmp_path / "ran").exists()


def test_J1_pickles_beside_safetensors_are_left_behind(folder, layout, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(str(tmp_path / "ran"))))
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    name, _ = imported.bring_in(folder, "x", layout)
    assert {p.suffix for p in (layout.imported / name).iterdir()} <= {".json", ".jinja", ".safetensors"}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("changes", [{"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, {"text_config": {"trust_remote_code": True}}])
def test_J3_custom_code_is_refused(folder, layout, name, changes):
    edit(folder / name, **changes)
    assert "asks for code of its own" in refused(folder, layout)


def test_other_architectures_are_refused(folder, layout):
    edit(folder / "config.json", architectures=["BertForMaskedLM"], model_type="bert")
    assert "BertForMaskedLM" in refused(folder, layout)
    edit(folder / "config.json", architectures=None)
    assert "no causal language model" in refused(folder, layout)


@pytest.mark.parametrize("changes", [{"architectures": 5}, {"architectures": {}}, {"architectures": [["x"]]}, {"model_type": ["llama"]}, {"model_type": {}}])
def test_A19_settings_of_another_type_are_one_clear_line(folder, layout, changes):
    edit(folder / "config.json", **changes)
    assert "no causal language model" in refused(folder, layout)


@pytest.mark.parametrize("names", [{"a": ["b.safetensors"]}, {"a": 5, "b": "c.safetensors"}, {"a": None}])
def test_A19_an_index_of_another_type_is_one_clear_line(folder, layout, names):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert "same folder was expected" in refused(folder, layout)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(folder, layout, name):
    (folder / name).unlink()
    assert name in refused(folder, layout)


def test_D5_missing_tensor_and_wrong_shape_are_refused(folder, layout):
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in tensors if "down_proj" in key)
    save_file({k: v for k, v in tensors.items() if k != key}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "missing_keys" in refused(folder, layout)
    save_file(tensors | {key: tensors[key][:, :5].contiguous()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"{folder} does not open" in refused(folder, layout) and "partial" not in refused(folder, layout)


def test_D4_truncated_weights_and_A19_malformed_tokenizer_are_refused(folder, layout):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "does not open" in refused(folder, layout)
    weights.write_bytes(whole)
    (folder / "tokenizer.json").write_text('{"model": ')
    assert f"{folder} does not open" in refused(folder, layout)


def test_weights_that_are_not_finite_are_refused(folder, layout):
    tensors = load_file(folder / "model.safetensors")
    key = next(iter(tensors))
    save_file(tensors | {key: tensors[key] * float("nan")}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "not finite" in refused(folder, layout)


def test_context_below_the_rows_of_fine_tuning_is_told_before_anything_is_set(folder, layout, monkeypatch):
    monkeypatch.setattr(imports, "Layout", lambda: layout)
    files.write_atomic(layout.params, settings.render(settings.build({"name": "mine", "finetuning.max_row_tokens": 128}, where="test")))
    with pytest.raises(UserError, match="at most 64 tokens.*--set finetuning.max_row_tokens=64"):
        imports.import_model(str(folder))
    assert settings.load(layout.params).corpus.base == "none"


@pytest.mark.parametrize("source", ["no/such/folder", "models:/", "models:/x", "models:/x@"])
def test_wrong_sources_are_one_clear_line(layout, monkeypatch, source, mlflow_url):
    monkeypatch.setattr(imports, "Layout", lambda: layout)
    with pytest.raises(UserError) as caught:
        imports.import_model(source)
    assert "models:/NAME" in str(caught.value)
