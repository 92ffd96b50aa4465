"""Release on demand: judge and register the models that lie in data/, without running a stage."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from components import config as settings
from components.layout import Layout
from flows import ending, naming
from flows.chain import WaitS, in_flow, release_into


@flow(name="lmworks-release", flow_run_name=naming.flow_run_name, persist_result=False, **ending.HOOKS)
def release(wait_s: WaitS | None = None) -> State:
    """Log, register and judge the models as they stand; move the champion if its gate says yes.

    Args:
        wait_s: seconds to wait for another run of this checkout (default: operations.lock_wait_s), then Skipped
    """
    layout = Layout()
    return in_flow(lambda result: release_into(result, settings.load(layout.params), layout), wait_s=wait_s)
