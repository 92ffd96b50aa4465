"""Every fail-point once: the chain is killed there, then runs on to the next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from components import failpoints, files

if TYPE_CHECKING:
    from benchmarks.reliability.drilled import Drilled
    from benchmarks.reliability.kills import Reference

PLACES_A_CHAIN = 8
NOT_FINITE = "train.loss"  # its action is a loss that is none, and the stage ends by its own rule
MENDED = "publish.between_renames"  # a folder takes the place of another only where damage is mended
# in the order of the chain; where a place is passed often, one of the moments
WHERE = {
    "files.write": "manifest.json", "reconcile.start": "", "reconcile.before_markers": "", "files.before_fsync": "summary.json",
    "stage.start": "ingest", "validate.done": "raw", "publish.before_rename": "raw", "files.before_rename": "manifest.json",
    "stage.done": "clean", "publish.after_rename": "clean", "stage.published": "tokenizer", "train.step": "10", "train.loss": "15",
    "files.after_rename": "run.json", "spool.write": "", "spool.send": "", "train.ckpt.before_write": "30", "train.ckpt.mid_write": "30",
    "train.ckpt.before_rename": "30", "train.ckpt.after_rename": "60", "train.ckpt.mid_purge": "90",
    "registry.uploaded": "", "registry.version_created": "", "registry.judged": "", "registry.history_written": "", "registry.alias_moved": "",
    "release.before_receipt": "", "flow.hook": "", MENDED: "tokens"}
ALL = [*WHERE, *(name for name in failpoints.NAMES if name not in WHERE)]  # a new place is tried at its first passing
KILLED = re.compile(r"SIGKILL|fail-point ")
REFUSED = "the weights were not changed"  # what a training says that ends by its rule


def point(name: str) -> str:
    """As FAILPOINTS spells it."""
    where = WHERE.get(name, "")
    return f"{name}{'@' if where else ''}{where}={'nan' if name == NOT_FINITE else 'kill9'}"


def each_once(checkout: Drilled, reference: Reference, names: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """(the places that were passed, what each chain left). A chain is killed at several of them, then ends by itself."""
    from benchmarks.reliability import kills

    passed: list[str] = []
    chains: list[dict[str, Any]] = []
    waiting = list(names)
    while waiting:
        group, waiting = waiting[:PLACES_A_CHAIN], waiting[PLACES_A_CHAIN:]
        checkout.reset()
        for place in (one for one in group if one != MENDED):
            passed += [place] if _dies_at(checkout, place) else []
        if MENDED in group:
            checkout.start().end()  # first there must be something whole
            _flip(checkout)
            passed += [MENDED] if _dies_at(checkout, MENDED) else []
        chains.append(kills.finished(checkout, reference, [place for place in group if place in passed]))
    return passed, chains


def _dies_at(checkout: Drilled, place: str) -> bool:
    life = checkout.start(point(place))
    code = life.end()
    told = life.told()
    hit = code == -9 or (code != 0 and KILLED.search(told) is not None) or (place == NOT_FINITE and code == 2 and REFUSED in told)
    print(f"{point(place)}: {'passed' if hit else 'not passed'}, exit code {code}", flush=True)
    return hit


def _flip(checkout: Drilled) -> None:
    """One byte of the tokens, behind DVC's back."""
    target = next(path for path in sorted(checkout.layout.tokens.iterdir()) if path.suffix == ".bin")
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    assert files.sha256_bytes(bytes(data)) == files.sha256_file(target)
