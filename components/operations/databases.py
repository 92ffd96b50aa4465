"""The two SQLite files of this checkout, read from outside while their servers run: a consistent copy, and what stands in one.

Nothing here writes to one that a server has, makes one or migrates one: that is their servers' business.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components import storage
from components.errors import Damaged, UserError
from components.layout import Layout
from components.release import model_files, registry

# what set-up and `lmworks up` make: a database with none of these rows holds nothing that anybody would miss
CONTENT = {"mlflow": ("runs", "registered_models", "logged_models"), "prefect": ("flow_run",)}
BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database
BACK = "Bring the databases back from a backup: lmworks restore PATH --databases"
NOT_DECODED = re.compile(r"Could not decode to UTF-8 column '(\w+)'")  # how Python says it
BUSY_S = 30  # how long a writer is waited for
PROXIED = "mlflow-artifacts:/"  # how our server addresses its artifacts, wherever the checkout lies
HANDED_OUT = "registered_model_meta"  # MLflow adds it to what it hands out; the store does not hold it
GONE = "Deleted_Internal"  # MLflow keeps the row of a deleted version, with this stage


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """An existing database, for reading. Raises UserError (no such file, busy) and Damaged (it is no database, or is broken)."""
    if not path.exists():
        raise UserError(f"no database {path}. Run: make setup")
    try:
        # rw and not ro: SQLite must be able to make the files of its log beside a database whose server was killed
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S)) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        if garbled := _garbled(error):
            raise Damaged(f"{path} is damaged: {garbled}. {BACK}") from error
        raise UserError(f"{path}: {storage.said(error, path.parent) or f'{error}. Mend that, then run the same command again'}") from error
    except sqlite3.DatabaseError as error:
        raise Damaged(f"{path} is damaged: {error}. {BACK}") from error


def _garbled(error: sqlite3.Error) -> str | None:
    """That a text was met that is none, which SQLite's own checks do not look for; None for any other error. The text itself is not shown."""
    found = NOT_DECODED.match(str(error))
    return f"a text in the column {found[1]} is no UTF-8 any more" if found else None


def snapshot(source: Path, target: Path) -> None:
    """A copy as of one moment, by SQLite's own online backup: the server may go on writing. One file, checked from end to end.

    Raises UserError and Damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened(source) as live:
        try:
            with contextlib.closing(sqlite3.connect(target)) as copy:
                live.backup(copy)  # in one step: in several, a busy writer would make it begin again and again
                copy.execute("PRAGMA journal_mode=DELETE")
                problems = [row[0] for row in copy.execute("PRAGMA integrity_check")]
        except sqlite3.OperationalError as error:
            why = storage.said(error, target.parent) or storage.tight(target.parent) or f"{error}. Wait for who writes, then run again"
            raise UserError(f"cannot copy {source} to {target}: {why}") from error
        if problems != ["ok"]:
            raise Damaged(f"{source} is damaged: {problems[0]}. {BACK}")


def integrity(path: Path) -> list[str]:
    """What is wrong with the structure of a database, and with its texts; [] where it is whole. Raises UserError and Damaged."""
    with opened(path) as database:
        database.execute("BEGIN")  # so that its server writes nothing while its parts are compared
        found = [str(row[0]) for row in database.execute("PRAGMA integrity_check")]
        return [*cut_short(path), *(_texts(database) if found == ["ok"] else found)]


def _texts(database: sqlite3.Connection) -> list[str]:
    """The tables with a text that is no UTF-8, read from end to end."""
    wrong = []
    for table, in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name").fetchall():
        try:
            for _ in database.execute(f'SELECT * FROM "{table}"'):
                pass
        except sqlite3.OperationalError as error:
            if not (garbled := _garbled(error)):
                raise
            wrong.append(f"table {table}: {garbled}")
    return wrong


def structure(path: Path) -> list[str]:
    """The first thing that is wrong with how a database is built; [] where it can be worked with. Quicker than `integrity`: before every start.

    Raises UserError (busy). What is no database at all is told here, too.
    """
    try:
        with opened(path) as database:
            database.execute("BEGIN")  # so that its server writes nothing while its parts are compared
            found = [str(row[0]) for row in database.execute("PRAGMA quick_check(1)")]
            return [*cut_short(path), *([] if found == ["ok"] else found)]
    except Damaged as error:
        return [str(error.__cause__ or error)]


def cut_short(path: Path) -> list[str]:
    """Whether the file has fewer bytes than its own header says, which SQLite fills with zeros without a word; [] where it has them all."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        return []  # the newest pages are in the log: the header speaks of both
    with open(path, "rb") as f:
        header = f.read(100)
    page = int.from_bytes(header[16:18], "big")
    needed = int.from_bytes(header[28:32], "big") * (65_536 if page == 1 else page)
    current = header[24:28] == header[92:96]  # else an older SQLite wrote it last, which kept no count
    return [f"it is cut short: {path.stat().st_size:,} of {needed:,} bytes"] if current and path.stat().st_size < needed else []


def rows(path: Path, table: str) -> int:
    """How many rows a table has; 0 where there is no such table (a database that no server has filled yet)."""
    with opened(path) as database:
        return database.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] if has_table(database, table) else 0


def has_table(database: sqlite3.Connection, name: str) -> bool:
    return bool(database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone()[0])


# --- what MLflow's database says of models -------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model, as MLflow's database has it."""

    name: str
    number: str
    aliases: tuple[str, ...]
    weights_sha256: str | None
    run_id: str
    model_id: str
    folder: str | None  # below the artifacts; None: its files are not in this store
    vouched: str | None  # JSON: {file: sha256}, from the tag that release wrote


def versions(path: Path) -> list[Version]:
    """Every version that was not deleted, by name and number. Raises UserError and Damaged."""
    with opened(path) as database:
        if not has_table(database, "model_versions"):
            return []
        places = dict(database.execute("SELECT model_id, artifact_location FROM logged_models").fetchall())
        aliases: dict[tuple[str, str], list[str]] = {}
        for name, number, alias in database.execute("SELECT name, version, alias FROM registered_model_aliases ORDER BY alias"):
            aliases.setdefault((name, str(number)), []).append(alias)
        tags: dict[tuple[str, str], dict[str, str]] = {}
        for name, number, key, value in database.execute("SELECT name, version, key, value FROM model_version_tags"):
            tags.setdefault((name, str(number)), {})[key] = value
        found = []
        for name, number, source, run_id in database.execute(
                "SELECT name, version, source, run_id FROM model_versions WHERE current_stage != ? ORDER BY name, version", (GONE,)):
            key, model_id = (name, str(number)), str(source).removeprefix("models:/")
            place = str(places.get(model_id, source))
            found.append(Version(
                name=name, number=str(number), aliases=tuple(aliases.pop(key, ())), weights_sha256=tags.get(key, {}).get(registry.WEIGHTS),
                run_id=run_id or "", model_id=model_id, vouched=tags.get(key, {}).get(model_files.FILES),
                folder=place.removeprefix(PROXIED).strip("/") if place.startswith(PROXIED) else None))
        return found


def dangling(path: Path) -> list[str]:
    """Aliases of versions that the registry has no more, in words."""
    known = {(version.name, version.number) for version in versions(path)}
    with opened(path) as database:
        if not has_table(database, "registered_model_aliases"):
            return []
        return [f"{name}@{alias} names version {number}, which the registry does not have" for name, alias, number in database.execute(
            "SELECT name, alias, version FROM registered_model_aliases ORDER BY name, alias") if (name, str(number)) not in known]


def drop_dangling(path: Path) -> None:
    """Take the aliases away that `dangling` names. For a database that no server has. Raises UserError and Damaged."""
    with opened(path) as database, database:
        database.execute("DELETE FROM registered_model_aliases WHERE NOT EXISTS (SELECT 1 FROM model_versions AS v WHERE v.name = registered_model_aliases.name "
                         "AND v.version = registered_model_aliases.version AND v.current_stage != ?)", (GONE,))


def model_folders(path: Path) -> set[str]:
    """The folders, below the artifacts, of all models that the database knows: registered, not registered, and in the bin."""
    with opened(path) as database:
        if not has_table(database, "logged_models"):
            return set()
        return {place.removeprefix(PROXIED).strip("/") for (place,) in database.execute("SELECT artifact_location FROM logged_models")
                if place.startswith(PROXIED)}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the registry's database and the model store agree."""

    sound: list[Version]
    unsound: dict[Version, str]  # what is wrong with its files
    dangling: list[str]  # aliases without a version, in words
    orphans: list[str]  # model folders that the database does not know: it is older than the store

    def lines(self) -> list[str]:
        """What a person must know, one sentence each; [] where all is well."""
        told = []
        for version, wrong in self.unsound.items():
            named = f" ({' and '.join(f'{version.name}@{alias}' for alias in version.aliases)} {'points' if len(version.aliases) == 1 else 'point'} there)"
            told.append(f"{version.name} version {version.number}{named if version.aliases else ''} cannot be served: {wrong}")
        told += self.dangling
        if self.orphans:
            told.append(f"{len(self.orphans)} model folder{'s are' if len(self.orphans) > 1 else ' is'} newer than the database, which does not know "
                        f"{'them' if len(self.orphans) > 1 else 'it'}: {', '.join(self.orphans[:3])}{' …' if len(self.orphans) > 3 else ''}. "
                        "Nothing serves them; `lmworks run` registers what this checkout's data holds again")
        return told


def standing(layout: Layout) -> Standing:
    """Hold every version's files against what was registered, by hash. Raises UserError and Damaged (of the database itself)."""
    path, store = layout.mlflow_database, layout.artifacts
    sound: list[Version] = []
    unsound: dict[Version, str] = {}
    for version in versions(path):
        wrong = wrong_with(version, store)
        if wrong is None:
            sound.append(version)
        else:
            unsound[version] = wrong
    return Standing(sound=sound, unsound=unsound, dangling=dangling(path), orphans=orphans(layout))


def orphans(layout: Layout) -> list[str]:
    """Model folders, below the artifacts, that the database does not know."""
    store = layout.artifacts
    there = {folder.relative_to(store).as_posix() for folder in store.glob("*/models/m-*/artifacts")} if store.exists() else set()
    return sorted(there - model_folders(layout.mlflow_database)) if there else []


def wrong_with(version: Version, store: Path) -> str | None:
    """What is wrong with a version's files, in words; None where every byte is the one that was registered."""
    if version.folder is None:
        return "its files are not in this checkout's model store"
    folder = store / version.folder
    if not folder.is_dir():
        return f"its files are not there ({version.folder})"
    if version.vouched is None:
        return None  # not registered by lmworks: nothing says what its bytes must be
    expected = model_files.vouched_files(version.vouched)
    if expected is None:
        return model_files.TAG_EDITED
    try:
        vouched = {name: sha256 for name, sha256 in expected.items() if name != HANDED_OUT}
        model_files.check_files(folder, vouched, f"{version.name} version {version.number}")
    except (Damaged, ValueError) as error:
        return str(error).replace(f"{store}/", "").partition(" Release it again")[0].partition(". Run: ")[0].rstrip(".")
    except OSError as error:
        return f"{error.strerror or error}: {error.filename}"
    return None

