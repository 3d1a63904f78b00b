"""How far apart two cores are: the time that a byte takes from one to the other and back.

On a virtual machine the answer changes while it runs, as the host moves its cores from one cache to another, and with it changes everything that
two threads do to the same data.
"""

import contextlib
import mmap
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

_TURN, _READY, _STOP = 0, 64, 128  # a cache line each; the other process knows them by number
_PATIENCE = 1.0
"""Seconds; a turn takes microseconds, unless others use the cores, and then the answer would mean nothing."""
_OTHER = """
import mmap, os, sys
path, core, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.sched_setaffinity(0, {core})
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
    page[64] = 1
    for _ in range(turns):
        while not page[0]:
            if page[128]:
                raise SystemExit
        page[0] = 0
"""


def round_trip(turns: int = 2000, samples: int = 10) -> float | None:
    """Nanoseconds from one core to another and back, the median of `samples` means over `turns`; some 80 of them are Python's own.

    Returns:
      None where a process cannot choose its cores, has only one, or shares them with others.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        return None
    here, there = sorted(before)[:2]
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as page:
            path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            command = [sys.executable, "-I", "-S", "-c", _OTHER, path, str(there), str(turns * samples)]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as other:
                os.sched_setaffinity(0, {here})
                try:
                    return _ping(page, other, turns, samples)
                finally:
                    page[_STOP] = 1
                    os.sched_setaffinity(0, before)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        other.wait(_PATIENCE)
                    other.kill()


def _ping(page: mmap.mmap, other: subprocess.Popen, turns: int, samples: int) -> float | None:
    deadline = time.monotonic() + _PATIENCE
    while not page[_READY]:
        if other.poll() is not None or time.monotonic() > deadline:
            return None
        time.sleep(0.001)
    means = []
    deadline = time.perf_counter() + _PATIENCE
    for _ in range(samples):
        start = time.perf_counter()
        for _ in range(turns):
            page[_TURN] = 1
            while page[_TURN]:
                if time.perf_counter() > deadline:
                    return None
        means.append((time.perf_counter() - start) / turns * 1e9)
    return round(float(np.median(means)), 1)
