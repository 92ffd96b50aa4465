"""What this checkout's servers and runs are doing, for `lmworks status`, `up` and `doctor`."""

from __future__ import annotations

import time
from typing import Any

from components import files, tracking
from components.layout import Layout
from components.operations import half_restored, rest, services, unclean
from components.operations.processes import MLFLOW, PREFECT, free, holder_of_port, log_path, memory_mb


def state(layout: Layout) -> dict[str, dict[str, Any]]:
    """{service: {"running", "state": up | down | not answering, "url", "pid", "memory_mb", "since_s", "log"}}, what is known."""
    recorded, told = services.read(layout), {}
    for name, service in (("mlflow", MLFLOW), ("prefect", PREFECT), ("worker", None)):
        url = services.outside(service, layout) if service else None
        process = services.process_of(recorded.get(name), layout)
        if process is None and url is None:
            told[name] = {"running": False, "state": "down"}
            continue
        address_ = url or recorded[name].get("url")
        answers = service is None or rest.healthy(address_ + service.health)
        told[name] = {"running": answers, "state": "up" if answers else "not answering"} | ({"url": address_} if address_ else {})
        if url:
            told[name]["outside"] = True
        else:
            told[name] |= {"pid": process.pid, "memory_mb": memory_mb(process), "since_s": round(time.time() - process.create_time()),
                           "log": str(log_path(layout, name).relative_to(layout.root))}
    return told


def port_in_words(name: str) -> str:
    """Whether the port that a server is looked for first is free, and who holds it; nothing for the worker."""
    service = {MLFLOW.name: MLFLOW, PREFECT.name: PREFECT}.get(name)
    if service is None:
        return ""
    if free(service.first_port):
        return f", port {service.first_port} is free"
    return f"; port {service.first_port} is held by {holder_of_port(service.first_port)}, so the next free one is taken"


def activity(layout: Layout) -> dict[str, Any]:
    """{"restore": what to do about one that was killed, or None; "run", "stage": who holds the lock, or None; "unclean": markers of killed
    runs; "unsent": spooled training runs}."""
    return {"restore": half_restored.told(layout), "run": files.lock_holder(layout.run_lock), "stage": files.lock_holder(layout.stage_lock),
            "unclean": len(unclean.dead(layout)), "unsent": tracking.unsent(layout)}
