"""Settings: complete, typed, bounded; every problem is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import settings as use_command
from components import config as settings
from components.errors import UserError

pytestmark = pytest.mark.code


def test_render_and_load_are_inverse(tmp_path: Path):
    config = settings.build({"corpus.source": "我的 文本/目录", "training.learning_rate": 1e-3, "name": "x"}, where="t")
    (tmp_path / "params.yaml").write_text(settings.render(config))
    assert settings.load(tmp_path / "params.yaml") == config


def test_every_setting_has_a_sentence():
    assert all(field.description for field in settings.known_keys().values())


def test_B1_unknown_key_suggests_the_near_one():
    with pytest.raises(UserError, match=r"unknown key 'training.learning_rte'; did you mean 'training.learning_rate'\?"):
        settings.build({"training.learning_rte": 1e-3}, where="params.yaml")


def test_B2_B3_all_problems_at_once_with_value_and_bound():
    with pytest.raises(UserError) as caught:
        settings.build({"training.learning_rate": float("nan"), "training.rows": 0, "model.n_head": 3, "training.row_tokens": 512, "sead": 1}, where="params.yaml")
    text = str(caught.value)
    assert "params.yaml: 5 problems" in text
    for part in ("training.learning_rate=nan", "training.rows=0", "greater than or equal to 1", "model.n_head=3 must divide model.n_embd=256",
                 "training.row_tokens=512 must be at most model.context", "did you mean 'seed'?"):
        assert part in text


def test_B2_scientific_notation_is_a_number_and_words_are_not():
    assert settings.build({"training.learning_rate": "1e-3"}, where="t").training.learning_rate == 1e-3
    assert settings.build({"corpus.embedded_mb": 9}, where="t").corpus.embedded_mb == 9.0
    with pytest.raises(UserError, match="training.learning_rate='fast'"):
        settings.build({"training.learning_rate": "fast"}, where="t")


def test_B5_duplicate_keys_and_python_tags_are_refused(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(UserError, match="'seed' is given twice"):
        settings.load(path)
    path.write_text("seed: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        settings.load(path)


def test_B10_missing_keys_are_named_with_the_command_that_adds_them(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("preset: tiny\nname: tiny\n")
    with pytest.raises(UserError, match=r"missing keys: .*training.steps.*lmworks use --upgrade"):
        settings.load(path)
    with pytest.raises(UserError, match="lmworks use tiny"):
        settings.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(("folder", "expected"), [("My Texts", "my-texts"), ("wiki.jsonl.gz", "wiki"), ("_a_", "a")])
def test_name_of_a_corpus_is_a_slug(tmp_path: Path, folder: str, expected: str):
    assert use_command.slug(tmp_path / folder) == expected


def test_B8_chinese_folder_names_give_distinct_valid_names(tmp_path: Path):
    one, other = use_command.slug(tmp_path / "唐诗"), use_command.slug(tmp_path / "宋词")
    assert one != other
    assert settings.build({"name": one}, where="t").name == one


def test_set_parses_yaml_values():
    assert use_command.parse_set(["training.steps=200", "gates.base=[finite_loss]"]) == {"training.steps": 200, "gates.base": ["finite_loss"]}
    with pytest.raises(UserError, match="KEY=VALUE"):
        use_command.parse_set(["training.steps"])


@pytest.mark.parametrize("text", ["training: [\n", "- a list\n", "5\n", ""])
def test_use_mends_a_params_yaml_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    from components.layout import ROOT, Layout

    (tmp_path / "presets").symlink_to(ROOT / "presets")
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.setattr(use_command, "Layout", lambda: Layout(root=tmp_path))
    if text and text[0] != "t":
        with pytest.raises(UserError, match="lmworks use tiny"):
            use_command.upgrade(Layout(root=tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Some words.")
    (tmp_path / "r.jsonl").write_text("{}")
    use_command.use("smoke", corpus=tmp_path / "texts", records=tmp_path / "r.jsonl")
    config = settings.load(tmp_path / "params.yaml")
    assert (config.preset, config.corpus.source, config.corpus.records, config.name) == ("smoke", "texts", "r.jsonl", "texts")
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        use_command.use("smokey")
