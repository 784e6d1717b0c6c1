"""The program, with something going wrong in one of its processes: ``python trouble.py WHAT PROCESS train ...``.

A file of its own, because the first process starts the others with the command that it was called with.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch

from medcontext.cli.main import main
from medcontext.data import sampling
from medcontext.errors import MedContextError
from medcontext.training import distribution
from medcontext.training.config import TrainConfig

AT = 3
"""Steps that are taken before the one in which a process dies; files of weights written before the disk is full."""

clip, read, save = torch.nn.utils.clip_grad_norm_, sampling.read_prepared, torch.save
calls = iter(range(1_000_000))


def troubled(what: str, process: int, *arguments: object) -> str:
    """Run it to its end, and return what was said; as long as one process is there, it might still say something."""
    started = [sys.executable, __file__, what, str(process), *map(str, arguments)]
    done = subprocess.run(started, capture_output=True, text=True, check=False, timeout=300)
    # The first process ends itself with an error, or is ended where it gives no answer.
    assert done.returncode in (1, -signal.SIGKILL), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def dies(*arguments):
    """In the middle of a step, with the others on their way into the next exchange."""
    if next(calls) == AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return clip(*arguments)


def finds_the_disk_full(state, stream):
    if next(calls) >= AT:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save(state, stream)


def finds_a_case_damaged(folder):
    copy = Path(shutil.copytree(folder, Path(tempfile.mkdtemp()) / folder.name))
    image = copy / "image.b2nd"
    image.write_bytes(image.read_bytes()[:100])
    return read(copy)


def hangs(silent: int) -> None:
    """No training: the first process prepares for longer than any waits later, and then one is silent."""
    fabric = distribution.launch(TrainConfig(device="cpu", devices=2))
    exchange = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert exchange.options._timeout == distribution.TRAINING
    exchange._set_default_timeout(timedelta(seconds=3))
    with distribution.ending_together(fabric):
        print(distribution.first_does(fabric, lambda: time.sleep(5) or "prepared", distribution.PREPARING), flush=True)
        if fabric.global_rank == silent:
            time.sleep(600)
        distribution.any_of(fabric, torch.tensor(True))


if __name__ == "__main__":
    what, process, *arguments = sys.argv[1:]
    if os.environ.get("LOCAL_RANK", "0") == process:
        match what:
            case "dies":
                torch.nn.utils.clip_grad_norm_ = dies
            case "disk":
                torch.save = finds_the_disk_full
            case "case":
                sampling.read_prepared = finds_a_case_damaged
    try:
        hangs(int(process)) if what == "hangs" else main(arguments)
    except MedContextError as error:
        sys.exit(f"error: {error}")
