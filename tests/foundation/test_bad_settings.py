"""params.yaml, presets and sources.yaml as hands and accidents leave them: one error that names everything, and no value of a secret."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from commands import run as run_command
from commands import settings as use_command
from components import chain, files, mlflow_rest, tracking
from components import config as settings
from components.corpus import sources
from components.errors import UserError
from components.layout import ROOT, Layout
from components.operations import addresses, databases, processes, services
from components.stages import fetch

pytestmark = pytest.mark.code
SECRET = "hf_" + "Qx7" * 11


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A checkout with the settings of the defaults, and the real code behind it."""
    (tmp_path / "components").symlink_to(ROOT / "components")
    shutil.copy(ROOT / "versions.yaml", tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "params.yaml").write_text(settings.render(settings.Config()))
    return Layout(root=tmp_path)


def edit(layout: Layout, old: str, new: str) -> None:
    text = layout.params.read_text()
    assert text.count(old) == 1, old
    layout.params.write_text(text.replace(old, new))


def put(layout: Layout, setting: str, written: str) -> None:
    """Write a value as a hand would, in its line."""
    section, _, name = setting.rpartition(".")
    lines = layout.params.read_text().splitlines()
    first = lines.index(f"{section}:") + 1 if section else 0
    at = next(n for n in range(first, len(lines)) if lines[n].strip().startswith(f"{name}:"))
    lines[at] = f"{'  ' if section else ''}{name}: {written}"
    layout.params.write_text("\n".join(lines) + "\n")


def refused(load: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert caught.value.exit_code in (2, 4) and len(message) < 8000 and "Traceback" not in message
    return message


# --- keys and values -----------------------------------------------------------------------------

@pytest.mark.parametrize("old, new, words", [
    ("  learning_rate: 0.002 ", "  learning_rte: 0.002 ", ["unknown key 'training.learning_rte'; did you mean 'training.learning_rate'?",
                                                          "missing keys: training.learning_rate. Run: lmworks use --upgrade"]),
    ("\ntraining:\n", "\ntraning:\n", ["unknown key 'traning.steps'; did you mean 'training.steps'?", "missing keys: training.steps, training.rows"]),
    ("seed: 1 ", "seed: 1\n学习率: 2 ", ["1 problem\n", "unknown key '学习率'\n"]),
    ("seed: 1 ", "seed: 1\ntraining.steps: 5 ", ["key 'training.steps': write steps below training:"]),
    ("seed: 1 ", "seed: 1\n5: five\n~: none\nyes: no ", ["unknown key '5'", "unknown key 'None'", "unknown key 'True'"]),
    ("\nsplits:\n", "\nsplits:\nsplit:\n", ["splits: settings were expected below it, found nothing", "unknown key 'split.test_share'; did you mean 'splits.test_share'?"]),
    ("  steps: 600 ", "  steps: {hundred: 6} ", ["training.steps={'hundred': 6}: must be a valid integer"]),
])
def test_B1_a_slip_in_the_keys_of_params_yaml_is_named(layout: Layout, old: str, new: str, words: list[str]):
    edit(layout, old, new)
    message = refused(settings.load, layout.params)
    assert message.startswith("params.yaml: ")
    for part in words:
        assert part in f"{message}\n", message


@pytest.mark.parametrize("setting, written, words", [
    *[("training.learning_rate", value, "must be") for value in (".nan", ".inf", "-.inf", "0", "-1e-3", "fast", "yes", "[1]", "~", "'1e-3 '", "1e400", "1.5", "'一'")],
    *[("training.rows", value, "must be a valid integer") for value in ("16.5", "'16'", "true", "1e3", "~", "")],
    *[("training.rows", value, "must be greater than or equal to 1") for value in ("0", "-4")],
    ("training.rows", "99999999999999999999", "must be less than or equal to 65536"), ("training.steps", "9" * 30, "must be less than or equal to 1000000000000"),
    ("operations.stage_timeout_s", "1" + "0" * 20, "must be less than or equal to 315360000"), ("operations.late_alert_s", "9", "must be greater than or equal to 10"),
    ("training.optimizer", "sgd", "must be 'adamw' or 'muon'"), ("training.device", "cuda:0", "must be 'cpu' or 'cuda'"),
    ("name", "小说", "must be 1 to 63 lower-case letters"), ("name", "2024", "must be a valid string"), ("name", "a" * 64, "must be 1 to 63"),
    ("finetuning.applications", "[]", "must have at least 1 item"), ("finetuning.applications", "[classificaton]", "must be 'classification'"),
])
def test_B2_a_value_that_does_not_fit_is_told_with_its_setting_and_what_is_allowed(layout: Layout, setting: str, written: str, words: str):
    put(layout, setting, written)
    message = refused(settings.load, layout.params)
    assert message.startswith("params.yaml: 1 problem\n") and (f"- {setting}=" in message or f"- {setting}.0=" in message) and words in message, message


@pytest.mark.parametrize("written, value", [("1e-3", 1e-3), ("1.5E-2", 0.015), ("1", 1.0), ("5_0e-3", None), ("+1e-3", 1e-3)])
def test_B2_a_number_in_any_spelling_is_a_number(layout: Layout, written: str, value: float | None):
    put(layout, "training.learning_rate", written)
    if value is None:
        assert "training.learning_rate='5_0e-3': must be a valid number" in refused(settings.load, layout.params)
    else:
        assert settings.load(layout.params).training.learning_rate == value


def test_B3_everything_that_is_wrong_is_told_at_once_and_before_any_work(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    for old, new in (("n_head: 4", "n_head: 3"), ("row_tokens: 128  # tokens a row", "row_tokens: 512  # tokens a row"), ("max_row_tokens: 128", "max_row_tokens: 999"),
                     ("warmup_steps: 30", "warmup_steps: 600"), ("minhash_bands: 16", "minhash_bands: 7"), ("test_share: 0.06", "test_share: 0.49"),
                     ("name: tiny", "name: mine-instruct"), ("seed: 1 ", "sead: 1 "), ("clip_norm: 1.0", "clip_norm: -1"), ("embedded_mb: 9.0", "embedded_mb: viel"),
                     ("  confidence: 0.95", "  # confidence: 0.95")):
        edit(layout, old, new)
    monkeypatch.setattr(run_command, "Layout", lambda: layout)
    before = sorted(path for path in layout.root.rglob("*") if "components" not in path.parts)
    message = refused(run_command.run)
    for part in ("model.n_head=3 must divide model.n_embd=256", "training.row_tokens=512 must be at most model.context=256", "finetuning.max_row_tokens=999",
                 "training.warmup_steps=600 must be below training.steps=600", "cleaning.minhash_permutations=64 must be a multiple of cleaning.minhash_bands=7",
                 "splits.validation_share + splits.test_share = 0.53 must be at most 0.5", "name='mine-instruct'", "unknown key 'sead'; did you mean 'seed'?",
                 "missing keys: seed, evaluation.confidence", "training.clip_norm=-1", "corpus.embedded_mb='viel'"):
        assert part in message, part
    assert message.startswith("params.yaml: 11 problems\n")
    assert sorted(path for path in layout.root.rglob("*") if "components" not in path.parts) == before, "nothing was begun"


@pytest.mark.parametrize("written", ['"a\\0b"', '"nowhere"', f'"{"很" * 300}"', '"~nobody/texts"', '""'])
def test_B2_a_path_that_leads_nowhere_is_told_with_its_setting(layout: Layout, written: str):
    put(layout, "corpus.source", written)
    message = refused(lambda: sources.update(settings.load(layout.params), layout))
    assert "corpus.source" in message and "\0" not in message and not layout.sources.exists()


# --- between a crash and the resume --------------------------------------------------------------

def test_B4_settings_edited_between_crash_and_resume_have_checkpoints_and_a_run_of_their_own(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    for dep in chain.BY_NAME["pretrain"].deps:
        partial = layout.partial / dep.replace("/", "-")
        partial.mkdir(parents=True)
        (partial / "x.txt").write_text(dep)
        files.publish(partial, layout.out(dep))
    found: list[list[str]] = []

    def killed(config: settings.Config, layout: Layout) -> None:
        checkpoints = layout.work / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        found.append(sorted(path.name for path in checkpoints.iterdir()))
        (checkpoints / f"learning_rate {config.training.learning_rate:g}").touch()
        with tracking.tracked(config, layout, stage="pretrain", parameters=1, languages=["zh"], params={}):
            raise KeyboardInterrupt

    def life() -> tuple[list[str], set[str]]:
        with pytest.raises(KeyboardInterrupt):
            chain.run_stage(chain.BY_NAME["pretrain"], layout, module=SimpleNamespace(run=killed))
        return found[-1], {files.read_json(path)["uuid"] for path in layout.spool.glob("*/run.json")}

    seen, first = life()
    assert seen == [] and len(first) == 1
    assert life() == (["learning_rate 0.002"], first), "a plain resume goes on"
    put(layout, "training.learning_rate", "0.004")
    seen, runs = life()
    assert seen == [] and len(runs) == 2 and first < runs, "never on from weights of another learning rate, never in the same curve"
    put(layout, "training.learning_rate", "0.002")
    assert life() == (["learning_rate 0.002"], runs), "the old settings find their own checkpoint and run again"


# --- traps in YAML -------------------------------------------------------------------------------

LISTS = "l0: &l0 [1]\n" + "".join(f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}, *l{n - 1}]\n" for n in range(1, 30))
MAPS = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 30))
WIDE = "a: &a {" + ", ".join(f"k{i}: 1" for i in range(1000)) + "}\n" + "".join(f"b{i}: *a\n" for i in range(1000))
HARMLESS = {"lists": LISTS, "maps": MAPS, "wide": WIDE}  # beside the groups of sources.yaml: nobody counts them out
TRAPS = {  # what stands before a good file
    **HARMLESS, "python": "x: !!python/object/apply:os.system ['touch pwned']\n", "python/name": "x: !!python/name:os.system\n", "self": "x: &x [*x]\n",
    "merge": "x: &x {a: 1}\ny:\n  <<: *x\n", "keys": "? [a]\n: b\n", "no int": "x: !!int ''\n", "no bool": "x: !!bool maybe\n", "no time": "x: !!timestamp noon\n",
    "no day": "x: 2024-02-31\n", "digits": "x: " + "9" * 5000 + "\n", "tab": "\tx: 1\n", "nul": "x: \0\n", "list": "- {}\n", "word": "nothing\n", "open": "x: 'never closed\n",
    "custom": "x: !secret y\n", "deep flow": "x: " + "[" * 200_000 + "\n", "deep blocks": "- " * 200_000 + "x\n", "deep keys": "? " * 100_000 + "x\n",
    "large": "# \n", "twice": "", "two": "x: 1\n---\n"}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["params.yaml", "presets/mine.yaml", "sources.yaml"])
def test_B5_a_trap_in_yaml_is_one_clear_error_in_every_file_that_people_edit(layout: Layout, monkeypatch: pytest.MonkeyPatch, name: str, trap: str):
    monkeypatch.chdir(layout.root)
    group = "  digest: none\n  kind: none\n  source: none\n  files: []\n"
    good, again, load = {
        "params.yaml": (layout.params.read_text(), "preset: smoke\n", settings.load),
        "presets/mine.yaml": ("training:\n  steps: 50\n", "training:\n  steps: 60\n", settings.resolve),
        "sources.yaml": (f"corpus:\n{group}records:\n{group}base:\n{group}", f"corpus:\n{group}", fetch.listed)}[name]
    path = layout.root / name
    path.write_text(good)
    load(path)
    path.write_text(TRAPS[trap] + good + (again if trap == "twice" else ""))
    if trap == "large":
        os.truncate(path, 64 * 2**20 + 1)
    if name == "sources.yaml" and trap in HARMLESS:
        assert set(load(path)) >= {"corpus", "records", "base"}
    else:
        assert path.stem in refused(load, path)
    assert not list(layout.root.rglob("pwned"))


@pytest.mark.parametrize("entry", ["*l29", "{name: *l29, path: a, bytes: 1, sha256: a}", "{name: a, path: a, bytes: *l29, sha256: a}",
                                   "{name: a, path: a, bytes: true, sha256: a}", "{name: a, path: a, bytes: -1, sha256: a}"])
def test_B5_a_bomb_where_a_source_file_should_stand_is_not_spelled_out(layout: Layout, entry: str):
    group = "  digest: none\n  kind: none\n  source: none\n  files: []\n"
    layout.sources.write_text(f"{LISTS}corpus:\n  digest: none\n  kind: user\n  source: x\n  files: [{entry}]\nrecords:\n{group}base:\n{group}")
    message = refused(fetch.listed, layout.sources)
    assert "sources.yaml is not a list of source files" in message and len(message) < 500
    layout.versions.write_text(f"{LISTS}tokenizers: *l29\n")
    message = refused(chain.check_versions, [chain.BY_NAME["tokenizer"]], layout)
    assert "tokenizers" in message and "make setup" in message and len(message) < 500


# --- secrets and the environment -----------------------------------------------------------------

@pytest.mark.parametrize("old, new", [
    ("seed: 1 ", f"seed: 1  # token {SECRET} "), ("source: embedded", f"source: /data/{SECRET}"), ("source: embedded", f"source: https://me:{SECRET[3:20]}@example.org/texts"),
    ("seed: 1 ", f"seed: 1\naws_secret_access_key: {SECRET[3:]} "), ("seed: 1 ", f"seed: 1\n{SECRET}: 1 "), ("  steps: 600 ", f"  steps: {SECRET} "),
    ("base: [finite_loss, verified_manifest, below_unigram, below_xz, not_worse_than_champion]", f"base: [{SECRET}]")])
def test_B6_what_looks_like_a_secret_in_params_yaml_is_told_by_its_line_and_never_shown(layout: Layout, capsys: pytest.CaptureFixture, old: str, new: str):
    edit(layout, old, new)
    number = next(n for n, line in enumerate(layout.params.read_text().splitlines(), 1) if SECRET[3:20] in line)
    outcome = chain.attempt(chain.BY_NAME["fetch"], layout)
    message = outcome["message"]
    assert outcome["exit_code"] == 2 and f"line {number} holds what looks like a secret" in message and "environment" in message
    said = capsys.readouterr()
    kept = "".join(path.read_text(errors="replace") for path in layout.state.rglob("*") if path.is_file()) if layout.state.exists() else ""
    assert SECRET[3:20] not in message + said.out + said.err + kept


def test_B6_a_secret_in_a_preset_or_given_by_set_is_refused_too(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(use_command, "Layout", lambda: layout)
    (layout.presets / "mine.yaml").write_text(f"# {SECRET}\ntraining:\n  steps: 50\n")
    (layout.presets / "plain.yaml").write_text("seed: 2\n")
    before = layout.params.read_text()
    for preset, assigned in (("mine", []), ("plain", [f"corpus.text_field={SECRET}"]), ("plain", [f"training.steps={SECRET}"])):
        with pytest.raises(UserError, match="looks like a secret") as caught:
            use_command.use(preset, assign=assigned)
        assert SECRET not in str(caught.value)
    assert layout.params.read_text() == before
    assert settings.resolve(layout.presets / "plain.yaml", {"corpus.source": "/data/secret-garden/第一章"}).corpus.source.endswith("第一章")


@pytest.mark.parametrize("value", ["", "   "])
def test_B6_an_empty_variable_counts_as_none(layout: Layout, monkeypatch: pytest.MonkeyPatch, value: str):
    for service in processes.SERVERS:
        monkeypatch.setenv(service.variable, value)
        assert services.outside(service, layout) is None and services.address(layout, service) is None
    for variable in addresses.SECRETS:
        monkeypatch.setenv(variable, value)
        assert not addresses.secret_address(variable)


def test_B6_a_variable_that_is_wrong_or_lacks_its_other_half_is_named_and_not_shown(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    for variable in addresses.SECRETS:
        monkeypatch.setenv(variable, f"hooks.example.org/{SECRET}")
        message = refused(addresses.secret_address, variable)
        assert variable in message and SECRET not in message
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    assert "MLFLOW_TRACKING_PASSWORD is not, or is empty" in refused(services.outside, processes.MLFLOW, layout)


# --- databases, versions, devices ----------------------------------------------------------------

@pytest.mark.parametrize("value", ["sqlite:///typo/x.db", "sqlite:////{root}/typo.db", "file:./typo", "typo", "{root}/typo", "postgresql://me:topsecret@nowhere/typo", "databricks", "http:/typo"])
def test_B7_a_wrong_address_of_a_database_makes_no_database(layout: Layout, monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.chdir(layout.root)
    before = sorted(os.listdir(layout.root))
    for service in processes.SERVERS:
        monkeypatch.setenv(service.variable, value.format(root=layout.root))
        for use in (lambda: services.ensure(layout), lambda service=service: services.address(layout, service)):
            message = refused(use)
            assert service.variable in message and "http" in message and f"Unset {service.variable}" in message and "topsecret" not in message
        if service is processes.MLFLOW:
            refused(mlflow_rest.server_url, layout)
        monkeypatch.delenv(service.variable)
    with pytest.raises(UserError, match="no database"):
        with databases.opened(layout.root / "typo" / "x.db"):
            pass
    assert sorted(set(os.listdir(layout.root)) - {".lmworks"}) == before and not list(layout.root.rglob("*.db"))


def test_B7_the_variables_of_mlflow_and_prefect_lead_our_servers_to_no_other_database(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    for variable in (*processes.MLFLOW_STORES, *processes.PREFECT_DATABASES):
        monkeypatch.setenv(variable, "sqlite:///typo/x.db")
    assert not set(processes.MLFLOW_STORES) & set(processes.environment_of(layout, "mlflow", 1, ""))
    message = refused(processes.environment_of, layout, "prefect", 1, "")
    assert processes.PREFECT_DATABASES[0] in message and "empty database" in message and "Unset" in message


def test_B10_folders_of_another_format_say_which_one_is_read(layout: Layout):
    partial = layout.partial / "raw"
    partial.mkdir(parents=True)
    (partial / "documents.parquet").write_text("x")
    files.publish(partial, layout.raw)
    manifest = files.read_json(layout.raw / files.MANIFEST)
    for stamp, words in ((2, "has format 2; this lmworks reads 1: a newer version wrote it"), (0, "format 1 with a list of files was expected"), ("1", "format 1 with a list"), (None, "format 1")):
        files.write_json(layout.raw / files.MANIFEST, manifest | {"format": stamp})
        message = refused(files.verify_manifest, layout.raw)
        assert words in message and "lmworks run" in message


def test_B10_settings_of_an_older_version_are_completed_and_those_of_a_newer_one_named(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(use_command, "Layout", lambda: layout)
    shutil.copy(ROOT / "presets" / "tiny.yaml", layout.presets)
    tree = yaml.safe_load(layout.params.read_text())
    del tree["gates"], tree["training"]["threads"]
    tree["training"]["steps"] = 321
    layout.params.write_text(yaml.safe_dump(tree))
    message = refused(settings.load, layout.params)
    assert "missing keys: training.threads, gates.base" in message and "Run: lmworks use --upgrade" in message
    use_command.use(upgrade_=True)
    assert (settings.load(layout.params).training.steps, settings.load(layout.params).training.threads) == (321, 2)
    layout.params.write_text(layout.params.read_text() + "quantum:\n  qubits: 5\n")
    assert "unknown key 'quantum.qubits'" in refused(settings.load, layout.params)
    assert "unknown key 'quantum.qubits'" in refused(use_command.upgrade, layout)


def test_B11_a_gpu_that_is_not_there_is_told_before_anything_runs(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    edit(layout, "device: cpu  # where to train", "device: cuda  # where to train")
    edit(layout, "device: cpu  # where the models are scored", "device: cuda  # where the models are scored")
    monkeypatch.setattr(run_command, "Layout", lambda: layout)
    before = sorted(os.listdir(layout.root))
    with pytest.raises(UserError, match=r"training\.device and evaluation\.device: 'cuda' is asked for, but .*--set training\.device=cpu --set evaluation\.device=cpu.*TORCH=cuda") as caught:
        run_command.run()
    assert caught.value.exit_code == 2 and sorted(set(os.listdir(layout.root)) - {".lmworks"}) == before
