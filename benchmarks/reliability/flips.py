"""One wrong byte, or a file cut short, in every kind of file that lmworks writes.

A finished `smoke` checkout is made once. Then, again and again: a kind, a file of it and a place are drawn; the file is used as it is, which
must find nothing; it is damaged (one byte changed, half of the times with the old time stamp put back, as a disk that rots leaves it;
cut by one byte, by half, to nothing; or removed) and used again, which must refuse it or make it whole; what was there is put back.

Some rounds go by the commands as a person types them: damage, `lmworks verify` (exit code 4, the file named), `lmworks run`, and every output,
dvc.lock and the champion are those of before; or `lmworks generate` on a damaged model, which must end with 4.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import workspace
from benchmarks.reliability import chain_files, file_kinds
from benchmarks.reliability.file_kinds import AS_WRITTEN, HARMLESS, HEALED, MISSED, NOTICED, REFUSED, Kind
from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import healing, lock_file, staleness

GOAL = "1,000 single-byte flips and 100 cuts over all kinds of file: all refused or healed before use, 0 false alarms on 1,000 clean loads"
COUNT = 1000  # flips; a tenth as many cuts, and as many files removed
ENDS = (REFUSED, HEALED, NOTICED, HARMLESS)
BY_COMMAND = 24  # of COUNT; their share of smaller counts


# --- one damage ----------------------------------------------------------------------------------

def flip(path: Path, rng: random.Random) -> str:
    """Change one byte. Returns which, in words."""
    before, data = path.stat(), bytearray(path.read_bytes())
    at, by = rng.randrange(len(data)), rng.randrange(1, 256)
    data[at] ^= by
    _overwrite(path, bytes(data), before.st_mode)
    if rng.random() < 0.5:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"byte {at:,} of {len(data):,} ^ {by:#04x}"


def cut(path: Path, rng: random.Random) -> str:
    """Cut a file short: by a byte, by half, to nothing."""
    before, data = path.stat(), path.read_bytes()
    left = rng.choice([len(data) - 1, len(data) // 2, 0])
    _overwrite(path, data[:left], before.st_mode)
    return f"cut to {left:,} of {len(data):,} bytes"


def remove(path: Path, _rng: random.Random) -> str:
    """Delete a file."""
    path.unlink()
    return "removed"


def _overwrite(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.chmod(0o644)  # DVC's objects are read-only
    path.write_bytes(data)
    path.chmod(mode)


def damaged_and_used(kind: Kind, path: Path, damage: Callable[[Path, random.Random], str], rng: random.Random) -> dict[str, Any]:
    """One round: {"kind", "file", "damage", "clean": what the use of the whole file came to, "outcome"}."""
    data, mode = path.read_bytes(), path.stat().st_mode
    clean = _used(kind, path)
    done = damage(path, rng)
    if path.exists() and path.read_bytes() == data:  # a cut of nothing
        return {}
    try:
        outcome = _used(kind, path)
    finally:
        if not path.exists() or path.read_bytes() != data:
            _overwrite(path, data, mode)
    return {"kind": kind.name, "file": path.name, "damage": done, "clean": clean, "outcome": outcome}


def _used(kind: Kind, path: Path) -> str:
    try:
        return kind.use(path)
    except Exception as error:  # noqa: BLE001 - a traceback is a miss, whatever it is
        return f"{MISSED}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def rounds(kinds: list[Kind], count: int, damage: Callable[[Path, random.Random], str], rng: random.Random) -> Iterator[dict[str, Any]]:
    """`count` damages: each kind once in turn, then as its share draws it."""
    done, kinds = 0, [kind for kind in kinds if damage.__name__ in kind.damages]
    while done < count:
        kind = kinds[done] if done < len(kinds) else rng.choices(kinds, [one.share for one in kinds])[0]
        told = damaged_and_used(kind, rng.choice(kind.files()), damage, rng)
        if told:
            done += 1
            yield told


# --- by the commands -----------------------------------------------------------------------------

def finished(root: Path) -> Layout:
    """A checkout in which the smoke chain has run, with text packages of its own, so that theirs may be damaged, too."""
    workspace.clone(root)
    packages = root / "data" / "packages"
    source = packages.resolve()
    packages.unlink()
    shutil.copytree(source, packages)
    for command in (["use", "smoke"], ["run"]):
        done = lmworks(root, *command)
        if done.returncode:
            raise RuntimeError(f"lmworks {' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return Layout(root=root)


def lmworks(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command in the checkout, with nothing of the caller's own servers; its end is the caller's business."""
    return workspace.lmworks(root, *arguments, env=workspace.clean_env(root) | {"COLUMNS": "200"}, check=False)


def state_of(layout: Layout) -> dict[str, Any]:
    """What must be the same after a run that healed: every byte of the outputs, what dvc.lock says of each stage, what the receipt says."""
    stages = staleness.names(layout)
    outs = [out["path"] for stage in stages for out in healing.locked_outs(layout, stage)]
    receipt = files.read_sealed(layout.receipt)["models"]
    return {"outs": {path: file_kinds.tree(layout.root / path) for path in outs}, "lock": {stage: one for stage, one in lock_file.read(layout).items() if stage in stages},
            "sources": files.sha256_file(layout.sources), "champions": {name: (model["champion_version"], model["weights_sha256"]) for name, model in receipt.items()}}


def targets(layout: Layout, rng: random.Random) -> dict[str, list[Path]]:
    """{what is damaged: the files at once}: some so that the cache cannot help, and a stage must run again."""
    def of(stage: str) -> Path:
        out = rng.choice([out for out in healing.locked_outs(layout, stage)])
        return rng.choice([path for path in file_kinds.below(layout.root / out["path"]) if path.name != files.MANIFEST])

    path = of(rng.choice(["ingest", "clean", "tokenizer", "shards", "evaluate"]))
    md5 = str(healing.md5_of(path))
    return {"an output": [of(rng.choice(list(staleness.names(layout))))],
            "an output and its object in DVC's cache": [path, healing.objects_folder(layout) / md5[:2] / md5[2:]],
            "the weights": [layout.pretrained / "model/model.safetensors"], "dvc.lock": [layout.dvc_lock], "the receipt": [layout.receipt],
            "services.json": [layout.services]}


def by_command(layout: Layout, what: str, paths: list[Path], rng: random.Random) -> dict[str, Any]:
    """Damage, `verify`, `run`; all must be as it was. A refusal of dvc.lock is put right by its own advice."""
    before = state_of(layout)
    done = [flip(path, rng) for path in paths]
    told: dict[str, Any] = {"kind": f"by command: {what}", "file": paths[0].relative_to(layout.root).as_posix(), "damage": "; ".join(done)}
    verified, ran = lmworks(layout.root, "verify"), lmworks(layout.root, "run")
    words = " ".join((ran.stdout + ran.stderr).split())
    refused = ran.returncode in (2, 4) and "dvc.lock" in words and "remove it" in words
    if refused:
        layout.dvc_lock.unlink()
        ran = lmworks(layout.root, "run")
    same = ran.returncode == 0 and state_of(layout) == before
    seen = verified.returncode == 4 or paths == [layout.dvc_lock]  # there a changed hash is told by `lmworks why`, as every change is
    told["outcome"] = (REFUSED if refused else HEALED) if same and seen and "Traceback" not in ran.stderr + verified.stderr else (
        f"{MISSED}: verify {verified.returncode}, run {ran.returncode}, same {same}: {' '.join((ran.stdout + ran.stderr).split())[-600:]}")
    return told


def generated(layout: Layout, rng: random.Random) -> dict[str, Any]:
    """`lmworks generate` from a model whose stored file was damaged."""
    stored = next(kind for kind in chain_files.of_stored_models(layout) if "verified" in kind.name).files()
    of_base = [path for path in stored if path.suffix in (".safetensors", ".py", ".json") or path.name == "MLmodel"]
    path = rng.choice(of_base)
    data, receipt = path.read_bytes(), layout.receipt.read_bytes()
    done = flip(path, rng)
    answers = [lmworks(layout.root, "generate", "The king", "--max-new-tokens", "4", *model) for model in ([], ["--instruct"])]
    path.write_bytes(data)
    files.write_atomic(layout.receipt, receipt)  # a refusal takes it, so that the next run releases again
    codes = sorted(answer.returncode for answer in answers)
    refused = codes == [0, 4] and any(path.name in answer.stderr for answer in answers)
    return {"kind": "by command: generate", "file": path.name, "damage": done,
            "outcome": REFUSED if refused else f"{MISSED}: {codes} {answers[0].stderr[-300:]} {answers[1].stderr[-300:]}"}


# --- the figure ----------------------------------------------------------------------------------

def summed(told: list[dict[str, Any]]) -> dict[str, Any]:
    """{"counts", "repeats", "met"} of all rounds. Those by command have no clean load of their own."""
    missed = [one for one in told if one["outcome"] not in ENDS]
    loads = [one for one in told if "clean" in one]
    alarms = [one for one in loads if one["clean"] != AS_WRITTEN]
    cuts, removed = sum(one["damage"].startswith("cut") for one in told), sum(one["damage"] == "removed" for one in told)
    by_kind = {name: [one for one in told if one["kind"] == name] for name in sorted({one["kind"] for one in told})}
    return {"counts": {"flips": len(told) - cuts - removed, "cuts": cuts, "removed": removed, **_ends(told), "missed": len(missed), "clean_loads": len(loads),
                       "false_alarms": len(alarms), "kinds": len(by_kind)},
            "repeats": [{"kind": name, "damaged": len(mine), **_ends(mine)} for name, mine in by_kind.items()],
            "failures": [*missed, *alarms], "met": not missed and not alarms}


def _ends(told: list[dict[str, Any]]) -> dict[str, int]:
    return {end: sum(one["outcome"] == end for one in told) for end in ENDS}


def measure(count: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    commands = max(2, round(BY_COMMAND * count / COUNT))
    with tempfile.TemporaryDirectory(prefix="lmworks-flips-", ignore_cleanup_errors=True) as scratch, contextlib.ExitStack() as ended:
        root = Path(scratch) / "checkout"
        ended.callback(lambda: lmworks(root, "down", "--force") if root.exists() else None)
        layout = finished(root)
        kinds = [*chain_files.of_chain(layout), *file_kinds.small(Path(scratch) / "small")]
        told = [generated(layout, rng) for _ in range(commands // 4)]
        for number in range(commands - commands // 4):
            try:
                wanted = targets(layout, rng)
                what = list(wanted)[number % len(wanted)]
                told.append(by_command(layout, what, wanted[what], rng))
            except (UserError, OSError, KeyError) as error:  # what an earlier miss left cannot be read: one more miss
                told.append({"kind": "by command: what was left", "file": "", "damage": "", "outcome": f"{MISSED}: {error}"})
        flips = max(0, count - len(told))
        told += rounds(kinds, flips, flip, rng)
        for damage in (cut, remove):
            told += rounds(kinds, max(1, count // 10), damage, rng)
    return summed(told)
