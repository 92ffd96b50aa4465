"""What a stage says while it works and when it ends: progress lines, the report, a polite stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Report:
    """What a stage did. It is published with the out, so it holds no clock and no path."""

    documents_in: int | None = None
    documents_out: int | None = None
    tokens: int | None = None
    counts: dict[str, int] = field(default_factory=dict)  # e.g. why documents were dropped
    notes: list[str] = field(default_factory=list)  # sentences a person should read
    steps: int | None = None  # optimizer updates of the finished model

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v not in (None, {}, [])}


def say(text: str) -> None:
    """One line of the stage's output: live in the terminal and in the run's log. Nobody there to read it is no reason to end."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal; elsewhere a line every two seconds that `commands` turns into a bar.

    The line is `NAME N/TOTAL DETAIL`, e.g. `pretrain 120/600 loss 3.21 · 9,120 tok/s · 01:20 left`.
    """

    def __init__(self, name: str, total: int, *, start: int = 0):
        self.name, self.total, self.start = name, total, start
        self.started_s = self.said_s = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, desc=name, leave=True, dynamic_ncols=True,
                            bar_format="{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {postfix}")

    def update(self, n: int, detail: str = "") -> None:
        """`n` of `total` is done."""
        now_s = time.monotonic()
        done, left = n - self.start, self.total - n
        if self.bar is None and now_s - self.said_s < 2 and left:
            return
        remaining_s = int((now_s - self.started_s) / done * left) if done else 0
        eta = f"{remaining_s // 60:02d}:{remaining_s % 60:02d} left" if left else f"{now_s - self.started_s:.0f} s"
        detail = " · ".join(part for part in (detail, eta) if part)
        if self.bar is not None:
            with contextlib.suppress(OSError):  # the terminal was closed
                self.bar.set_postfix_str(detail, refresh=False)
                self.bar.update(n - self.bar.n)
        else:
            say(f"{self.name} {n}/{self.total} {detail}")
            self.said_s = now_s

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.close()


class _Stop:
    """SIGTERM, Ctrl-C and a closed terminal: at once, or, inside `deferred()`, at the next safe moment."""

    def __init__(self) -> None:
        self.requested = False
        self.exit_code = 130
        self._deferred = False
        self._asked = False

    def install(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asks to outlive the terminal
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, signum: int, _frame: object) -> None:
        again, self._asked = self._asked, True
        if again and signum == signal.SIGTERM:
            # the kernel's (PR_SET_PDEATHSIG): DVC died of the first one too, which is no second wish while this process saves its
            # work. It comes as soon as the thread that started us is gone, while another of DVC's is still our parent
            return
        self.exit_code = 143 if signum == signal.SIGTERM else 130
        if self._deferred and not self.requested:
            self.requested = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[_Stop]:
        """Code inside asks `.requested` between steps, saves its work and raises KeyboardInterrupt."""
        self._deferred = True
        try:
            yield self
        finally:
            self._deferred = False


stop = _Stop()
