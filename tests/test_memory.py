"""What memory a process may take: its machine's, within the limits of the control groups that it is in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medcontext import memory
from medcontext.memory import GIB, free_memory, ran_out

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Of 64 GiB; files are written into its root."""
    monkeypatch.setattr(memory, "ROOT", tmp_path)

    def write(path: str, text: str) -> None:
        file: Path = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {64 * 2**20} kB\n")
    return write


def group(write, folder: str, limit: object, used: float, cached: float = 0) -> None:
    """In GiB."""
    names = ("memory.max", "memory.current", "inactive_file")
    if folder.startswith(V1):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    write(f"{folder}/{names[0]}", f"{limit if isinstance(limit, str) else int(limit * GIB)}\n")
    write(f"{folder}/{names[1]}", f"{int(used * GIB)}\n")
    write(f"{folder}/memory.stat", f"anon 7\n{names[2]} {int(cached * GIB)}\n")


def test_a_gpu_gives_what_pytorch_keeps_and_does_not_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 11 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7 * 2**30)
    assert free_memory("cuda:1") == 7 * GIB


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.99 GB, max allowed: 18.13 GB)"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_it_is_known_when_memory_ran_out(error, expected):
    assert ran_out(error) is expected


def test_without_groups_it_is_what_is_available(machine):
    assert free_memory("cpu") == 64 * GIB
    assert free_memory("cpu", processes=4) == 16 * GIB


@pytest.mark.parametrize(("folder", "line"), [(V2, "0::/"), (V1, "4:cpu,memory:/")])
def test_the_limit_of_a_container_counts_less_what_is_used_and_not_cached(machine, folder, line):
    machine("proc/self/cgroup", f"9:pids:/\n{line}\n")
    group(machine, folder, 8, used=3, cached=1)
    assert free_memory("cpu") == 6 * GIB
    group(machine, folder, 2, used=3)
    assert free_memory("cpu") == 0
    group(machine, folder, "max", used=3)
    assert free_memory("cpu") == 64 * GIB


@pytest.mark.parametrize(("folder", "line"), [(V2, "0::/slurm/job_7/step"), (V1, "4:memory:/slurm/job_7/step")])
def test_the_smallest_of_nested_groups_counts(machine, folder, line):
    """As those of a job on a cluster, where the root has no limit of its own."""
    machine("proc/self/cgroup", f"{line}\n")
    group(machine, f"{folder}/slurm/job_7", 16, used=2)
    group(machine, f"{folder}/slurm/job_7/step", "max", used=1)
    group(machine, f"{folder}/slurm", 32, used=30)
    assert free_memory("cpu") == 2 * GIB
