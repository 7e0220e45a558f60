"""Peak memory, and an error message that names the settings to lower when memory runs out."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from recbole_pref.errors import PrefError

_REMEDY = "lower logits_memory_mb or train_batch_size in training, eval_batch_size in evaluation, or num_negatives."


@contextmanager
def explained() -> Iterator[None]:
    """Turn running out of memory inside the block into one sentence.

    Raises:
        PrefError: names the settings to lower.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise PrefError(f"out of memory ({type(error).__name__}): {_REMEDY}") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise PrefError(f"out of memory: {_REMEDY}") from error


def peak_mb() -> float:
    """Return the peak memory of this process in MiB, without the memory of GPUs."""
    if sys.platform == "linux":  # ru_maxrss there includes the peak of the parent process
        match = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
        assert match is not None  # Linux always writes this line
        return int(match[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def restart_peak() -> None:
    """Let :func:`peak_mb` return the peak from now on. Without effect where the system is not Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
