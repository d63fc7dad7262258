"""How the machine fares: CPU, memory, GPU, as scalars named ``system/…``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import psutil

log = logging.getLogger(__name__)


class Machine:
    """Samples this process and its machine. A sample takes a millisecond, in whatever thread asks."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()
        self._gpus = _gpus()

    def sample(self) -> Mapping[str, float]:
        """Since the last sample: percent of all cores, percent of one core for this process; gigabytes of memory; of
        each GPU its load in percent, its memory in gigabytes, watts and degrees Celsius.
        """
        memory = psutil.virtual_memory()
        found = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/process_cpu_percent": self._process.cpu_percent(),
            "system/memory_gb": (memory.total - memory.available) / 1e9,
            "system/process_memory_gb": self._process.memory_info().rss / 1e9,
        }
        for number, gpu in enumerate(self._gpus):
            found |= {f"system/gpu{number}_{name}": value for name, value in _sample(gpu).items()}
        return found


def _gpus() -> list[object]:
    """Handles of NVIDIA's GPUs; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.debug("no GPU is watched: %s", error)
        return []


def _sample(gpu: object) -> dict[str, float]:
    """What this GPU tells; not every one tells everything."""
    import pynvml

    asked: dict[str, Callable[[], float]] = {
        "percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "memory_gb": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e9,
        "watts": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "celsius": lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = float(ask())
        except pynvml.NVMLError:
            continue
    return found
