"""Memory: how much was used, and running out of it told so that the user knows what to lower."""

import re
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from recbole_pref.errors import PrefError

_REMEDY = (
    "lower logits_memory_mb or train_batch_size in training, eval_batch_size in evaluation, or "
    "num_negatives."
)


@contextmanager
def explained():
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


def peak_mb():
    """Return the most memory this process held so far, in MiB; on a GPU machine the host's part."""
    if sys.platform == "linux":  # whose ru_maxrss begins with what the process held that started this one
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
