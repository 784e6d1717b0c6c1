"""Waiting and computing told apart, on the time line that counts, without waiting for a device."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcontext.training.meter import CudaTimer, Meter, peak_memory, training_note, waiting_hint


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def between(self, first: float, last: float) -> float:
        return last - first


class FakeGpu:
    """A queue of kernels beside the time of the process, and the events of CUDA in it."""

    def __init__(self) -> None:
        self.host = 0.0
        self.free_at = 0.0

    def launch(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.host) + seconds

    def mark(self) -> float:
        return max(self.free_at, self.host)

    def between(self, first: float, last: float) -> float | None:
        return last - first if last <= self.host else None


def slow(clock: FakeClock, steps: int, seconds: float, first: float = 0.0) -> Iterator[int]:
    for step in range(steps):
        clock.now += seconds + (first if step == 0 else 0)
        yield step


def test_shares_and_speed_without_the_first_step_and_what_is_aside():
    clock = FakeClock()
    meter = Meter("cpu", clock)
    for step in meter.watch(slow(clock, 11, 0.1, first=60)):
        clock.now += 0.3 if step else 100
        if step in (0, 5):
            with meter.aside():
                clock.now += 1000
    assert meter.waiting == pytest.approx(0.1)
    assert meter.computing == pytest.approx(0.3)
    values = meter.values()
    assert values["data_wait"] == pytest.approx(0.25)
    assert values["steps_per_second"] == pytest.approx(2.5)
    assert values["peak_memory_gib"] > 0


def test_the_last_steps_count():
    clock = FakeClock()
    meter = Meter("cpu", clock, window=4)
    for step in meter.watch(slow(clock, 20, 0.1)):
        clock.now += 5 if step < 12 else 0.1
    assert meter.values()["data_wait"] == pytest.approx(0.5)


def test_before_the_second_step_there_is_nothing_to_say():
    clock = FakeClock()
    meter = Meter("cpu", clock)
    assert set(meter.values()) == {"peak_memory_gib"}
    for _ in meter.watch(slow(clock, 1, 1)):
        assert meter.hint(0, 8) is None
    assert set(meter.values()) == {"peak_memory_gib"}


def test_batches_pass_through_and_an_error_does_too():
    meter = Meter("cpu")
    assert list(meter.watch(range(5))) == [0, 1, 2, 3, 4]

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(meter.watch(broken()))


def test_real_time():
    def batches() -> Iterator[int]:
        for step in range(6):
            time.sleep(0.03)
            yield step

    meter = Meter("cpu")
    for _ in meter.watch(batches()):
        time.sleep(0.01)
    # A busy machine sleeps longer, never shorter.
    assert meter.waiting >= 0.03
    assert meter.computing >= 0.01


@pytest.mark.parametrize(("data", "idle"), [(0.9, 0.0), (1.6, 0.5)])
def test_a_gpu_that_is_still_busy_waits_for_nothing(data, idle):
    """A step of 1 s is launched within 0.1 s, then the process waits for the next batch, ready every ``data`` s.

    Once it is idle, the GPU gets its step when it is launched, 0.1 s after the batch: that is no waiting for data.
    """
    gpu = FakeGpu()

    def loader() -> Iterator[int]:
        for step in range(40):
            gpu.host = max(gpu.host, data * (step + 1))
            yield step

    meter = Meter("cuda", gpu)
    for _ in meter.watch(loader()):
        gpu.host += 0.1
        gpu.launch(1.0)
    assert meter.waiting == pytest.approx(idle, abs=1e-6)
    assert meter.computing == pytest.approx(1.0, abs=0.11)


def test_cuda_marks_are_events_that_are_asked_and_never_waited_for(monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = -1

        def record(self, stream: str) -> None:
            assert stream == "stream of cuda:1"
            self.at = 10 * len(done)
            done.append(self)

        def query(self) -> bool:
            return self.at < 20

        def elapsed_time(self, other: Event) -> float:
            return float(other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waits for the GPU"))
    timer = CudaTimer("cuda:1")
    first, second, third = (timer.mark() for _ in range(3))
    assert timer.between(first, second) == pytest.approx(0.01)
    assert timer.between(second, third) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    """Idle while the data is slow; not idle while steps queue up, however long the process waits."""
    device = "cuda"
    matrix = torch.randn(4096, 4096, device=device)

    def compute(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    def loader() -> Iterator[int]:
        for step in range(12):
            time.sleep(0.02)
            yield step

    shares = []
    for work in (1, 200):
        compute(work)
        torch.cuda.synchronize()
        meter = Meter(device)
        for _ in meter.watch(loader()):
            compute(work)
        torch.cuda.synchronize()
        meter._settle()
        shares.append(meter.values()["data_wait"])
    assert shares[0] > 0.5
    assert shares[1] < 0.2
    assert peak_memory(device) >= 4096 * 4096 * 4 / 2**30


def test_the_hint_comes_once_and_not_before_there_is_something_to_say():
    clock = FakeClock()
    meter = Meter("cpu", clock, window=10)
    said = {}
    for step in meter.watch(slow(clock, 40, 0.35)):
        clock.now += 0.65
        hint = meter.hint(workers=0, processors=8)
        if hint:
            said[step] = hint
    assert said == {11: "the network waits for data 35 % of the time: set --workers 1"}


def test_no_hint_when_the_data_is_there():
    clock = FakeClock()
    meter = Meter("cpu", clock, window=10)
    for _ in meter.watch(slow(clock, 40, 0.1)):
        clock.now += 0.9
        assert meter.hint(workers=0, processors=8) is None


@given(
    data=st.floats(0.01, 50),
    computing=st.floats(0.01, 10),
    workers=st.integers(0, 8),
    processors=st.integers(2, 64),
)
def test_the_workers_that_are_recommended_are_enough(data, computing, workers, processors):
    """A batch takes a process ``data`` seconds: so many processes as recommended finish one in the time of a step."""
    waiting = data if workers == 0 else max(0.0, data / workers - computing)
    hint = waiting_hint(waiting, computing, workers, processors)
    if waiting < 0.19 * (waiting + computing):
        assert hint is None
        return
    if waiting < 0.21 * (waiting + computing):
        return
    assert hint is not None
    found = re.search(r"--workers (\d+)", hint)
    if found is None:
        assert workers >= processors - 1
        return
    wanted = int(found[1])
    assert workers < wanted <= processors - 1
    assert data / wanted <= computing * 1.001 or wanted == processors - 1
    # And one less would not do.
    assert wanted == 1 or wanted == workers + 1 or data / (wanted - 1) > computing * 0.999


GROWS = """
from medcontext.training.meter import peak_memory
before = peak_memory("cpu")
block = b"1" * 2**28
print(before, peak_memory("cpu"))
del block
print(peak_memory("cpu"))
"""


def test_memory_of_a_process_grows_with_the_most_that_it_has_held():
    """And begins anew, though the process that starts it has held more."""
    assert len(b"1" * 2**30) == 2**30
    done = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, check=True)
    before, held, freed = map(float, done.stdout.split())
    assert 0 < before < 4
    assert held - before == pytest.approx(0.25, abs=0.05)
    assert freed == pytest.approx(held, abs=0.01), "the most so far; Linux counts pages in batches"


def test_the_note_says_what_there_is_in_the_order_of_weight():
    latest = {
        "peak_memory_gib": 2.123,
        "loss/clean": 0.3,
        "loss/total": 0.8124,
        "dice/student": 0.81,
        "dice/teacher": 0.83,
        "context_score": 0.5,
        "loss/masked": 0.4,
        "loss/consistency": 0.1,
        "data_wait": 0.034,
        "momentum": 0.99,
    }
    assert training_note(latest) == (
        "loss 0.812  Dice 0.810  teacher 0.830  context 0.500  clean 0.300  masked 0.400  consistency 0.100  "
        "waiting 3 %  2.1 GiB"
    )
    assert training_note({"loss/total": 1.0}) == "loss 1.000"
    assert training_note({}) == ""
    assert training_note({"context_score": math.nan}) == "context nan"
