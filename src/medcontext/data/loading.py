"""Batches made ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch

from medcontext.data.sampling import Batch, PatchBatches

AHEAD = 2
"""Batches that each worker has ready or in work, beside the one that is learned from."""


def batches_of(batches: PatchBatches, steps: Iterable[int], workers: int) -> Iterator[Batch]:
    """The batches of these steps, in their order.

    Workers are threads: nearly all of the time passes where Python isn't held (decompression, tensor arithmetic), and
    what they make needs no way between processes, which takes longer than making it. What goes wrong in one is raised
    here as it was there.

    Args:
        batches: All of them.
        steps: Which.
        workers: Threads that make them ahead; 0 makes each when it is asked for.
    """
    if not workers:
        yield from (batches[step] for step in steps)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="patches", initializer=torch.set_num_threads, initargs=(1,))
    left = iter(steps)
    made: deque[Future[Batch]] = deque()

    def begin(count: int) -> None:
        made.extend(pool.submit(batches.__getitem__, step) for step in islice(left, count))

    try:
        begin(AHEAD * workers)
        # Threads that begin later take the number that was set last, wherever that was.
        torch.set_num_threads(threads)
        while made:
            batch = made.popleft().result()
            begin(1)
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
