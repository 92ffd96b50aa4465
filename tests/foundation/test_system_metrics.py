"""The machine is measured under the keys of MLflow's own monitor, so that its page knows them; a failing reading costs nothing."""

from __future__ import annotations

import importlib
import sys
import types

import psutil
import pytest

from components.system_metrics import Machine

pytestmark = pytest.mark.code


class FakeNvml(types.ModuleType):
    """pynvml on a machine of two GPUs, the second of which tells only its memory."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: return 2
    def nvmlDeviceGetHandleByIndex(self, number: int) -> int: return number
    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> types.SimpleNamespace: return types.SimpleNamespace(used=20e9, total=80e9)
    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: int) -> int: return 700_000

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=97) if gpu == 0 else self.fail()

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        return 350_000 if gpu == 0 else self.fail()

    def fail(self) -> int:
        raise self.NVMLError("not supported")


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have brought torch."""
    monkeypatch.setitem(sys.modules, "torch", None)


def keys_of(monitor: object) -> set[str]:
    monitor.collect_metrics()
    return {f"system/{key}" for key in monitor.aggregate_metrics()}


def test_processor_and_memory_have_the_keys_of_mlflow(no_torch: None, monkeypatch: pytest.MonkeyPatch):
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    machine = Machine()
    sum(n * n for n in range(1_000_000))  # more than a tick of the clock that counts processor time
    values = machine.read()
    assert set(values) == keys_of(CPUMonitor())
    assert 0 < values["system/cpu_utilization_percentage"] <= 100
    assert 0 < values["system/system_memory_usage_megabytes"] < psutil.virtual_memory().total / 1e6


def test_gpus_have_the_keys_of_mlflow_and_what_one_does_not_tell_is_left_out(no_torch: None, monkeypatch: pytest.MonkeyPatch):
    from mlflow.system_metrics.metrics import gpu_monitor

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    values = {key: value for key, value in Machine().read().items() if "gpu" in key}
    monkeypatch.setattr(FakeNvml, "fail", lambda self: 0)  # MLflow warns of what fails
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetUtilizationRates", lambda self, gpu: types.SimpleNamespace(gpu=97))
    theirs = keys_of(importlib.reload(gpu_monitor).GPUMonitor())
    assert {key for key in theirs if "gpu_0" in key} == {key for key in values if "gpu_0" in key}
    assert values["system/gpu_0_utilization_percentage"] == 97 and values["system/gpu_0_power_usage_percentage"] == 50
    assert values["system/gpu_0_memory_usage_percentage"] == 25 and values["system/gpu_0_memory_usage_megabytes"] == 20_000
    assert {key for key in values if "gpu_1" in key} == {"system/gpu_1_memory_usage_megabytes", "system/gpu_1_memory_usage_percentage"}


def test_without_nvml_the_memory_is_what_torch_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    cuda = types.SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 2, memory_reserved=lambda number: (40e9, 0)[number],
                                 get_device_properties=lambda number: types.SimpleNamespace(total_memory=80e9))
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    values = Machine().read()
    assert (values["system/gpu_0_memory_usage_megabytes"], values["system/gpu_0_memory_usage_percentage"]) == (40_000, 50)
    assert not any("gpu_1" in key for key in values), "the other GPU is not ours"


def test_a_reading_that_fails_is_left_out(no_torch: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = Machine()

    def fails() -> None:
        raise OSError("no /proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", fails)
    assert not any("memory" in key for key in machine.read())
