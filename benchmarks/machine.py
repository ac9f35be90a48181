"""What a benchmark says of the machine that it ran on."""

import os
import platform
import resource

import torch


def machine() -> str:
    """Processor, cores and torch, and the GPU where there is one."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {os.cpu_count()} cores{device}, torch {torch.__version__}"


def load() -> float:
    """Processes that wanted a core in the last five minutes, on average: beyond the cores, seconds are too long."""
    return round(os.getloadavg()[1], 1)


def peak_memory() -> int:
    """The most that this process has held so far, in bytes; of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
