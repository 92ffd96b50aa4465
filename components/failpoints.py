"""Named places where a test or the drill makes lmworks fail: FAILPOINTS=NAME[@WHERE]=ACTION[,…].

    FAILPOINTS=train.ckpt.mid_write=kill9 lmworks run
    FAILPOINTS=files.write@receipt.json=enospc,stage.start@evaluate=sleep:5 lmworks run

ACTION: kill9 (the process ends at once, as by kill -9), raise (RuntimeError), sleep:SECONDS, enospc and eio (OSError), nan (a
loss that is none; for train.loss alone), note:FILE (nothing fails: a line `NAME@WHERE PID SECONDS` in that file says who passed and
when). WHERE picks one file, stage, out, model or step; without it every passing counts.
Without the variable a place costs one call of an empty function.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable

VARIABLE = "FAILPOINTS"

NAMES = {
    "files.write": "before the bytes of a small file of ours are written; WHERE: its name",
    "files.before_fsync": "the bytes of a small file are written, not yet on the disk; WHERE: its name",
    "files.before_rename": "a small file is whole under its temporary name; WHERE: its name",
    "files.after_rename": "a small file has its name; WHERE: its name",
    "publish.before_rename": "a folder is whole under its temporary name; WHERE: the name it gets",
    "publish.between_renames": "the old folder is out of the way, the new one not yet in place; WHERE: the name it gets",
    "publish.after_rename": "a folder has its name; WHERE: that name",
    "stage.start": "a stage holds its lock and has checked its inputs; WHERE: the stage",
    "stage.done": "a stage has its results, nothing is published; WHERE: the stage",
    "stage.published": "the outs of a stage are published, DVC does not know yet; WHERE: the stage",
    "validate.done": "a validation has passed, its table is not yet used; WHERE: raw, clean or tokens",
    "train.step": "before an optimizer step; WHERE: the step, counted from 1",
    "train.loss": "the loss of a step is known; WHERE: the step, counted from 1",
    "train.ckpt.before_write": "before a checkpoint; WHERE: the step",
    "train.ckpt.mid_write": "the weights of a checkpoint are written, the optimizer's state is not; WHERE: the step",
    "train.ckpt.before_rename": "a checkpoint is written, under its temporary name; WHERE: the step",
    "train.ckpt.after_rename": "a checkpoint is in place, older ones are not yet removed; WHERE: the step",
    "train.ckpt.mid_purge": "an older checkpoint has lost its name, its files are not yet removed; WHERE: the step of the new one",
    "spool.write": "before a point of a run is written down",
    "spool.send": "before points are sent to MLflow",
    "registry.uploaded": "the files of a model are in the store, no version names them; WHERE: the model",
    "registry.version_created": "a version exists, no alias names it; WHERE: the model",
    "registry.judged": "the verdict is written, the champion has not moved; WHERE: the model",
    "registry.history_written": "the history of a promotion is written, the alias has not moved; WHERE: the model",
    "registry.alias_moved": "the alias has moved, the promotion is not yet marked as done; WHERE: the model",
    "release.before_receipt": "everything is released, the receipt is not written",
    "flow.hook": "in the hook of a flow that failed or crashed",
    "reconcile.start": "the next start has found what a crash left, and has done nothing about it",
    "reconcile.before_markers": "the next start has put everything in order, the markers still stand",
}


def parse(text: str) -> dict[tuple[str, str | None], str]:
    """{(name, where): action}. Raises ValueError that names what is wrong."""
    wanted: dict[tuple[str, str | None], str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        place, _, action = part.partition("=")
        name, _, where = place.partition("@")
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: there is no place {name!r}; known are {', '.join(NAMES)}")
        kind, _, argument = action.partition(":")
        if kind not in (*ACTIONS, *WITH_ARGUMENT) or bool(argument) != (kind in WITH_ARGUMENT) or (kind == "nan") != (name == "train.loss"):
            raise ValueError(f"{VARIABLE}: {part!r} has no action that {name} knows; known are kill9, raise, sleep:SECONDS, enospc, eio, "
                             "note:FILE, and nan for train.loss alone")
        if kind == "sleep":
            float(argument)
        wanted[name, where or None] = action
    return wanted


def _kill9() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is on its way


def _raise() -> None:
    raise RuntimeError("raised by a fail-point")


def _enospc() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _eio() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _note(path: str, name: str, where: object) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{name}@{'' if where is None else where} {os.getpid()} {time.time():.3f}\n".encode())  # one write: lines of two processes stay whole
    os.close(file)


WITH_ARGUMENT = ("sleep", "note")
ACTIONS: dict[str, Callable[[], None]] = {"kill9": _kill9, "raise": _raise, "enospc": _enospc, "eio": _eio, "nan": lambda: None}


def _found(name: str, where: object) -> str | None:
    return _WANTED.get((name, str(where)), _WANTED.get((name, None)))


def _hit(name: str, where: object = None) -> None:
    action = _found(name, where)
    if action is None:
        return
    kind, _, argument = action.partition(":")
    if kind == "note":
        _note(argument, name, where)
        return
    print(f"fail-point {name}{'' if where is None else f'@{where}'}: {action}", file=sys.stderr, flush=True)
    if kind == "sleep":
        time.sleep(float(argument))
    else:
        ACTIONS[kind]()


def _value(name: str, value: float, where: object = None) -> float:
    return float("nan") if _found(name, where) == "nan" else value


def _no_hit(name: str, where: object = None) -> None:
    """Nobody asked for a failure."""


def _same(name: str, value: float, where: object = None) -> float:
    return value


_WANTED = parse(os.environ.get(VARIABLE, ""))
hit: Callable[..., None] = _hit if _WANTED else _no_hit
value: Callable[..., float] = _value if _WANTED else _same
