"""Every kind of file that lmworks writes, and the use that must notice when a byte of one is wrong.

A kind has files and a `use`: what lmworks itself does with such a file. It answers AS_WRITTEN, REFUSED (nothing of the file was used: an error,
or it counted as none), HEALED: then what is there afterwards is byte for byte what was there before the damage, which `use` compares itself
where it repairs something else than the damaged file; NOTICED: it is not taken for what was written, and what follows (a stage that runs again) is
compared in the rounds by command only; or HARMLESS: a comment, say, and what is read of the file is compared to be what was read before.

Left out, and why: params.yaml is a person's text, and no program can tell a flipped digit from a changed mind (a change is named by
`lmworks why`, what is no setting is refused); prefect.yaml, of the same kind, is only taken
away, and .dvc/config, where what every checkout needs is looked for, is left out. A file taken out of an imported base makes it another base. The databases of MLflow and Prefect: SQLite sees broken structure, not each letter; they are
in the figure as files of a backup, where each byte counts. Logs, lock files and pages (reports, cards) are for people: nothing reads them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import config as settings
from components import files, spool
from components.errors import UserError
from components.layout import Layout
from components.operations import backup, last_run, restoration, services, silence, unclean

AS_WRITTEN, REFUSED, HEALED, NOTICED, HARMLESS, MISSED = "as written", "refused", "healed", "noticed", "harmless", "MISSED"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`files`: those that may be damaged; `use`: what is done with a file of it, and what came of that; `share`: how often it is drawn;
    `damages`: what can be told from a person's wish."""

    name: str
    files: Callable[[], list[Path]]
    use: Callable[[Path], str]
    share: float = 1.0
    damages: tuple[str, ...] = ("flip", "cut", "remove")


def tree(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): files.sha256_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


def below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size and path.suffix != ".lock"]


def refused(do: Callable[[], Any]) -> str:
    """REFUSED where it says no in words of ours, or names the file that is not there, as every command then does."""
    try:
        do()
    except FileNotFoundError as error:
        return REFUSED if error.filename else MISSED
    except UserError as error:
        return REFUSED if str(error) else MISSED
    return AS_WRITTEN


def of_records(layout: Layout) -> list[Kind]:
    """Small files of .lmworks and work/, written by the code that writes them in a run."""
    from components.corpus import sources

    last_run.write(layout, verdict="Promoted", message="tiny: version 1 is champion", exit_code=0, elapsed_s=61, flow_run=None)
    silence.record(layout, deployment="refresh", flow_run="x", verdict="Promoted", message="版本 1", green=True, next_s=None)
    marker = unclean.mark(layout, flow_run_id="0b5c")
    files.write_sealed(layout.services, {"ports": {"mlflow": 5311}})
    files.write_sealed(layout.receipt, {"format": 1, "models": {}})
    files.write_sealed(layout.outcomes / "clean.json", {"stage": "clean", "exit_code": 0, "elapsed_s": 1.5})
    source = layout.root / "文本" / "a.txt"
    files.write_atomic(source, "一段文本\n")
    files.write_sealed(layout.stat_cache, {"format": sources.CACHE_FORMAT, "files": {str(source): [1, 2, 3, 4, files.sha256_file(source)]}})

    def counts_as_none(read: Callable[[], Any], none: Any) -> Callable[[Path], str]:
        kept = read()
        return lambda _path: AS_WRITTEN if (found := read()) == kept else REFUSED if found == none else MISSED

    def one(name: str, path: Path, use: Callable[[Path], str]) -> Kind:
        return Kind(name=name, files=lambda: [path], use=use, share=0.5)

    return [one("last-run.json", layout.last_run, counts_as_none(lambda: last_run.read(layout), None)),
            one("scheduled.json", layout.scheduled, counts_as_none(lambda: silence.read(layout), {})),
            one("unclean marker", marker, counts_as_none(lambda: unclean.read(marker), {})),
            one("services.json", layout.services, counts_as_none(lambda: services.read(layout), {})),
            one("release.json", layout.receipt, lambda path: refused(lambda: files.read_sealed(path))),
            one("outcome of a stage", layout.outcomes / "clean.json", lambda path: refused(lambda: files.read_sealed(path))),
            one("stat cache", layout.stat_cache, counts_as_none(lambda: sources.StatCache(layout.stat_cache, []).known, {})),
            *of_spool(layout)]


def _taken_up(folder: Path, about: dict[str, Any]) -> str:
    """As a training does that goes on with this run: it reads one of the two files, and writes both."""
    before = [path.read_bytes() if path.exists() else b"" for path in (folder / name for name in spool.ABOUT)]
    found = spool.about(folder)
    if found != about:
        return REFUSED if found is None else MISSED
    spool.write_about(folder, found)
    return AS_WRITTEN if before == [(folder / name).read_bytes() for name in spool.ABOUT] else HEALED


def of_spool(layout: Layout) -> list[Kind]:
    """A training run that waits for a server."""
    folder = layout.spool / "pretrain-k-tiny"
    spool.write_about(folder, {"uuid": "0b5c", "experiment": "tiny", "name": "pretrain tiny", "tags": {}, "params": {"seed": "1"}})
    files.write_sealed(folder / "sent.json", {"offset": 100, "run_id": "r", "refused": 0})
    written = [{"t": 1_700_000_000_000 + step, "step": step, "metrics": {"train/loss": 5 / step, "val/loss": 6 / step}} for step in range(1, 60)]
    (folder / "events.jsonl").write_bytes(b"".join(spool.line_of(event) for event in written))

    def points(_path: Path) -> str:
        """A lost point is said by `lmworks verify`; a false one must not be. What a cut line ends with is what a kill leaves."""
        found = list(spool.events(folder))
        if any(event not in written for event in found):
            return MISSED
        return AS_WRITTEN if found == written and not spool.damaged_lines(folder) else REFUSED

    note, about = spool.sent(folder), files.read_sealed(folder / spool.ABOUT[0])
    return [Kind(name="spool: run.json", files=lambda: [folder / name for name in spool.ABOUT], share=0.5,
                 use=lambda _path: _taken_up(folder, about)),
            Kind(name="spool: sent.json", files=lambda: [folder / "sent.json"], share=0.5,
                 use=lambda _path: AS_WRITTEN if (found := spool.sent(folder)) == note else REFUSED if found["run_id"] is None else MISSED),
            Kind(name="spool: events.jsonl", files=lambda: [folder / "events.jsonl"], use=points)]


def of_backup(layout: Layout, scratch: Path) -> list[Kind]:
    """A whole backup of a small checkout, restored into an empty one: all of it comes, or nothing."""
    import sqlite3

    for path, table in ((layout.mlflow_database, "runs"), (layout.prefect_database, "flow_run")):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(f"CREATE TABLE {table} (n INTEGER)")
            database.execute(f"INSERT INTO {table} VALUES (1)")
            database.commit()
    files.write_atomic(layout.artifacts / "1/r/artifacts/report.html", "<p>报告</p>")
    kept = scratch / "backup"
    backup.create(layout, kept)
    empty = Layout(root=scratch / "empty")

    def restored(_path: Path) -> str:
        shutil.rmtree(empty.root, ignore_errors=True)
        empty.root.mkdir()
        answer = refused(lambda: restoration.restore(empty, kept))
        left = [path for path in below(empty.root) if path.parent != empty.state]
        return MISSED if answer == REFUSED and left else answer

    return [Kind(name="backup", files=lambda: below(kept), use=restored, share=3)]


def of_checkpoints(scratch: Path) -> list[Kind]:
    """Two checkpoints of a training: a damaged newest one is named, removed, and the one before it loads."""
    import torch

    from components.training.checkpoint import Checkpoints
    from components.training.optimizers import Optimizers

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50))
    optimizers = Optimizers(model, kind="adamw", learning_rate=1e-2, weight_decay=0.1, muon_learning_rate=0.02)
    kept, state = Checkpoints(scratch / "kept", "k1"), {}
    for step in (1, 2):
        model(torch.arange(8)).square().mean().backward()
        optimizers.step(1.0)
        kept.save(step, model, optimizers, {"curve": [], "pending": []})
        state[step] = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    live = scratch / "live"

    def resumed(path: Path) -> str:
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(kept.folder, live)  # a damaged one is removed
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        found = Checkpoints(live, "k1").restore(model, optimizers)
        step = found["step"] if found else 0
        same = step and all(torch.equal(parameter, state[step][name]) for name, parameter in model.named_parameters())
        return MISSED if not same else AS_WRITTEN if step == 2 else REFUSED if not (live / path.parent.name).exists() else MISSED

    return [Kind(name="checkpoints", files=lambda: below(kept.folder / "step-00000002"), use=resumed, share=4)]


def of_imported(scratch: Path) -> list[Kind]:
    """An imported base as the next run reads it."""
    from components.corpus import sources

    layout = Layout(root=scratch / "imported")
    folder = layout.imported / "base"
    for name, text in (("config.json", json.dumps({"model_type": "llama"})), ("model.safetensors", "w" * 4000), ("tokenizer.json", "{}")):
        files.write_atomic(folder / name, text)
    files.write_manifest(folder)
    config = settings.build({"corpus.base": "data/imported/base"}, where="flips")

    def taken_in(_path: Path) -> str:
        def read() -> None:
            groups = {name: sources.Group(kind="none", source="none") for name in ("corpus", "records")} | {"base": sources.base_group(config, layout)}
            sources.render(groups, sources.StatCache(layout.stat_cache, [path for _, path in groups["base"].files]), layout)

        return refused(read)

    return [Kind(name="imported base", files=lambda: below(folder), use=taken_in, share=2, damages=("flip", "cut"))]


def of_judgements(scratch: Path) -> list[Kind]:
    """The champion's judged items, kept in the challenger's run: figures that decide a gate."""
    from types import SimpleNamespace

    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.release import champion

    layout, config = Layout(root=scratch / "judged"), settings.build({}, where="flips")
    files.write_atomic(layout.clean / "test.parquet", "the test items")
    files.write_manifest(layout.clean)
    subject, version = SimpleNamespace(kind="base", name="tiny"), SimpleNamespace(name="tiny", version="1", tags={})
    store = layout.artifacts / champion.FOLDER
    store.mkdir(parents=True)
    pq.write_table(pa.table({"id": [str(n) for n in range(200)], "value": [n / 7 for n in range(200)]}), store / "judged.parquet")
    key = champion.test_key(subject, "", config, layout)
    path = (store / "judged.parquet").rename(store / champion.kept_as(key, store / "judged.parquet"))

    class Store:
        def list_artifacts(self, _run_id: str, folder: str) -> list[Any]:
            return [SimpleNamespace(path=f"{folder}/{path.name}")]

        def download_artifacts(self, _run_id: str, _name: str, scratch: str) -> str:
            return shutil.copy(path, scratch)

    # where it is not taken, the champion is judged again; here its own files cannot be had, which is an error
    return [Kind(name="kept judgement of a champion", files=lambda: [path], use=lambda _path: refused(
        lambda: champion.items_of(Store(), "r", subject, version, config, layout, lambda _line: None)))]


def small(scratch: Path) -> Iterator[Kind]:
    """The kinds that need no finished chain, in folders of their own."""
    from benchmarks.reliability import checkout_files

    yield from checkout_files.of_own(scratch / "own")
    yield from checkout_files.of_packages(Layout(root=scratch / "packages"))
    yield from of_records(Layout(root=scratch / "records"))
    yield from of_backup(Layout(root=scratch / "backed up"), scratch)
    yield from of_checkpoints(scratch / "checkpoints")
    yield from of_imported(scratch)
    yield from of_judgements(scratch)
