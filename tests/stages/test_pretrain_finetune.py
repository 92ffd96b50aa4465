"""The two training stages on a small bilingual corpus: what they leave behind, and that it is the same twice."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import files, tracking
from components.config import build
from components.corpus import shards
from components.corpus import tokenizer as bpe
from components.errors import Damaged, UserError
from components.layout import Layout
from components.stages import finetune, pretrain
from components.training import gpt, model

pytestmark = pytest.mark.code
SETTINGS = {
    "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 32, "model.context": 64, "training.steps": 30, "training.rows": 8,
    "training.row_tokens": 32, "training.optimizer": "muon", "training.warmup_steps": 3, "training.threads": 1, "training.learning_rate": 1e-2,
    "training.validation_interval": 15, "training.checkpoint_interval": 10, "training.validation_tokens": 400, "training.precision": "auto",
    "finetuning.max_row_tokens": 64, "finetuning.rows": 8, "finetuning.max_records": 24, "finetuning.warmup_steps": 2, "finetuning.log_interval": 2, "finetuning.learning_rate": 1e-2, "finetuning.epochs": 3}
EN = ["the king", "a queen", "the clown", "my lord", "the ghost", "a soldier"]
ZH = ["这家酒店", "这本书", "那个手机", "服务员", "送餐的人", "房间"]


class Run:
    """The tracker's protocol, kept in memory."""

    opened: list = []

    def __init__(self, config, layout, *, stage, parameters, languages, params):
        self.name = tracking.run_name(stage, config, parameters, languages)
        self.params, self.points, self.tags, self.end = params, [], {}, None
        Run.opened.append(self)

    def log(self, step, metrics):
        self.points.append((step, metrics))

    def flush(self):
        pass

    def finish(self, status, error=""):
        self.end = (status, error)


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch):
    monkeypatch.setattr(tracking, "open_run", Run)
    Run.opened = []


def documents():
    rng = np.random.default_rng(0)
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    en = [" ".join(f"{pick(EN)} sees {pick(EN)}." for _ in range(6)) for _ in range(60)]
    zh = ["，".join(f"{pick(ZH)}{'很好' if rng.random() < 0.5 else '不好'}" for _ in range(5)) + "。" for _ in range(60)]
    return {"en": en, "zh": zh}


def records():
    rows = []
    for i in range(80):
        good = i % 2
        split = "validation" if i >= 70 else "train"
        rows.append(("classification", "zh", f"{ZH[i % 6]}{'很好' if good else '不好'}，{i}", "正面" if good else "负面", split))
        rows.append(("question_answering", "en", f"Who sees {EN[i % 6]} at {i}?", EN[(i + 1) % 6], split))
        rows.append(("translation", "en", f"say {i}", ZH[i % 6], split))
    return sorted(({"id": files.sha256_bytes(f"{a}{p}".encode())[:16], "application": a, "language": lang, "prompt": p, "answer": answer,
                    "label": answer if a == "classification" else "", "split": s} for a, lang, p, answer, s in rows), key=lambda r: r["id"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkout with everything that stands before pretraining."""
    root = tmp_path_factory.mktemp("world")
    layout = Layout(root=root)
    texts = documents()
    bpe.write(bpe.train((t for part in texts.values() for t in part), 400), layout.tokenizer)
    tokenizer = bpe.load(layout.tokenizer)
    size = bpe.vocab_size(tokenizer)
    layout.tokens.mkdir()
    splits = {"train": slice(0, 50), "validation": slice(50, 60)}
    index = {"dtype": "uint16", "vocab_size": size, "eot_id": 0, "tokenizer_sha256": bpe.sha256(layout.tokenizer), "splits": {
        split: {lang: shards.write_shard(layout.tokens, f"{split}-{lang}", part[where], tokenizer, 0, size)[0] for lang, part in texts.items()}
        for split, where in splits.items()}}
    files.write_json(layout.tokens / "index.json", index)
    layout.clean.mkdir()
    pq.write_table(pa.Table.from_pylist(records()), layout.clean / "records.parquet")
    layout.sources_base.mkdir(parents=True)
    files.write_json(layout.sources_base / "origin.json", {"kind": "none"})
    return root


def stage(module, world, folder, config, **outs):
    """Run one stage of `world` into `folder`. Returns the layout that finds its out."""
    out = {pretrain: "pretrained", finetune: "finetuned"}[module]
    target = folder / out
    target.mkdir(parents=True)
    layout = Layout(root=world, staged={out: target, **outs}, work=folder / "work" / out / "key0")
    return module.run(config, layout), layout


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Both stages, once."""
    config, folder = build(SETTINGS, where="test"), tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "open_run", Run)
        report, _ = stage(pretrain, world, folder, config)
        second, _ = stage(finetune, world, folder, config, pretrained=folder / "pretrained")
    return SimpleNamespace(folder=folder, config=config, reports=(report, second))


def hashes(folder):
    return {name: files.sha256_file(folder / name) for name in files.list_files(folder)}


def test_pretraining_leaves_what_the_contract_names(trained, world):
    out = trained.folder / "pretrained"
    assert set(hashes(out)) == {"curve.csv", "metrics.json", "training.json", "model/config.json", "model/generation_config.json", "model/model.safetensors",
                                "model/tokenizer.json", "model/tokenizer_config.json", "model/chat_template.jinja"}
    metrics = files.read_json(out / "metrics.json")
    assert metrics["weights_sha256"] == files.weights_sha256(out / "model")
    assert {"train/loss", "val/loss", "val/bits_per_byte", "val/bits_per_byte_en", "val/bits_per_byte_zh", "steps", "parameters"} <= set(metrics)
    assert not any("per_s" in key or "mfu" in key for key in metrics)
    with open(out / "curve.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["step"]) for row in rows] == [10, 20, 30]
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])
    assert trained.reports[0].steps == 30


def test_the_model_opens_in_transformers_with_its_tokenizer(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for out in ("pretrained", "finetuned"):
        folder = trained.folder / out / "model"
        opened, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        assert not any(info.values())
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert tokenizer("国王 king")["input_ids"] and tokenizer.model_max_length == opened.config.max_position_embeddings
    assert opened.generation_config.eos_token_id == [0, 3]


def test_validation_bits_per_byte_are_those_of_the_documents(trained, world):
    """Against a computation from the text itself."""
    import torch

    layout = Layout(root=world)
    tokenizer, gpt_ = bpe.load(layout.tokenizer), model.load(trained.folder / "pretrained/model")
    metrics = files.read_json(trained.folder / "pretrained/metrics.json")
    texts = documents()["zh"][50:60]
    stream, ids, num_bytes = [0], [], 0
    for text in texts:
        ids = [*tokenizer.encode(text, add_special_tokens=False).ids, 0]
        if len(stream) - 1 + len(ids) > 400:
            break
        stream, num_bytes = stream + ids, num_bytes + len(text.encode())
    nats, precision = 0.0, files.read_json(trained.folder / "pretrained/training.json")["precision"]  # what this processor has instructions for
    for start in range(0, len(stream) - 1, 32):
        row = stream[start:start + 33]
        for end in range(1, len(row)):
            begin = max([i for i in range(end) if row[i] == 0] + [0])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                nats -= gpt_(torch.tensor([row[begin:end]]))[0, -1].float().log_softmax(-1)[row[end]].item()
    assert metrics["val/bits_per_byte_zh"] == pytest.approx(nats / np.log(2) / num_bytes, rel=1e-4)


def test_two_runs_from_scratch_are_identical_in_every_byte(trained, world, tmp_path):
    stage(pretrain, world, tmp_path, trained.config)
    stage(finetune, world, tmp_path, trained.config, pretrained=tmp_path / "pretrained")
    for out in ("pretrained", "finetuned"):
        assert hashes(tmp_path / out) == hashes(trained.folder / out)


@pytest.mark.parametrize(("at", "resumes"), [("its first steps", False), ("its last steps", True), ("export", True)])
def test_C6_a_killed_fine_tuning_or_export_goes_on_and_ends_with_the_same_bytes(trained, world, tmp_path, monkeypatch, capsys, at, resumes):
    from components.training import loop

    class Killed(BaseException):
        """No handler of ours takes it for an error."""

    def killed(*args):
        nonlocal calls
        calls += 1
        if calls == {"its first steps": 3, "its last steps": 14}.get(at):
            raise Killed
        return whole(*args)

    def no_export(*args, **kwargs):
        raise Killed

    whole, calls = loop.batch_loss, 0
    config = build(SETTINGS | {"finetuning.checkpoint_interval": 5}, where="test")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "batch_loss", killed)
        if at == "export":
            patch.setattr(finetune.model, "export", no_export)
        with pytest.raises(Killed):
            stage(finetune, world, tmp_path / "a", config, pretrained=trained.folder / "pretrained")
    shutil.rmtree(tmp_path / "a/finetuned")
    stage(finetune, world, tmp_path / "a", config, pretrained=trained.folder / "pretrained")
    assert ("resumes after step" in capsys.readouterr().err) == resumes
    assert hashes(tmp_path / "a/finetuned") == hashes(trained.folder / "finetuned")


def test_C2_a_stopped_stage_goes_on_in_its_own_folder_and_ends_with_the_same_bytes(trained, world, tmp_path, monkeypatch):
    from components.training import loop

    whole, calls = loop.batch_loss, 0

    def stopped(*args):
        nonlocal calls
        calls += 1
        if calls == 19:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(loop, "batch_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage(pretrain, world, tmp_path / "a", trained.config)
    assert Run.opened[-1].end == ("KILLED", "") and not Run.opened[-1].tags
    monkeypatch.setattr(loop, "batch_loss", whole)
    shutil.rmtree(tmp_path / "a/pretrained")
    stage(pretrain, world, tmp_path / "a", trained.config)
    assert [step for step, _ in Run.opened[-1].points] == [10, 20, 30], "the tracker is told the whole curve: it may have lost its notes"
    assert hashes(tmp_path / "a/pretrained") == hashes(trained.folder / "pretrained")


def test_the_tracked_run_has_a_name_to_say_speed_and_the_weights_hash(world, tmp_path):
    config = build(SETTINGS | {"training.steps": 10, "name": "probe"}, where="test")
    stage(pretrain, world, tmp_path, config)
    run = Run.opened[-1]
    assert run.name == "pretrain probe 0.0M zh+en seed 1"
    assert run.end == ("FINISHED", "")
    assert run.tags == {"lmworks.weights_sha256": files.weights_sha256(tmp_path / "pretrained/model")}
    assert {"train/tokens_per_s", "train/mfu", "train/loss"} <= set(run.points[-1][1])
    assert len(run.params) <= 60


def test_fine_tuning_learns_the_answers_and_takes_at_most_max_records(trained):
    out = trained.folder / "finetuned"
    metrics, about = files.read_json(out / "metrics.json"), files.read_json(out / "training.json")
    assert about["records"] == 2 * 24
    assert about["applications"] == ["classification", "question_answering"]
    assert metrics["weights_sha256"] != files.read_json(trained.folder / "pretrained/metrics.json")["weights_sha256"]
    with open(out / "curve.csv", encoding="utf-8") as f:
        losses = [float(row["train/loss"]) for row in csv.DictReader(f)]
    assert losses[-1] < losses[0]


def test_records_that_nobody_can_learn_from_are_an_error(trained, world, tmp_path):
    config = build(SETTINGS | {"finetuning.applications": ["summarisation"]}, where="test")
    with pytest.raises(UserError, match="no record of summarisation"):
        stage(finetune, world, tmp_path, config, pretrained=trained.folder / "pretrained")


def test_tokens_that_do_not_spell_the_stated_bytes_are_refused(world, tmp_path):
    tokens = tmp_path / "tokens"
    shutil.copytree(Layout(root=world).tokens, tokens)
    index = json.loads((tokens / "index.json").read_text())
    index["splits"]["validation"]["zh"]["bytes"] += 1
    (tokens / "index.json").write_text(json.dumps(index))
    with pytest.raises(Damaged, match="do not spell"):
        stage(pretrain, world, tmp_path / "x", build(SETTINGS, where="test"), tokens=tokens)


def imported(folder, name):
    """A base of another shape with a vocabulary and template of its own, as `fetch` and `tokenizer` leave it."""
    import tokenizers
    import transformers

    base, tokenizer_folder = folder / "base", folder / "tokenizer"
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.train_from_iterator([t for part in documents().values() for t in part], tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>", clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(base)
    common = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
    deep = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 96, "num_key_value_heads": 2}
    config = {"gpt2": lambda: transformers.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=96),
              "llama": lambda: transformers.LlamaConfig(**common, **deep),
              "qwen2": lambda: transformers.Qwen2Config(**common, **deep, tie_word_embeddings=True),
              "qwen3": lambda: transformers.Qwen3Config(**common, **deep, head_dim=16)}[name]()
    import torch

    torch.manual_seed(2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    (base / "pytorch_model.bin").write_bytes(b"a pickle")
    files.write_json(base / "origin.json", {"kind": "imported"})
    from components.applications.template import PLAIN_CHAT_TEMPLATE

    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    tokenizer.save_pretrained(tokenizer_folder)
    return base, tokenizer_folder


@pytest.mark.parametrize(("name", "lean"), [("gpt2", True), ("llama", False), ("qwen2", False), ("qwen3", False)])
def test_an_imported_base_passes_through_and_is_fine_tuned(world, tmp_path, name, lean):
    from transformers import AutoModelForCausalLM

    base, tokenizer_folder = imported(tmp_path, name)
    config = build(SETTINGS | {"corpus.base": "x"}, where="test")
    outs = {"sources/base": base, "tokenizer": tokenizer_folder}
    stage(pretrain, world, tmp_path, config, **outs)
    passed = tmp_path / "pretrained"
    assert Run.opened == []
    assert (passed / "model/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert not (passed / "model/pytorch_model.bin").exists()
    assert (passed / "model/chat_template.jinja").exists()
    assert files.read_json(passed / "metrics.json") == {"imported": True, "steps": 0, "weights_sha256": files.weights_sha256(passed / "model")}
    stage(finetune, world, tmp_path, config, pretrained=passed, **outs)
    about = files.read_json(tmp_path / "finetuned/training.json")
    assert about["imported"]
    assert about["lean"] == lean
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "finetuned/model", local_files_only=True, output_loading_info=True)
    assert not any(info.values())
    assert opened.config.model_type == name
    with open(tmp_path / "finetuned/curve.csv", encoding="utf-8") as f:
        losses = [float(row["train/loss"]) for row in csv.DictReader(f)]
    assert losses[-1] < losses[0]


def test_a_tokenizer_larger_than_the_model_is_refused(trained, world, tmp_path):
    small = tmp_path / "pretrained"
    model.export(gpt.create(gpt.Shape(architecture="llama", vocab_size=50, n_layer=1, n_head=2, n_embd=16, n_hidden=32, context=64, tied=True), 0), small / "model")
    files.write_json(small / "training.json", {"imported": True})
    with pytest.raises(UserError, match="do not belong together"):
        stage(finetune, world, tmp_path, trained.config, pretrained=small)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_a_stage_imports_neither_transformers_nor_torch_s_compiler(name):
    """Seconds of every start; only a base that the lean module cannot represent, or training.compile, needs them."""
    import subprocess
    import sys

    from components.layout import ROOT

    code = f"""import sys, torch, components.stages.{name}
from components.training import optimizers, threads
threads.prepare(1, "cpu")
optimizers.Optimizers(torch.nn.Linear(2, 2), kind="adamw", learning_rate=1.0, weight_decay=0.0)
print([m for m in ("transformers", "mlflow", "pandas", "torch._dynamo") if m in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"
