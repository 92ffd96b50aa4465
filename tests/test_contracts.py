"""The rules of the house, read off the code: who may lean on whom, what is generated, what is complete."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

from components import chain, stage_code
from components import config as settings
from components.layout import ROOT, Layout

pytestmark = pytest.mark.code

PYTHON_FILES = sorted(p for room in ("commands", "components", "flows", "benchmarks") for p in (ROOT / room).rglob("*.py"))

# A room may import itself, the rooms listed, and the plumbing that everybody leans on.
PLUMBING = {"components.config", "components.layout", "components.files", "components.errors", "components.reporting"}
ALLOWED = {
    "components.corpus": {"components.applications"},
    "components.training": set(),
    "components.applications": set(),
    "components.evaluation": {"components.training", "components.applications", "components.corpus"},
    "components.stages": {"components.corpus", "components.training", "components.applications", "components.evaluation", "components.tracking"},
    "components.release": {"components.evaluation", "components.applications", "components.serving", "components.tracking", "components.chain", "components.operations", "components.corpus"},
    "components.serving": {"components.release", "components.tracking", "components.operations"},
    "components.operations": {"components.tracking", "components.chain", "components.release", "components.corpus"},
}
# Heavy packages and the only places that may import them (at any depth).
OWNERS = {
    "mlflow": ("components/release/", "components/serving/", "components/tracking.py", "benchmarks/"),
    "great_expectations": ("components/corpus/validation", "components/corpus/suites"),
    "prefect": ("flows/", "benchmarks/"),
    "dvc": ("components/operations/staleness.py", "flows/"),
}


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str | None:
    return next((room for room in ALLOWED if module == room or module.startswith(room + ".")), None)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path: Path):
    relative = path.relative_to(ROOT).as_posix()
    module = relative.removesuffix(".py").replace("/", ".")
    found = imports_of(path)
    ours = {name for name in found if name.split(".")[0] in {"commands", "components", "flows", "tests", "benchmarks"}}
    assert not any(name.startswith("tests") for name in ours)
    if relative.startswith("components/"):
        assert not any(name.startswith(("commands", "flows", "benchmarks")) for name in ours), f"{relative} leans on an outer room: {ours}"
    if relative.startswith("flows/"):
        assert not any(name.startswith(("commands", "benchmarks")) for name in ours)
    room = room_of(module)
    if room:
        for name in ours:
            other = room_of(name)
            assert other in {None, room} | ALLOWED[room], f"{relative} ({room}) imports {name}"
    for package, owners in OWNERS.items():
        if any(name == package or name.startswith(package + ".") for name in found):
            assert relative.startswith(owners), f"{relative} imports {package}; only {owners} may"
    if relative.startswith("components/corpus/"):
        assert not any(name.split(".")[0] == "torch" for name in found), f"{relative}: no torch in corpus/"


@pytest.mark.parametrize("path", [p for p in PYTHON_FILES if "model_file" not in p.name], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_importing_a_module_only_defines(path: Path):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.Try)
    for node in ast.parse(path.read_text()).body:
        registers = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.Call)
        assert isinstance(node, allowed) or registers, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            assert "__name__" in test or "TYPE_CHECKING" in test, f"{path.name}:{node.lineno}: {test}"


def test_dvc_yaml_is_what_the_stage_table_generates():
    assert (ROOT / "dvc.yaml").read_text() == chain.render_dvc_yaml(), "run: python -m components.chain --generate"


@pytest.mark.parametrize("preset", sorted(p.stem for p in (ROOT / "presets").glob("*.yaml")))
def test_every_preset_resolves_and_holds_only_what_differs(preset: str):
    config = settings.resolve(ROOT / "presets" / f"{preset}.yaml")
    assert config.preset == preset
    defaults = settings.flatten(settings.Config().model_dump(mode="json"))
    same = [k for k, v in settings.flatten(yaml.safe_load((ROOT / "presets" / f"{preset}.yaml").read_text()) or {}).items()
            if k not in ("preset", "name") and defaults[k] == v]
    assert not same, f"{preset} repeats defaults: {same}"


def test_shipped_params_are_the_default_preset_complete_and_valid():
    shipped = settings.load(ROOT / "params.yaml")
    assert shipped == settings.resolve(ROOT / "presets" / "tiny.yaml")
    assert (ROOT / "params.yaml").read_text() == settings.render(shipped)


def test_editing_finetuning_leaves_pretraining_fresh():
    pretraining = set(stage_code.of("pretrain", ROOT))
    finetuning = set(stage_code.of("finetune", ROOT))
    assert "components/stages/finetune.py" in finetuning - pretraining
    # the chat template is the tokenizer's; what an application is and how it is scored is not pretraining's
    others = {path for path in pretraining if "applications" in path or "evaluation" in path}
    assert others == {"components/applications/template.py"}
    for stage in chain.STAGES:
        assert not any(path.removeprefix("components/").removesuffix(".py") in stage_code.NOT_RESULTS for path in stage_code.of(stage.name, ROOT))


def test_every_dep_is_the_out_of_an_earlier_stage():
    known: set[str] = set()
    for stage in chain.STAGES:
        assert set(stage.deps) <= known
        known |= set(stage.outs)


def test_versions_are_those_of_the_lock():
    lock = {m[1].lower().replace("_", "-"): m[2] for m in re.finditer(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)}
    named = yaml.safe_load((ROOT / "versions.yaml").read_text())
    assert {v for stage in chain.STAGES for v in stage.versions} == set(named)
    for package, version in named.items():
        assert importlib.metadata.version(package).split("+")[0] == version
        if package != "torch":
            assert lock[package] == version
    assert f"version={named['torch']}" in (ROOT / "infra" / "setup.sh").read_text()


def test_every_path_of_a_layout_lies_in_its_root(tmp_path: Path):
    layout = Layout(root=tmp_path)
    for name in (n for n, v in vars(Layout).items() if isinstance(v, property)):
        assert getattr(layout, name).is_relative_to(tmp_path), name


def test_no_secret_place_and_no_pickle_in_the_code():
    banned = re.compile(r"(?<![\w.])/(work|farm|root)/|pickle\.load|torch\.load\(|trust_remote_code=True|shell=True|0\.0\.0\.0")
    for path in PYTHON_FILES:
        if path.name == "unpickling.py":
            continue  # the hook that counts them has their names
        hits = [line for line in path.read_text().splitlines() if banned.search(line)]
        assert not hits, f"{path.relative_to(ROOT)}: {hits}"
