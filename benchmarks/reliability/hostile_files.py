"""Files and folders that try to run code when something opens them. Each would make the file `marker`; none of them does harm.

A builder gets a copy of a sound thing of its kind and spoils it: a model folder (`model`), a logged MLflow model (`logged`), a checkout's
settings (`settings`), a corpus (`corpus`), a folder of tokens (`tokens`).
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from components import files

Builder = Callable[[Path, Path], Any]  # (the copy, the marker)


@dataclass(frozen=True)
class Hostile:
    """One kind of hostile thing. `harmless`: it may open, as what is hostile in it is never looked at."""

    name: str
    kind: str
    build: Builder
    harmless: bool = False


class _Touch:
    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


def pickled(marker: Path) -> bytes:
    return pickle.dumps(_Touch(marker))


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()\n"


def zipped(marker: Path) -> bytes:
    """What torch.save writes: a zip with a pickle in it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(marker))
        archive.writestr("archive/version", "3\n")
    return data.getvalue()


def several(marker: Path) -> bytes:
    """Torch's oldest format: a magic number, a version and more, each a pickle of its own."""
    return pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps({"little_endian": True}) + pickled(marker) + pickled(marker)


def edit(path: Path, **changes: Any) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | changes))


def sealed(folder: Path) -> None:
    """The manifest made anew: whoever can write files can write that one, too."""
    files.write_manifest(folder)


# --- model folders -------------------------------------------------------------------------------

def only(name: str, content: Callable[[Path], bytes]) -> Builder:
    """The weights as `name` alone."""
    def build(folder: Path, marker: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content(marker))

    return build


def beside(name: str, content: Callable[[Path], bytes]) -> Builder:
    def build(folder: Path, marker: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(marker))

    return build


def asks(name: str, module: str, **changes: Any) -> Builder:
    """A settings file that names code of the folder's own."""
    def build(folder: Path, marker: Path) -> None:
        edit(folder / name, **changes)
        (folder / module).parent.mkdir(parents=True, exist_ok=True)
        (folder / module).write_text(code(marker) + "class Evil:\n    pass\n")

    return build


def template(text: str) -> Builder:
    def build(folder: Path, marker: Path) -> None:
        (folder / "chat_template.jinja").write_text(text.replace("MARKER", str(marker)))

    return build


def huge_header(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}" + pickled(marker))


def index_names(name: str) -> Builder:
    def build(folder: Path, marker: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "evil.bin").write_bytes(pickled(marker))
        (folder.parent / "outside.safetensors").write_bytes(pickled(marker))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}))

    return build


def link(name: str) -> Builder:
    """A file of the model is a link to something of the user's outside, which a copy would publish."""
    def build(folder: Path, marker: Path) -> None:
        private = folder.parent / "private.txt"
        private.write_text("what nobody else may read")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(private)

    return build


def adapter(folder: Path, marker: Path) -> None:
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=".")
    (folder / "adapter_model.bin").write_bytes(pickled(marker))


def libraries(folder: Path, marker: Path) -> None:
    for name in ("transformers.py", "safetensors.py", "sitecustomize.py", "conftest.py", "__init__.py"):
        (folder / name).write_text(code(marker))


MODELS = (
    Hostile("a pickle as pytorch_model.bin", "model", only("pytorch_model.bin", pickled)),
    Hostile("a pickle as model.pt", "model", only("model.pt", pickled)),
    Hostile("a pickle as weights.pkl", "model", only("weights.pkl", pickled)),
    Hostile("a pickle as model.joblib", "model", only("model.joblib", pickled)),
    Hostile("several pickles, torch's oldest format", "model", only("pytorch_model.bin", several)),
    Hostile("a zip with a pickle, torch's format", "model", only("model.pt", zipped)),
    Hostile("a pickle named model.safetensors", "model", only("model.safetensors", pickled)),
    Hostile("a zip with a pickle named model.safetensors", "model", only("model.safetensors", zipped)),
    Hostile("pytorch_model.bin beside safetensors", "model", beside("pytorch_model.bin", pickled), harmless=True),
    Hostile("optimizer.pt and training_args.bin beside safetensors", "model", beside("training_args.bin", zipped), harmless=True),
    Hostile("an adapter with pickled weights", "model", adapter, harmless=True),
    Hostile("a safetensors header of 4 EiB", "model", huge_header),
    Hostile("a shard index that leads out of the folder", "model", index_names("../outside.safetensors")),
    Hostile("a shard index that names a pickle", "model", index_names("evil.bin")),
    Hostile("auto_map in config.json", "model", asks("config.json", "modeling_evil.py", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"})),
    Hostile("auto_map in tokenizer_config.json", "model", asks("tokenizer_config.json", "tokenization_evil.py", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})),
    Hostile("code in generation_config.json", "model", asks("generation_config.json", "custom_generate/generate.py", custom_generate="custom_generate", **{"trust_remote_code": True})),
    Hostile("trust_remote_code deep in config.json", "model", asks("config.json", "modeling_evil.py", text_config={"trust_remote_code": True, "auto_map": {"AutoModel": "modeling_evil.Evil"}})),
    Hostile("a kernel of somebody's in config.json", "model", asks("config.json", "kernel.py", _attn_implementation="evil/kernel", attn_implementation="evil/kernel")),
    Hostile("modules named like libraries", "model", libraries, harmless=True),
    Hostile("a chat template that breaks out", "model", template(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch MARKER') }}{{ messages[0]['content'] }}")),
    Hostile("a chat template that includes a file", "model", template("{% include '/etc/passwd' %}{{ self.__init__.__globals__ }}")),
    Hostile("tokenizer.json of odd types", "model", lambda folder, marker: (folder / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": ["!!python/object/apply:os.system"], "merges": {"a": 1}}, "added_tokens": 7}')),
    Hostile("config.json is a link to something private", "model", link("config.json")),
    Hostile("README.md is a link to something private", "model", link("README.md")),
)


# --- logged models, with a list of hashes that fits ----------------------------------------------

def mlmodel(folder: Path, **changes: Any) -> None:
    tree = yaml.safe_load((folder / "MLmodel").read_text())
    tree["flavors"]["python_function"] |= changes
    (folder / "MLmodel").write_text(yaml.safe_dump(tree))


def own_loader(folder: Path, marker: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "evil_loader.py").write_text(code(marker) + "def _load_pyfunc(path):\n    return None\n")
    mlmodel(folder, loader_module="evil_loader", code="code")


def own_code_path(folder: Path, marker: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "transformers.py").write_text(code(marker))
    mlmodel(folder, code="code")


def pickled_model(folder: Path, marker: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickled(marker))
    tree = yaml.safe_load((folder / "MLmodel").read_text())
    python = tree["flavors"]["python_function"]
    python.pop("model_code_path")
    python |= {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    (folder / "MLmodel").write_text(yaml.safe_dump(tree))


def compiled(folder: Path, marker: Path) -> None:
    """Bytecode that Python takes without a look at its source (an unchecked hash)."""
    import importlib.util
    import marshal

    (folder / "__pycache__").mkdir(exist_ok=True)
    body = marshal.dumps(compile(code(marker), "model_file.py", "exec"))
    name = Path(importlib.util.cache_from_source(str(folder / "model_file.py"))).name
    (folder / "__pycache__" / name).write_bytes(importlib.util.MAGIC_NUMBER + struct.pack("<I", 0b01) + bytes(8) + body)


def yaml_tag(folder: Path, marker: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(f"evil: !!python/object/apply:os.system ['touch {marker}']\n{text}")


def elsewhere(folder: Path, marker: Path) -> None:
    mlmodel(folder, artifacts={"model": {"path": "../../private"}})


def swapped_weights(folder: Path, marker: Path) -> None:
    (folder / "artifacts" / "model" / "model.safetensors").write_bytes(pickled(marker))
    sealed(folder / "artifacts" / "model")


LOGGED = (
    Hostile("MLmodel with a loader and code of its own", "logged", own_loader),
    Hostile("MLmodel with a folder of code put first in the path", "logged", own_code_path),
    Hostile("MLmodel with a pickled model", "logged", pickled_model),
    Hostile("another model file", "logged", lambda folder, marker: (folder / "model_file.py").write_text(code(marker))),
    Hostile("compiled code beside the model file", "logged", compiled, harmless=True),
    Hostile("a Python tag in MLmodel", "logged", yaml_tag),
    Hostile("MLmodel whose artifacts lie elsewhere", "logged", elsewhere),
    Hostile("a registered model's weights swapped for a pickle", "logged", swapped_weights),
)


# --- settings, corpora, tokens -------------------------------------------------------------------

def tagged_yaml(name: str) -> Builder:
    def build(folder: Path, marker: Path) -> None:
        text = (folder / name).read_text() if (folder / name).exists() else ""
        (folder / name).write_text(f"evil: !!python/object/apply:builtins.open [{str(marker)!r}, 'w']\n{text}")

    return build


def dvc_commands(folder: Path, marker: Path) -> None:
    (folder / "a.txt").write_text("一段短文。 A short text.\n" * 40)
    (folder / "evil.dvc").write_text(f"cmd: touch {marker}\nouts:\n- path: a.txt\n")
    (folder / "dvc.yaml").write_text(f"stages:\n  fetch:\n    cmd: touch {marker}\n")


def arrow_pickle(folder: Path, marker: Path) -> None:
    """A parquet file whose column claims to be a pickled Arrow extension type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled(marker)}
    schema = pa.schema([pa.field("text", pa.string(), metadata=kind)])
    pq.write_table(pa.table({"text": ["一段短文。 A short text of some length."] * 30}, schema=schema), folder / "evil.parquet")


def object_array(folder: Path, marker: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = _Touch(marker)
    for path in folder.glob("*.offsets.npy"):
        np.save(path, array, allow_pickle=True)
    sealed(folder)


OTHERS = (
    Hostile("a Python tag in params.yaml", "settings", tagged_yaml("params.yaml")),
    Hostile("a Python tag in sources.yaml", "settings", tagged_yaml("sources.yaml")),
    Hostile("a Python tag in a preset", "settings", tagged_yaml("presets/tiny.yaml")),
    Hostile("commands in .dvc and dvc.yaml files of a corpus", "corpus", dvc_commands, harmless=True),
    Hostile("a pickled Arrow type in a parquet file", "corpus", arrow_pickle, harmless=True),
    Hostile("pickled objects among the token shards", "tokens", object_array),
)
ALL = MODELS + LOGGED + OTHERS
