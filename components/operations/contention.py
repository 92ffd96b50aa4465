"""What is wrong with the SQLite file of a server that does not answer: another program keeps it locked, and which; or it is damaged."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil

from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import databases, rest
from components.operations.processes import Service

BUSY = ("locked", "busy")  # what SQLite calls it
SERVER = re.compile(r"(mlflow|prefect)(\.server\.\S*)?$|flows\.prefect_server$")  # a word of the command line of MLflow's or Prefect's server, and of their children


def held(path: Path, *, servers: bool = True) -> str | None:
    """`database mlflow.db is locked by sqlite3 (pid 12: …)`, of this moment; None where a writer could begin, there is no such file, or,
    without `servers`, its own server is what writes.

    Nothing is written: the transaction that is tried is given up at once.
    """
    if not path.is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in BUSY) and (named := _holders(path, servers)):
            return f"database {path.name} is locked by {named}"
    except sqlite3.DatabaseError:
        pass  # damaged: another question, and another's answer (lmworks verify)
    return None


def trouble(layout: Layout, service: Service) -> UserError | None:
    """Why our own server may not have answered: a stranger locks its database, or that was damaged under it (its health page knows nothing of
    that). None where nothing of it is known, or the server is not of this checkout."""
    from components.operations import migrations, services  # which ask what is said here

    path = migrations.database(layout, service)
    if services.outside(service, layout):
        return None
    if found := held(path, servers=False):
        return rest.Unreachable(f"{found}, and was not free in time. Close that program, then run the same command again")
    try:
        wrong = databases.structure(path) if path.is_file() else []
    except UserError as error:
        return error
    return Damaged(f"{path} is damaged: {wrong[0]}. {databases.BACK}") if wrong else None


def advice(layout: Layout, service: Service) -> str:
    """`trouble` in words, with what to do; '' where there is none."""
    return str(trouble(layout, service) or "")


@contextlib.contextmanager
def named(layout: Layout, service: Service) -> Iterator[None]:
    """A server that did not answer because of its database: the error says so, and who locks it. Raises UserError."""
    try:
        yield
    except rest.Unreachable as error:
        if found := trouble(layout, service):
            raise found from error
        raise


def _holders(path: Path, with_servers: bool) -> str:
    """Processes that have the file open, in words; our own servers of course have, too, so a stranger is named first, and they only if asked for."""
    strangers, servers = [], []
    wanted = str(path.resolve())
    for process in psutil.process_iter():
        try:
            if any(opened.path == wanted for opened in process.open_files()):
                words = f"{process.name()} (pid {process.pid}: {' '.join(process.cmdline())[:80]})"
                (servers if any(SERVER.match(word) for word in process.cmdline()) else strangers).append(words)
        except psutil.Error:
            continue
    if servers and not strangers and not with_servers:
        return ""
    return ", ".join((strangers or servers)[:3]) or "a process of another user"
