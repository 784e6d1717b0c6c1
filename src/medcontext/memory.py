"""How much memory a device has to spare, and how many jobs go on at once."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 2.0**30


def free_memory(device: str, processes: int = 1) -> float:
    """Bytes that each of so many processes may take on a device, where a GPU has but one."""
    if device == "cpu":
        return _free_ram() / processes
    import torch

    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    if device.startswith("mps"):
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return _free_ram() / processes


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(needed: int) -> int:
    """As many jobs of so many bytes each as there are processors, and as fit into half of the free memory; or one."""
    return max(1, min(processors(), int(free_memory("cpu") / 2 // max(1, needed))))


def _free_ram() -> float:
    """Memory that Linux could give without swapping, within the limit of a container; elsewhere all there is."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.is_file():
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    kib = next(line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    free = float(kib) * 1024
    if limit.is_file() and limit.read_text().strip().isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, int(limit.read_text()) - used)
    return max(free, 0.0)
