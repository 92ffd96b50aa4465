"""The lines that call a model ask it something in a language that it knows."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import checkout
import pytest

from commands import summary
from components import files
from components.release import calling, lineage, package


@pytest.mark.parametrize(("name", "languages", "prompt"), [
    ("tiny", ["en", "zh"], "The king"), ("tiny", ["zh"], "这里的"), ("tiny", ["zh", "en"], "这里的"), ("tiny-instruct", ["en"], "What is the default of axis?"),
    ("tiny-instruct", ["zh"], "你好"), ("tiny-instruct", ["other", "zh"], "你好"), ("earlier", [""], "The king")])
def test_the_same_prompt_on_the_page_and_in_the_terminal(name: str, languages: list[str], prompt: str):
    line = shlex.split(calling.ask_line(name, languages))
    assert json.loads(line[line.index("-d") + 1])["inputs"] == [prompt]
    page = calling.usage(name, languages, "http://127.0.0.1:5311", f"models:/{name}@champion")
    assert f'model.predict(["{prompt}"]' in page and f'"inputs": ["{prompt}"]' in page


@pytest.mark.parametrize(("texts", "records", "base", "instruct"), [
    ({"en": 20, "zh": 3000}, {"zh": 4}, "这里的", "你好"),  # a line of Latin letters in a Chinese corpus
    ({"en": 20, "zh": 3000}, {"en": 4, "zh": 1}, "这里的", "What is the default of axis?"),
    ({"en": 300}, {"en": 4}, "The king", "What is the default of axis?"),
    ({"zh": 300}, {}, "这里的", "你好")])  # no records were judged: the corpus says it
def test_the_language_with_most_of_what_was_learned_from_is_asked_everywhere(tmp_path, monkeypatch, texts, records, base, instruct):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    config = checkout.configuration(name="asked")
    layout = checkout.make(tmp_path, config)
    index = files.read_json(layout.tokens / "index.json")
    index["splits"]["train"] = {code: {"documents": 1, "tokens": tokens, "bytes": tokens} for code, tokens in texts.items()}
    files.write_json(layout.tokens / "index.json", index)
    judged = files.read_json(layout.evaluation / "evaluation.json")
    judged["applications"] = {"classification": {code: {"training_records": count} for code, count in records.items()}}
    files.write_json(layout.evaluation / "evaluation.json", judged)
    found = {subject.name: subject for subject in lineage.subjects(config, layout)}
    released = [{"name": name, "version": "1", "champion_version": "1"} for name in found]
    lines = [line for line, _ in summary.next_commands(config, layout, SimpleNamespace(release=released))]
    for name, prompt in (("asked", base), ("asked-instruct", instruct)):
        assert package.example(found[name])[0] == [prompt] == [calling.example_prompt(name, found[name].languages)]
        assert any(" generate " in line and ("--instruct" in line) == (name != "asked") and prompt in shlex.split(line) for line in lines), lines
