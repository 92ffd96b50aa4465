"""What of this checkout runs: MLflow, Prefect and the worker, by `.lmworks/services.json`.

{"mlflow": {"url", "pid", "started", "root"}, "prefect": …, "worker": …, "ports": {…}}. An entry counts only if pid, start time and
folder match, so a reused pid or a copied checkout is never taken for a server of ours. Where the file is damaged or gone, the processes
themselves are asked: a server that was forgotten would get a second one beside it on the same database.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import psutil

from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import liveness
from components.operations.processes import HOST, living, port_of, stop_tree

NAMES = ("mlflow", "prefect", "worker")


def read(layout: Layout) -> dict[str, Any]:
    """services.json, or {} where there is none: asked often, so it stays quick. Where it is damaged, what the running processes say."""
    try:
        return files.read_sealed(layout.services)
    except FileNotFoundError:
        return {}
    except UserError:
        return _asked(layout)


def whole(layout: Layout) -> bool:
    """Whether services.json is there and undamaged."""
    try:
        files.read_sealed(layout.services)
        return True
    except (FileNotFoundError, UserError):
        return False


def mend(layout: Layout) -> None:
    """Write a services.json that is damaged or gone anew, from the processes themselves. For who holds the lock of a start."""
    if not whole(layout) and ((asked := _asked(layout)) or layout.services.exists()):
        files.write_sealed(layout.services, asked)


def alive(layout: Layout) -> list[str]:
    """The names of those that run, started before a move of the checkout or not. Where services.json does not say it, every process is looked at."""
    recorded = read(layout) if layout.services.exists() else _asked(layout)
    return [name for name in NAMES if ours(recorded.get(name), layout)]


def _asked(layout: Layout) -> dict[str, Any]:
    """What services.json would hold, from the processes themselves."""
    recorded: dict[str, Any] = {}
    for name, process in living(layout).items():
        try:
            port = port_of(process)
            recorded[name] = entry_of(layout, process.pid, f"http://{HOST}:{port}" if port else None)
            recorded[name]["root"] = process.environ().get("LMWORKS_ROOT", recorded[name]["root"])  # that of before a move
        except psutil.Error:
            recorded.pop(name, None)  # it ended meanwhile
            continue
        if port:
            recorded.setdefault("ports", {})[name] = port
    return recorded


def process_of(entry: Any, layout: Layout) -> psutil.Process | None:
    """The live process that `entry` describes, if it is this checkout's."""
    process = liveness.process_of(entry)
    return process if process and entry.get("root") == str(layout.root) else None


def moved(entry: Any, layout: Layout) -> psutil.Process | None:
    """A server that was started before this checkout was moved: it still writes to the old path."""
    process = liveness.process_of(entry)
    try:
        return process if process and entry.get("root") != str(layout.root) and process.cwd() == str(layout.root) else None
    except psutil.Error:
        return None


def stop_moved(layout: Layout, names: list[str], say: Callable[[str], None]) -> list[str]:
    """End what was started before this checkout was moved: it writes to the old place. Returns their names; a worker is to be started again, too."""
    from components.operations import addresses

    recorded, stopped = read(layout), []
    for name in names:
        if (old := moved(recorded.get(name), layout)) is not None:
            say(f"{name} was started before this checkout was moved: starting it again")
            with contextlib.suppress(psutil.Error):  # the new one alerts and pings where the old one did
                was = old.environ()
                os.environ.update({variable: was[variable] for variable in addresses.SECRETS if variable in was and variable not in os.environ})
            stop_tree(old.pid)
            stopped.append(name)
    return stopped


def ours(entry: Any, layout: Layout) -> psutil.Process | None:
    """The live process of this checkout that `entry` describes, started before it was moved or not."""
    return process_of(entry, layout) or moved(entry, layout)


def entry_of(layout: Layout, pid: int, url: str | None) -> dict[str, Any]:
    """What to record of a process. Raises psutil.NoSuchProcess."""
    entry = {**liveness.entry(pid), "root": str(layout.root)}
    return entry | ({"url": url} if url else {})


def record(layout: Layout, name: str, entry: dict[str, Any] | None, port: int | None = None) -> None:
    recorded = read(layout)
    recorded.pop(name, None)
    if entry:
        recorded[name] = entry
    if port:
        recorded.setdefault("ports", {})[name] = port
    files.write_sealed(layout.services, recorded)
