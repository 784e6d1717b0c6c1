"""How much memory a device has to spare, and how many jobs go on at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GIB = 2.0**30

ROOT = Path("/")


class _Group(NamedTuple):
    """Where a version of control groups says what they may have, and what they have."""

    folder: str
    limit: str
    used: str
    cached: str


GROUPS = {
    "": _Group("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": _Group("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Controller, as /proc/self/cgroup names it (none in version 2) -> the files of its groups."""


def free_memory(device: str, processes: int = 1) -> float:
    """Bytes that each of so many processes may take on a device, where a GPU has but one."""
    if device == "cpu":
        return _free_ram() / processes
    import torch

    if device.startswith("cuda"):
        # What PyTorch has taken and not given out, it gives out first, or back to the device.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    if device.startswith("mps"):
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return _free_ram() / processes


def ran_out(error: BaseException) -> bool:
    """Whether it was for want of memory, which PyTorch says with an error of its own on CUDA alone."""
    import torch

    told = "out of memory" in str(error) or "DefaultCPUAllocator: can't allocate" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and told)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(needed: int) -> int:
    """As many jobs of so many bytes each as there are processors, and as fit into half of the free memory; or one."""
    return max(1, min(processors(), int(free_memory("cpu") / 2 // max(1, needed))))


def _free_ram() -> float:
    """What Linux could give without swapping, within the limits of containers and jobs; elsewhere all there is."""
    meminfo = ROOT / "proc/meminfo"
    if not meminfo.is_file():
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    kib = next(line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return max(0.0, min([float(kib) * 1024, *_left_to_groups()]))


def _left_to_groups() -> Iterator[float]:
    """What the limit of each control group leaves that this process is in: its own, and those around that one.

    https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    own = ROOT / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        kind = GROUPS.get("memory" if "memory" in controllers.split(",") else controllers)
        if kind is None:
            continue
        inside = ROOT / kind.folder / path.lstrip("/")
        for folder in (inside, *(each for each in inside.parents if each.is_relative_to(ROOT / kind.folder))):
            limit, used, stat_file = folder / kind.limit, folder / kind.used, folder / "memory.stat"
            there = all(file.is_file() for file in (limit, used, stat_file))
            if there and (most := limit.read_text().strip()).isdigit():
                # What files are cached is given back when it is needed.
                stat = dict(line.split() for line in stat_file.read_text().splitlines())
                yield float(int(most) - int(used.read_text()) + int(stat.get(kind.cached, 0)))
