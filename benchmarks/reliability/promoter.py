"""What runs in the processes of the figure `promoters`: one promoter, one reader. Either may be killed at any moment, so what they did
stands in files, a line an event.

A version here is a few kilobytes of random weights with a manifest and a figure, bits per byte; everything that happens to it in the
registry is done by the product: version, verdict, compare-and-set of the alias. Bytes are hashed by the reader.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import failpoints, files
from components.errors import UserError
from components.layout import Layout
from components.release import gates, history, model_files, package, promotion, registry

BITS = "bits_per_byte"  # tag of a version
PLACES = ("registry.uploaded", "registry.version_created", "registry.judged", "registry.history_written", "registry.alias_moved")
BAD_SHARE = 0.15  # of the versions: their loss is no number, so their gate says no, however good they look
MOST_FAILURES = 200  # reads
HASHED_EVERY = 25  # reads: the bytes of a champion are hashed when it is first seen, and then this often
EVALUATION = "0" * 64
MLMODEL = """flavors:
  python_function: {loader_module: mlflow.pyfunc.loaders.code_model, model_code_path: model_file.py, artifacts: {model: {path: artifacts/model}}}
"""


@dataclass(frozen=True, kw_only=True)
class Race:
    """What all processes of one race share."""

    layout: Layout
    name: str  # of the registered model
    run_id: str
    experiment: str
    folder: Path  # their files
    rounds: int
    seed: int
    tracking: str | None  # MLFLOW_TRACKING_URI, as the fork server's environment may be older

    def events(self, who: str) -> Path:
        return self.folder / f"{who}.jsonl"


def note(path: Path, **event: Any) -> None:
    """One line, in one write: a kill leaves it out or leaves it whole."""
    with open(path, "ab", buffering=0) as f:
        f.write(json.dumps(event).encode() + b"\n")


def noted(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


# --- a version -----------------------------------------------------------------------------------

def proposal(race: Race, promoter: int, number: int) -> tuple[bytes, float, bool]:
    """(weights, bits per byte, whether its loss is finite) of a round, the same in every life. Later rounds are better by trend."""
    chance = random.Random(f"{race.seed}/{promoter}/{number}")
    return chance.randbytes(2048), round(9.0 - 8.0 * number / race.rounds + chance.uniform(0, 0.5), 4), chance.random() > BAD_SHARE


def write_model(folder: Path, weights: bytes) -> None:
    """A logged model's folder as the registry hashes it."""
    model = folder / "artifacts" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(weights)
    files.write_manifest(model)
    shutil.copyfile(package.MODEL_FILE, folder / package.MODEL_FILE.name)
    (folder / "MLmodel").write_text(MLMODEL)


def registered(client: Any, race: Race, weights: bytes, bits: float) -> Any:
    """The version of these weights: the one that an earlier life left, else a new one."""
    import mlflow

    sha256 = hashlib.sha256(weights).hexdigest()
    version = registry.find_version(client, race.name, sha256, EVALUATION)
    if version is not None:
        return version
    started = mlflow.initialize_logged_model(name=race.name, source_run_id=race.run_id, experiment_id=race.experiment, model_type="base")
    with tempfile.TemporaryDirectory(dir=race.folder) as scratch:
        folder = Path(scratch) / "model"
        write_model(folder, weights)
        expected = model_files.local_files(folder)
        (folder / model_files.VOUCHED).write_text(model_files.listing(expected))
        client.log_model_artifacts(started.model_id, str(folder))
    client.finalize_logged_model(started.model_id, "READY")
    failpoints.hit("registry.uploaded", race.name)
    version = registry.register(client, race.name, started.model_id, race.run_id, {model_files.FILES: json.dumps(expected), BITS: str(bits)},
                                weights_sha256=sha256, evaluation_sha256=EVALUATION, data_digest="none", languages=["en"])
    failpoints.hit("registry.version_created", race.name)
    return version


def propose(client: Any, race: Race, promoter: int, number: int) -> dict[str, Any]:
    """Register, judge, promote, as a release does. Returns the event of the round."""
    weights, bits, finite = proposal(race, promoter, number)
    version = registered(client, race, weights, bits)
    mine = str(version.version)

    def judge(champion: Any | None) -> tuple[bool, str]:
        difference = bits - float(champion.tags[BITS]) if champion is not None else 0.0
        criteria = [gates.finite_loss({"val/loss": 1.0 if finite else float("inf")}),
                    gates.no_champion_yet("") if champion is None else
                    gates.not_worse(gates.BITS, {"en": (difference, difference, difference)}, 0.0, str(champion.version))]
        for criterion in criteria:
            client.set_model_version_tag(race.name, mine, registry.REASON + criterion.criterion, f"{'yes' if criterion.passed else 'no'}: {criterion.sentence}")
        client.set_model_version_tag(race.name, mine, registry.VERDICT, "passed" if gates.passes(criteria) else "failed")
        failpoints.hit("registry.judged", race.name)
        return gates.passes(criteria), criteria[-1].sentence

    try:
        moved, _ = promotion.promote(client, race.name, mine, race.layout, judge)
    except UserError as error:
        return {"round": number, "version": mine, "moved": False, "refused": str(error)}
    return {"round": number, "version": mine, "moved": moved, "wrong": wrong_after(client, race, bits) if moved else None}


def wrong_after(client: Any, race: Race, bits: float) -> str | None:
    """What is wrong right after a move to a version with `bits`: others may have moved on, but only to a better one."""
    champion = registry.aliased(client, race.name, "champion")
    if champion is None:
        return "the alias is gone after a move"
    return illegal(champion, bits) or refused(client, race, champion)


def illegal(version: Any, bits_before: float | None) -> str | None:
    """Why a version must never be champion after one with `bits_before`, in words; None if it may."""
    if not version.tags[f"{registry.REASON}finite_loss"].startswith("yes: "):
        return f"version {version.version} is champion, and its loss is no number"
    if bits_before is not None and float(version.tags[BITS]) > bits_before:
        return f"version {version.version} is champion with {version.tags[BITS]} bits per byte, after one with {bits_before}"
    return None


def refused(client: Any, race: Race, champion: Any) -> str | None:
    """That the gate of the present champion says no. One that was just replaced may be judged again, as a candidate, by a promoter that
    was killed after its move: so the alias is looked at once more."""
    if champion.tags.get(registry.VERDICT) == "passed":
        return None
    now = registry.aliased(client, race.name, "champion")
    if now is None or now.version != champion.version:
        return None
    return f"version {champion.version} is champion, its gate says {champion.tags.get(registry.VERDICT)}"


# --- the processes -------------------------------------------------------------------------------

def _quietly(race: Race, who: str) -> Any:
    """A client; what the process prints goes to a file."""
    log = os.open(race.folder / f"{who}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ |= {"MLFLOW_TRACKING_URI": race.tracking} if race.tracking else {}
    return registry.client(race.layout)


def promote(race: Race, promoter: int, kills: dict[int, str]) -> None:
    """Every round that no earlier life finished. `kills`: {round: the place where it ends by -9, in this round or the next that gets there}."""
    events = race.events(f"promoter-{promoter}")
    client = _quietly(race, f"promoter-{promoter}")
    past = noted(events)
    armed = {event["armed"] for event in past if "armed" in event}
    for number in range(1 + max((event["round"] for event in past if "round" in event), default=0), race.rounds + 1):
        if number in kills and number not in armed:
            note(events, armed=number, place=kills[number])
            os.environ[failpoints.VARIABLE] = f"{kills[number]}=kill9"
            importlib.reload(failpoints)
        note(events, **propose(client, race, promoter, number))


def read(race: Race, reads: int) -> None:
    """Ask for the champion at least `reads` times, and until all promoters are done: each time one that may be it, and whole."""
    client, count, seen, bits, failures = _quietly(race, "reader"), 0, set(), None, []
    while count < reads or not (race.folder / "over").exists():
        count += 1
        try:
            champion = registry.aliased(client, race.name, "champion")
            if champion is None:
                wrong = "no champion, after there was one" if seen else None
            else:
                wrong = illegal(champion, bits) or refused(client, race, champion)
                bits = float(champion.tags[BITS])
                if champion.version not in seen or count % HASHED_EVERY == 0:
                    with model_files.fetched(champion, race.layout) as folder:
                        found = files.weights_sha256(folder / "artifacts" / "model")
                    if found != champion.tags[registry.WEIGHTS]:
                        wrong = f"version {champion.version} answers with weights {found}, its tag says {champion.tags[registry.WEIGHTS]}"
                seen.add(champion.version)
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is a failed read
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if wrong:
            failures.append({"read": count, "wrong": wrong})
            if len(failures) >= MOST_FAILURES:  # the server is gone, and each further read would wait for it
                break
    note(race.events("reader"), reads=count, champions_seen=len(seen), failures=failures)
    sys.stdout.flush()


def audit(client: Any, race: Race) -> tuple[list[str], dict[str, Any]]:
    """(what is illegal in the registry's own history, its figures)."""
    versions, token = {}, None
    while True:
        page = client.search_model_versions(f"name = '{race.name}'", max_results=500, page_token=token)
        versions |= {str(version.version): version for version in page}
        if not (token := page.token):
            break
    model = promotion.model_of(client, race.name)
    moves, wrong = history.history(model), []
    for before, move in zip([None, *moves], moves, strict=False):
        if move["from"] != (before and before["to"]):
            wrong.append(f"a move starts at version {move['from']}, the one before it ended at {before and before['to']}")
        left = versions.get(move["from"] or "")
        wrong += filter(None, [illegal(versions[move["to"]], float(left.tags[BITS]) if left else None)])
    if history.by_hand(model):
        wrong.append(history.by_hand(model))
    passed = [float(version.tags[BITS]) for version in versions.values() if version.tags[registry.VERDICT] == "passed"]
    weights = [version.tags[registry.WEIGHTS] for version in versions.values()]
    champion = versions.get(model["aliases"].get("champion", ""))
    return wrong, {"moves": len(moves), "versions": len(versions), "doubled_versions": len(weights) - len(set(weights)),
                   "best_is_champion": champion is not None and float(champion.tags[BITS]) == min(passed, default=None)}
