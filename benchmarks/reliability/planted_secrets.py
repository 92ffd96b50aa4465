"""Secrets planted where people have them — environment, git, settings, sources, errors, command lines — and looked for in everything kept.

A chain runs to its end, fails with a secret in the text of an exception, is refused for settings that hold one, and is killed; then
every byte below the checkout is searched (logs, both databases with their write-ahead logs, artifacts, spool, work, data), and all that
the commands printed. Looked for are the secret itself, its Base64 and its form in an address.

Not searched: where the person put the secret (the edited files, .git), and `data/packages`. Texts of the corpus are kept as they were
given: taking personal data out of them is no part of this. While the chain runs, all sockets that its processes listen on are noted.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import secrets
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.workspace import clean_env, clone

GOAL = "20 planted secrets: 0 found in logs, databases, artifacts and what is printed; 0 listeners off loopback"
COUNT = 20
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
CHUNK_BYTES = 2**22
# how the commands must end that bring a secret somewhere: one that fails before it gets there would show nothing
WANTED = {"run": 0, "accept": 0, "generate": 0, "use, with a token": 2, "run, with a password in the settings": 2,
          "run, stages/ingest.py fails": 1, "run, training/loop.py fails": 1}
ALNUM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def word(rng: random.Random, length: int = 32) -> str:
    return "".join(rng.choice(ALNUM) for _ in range(length - 2)) + "7q"


def environment(rng: random.Random) -> dict[str, tuple[str, str]]:
    """{variable: (its value, the secret in it)}."""
    made = {name: word(rng) for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "OPENAI_API_KEY", "MY_DATABASE_PASSWORD")}
    made |= {"AWS_ACCESS_KEY_ID": "AKIA" + word(rng, 16).upper(), "HF_TOKEN": "hf_" + word(rng, 34), "GITHUB_TOKEN": "ghp_" + word(rng, 36)}
    planted = {name: (value, value) for name, value in made.items()}
    for name, form in (("LMWORKS_ALERT_WEBHOOK", "http://127.0.0.1:9/services/{}"), ("LMWORKS_PING_URL", "http://127.0.0.1:9/ping/{}"), ("PREFECT_API_AUTH_STRING", "admin:{}")):
        secret = word(rng)
        planted[name] = (form.format(secret), secret)
    return planted


@dataclass
class Planted:
    """A checkout with secrets in it, what it printed, and who listened."""

    root: Path
    home: Path
    secrets: dict[str, str] = field(default_factory=dict)  # {where it was planted: the secret}
    variables: dict[str, str] = field(default_factory=dict)
    printed: str = ""
    listeners: set[str] = field(default_factory=set)
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {**clean_env(self.root, self.home), "MLFLOW_TRACKING_USERNAME": "admin", **self.variables}

    def lmworks(self, *arguments: str, as_what: str = "", **extra: str) -> int:
        done = subprocess.run([str(self.root / ".venv" / "bin" / "python"), "-m", "commands", *arguments], cwd=self.root, env=self.env | extra, text=True,
                              capture_output=True)
        self.printed += done.stdout + done.stderr
        self.codes[as_what or arguments[0]] = done.returncode
        return done.returncode


def plant(planted: Planted, rng: random.Random) -> None:
    """The first of them; those that a command brings come with it."""
    for name, (value, secret) in environment(rng).items():
        planted.variables[name], planted.secrets[f"environment: {name}"] = value, secret
    root, token, password = planted.root, word(rng), word(rng)
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "remote", "add", "backup", f"https://somebody:{password}@git.example.org/lmworks.git"], check=True)
    planted.secrets["git: password in the address of a remote"] = password
    (root / ".env").write_text("nothing yet\n")
    (root / "notes.md").write_text("# Notes\n")
    subprocess.run([*git, "add", "-f", ".env", "notes.md"], check=True)
    subprocess.run([*git, "commit", "-qm", "notes"], check=True)
    (root / ".env").write_text(f"DATABASE={token}\n")
    planted.secrets["uncommitted: .env"] = token
    edited, key, address = word(rng, 40), word(rng, 60), word(rng)
    (root / "notes.md").write_text(f"# Notes\n\nAPI_TOKEN = \"{edited}\"\n-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n"
                                   f"pip install --index-url https://me:{address}@index.example.org/simple x\n")
    planted.secrets |= {"uncommitted: a token in an edited file": edited, "uncommitted: a private key": key, "uncommitted: a password in an address": address}


@contextlib.contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    before = path.read_text()
    assert old in before, f"{path.name} has no {old!r}"
    path.write_text(before.replace(old, new, 1))
    try:
        yield
    finally:
        path.write_text(before)


def live(planted: Planted, rng: random.Random) -> None:
    """What a checkout goes through: settings refused, a failure, a kill, a whole chain, a reason on the command line."""
    root, python = planted.root, str(planted.root / ".venv" / "bin" / "python")
    planted.lmworks("use", "smoke")
    in_settings, in_path, typed = "ghp_" + word(rng, 36), word(rng), word(rng)
    planted.secrets |= {"settings: a token": in_settings, "settings: a password in an address": in_path, "command line: --reason": typed}
    planted.lmworks("use", "smoke", "--set", f"corpus.text_field={in_settings}", as_what="use, with a token")
    with edited(root / "params.yaml", "records: embedded", f"records: https://me:{in_path}@data.example.org/records.jsonl"):
        planted.lmworks("run", as_what="run, with a password in the settings")
    raised = "    import os\n    raise RuntimeError(f\"403 for Authorization: Bearer {os.environ['AWS_SECRET_ACCESS_KEY']}, password={os.environ['MY_DATABASE_PASSWORD']}\")\n"
    for path, function in (("stages/ingest.py", "def run("), ("training/loop.py", "def train(")):  # one without a run in MLflow, one with
        with failing(root / "components" / path, function, raised):
            planted.lmworks("run", as_what=f"run, {path} fails")
    killed = subprocess.Popen([python, "-m", "commands", "run"], cwd=root, env=planted.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    wait_for(lambda: any((root / "work" / "pretrain").glob("*/checkpoints/*")), 300)
    os.killpg(killed.pid, signal.SIGKILL)
    planted.printed += killed.communicate()[0]
    planted.lmworks("run")
    planted.lmworks("accept", "evaluate", "--reason", f"its token={typed} was wrong")
    planted.lmworks("generate", "The king", "--version", "1")
    for command in ("models", "runs", "status", "verify", "doctor"):
        planted.lmworks(command)


@contextlib.contextmanager
def failing(path: Path, begin: str, lines: str) -> Iterator[None]:
    """A function of the code raises instead of working (after its docstring)."""
    before = path.read_text()
    head, found, rest = before.partition(begin)
    assert found, f"{path.name} has no {begin!r}"
    end = rest.index('"""', rest.index('"""') + 3) + 4
    path.write_text(head + found + rest[:end] + lines + rest[end:])
    try:
        yield
    finally:
        path.write_text(before)


def wait_for(condition: Any, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.1)


# --- looking -------------------------------------------------------------------------------------

def forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, in an address, and inside a Base64 of user:secret or token:secret."""
    found = {secret.encode(), urllib.parse.quote(secret, safe="").encode()}
    for before in ("", "admin:", ":"):
        found.add(base64.b64encode(f"{before}{secret}".encode()).rstrip(b"=")[:-1])
    return found


def searched(root: Path) -> Iterator[Path]:
    skipped = {root / name for name in (".git", ".venv", ".env", "notes.md", "data/packages")}
    stack = [root]
    while stack:
        for path in sorted(stack.pop().iterdir()):
            if path in skipped or path.is_symlink():
                continue
            if path.is_dir():
                stack.append(path)
            elif path.is_file():
                yield path


def found_in(data: bytes, wanted: dict[str, set[bytes]]) -> set[str]:
    return {where for where, shapes in wanted.items() if any(shape in data for shape in shapes)}


def look(planted: Planted) -> list[dict[str, str]]:
    """Where a planted secret was found."""
    wanted = {where: forms(secret) for where, secret in planted.secrets.items()}
    leaks = [{"secret": where, "found in": "what the commands printed"} for where in sorted(found_in(planted.printed.encode(), wanted))]
    for path in searched(planted.root):
        with open(path, "rb") as f:
            overlap, here = b"", set()
            while chunk := f.read(CHUNK_BYTES):
                here |= found_in(overlap + chunk, wanted)
                overlap = chunk[-256:]
        leaks += [{"secret": where, "found in": path.relative_to(planted.root).as_posix()} for where in sorted(here)]
    return leaks


class Listeners(threading.Thread):
    """Which addresses the processes of a checkout listen on, as long as it runs."""

    def __init__(self, planted: Planted, interval_s: float = 0.5):
        super().__init__(daemon=True)
        self.planted, self.interval_s, self.ended = planted, interval_s, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(self.interval_s):
            self.planted.listeners |= {f"{ip}" for ip in listening(self.planted.root)}

    def __enter__(self) -> Listeners:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def listening(root: Path) -> set[str]:
    """The addresses that processes which work in `root` listen on."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(root)):
                found |= {connection.laddr.ip for connection in process.net_connections("inet") if connection.status == psutil.CONN_LISTEN}
    return found


def measure(count: int, seed: int) -> dict[str, Any]:
    """One checkout's life with all of them; `count` says how many at least must be planted."""
    rng = random.Random(f"{seed} {secrets.token_hex(8)}")  # never one that an earlier run left somewhere
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        planted = Planted(clone(Path(scratch) / "checkout"), Path(scratch) / "home")
        planted.home.mkdir()
        plant(planted, rng)
        try:
            with Listeners(planted):
                planted.lmworks("up")
                live(planted, rng)
                found = look(planted)  # while the servers run: their write-ahead logs too
        finally:
            planted.lmworks("down", "--force")
        leaks = found + [leak for leak in look(planted) if leak not in found]
        off = sorted(ip for ip in planted.listeners if ip not in LOOPBACK)
        counts = {"planted": len(planted.secrets), "found": len({leak["secret"] for leak in leaks}), "places": len(leaks),
                  "listeners": len(planted.listeners), "listeners_off_loopback": len(off)}
        whole = all(planted.codes.get(name) == code for name, code in WANTED.items()) and planted.listeners
        return {"counts": counts, "repeats": [{"commands": planted.codes, "planted": sorted(planted.secrets), "leaks": leaks, "off_loopback": off}],
                "met": bool(not leaks and not off and whole and len(planted.secrets) >= min(count, COUNT))}
