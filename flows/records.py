"""What a run says of itself, as plain values: for the terminal, the artifact and `--json` (no Prefect here)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MAX_REASON_CHARS = 900
LAST_LINES = "\nIts last lines:"  # where the reason ends (`components.operations.alerts` looks for it, too)
MAX_STATE_CHARS = 1500  # what the page shows of a state without scrolling; the log has everything


@dataclass
class StageRecord:
    """What became of one stage in one run."""

    stage: str
    state: str = "skipped"  # ran | cached | restored | healed | failed | skipped
    why: list[str] = field(default_factory=list)  # reasons to run it
    elapsed_s: float = 0.0  # of DVC and the stage together
    work_s: float = 0.0  # of the stage's own process, by its own account
    summary: dict[str, Any] = field(default_factory=dict)  # the stage's own report
    message: str = ""  # of a failure
    exit_code: int = 0  # 3: validation blocked the data
    last_lines: list[str] = field(default_factory=list)  # the last it said, where it failed


def in_words(record: StageRecord) -> str:
    """The message of a failed state: the reason first, then as many of the stage's last lines as fit."""
    reason = f"{record.stage}: {record.message}"
    if len(reason) > MAX_REASON_CHARS:
        reason = f"{reason[:MAX_REASON_CHARS]}… (whole in the log)"
    head, room = reason + LAST_LINES, MAX_STATE_CHARS - len(reason) - len(LAST_LINES)
    said = {line.strip() for line in reason.splitlines()} | {record.message.partition("\n")[0]}
    kept: list[str] = []
    for line in reversed([line for line in record.last_lines if line.strip() not in said]):
        room -= len(line) + 3
        if room < 0:
            break
        kept.insert(0, f"  {line}")
    return "\n".join([head, *kept]) if kept else reason


@dataclass
class RunResult:
    """One run of the chain."""

    verdict: str = "Failed"  # Promoted | Partly promoted | Not promoted | Nothing changed | Healed | Ready | Skipped | Blocked | Failed | Stopped
    message: str = ""
    exit_code: int = 1
    stages: list[StageRecord] = field(default_factory=list)
    release: Any = None  # what components.release.release returned, None if the run made no release
    seconds: dict[str, float] = field(default_factory=dict)  # by part; `platform` is what is neither stage nor release
    flow_run: str | None = None  # its page
    reported: bool = True  # False: Prefect's server went away before the run had ended there
    reconciled: list[str] = field(default_factory=list)  # what an earlier crash had left open

    @property
    def failed(self) -> StageRecord | None:
        return next((record for record in self.stages if record.state == "failed"), None)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "release": plain(self.release)}


def plain(value: Any) -> Any:
    """A value of the release as JSON can hold it."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
