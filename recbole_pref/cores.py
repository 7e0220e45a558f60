"""The cores of this machine: which this process may use, and how many are busy.

Torch is not imported, so the package can ask before torch starts its threads.
"""

import os
import time


def usable_cores() -> int:
    """Return how many cores this process may use; in a container these can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_cores(samples: int = 9) -> int:
    """Return how many other threads run on this machine, the median of samples over a few milliseconds."""
    try:
        return sorted(_other_threads() for _ in range(samples))[samples // 2]
    except OSError:  # not Linux
        return 0


def _other_threads() -> int:
    time.sleep(0.001)
    with open("/proc/stat", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("procs_running")) - 1
