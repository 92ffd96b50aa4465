"""sources.yaml: which files are listed, when they are hashed again, what is refused."""

from __future__ import annotations

import os

import pytest

from components import config as configuration
from components import files
from components.corpus import embedded, sources
from components.corpus.origins import check_name, kind_of, locate, site_packages, spell
from components.errors import Damaged, UserError
from components.layout import Layout

pytestmark = pytest.mark.code


def config_of(**flat):
    return configuration.build({key.replace("__", "."): value for key, value in flat.items()}, where="test")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A layout, a corpus folder with two languages, and one embedded file."""
    embedded_file = tmp_path / "packages" / "plays.md"
    embedded_file.parent.mkdir()
    embedded_file.write_text("To be, or not to be.\n")
    monkeypatch.setattr(embedded, "embedded_files", lambda config, layout: [("plays/plays.md", embedded_file)])
    corpus = tmp_path / "corpus"
    (corpus / "诗").mkdir(parents=True)
    (corpus / "诗" / "静夜思.txt").write_text("床前明月光\n")
    (corpus / "b.md").write_text("# Title\n")
    (corpus / ".hidden.txt").write_text("no")
    (corpus / "image.bin").write_text("no")
    root = tmp_path / "checkout"
    root.mkdir()
    return Layout(root=root), corpus


def test_a_folder_is_listed_in_sorted_order_and_unknown_kinds_are_named(checkout, capsys):
    layout, corpus = checkout
    assert sources.update(config_of(corpus__source=str(corpus), corpus__records="embedded"), layout)
    listed = files.load_yaml(layout.sources)
    assert [entry["name"] for entry in listed["corpus"]["files"]] == ["b.md", "诗/静夜思.txt"]
    assert listed["corpus"]["skipped"] == {"files": 1, "names": ["image.bin"]}
    assert "image.bin" in capsys.readouterr().err
    assert [entry["name"] for entry in listed["records"]["files"]] == ["plays/plays.md"]  # the embedded records stay
    assert listed["base"] == {"digest": "none", "kind": "none", "source": "none", "files": []}


def test_the_embedded_corpus_brings_its_own_records(checkout):
    layout, _ = checkout
    sources.update(config_of(), layout)
    listed = files.load_yaml(layout.sources)
    assert listed["corpus"]["kind"] == "embedded" and listed["records"]["digest"] == "none"


def test_only_changed_files_are_hashed_again(checkout, monkeypatch):
    layout, corpus = checkout
    config = config_of(corpus__source=str(corpus))
    monkeypatch.setattr(sources, "SETTLED_NS", 0)
    hashed = []
    real = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: hashed.append(path.name) or real(path))
    assert sources.update(config, layout)
    first = layout.sources.stat().st_mtime_ns
    hashed.clear()
    assert not sources.update(config, layout)
    assert hashed == [] and layout.sources.stat().st_mtime_ns == first
    (corpus / "b.md").write_text("# Other\n")
    assert sources.update(config, layout) and hashed == ["b.md"]
    (corpus / "new.txt").write_text("new")
    assert sources.update(config, layout) and hashed == ["b.md", "new.txt"]


def test_a_file_that_was_written_a_moment_ago_is_hashed_again(checkout, monkeypatch):
    layout, corpus = checkout
    config = config_of(corpus__source=str(corpus))
    sources.update(config, layout)
    stat = (corpus / "b.md").stat()
    (corpus / "b.md").write_text("# TITLE\n")  # same size; the time stamp is set back
    os.utime(corpus / "b.md", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sources.update(config, layout)


def test_the_digest_depends_on_names_bytes_and_kind_not_on_the_place(checkout):
    layout, corpus = checkout
    sources.update(config_of(corpus__source=str(corpus)), layout)
    before = files.load_yaml(layout.sources)["corpus"]["digest"]
    moved = corpus.rename(corpus.with_name("moved"))
    assert not sources.update(config_of(corpus__source=str(moved)), layout)  # other paths, the same digest
    assert files.load_yaml(layout.sources)["corpus"]["digest"] == before
    pairs = [("a", "1"), ("b", "2")]
    assert sources.digest_of("user", pairs) == sources.digest_of("user", pairs[::-1]) != sources.digest_of("embedded", pairs)


def test_a_damaged_stat_cache_only_costs_time(checkout):
    layout, corpus = checkout
    config = config_of(corpus__source=str(corpus))
    sources.update(config, layout)
    layout.stat_cache.parent.mkdir(exist_ok=True)
    for content in (b"", b"[1]", b'{"format": 1, "files": {"x": null}}', b"\xff"):
        layout.stat_cache.write_bytes(content)
        assert not sources.update(config, layout)


@pytest.mark.parametrize("name", ['a"b.txt', "a: b #c.txt", "a\x85b.txt", "a\u2028b.txt", "诗 😀.txt", "- x.txt", "{a}.txt"])
def test_any_file_name_survives_the_yaml(checkout, name):
    layout, corpus = checkout
    (corpus / name).write_text("text")
    sources.update(config_of(corpus__source=str(corpus)), layout)
    assert name in [entry["name"] for entry in files.load_yaml(layout.sources)["corpus"]["files"]]


def test_A11_a_link_that_leads_outside_is_refused_by_name(checkout, tmp_path):
    layout, corpus = checkout
    (tmp_path / "secret.txt").write_text("secret")
    for target in (tmp_path / "secret.txt", tmp_path, tmp_path / "nothing"):
        link = corpus / "link.txt"
        link.symlink_to(target)
        with pytest.raises(UserError, match=r"link\.txt is a link to"):
            sources.update(config_of(corpus__source=str(corpus)), layout)
        link.unlink()
    (corpus / "inside.txt").symlink_to(corpus / "b.md")
    assert sources.update(config_of(corpus__source=str(corpus)), layout)
    assert not (layout.root / "sources.yaml.partial").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a\0b", "a\\..\\b", "manifest.json", "sub/manifest.json", "origin.json"])
def test_A11_names_that_could_escape_or_collide_are_refused(name):
    with pytest.raises(UserError, match="file name"):
        check_name(name, "here")


def test_one_clear_error_for_a_path_that_cannot_be_read(checkout, tmp_path):
    layout, corpus = checkout
    empty = tmp_path / "empty"
    empty.mkdir()
    only_others = tmp_path / "others"
    only_others.mkdir()
    (only_others / "a.zip").write_text("x")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, words in ((tmp_path / "nowhere", "no such file"), (empty, "it holds no files"), (only_others, r"a\.zip"), (fifo, "neither a file nor a folder")):
        with pytest.raises(UserError, match=words):
            sources.update(config_of(corpus__source=str(path)), layout)
        assert not layout.sources.exists()
    with pytest.raises(UserError, match=r"corpus\.records.*\.jsonl"):
        sources.update(config_of(corpus__source=str(corpus), corpus__records=str(corpus)), layout)


def test_A16_a_file_that_grows_while_it_is_hashed_is_refused(checkout, monkeypatch):
    layout, corpus = checkout
    real = files.sha256_file

    def appended(path):
        digest = real(path)
        with open(path, "a") as f:
            f.write("more")
        return digest

    monkeypatch.setattr(files, "sha256_file", appended)
    with pytest.raises(UserError, match="changed while it was being read"):
        sources.update(config_of(corpus__source=str(corpus)), layout)


def test_a_single_file_of_any_extension_is_taken(checkout):
    layout, corpus = checkout
    sources.update(config_of(corpus__source=str(corpus / "image.bin")), layout)
    assert files.load_yaml(layout.sources)["corpus"]["files"][0]["name"] == "image.bin"


def test_an_imported_base_is_a_folder_below_data_imported(checkout):
    layout, _ = checkout
    model = layout.imported / "small"
    (model / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub/x.json"):
        (model / name).write_text(name)
    files.write_manifest(model)
    sources.update(config_of(corpus__base="small"), layout)
    base = files.load_yaml(layout.sources)["base"]
    assert [entry["name"] for entry in base["files"]] == ["config.json", "model.safetensors", "sub/x.json"]
    assert base["files"][0]["path"] == "data/imported/small/config.json" and base["kind"] == "imported"
    for wrong in ("absent", "../small", "/etc", "small/sub"):
        with pytest.raises(UserError, match="lmworks import"):
            sources.update(config_of(corpus__base=wrong), layout)
    before = layout.sources.read_bytes()
    (model / "model.safetensors").write_text("model.safetensorz")  # D3: never taken for a new version of the base
    with pytest.raises(Damaged, match="model.safetensors is damaged: sha256 .*lmworks import"):
        sources.update(config_of(corpus__base="small"), layout)
    assert layout.sources.read_bytes() == before


def test_a_path_is_spelled_so_that_the_checkout_may_move(checkout, tmp_path):
    layout, corpus = checkout
    inside = layout.root / "texts" / "a.txt"
    for path, spelled in ((inside, "texts/a.txt"), (site_packages() / "numpy" / "x.py", "site-packages/numpy/x.py"), (corpus, str(corpus))):
        assert spell(path, layout.root) == spelled
        assert locate(spelled, layout.root) == path
    assert sources.shipped(inside, layout) == "texts/a.txt"
    assert sources.shipped(corpus, layout) == str(corpus)


def test_the_kind_of_a_file_is_told_by_its_name():
    assert [kind_of(name) for name in ("a.TXT", "b.md.gz", "c.jsonl", "d.csv.gz", "e.tsv", "f.parquet", "g.zip", "h", "i.gz")] == [
        "text", "text", "jsonl", "csv", "tsv", "parquet", None, None, None]
