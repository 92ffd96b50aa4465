"""Hostile files at every door of lmworks that opens something, and a hook that sees each unpickling while its real commands run.

A door must refuse in one clear line, or open a thing whose hostile part nobody looks at; in no case may its code run. The doors are
called in this process; the commands run in a checkout of their own.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability import hostile_files, unpickling
from benchmarks.reliability.hostile_files import Hostile
from benchmarks.workspace import clean_env, clone
from components import chain, files
from components import config as settings
from components.corpus import readers, shards, sources, tokenizer
from components.errors import UserError
from components.layout import ROOT, Layout
from components.release import imported, loader
from components.stages import fetch
from components.training import model

GOAL = "0 of 20 and more hostile files executed at any door that opens something; 0 unpicklings of anything from a file, a database or the network in a whole chain (import hook)"
COUNT = len(hostile_files.ALL)  # fewer: as many drawn by the seed, and no chain
TEXTS = ["To be, or not to be, that is the question.", "房间很干净，服务员很热情，下次还会来。", "这个酒店的早餐不好吃，价格也贵。"] * 8
CHAIN = (("use", "smoke"), ("up",), ("run",), ("generate", "The king", "--version", "1"), ("models",), ("status",), ("verify",), ("why",), ("doctor",), ("run",), ("down",))


# --- sound things, to be spoiled -----------------------------------------------------------------

def sound_model(folder: Path) -> None:
    """A tiny model as `pretrain` leaves one."""
    learned = tokenizer.train(TEXTS, 400)
    config = settings.build({"model.n_layer": 1, "model.n_embd": 16, "model.n_head": 2, "model.context": 64, "training.row_tokens": 32,
                             "finetuning.max_row_tokens": 48}, where="hostile")
    folder.mkdir(parents=True)
    model.export(model.build(config, tokenizer.vocab_size(learned)), folder)
    tokenizer.write(learned, folder)


def sound_logged(folder: Path, source: Path) -> None:
    """That model as MLflow stores it."""
    import mlflow

    packed = folder.parent / "packed" / "model"
    shutil.copytree(source, packed)
    files.write_json(packed / "serving.json", {"kind": "base", "name": "hostile", "weights_sha256": files.weights_sha256(packed)})
    files.write_manifest(packed)
    mlflow.pyfunc.save_model(str(folder), python_model=str(loader.MODEL_FILE), artifacts={"model": str(packed)}, pip_requirements=["mlflow"])


def sound_settings(folder: Path) -> None:
    shutil.copytree(ROOT / "presets", folder / "presets")
    files.write_atomic(folder / "params.yaml", settings.render(settings.Config()))
    nothing = "{digest: none, kind: none, source: embedded, files: []}"
    files.write_atomic(folder / "sources.yaml", f"corpus: {nothing}\nrecords: {nothing}\nbase: {nothing}\n")


def sound_tokens(folder: Path, tokens: Path) -> None:
    learned = tokenizer.load(tokens)
    folder.mkdir(parents=True)
    size = tokenizer.vocab_size(learned)
    entry, _ = shards.write_shard(folder, "train-zh", TEXTS, learned, 0, size)
    files.write_json(folder / "index.json", {"dtype": "uint16", "vocab_size": size, "eot_id": 0, "splits": {"train": {"zh": entry}}})
    files.write_manifest(folder)


@contextlib.contextmanager
def sound() -> Iterator[Path]:
    """A folder that holds one sound thing of each kind."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root = Path(scratch)
        sound_model(root / "model")
        sound_logged(root / "logged", root / "model")
        sound_settings(root / "settings")
        sound_tokens(root / "tokens", root / "model")
        (root / "corpus").mkdir()
        yield root


# --- the doors -----------------------------------------------------------------------------------

def into_the_chain(folder: Path, layout: Layout) -> None:
    """A folder that somebody put into data/imported by hand: what tokenizer, pretrain and finetune do with it."""
    tokenizer.pass_through(folder, layout.root / "tokenizer")
    tokenizer.load_for_chat(layout.root / "tokenizer")
    model.load_any(folder)


def as_served(folder: Path, layout: Layout) -> None:
    """What the model file does once the manifest is right, which a writer of files can see to."""
    from components.serving import model_file

    if (folder / "config.json").exists():
        model_file.load(folder, "cpu")


def from_the_registry(folder: Path, layout: Layout) -> None:
    """What `generate` does once the hashes are right, which a writer to MLflow's server can see to."""
    import mlflow

    loader.check(folder, "hostile version 1")
    mlflow.pyfunc.load_model(str(folder)).predict(["房间"], params={"max_new_tokens": 2})


def read_settings(folder: Path, layout: Layout) -> None:
    settings.resolve(folder / "presets" / "tiny.yaml")
    settings.load(folder / "params.yaml")
    fetch.listed(folder / "sources.yaml")


def read_corpus(folder: Path, layout: Layout) -> None:
    config = settings.build({"corpus.source": str(folder), "corpus.records": "embedded"}, where="hostile")
    group = sources.corpus_group(config, layout)
    for name, path in group.files:
        for _ in readers.read(path, name, config.corpus)[1]:
            pass


DOORS: dict[str, dict[str, Callable[[Path, Layout], Any]]] = {
    "model": {"lmworks import": lambda folder, layout: imported.bring_in(folder, "hostile", layout), "the stages, from data/imported": into_the_chain,
              "the served model file": as_served},
    "logged": {"a version of the registry": from_the_registry},
    "settings": {"the settings": read_settings},
    "corpus": {"the corpus": read_corpus},
    "tokens": {"training": lambda folder, layout: shards.open_split(folder, "train", "zh")},
}


# what the doors before them refuse they may open, as long as nothing of it runs: they do not look at what is hostile in it
BEHIND = ("the stages, from data/imported", "the served model file")


def at_door(hostile: Hostile, door: str, whole: Path) -> dict[str, Any]:
    """What a door said to a hostile thing, and whether its code ran."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        marker, folder = Path(scratch) / "executed", Path(scratch) / "thing"
        shutil.copytree(whole / hostile.kind, folder)
        hostile.build(folder, marker)
        answer, kind, may_open = "opened", "", hostile.harmless or door in BEHIND
        try:
            DOORS[hostile.kind][door](folder, Layout(root=Path(scratch) / "checkout"))
        except UserError as error:
            answer, kind = str(error), "refused"
        except Exception as error:  # noqa: BLE001 - whatever a door lets through is what is counted here
            answer, kind = f"{type(error).__name__}: {' '.join(str(error).split())}", "refused" if type(error).__name__ == "Answer" else "error"
        return {"hostile": hostile.name, "door": door, "executed": marker.exists(), "ended": kind or "opened",
                "answer": answer.replace(scratch, "…")[:240], "clear": kind == "refused" and "\n" not in answer or not kind and may_open}


# --- the chain, watched --------------------------------------------------------------------------

def watched_chain() -> dict[str, Any]:
    """The commands of a whole life in a fresh checkout, with the hook in every process."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root, home = clone(Path(scratch) / "checkout"), Path(scratch) / "home"
        home.mkdir()
        unpickling.install(root)
        codes = {}

        def lmworks(*command: str) -> int:
            return subprocess.run([str(root / ".venv" / "bin" / "python"), "-m", "commands", *command], cwd=root, env=clean_env(root, home),
                                  text=True, capture_output=True).returncode

        try:
            for number, command in enumerate(CHAIN):
                codes[f"{number} {' '.join(command)}"] = lmworks(*command)
        finally:
            lmworks("down", "--force")
        return {"commands": codes, "astray": astray(root, codes), **unpickling.summary(root)}


def astray(root: Path, codes: dict[str, int]) -> list[str]:
    """What would make "nothing was unpickled" worth nothing: commands that failed, and parts of the chain that ran without the hook."""
    watched = {"each command": unpickling.watched(root, "commands") >= len(codes), "each stage": unpickling.watched(root, "components.chain") >= len(chain.STAGES),
               "MLflow": unpickling.watched(root, "mlflow", "server"), "Prefect": unpickling.watched(root, "flows.prefect_server")}
    return [*(name for name, code in codes.items() if code), *(f"the hook was not in {name}" for name, seen in watched.items() if not seen)]


def measure(count: int, seed: int) -> dict[str, Any]:
    """Each of `count` hostile things at every door of its kind; then, at the full count, the watched chain."""
    chosen = hostile_files.ALL if count >= COUNT else random.Random(seed).sample(hostile_files.ALL, count)
    with sound() as whole:
        answers = [at_door(hostile, door, whole) for hostile in chosen for door in DOORS[hostile.kind]]
    counts: dict[str, Any] = {"hostile_files": len(chosen), "doors": len(answers), "executed": sum(answer["executed"] for answer in answers),
                              "unclear_answers": sum(not answer["clear"] for answer in answers)}
    repeats: list[dict[str, Any]] = answers
    if count >= COUNT:
        walked = watched_chain()
        counts |= {"unpickled_from_files": sum(walked["elsewhere"].values()), "unpickled_inside_processes": sum(walked["inside"].values()),
                   "watched_processes": walked["watched"], "commands_not_as_they_should": len(walked["astray"])}
        repeats = [*answers, walked]
    met = not counts["executed"] and not counts["unclear_answers"] and not counts.get("unpickled_from_files") and not counts.get("commands_not_as_they_should")
    return {"counts": counts, "repeats": repeats, "met": met}
