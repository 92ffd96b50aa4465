"""What is wrong with the SQLite file of a server that does not answer: another program keeps it locked, and which; or it is damaged."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil

from components.errors import Damaged, UserError
from components.operations import databases, rest

BUSY = ("locked", "busy")  # what SQLite calls it
SERVER = re.compile(r"(mlflow|prefect)(\.server\.\S*)?$|flows\.prefect_server$")  # a word of the command line of MLflow's or Prefect's server, and of their children


def held(path: Path) -> str | None:
    """`database mlflow.db is locked by sqlite3 (pid 12: …)`, of this moment; None where a writer could begin, or there is no such file.

    Nothing is written: the transaction that is tried is given up at once.
    """
    if not path.is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in BUSY):
            return f"database {path.name} is locked by {_holders(path)}"
    except sqlite3.DatabaseError:
        pass  # damaged: another question, and another's answer (lmworks verify)
    return None


def trouble(path: Path) -> UserError | None:
    """Why a server may not have answered: its database is locked, or it was damaged under it (the server's health page knows nothing of that)."""
    if found := held(path):
        return rest.Unreachable(f"{found}, and was not free in time. Close that program, then run the same command again")
    try:
        wrong = databases.structure(path) if path.is_file() else []
    except UserError as error:
        return error
    return Damaged(f"{path} is damaged: {wrong[0]}. {databases.BACK}") if wrong else None


def advice(path: Path) -> str:
    """`trouble` in words, with what to do; '' where there is none."""
    return str(trouble(path) or "")


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """A server that did not answer because of its database: the error says so, and who locks it. Raises UserError."""
    try:
        yield
    except rest.Unreachable as error:
        if found := trouble(path):
            raise found from error
        raise


def _holders(path: Path) -> str:
    """Processes that have the file open, in words; our own servers of course have, too, so a stranger is named first."""
    strangers, servers = [], []
    wanted = str(path.resolve())
    for process in psutil.process_iter():
        try:
            if any(opened.path == wanted for opened in process.open_files()):
                words = f"{process.name()} (pid {process.pid}: {' '.join(process.cmdline())[:80]})"
                (servers if any(SERVER.match(word) for word in process.cmdline()) else strangers).append(words)
        except psutil.Error:
            continue
    return ", ".join((strangers or servers)[:3]) or "a process of another user"
