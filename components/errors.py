"""Errors typed by who must act. The exit code of the process is part of each."""


class UserError(Exception):
    """Something the user gave is wrong: what was found, where, what was needed, what to do."""

    exit_code = 2


class Passing(UserError):
    """Neither the input nor the bytes are wrong: a server, a disk or another program was in the way. Nothing may be judged by it."""

    exit_code = 1


class Blocked(UserError):
    """Validation refused the data; nothing after it may run."""

    exit_code = 3


class Damaged(UserError):
    """Bytes on disk are not the bytes that were written."""

    exit_code = 4


class Busy(UserError):
    """Another run holds the lock of this checkout."""

    exit_code = 75
