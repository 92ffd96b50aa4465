"""Processor, memory and GPU while a model trains, under MLflow's own keys: its page shows them in the tab *System metrics*.

GPU use and power need the package nvidia-ml-py; without it a GPU's memory is what torch holds there.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import Any

import psutil


class Machine:
    """What this machine does. `read` gives shares of the time since the last `read`."""

    def __init__(self) -> None:
        self._cpu = psutil.cpu_times()
        self._nvml, self._gpus = _nvml()

    def read(self) -> dict[str, float]:
        """{key: value} of now, keys as MLflow's own monitor has them. A reading that fails is left out."""
        values: dict[str, float] = {}
        with contextlib.suppress(psutil.Error, OSError):
            values |= self._processor()
        with contextlib.suppress(psutil.Error, OSError):
            memory = psutil.virtual_memory()
            values["system_memory_usage_megabytes"] = memory.used / 1e6
            values["system_memory_usage_percentage"] = memory.used / memory.total * 100
        values |= self._gpus_by_nvml() if self._nvml else _gpus_by_torch()
        return {f"system/{key}": round(float(value), 1) for key, value in values.items()}

    def _processor(self) -> dict[str, float]:
        """psutil.cpu_percent counts anew in each thread; ours are read by two, so the sums are kept here."""
        before, self._cpu = self._cpu, psutil.cpu_times()
        spent = {name: getattr(self._cpu, name) - getattr(before, name) for name in self._cpu._fields if not name.startswith("guest")}
        total_s = sum(spent.values())
        idle_s = spent["idle"] + spent.get("iowait", 0.0)
        return {"cpu_utilization_percentage": min(100.0, max(0.0, (total_s - idle_s) / total_s * 100))} if total_s > 0 else {}

    def _gpus_by_nvml(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for number, gpu in enumerate(self._gpus):
            with contextlib.suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(gpu)
                values[f"gpu_{number}_memory_usage_megabytes"] = memory.used / 1e6
                values[f"gpu_{number}_memory_usage_percentage"] = memory.used / memory.total * 100
            with contextlib.suppress(self._nvml.NVMLError):
                values[f"gpu_{number}_utilization_percentage"] = self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            with contextlib.suppress(self._nvml.NVMLError):
                power_mw = self._nvml.nvmlDeviceGetPowerUsage(gpu)
                values[f"gpu_{number}_power_usage_watts"] = power_mw / 1000
                values[f"gpu_{number}_power_usage_percentage"] = power_mw / self._nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) * 100
        return values


def _nvml() -> tuple[Any, list[Any]]:
    """(pynvml, a handle a GPU); (None, []) where it is not installed or finds no driver."""
    try:
        with warnings.catch_warnings(action="ignore"):  # an old package of the same name warns that it is deprecated
            import pynvml
        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # noqa: BLE001 - not installed, no driver, a driver of another version: there is nothing to measure then
        return None, []


def _gpus_by_torch() -> dict[str, float]:
    """What torch's allocator holds on each GPU: it is asked, not the driver, so no kernel waits."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    values: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        held_bytes = torch.cuda.memory_reserved(number)
        if held_bytes:
            values[f"gpu_{number}_memory_usage_megabytes"] = held_bytes / 1e6
            values[f"gpu_{number}_memory_usage_percentage"] = held_bytes / torch.cuda.get_device_properties(number).total_memory * 100
    return values
