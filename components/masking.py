"""Secrets in text that is about to be kept: the one place that takes them out (J14).

Two kinds are known: the values of environment variables whose names say that they hold a secret, and what looks like a secret
whoever wrote it (keys of well-known services, private keys, passwords in addresses, `password: …`). What looks like nothing
special and stands in no such variable cannot be told from other text.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping

from components.errors import UserError

MASK = "********"
MIN_CHARS = 8  # a shorter value is masked nowhere: it would take ordinary words with it

SECRET_NAME = re.compile(r"secret|token|passw|api_?key|access_?key|private_?key|credential|auth_string|authorization|webhook|ping_url|passphrase|_key$|_dsn$|_pass$|_pwd$|_auth$|密码|口令|密钥|令牌", re.I)
NO_SECRET_NAME = re.compile(r"_(file|path|dir|sock|enabled|parallelism)$|^mlflow_tracking_auth$", re.I)  # the last names a plugin

_SHAPES = [
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
    r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}",
    r"\bglpat-[\w-]{20,}|\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bpypi-[\w-]{30,}|\bnpm_[A-Za-z0-9]{30,}",
    r"\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}|\bpnu_[A-Za-z0-9]{20,}",
    r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # a JSON web token
]
SHAPES = re.compile("|".join(_SHAPES), re.S)
IN_ADDRESS = re.compile(r"(?<=://)[^\s/@:'\"]*:[^\s/@'\"]+(?=@)")  # user:password
AUTHORISATION = re.compile(r"\b((?:Basic|Bearer)\s+)(?=\S*[\d=])[A-Za-z0-9+/=._~-]{12,}")
# `password = "…"`, `AWS_SECRET_ACCESS_KEY=…`, `"api_key": "…"`; of a token or a key only what mixes letters and digits, as code is full of these
# words. A name is read once, whole (`++`): to begin again at each of its characters would take hours for a line of a megabyte
NAME = re.compile(r"""(?<![\w.-])([\w.-]++)["']?[ \t]*+([:=：＝])[ \t]*+""")
# forward_pass is no password, DB_PASS is one
PASSWORD_NAME = re.compile(r"passw(?:or)?d|passphrase|secret|_pwd$|(?-i:_PASS$)|(?:db|user|root|admin|smtp|mail|sql|redis|postgres)_pass$", re.I)
PASSWORD = re.compile(r"""(["']?)([^\s"'#,;()\[\]{}]{8,})\1""")
KEY_NAME, NO_KEY_NAME = re.compile(r"token|api_?key|access_?key|private_?key|credential", re.I), re.compile(r"sha256|md5|digest", re.I)
# in Chinese a sentence may follow, an address or a file: of those names, and behind a Chinese sign, only what mixes letters and digits and has no Han
CHINESE_PASSWORD, CHINESE_KEY = re.compile(r"密码|口令"), re.compile(r"密钥|令牌")
MIXED, LONG_MIXED = (re.compile(rf"""(["'“]?)(?![./]|\w+://)(?=[!-~]{{0,63}}\d)(?=[!-~]{{0,63}}[A-Za-z])([!#-&(-~]{{{least},}})""") for least in (8, 16))
KEY = re.compile(r"""(["']?)((?=[^\s"']{0,63}\d)(?=[^\s"']{0,63}[A-Za-z])[^\s"'#,;()\[\]{}<>|]{16,})\1""")


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """What the environment says is secret, the longest first; of an address also its password and the long parts of its path."""
    found: set[str] = set()
    for name, value in environment.items():
        value = value.strip()
        if not SECRET_NAME.search(name) or NO_SECRET_NAME.search(name) or value.startswith("/"):
            continue
        found.add(value)
        if "://" in value:
            with contextlib.suppress(ValueError):
                parts = urllib.parse.urlsplit(value)
                found |= {part for part in re.split(r"[/?&=#]", f"{parts.path}?{parts.query}") if len(part) >= 12} | {parts.password or ""}
        elif ":" in value:  # user:password
            found.add(value.partition(":")[2])
    return sorted((value for value in found if len(value) >= MIN_CHARS and value.lower() not in ("password", "username")), key=len, reverse=True)


def masked(text: str) -> str:
    """The text without its secrets. The same text where there is none."""
    for value in secret_values(os.environ):
        if value in text:
            text = text.replace(value, MASK)
    return _without_assigned(AUTHORISATION.sub(rf"\1{MASK}", IN_ADDRESS.sub(MASK, SHAPES.sub(MASK, text))))


def _secret_of(name: str, sign: str) -> re.Pattern[str] | None:
    """What a value must look like to be a secret behind this name and sign; None where none is expected."""
    password, key = PASSWORD_NAME.search(name), KEY_NAME.search(name) and not NO_KEY_NAME.search(name)
    if CHINESE_PASSWORD.search(name) or password and sign in "：＝":
        return MIXED
    if CHINESE_KEY.search(name) or key and sign in "：＝":
        return LONG_MIXED
    return PASSWORD if password else KEY if key else None


def _without_assigned(text: str) -> str:
    """The text without the values of what is named like a secret. A value may hold a name of its own: `set=password=…`."""
    parts, done = [], 0
    for name in NAME.finditer(text):
        secret = _secret_of(name[1], name[2])
        if name.start() >= done and secret and (value := secret.match(text, name.end())):
            parts += [text[done:value.start(2)], MASK]
            done = value.end(2)
    return "".join(parts) + text[done:]


@contextlib.contextmanager
def kept_from_errors() -> Iterator[None]:
    """What is raised inside goes on without secrets in its text: Prefect and MLflow keep the text of every error."""
    try:
        yield
    except UserError as error:
        error.args = tuple(masked(part) if isinstance(part, str) else part for part in error.args)
        raise
    except Exception as error:
        text = str(error)
        if (clean := masked(text)) == text:
            raise
        raise RuntimeError(f"{type(error).__name__}: {clean}") from None
