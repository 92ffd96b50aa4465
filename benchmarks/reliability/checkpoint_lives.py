"""Lives of one training, forked, each killed inside a checkpoint write: at a named place, or at any moment of the write.

    python -m benchmarks.reliability.checkpoint_lives COUNT SEED        prints the figure as JSON
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from components import failpoints

STEPS = 24  # of one training; a checkpoint after each but the last
PLACES = ("train.ckpt.before_write", "train.ckpt.mid_write", "train.ckpt.before_rename", "train.ckpt.after_rename", "train.ckpt.mid_purge")
WRITES_A_LIFE = 3  # it is killed in one of its first


def build() -> tuple[Any, Any, Any, Any]:
    """(model, optimizers, batch, plan) of a training whose checkpoint takes some milliseconds to write."""
    from components.training import gpt, loop
    from components.training.batches import PackedRows
    from components.training.optimizers import Optimizers

    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 30, 40)
    tokens = np.concatenate([np.append(rng.integers(1, 61, length), 0) for length in lengths]).astype(np.uint16)
    data = PackedRows([tokens], [np.concatenate([[0], np.cumsum(lengths + 1)])], eot_id=0, rows=2, row_tokens=16, seed=3)
    model = gpt.create(gpt.Shape(architecture="llama", vocab_size=61, n_layer=2, n_head=2, n_embd=128, n_hidden=256, context=16, tied=True), 3)
    optimizers = Optimizers(model, kind="adamw", learning_rate=1e-2, weight_decay=0.1)
    plan = loop.Plan(name="drill", steps=STEPS, warmup_steps=3, min_ratio=0.1, accumulation=1, clip_norm=1.0, learning_rate=1e-2, precision="float32",
                     device="cpu", compile=False, seed=3, validation_interval=STEPS, checkpoint_interval=1, log_interval=5, flops_a_token=1.0, peak_flops=None)
    return model, optimizers, data.batch, plan


def digest(model: Any, optimizers: Any) -> str:
    """The hash of all that a checkpoint brings back."""
    found = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *optimizers.tensors().items()], key=lambda pair: pair[0]):
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


def train(folder: Path, tell: Any) -> str:
    """Train on from what `folder` holds, telling of every place, of what was restored and of each whole save. Returns the last digest."""
    from components.training import checkpoint, loop

    model, optimizers, batch, plan = build()

    class Told(checkpoint.Checkpoints):
        def restore(self, *arguments: Any) -> dict[str, Any] | None:
            state = super().restore(*arguments)
            partial = len(list(self.folder.glob(".partial*")))
            tell("restored", state["step"] if state else 0, digest(model, optimizers) if state else "", partial)
            return state

        def save(self, step: int, *arguments: Any) -> None:
            tell("saving", step, digest(model, optimizers))
            super().save(step, *arguments)
            tell("saved", step)

    loop.train(model, optimizers, batch, plan, checkpoints=Told(folder, "drill"), validate=lambda _: {})
    return digest(model, optimizers)


@dataclass
class Life:
    """What one life told before its end."""

    told: list[list[Any]] = field(default_factory=list)
    exit_code: int = 0

    def last(self, what: str) -> list[Any] | None:
        return next((words for words in reversed(self.told) if words[0] == what), None)


def live(folder: Path, place: str | None, write: int, after_s: float) -> Life:
    """Fork a life and kill it in its write number `write`: where it passes `place`, else `after_s` into the write."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(folder, writer, place, write)
    os.close(writer)
    life, writes = Life(), 0
    with os.fdopen(reader) as lines:
        for line in lines:
            life.told.append(json.loads(line))
            writes += life.told[-1][0] == "saving"
            if place is None and life.told[-1][0] == "saving" and writes == write:
                time.sleep(after_s)
                os.kill(pid, signal.SIGKILL)
    life.exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return life


def _child(folder: Path, writer: int, place: str | None, write: int) -> None:
    """Never returns."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    writes = 0

    def tell(*words: Any) -> None:
        nonlocal writes
        writes += words[0] == "saving"
        os.write(writer, json.dumps(words).encode() + b"\n")

    def hit(name: str, where: object = None) -> None:
        if name in PLACES:
            tell("passed", name, where)
            if name == place and writes >= write:  # the first write has nothing to purge yet
                os.kill(os.getpid(), signal.SIGKILL)

    failpoints.hit = hit
    try:
        tell("ended", train(folder, tell))
    except BaseException as error:  # noqa: BLE001 - the parent asks why
        tell("failed", f"{type(error).__name__}: {error}")
    os._exit(0)


def measured(count: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Lives until `count` of them were killed inside a write, and what each next life found."""
    from components.training import threads

    threads.prepare(1, "cpu")
    rng = random.Random(seed)
    wanted: dict[int, str] = {}
    times: list[float] = []

    def note(*words: Any) -> None:
        times.append(time.perf_counter())
        if words[0] == "saving":
            wanted[words[1]] = words[2]

    wanted[STEPS] = train(scratch / "untouched", note)
    write_s = sorted(end - begin for begin, end in zip(times[1::2], times[2::2], strict=True))[STEPS // 2]
    folder, complete, trainings, lives = scratch / "1", 0, 1, 0
    found: Counter[str] = Counter()
    failures: list[str] = []
    while found["kills_inside_a_write"] < count:
        lives += 1
        place = rng.choice([*PLACES, *[None] * len(PLACES)])  # half at places, half at any moment
        life = live(folder, place, rng.randint(1, WRITES_A_LIFE), rng.uniform(0, write_s))
        failures += [f"life {lives}: {trouble}" for trouble in judged(life, complete, wanted)]
        done = [words for words in life.told if words[:2] == ["passed", "train.ckpt.after_rename"]]
        complete = max([complete, *(words[2] for words in done)])
        ended = life.last("ended")
        if life.exit_code == -signal.SIGKILL and life.told[-1][0] in ("saving", "passed"):
            found["kills_inside_a_write"] += 1
            found[f"at {place}" if place else "at any moment"] += 1
        found["most partial folders left by a kill"] = max(found["most partial folders left by a kill"], len(list(folder.glob(".partial*"))))
        if ended or failures:
            failures += [] if not ended or ended[1] == wanted[STEPS] else [f"life {lives}: other weights at the end"]
            shutil.rmtree(folder, ignore_errors=True)
            trainings += 1
            folder, complete = scratch / str(trainings), 0
        if len(failures) > 20:
            break
    counts = {"kills": found["kills_inside_a_write"], "lives": lives, "trainings": trainings, "without_a_verified_checkpoint": len(failures),
              "most_partial_folders_left_by_a_kill": found["most partial folders left by a kill"]}
    return {"counts": counts, "repeats": [{"killed": {key: n for key, n in sorted(found.items()) if key.startswith("at ")}, "failures": failures,
                                           "write_ms": round(1000 * write_s, 2)}], "met": not failures and counts["kills"] >= count}


def judged(life: Life, complete: int, wanted: dict[int, str]) -> list[str]:
    """What is wrong with what a life found, or with how it went."""
    failed, restored = life.last("failed"), life.last("restored")
    if failed or restored is None:
        return [f"{failed[1]}" if failed else "it ended before it had looked for a checkpoint"]
    _, step, found, partial = restored
    trouble = []
    if step < complete:
        trouble.append(f"the checkpoint of step {complete} was whole, step {step} was loaded")
    if step and found != wanted[step]:
        trouble.append(f"the checkpoint of step {step} holds other bytes than an untouched training")
    if partial:
        trouble.append(f"{partial} partial folders are left after a start")
    return trouble


def main() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="lmworks-checkpoints-"))
    try:
        print(json.dumps(measured(int(sys.argv[1]), int(sys.argv[2]), scratch)))
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
