"""The nightly flow: new text in, validated, cleaned, tokenised. No training."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows import ending, naming
from flows.chain import WaitS, in_flow, work

LAST = "shards"


@flow(name="lmworks-refresh", flow_run_name=naming.flow_run_name, persist_result=False, **ending.HOOKS)
def refresh(wait_s: WaitS | None = None) -> State:
    """Bring the sources up to date and run the data stages that this makes stale.

    Args:
        wait_s: seconds to wait for another run of this checkout (default: operations.lock_wait_s), then Skipped
    """
    return in_flow(lambda result: work(result, from_stage=None, to_stage=LAST, release=False), wait_s=wait_s, needs_mlflow=False)
