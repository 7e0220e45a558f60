"""Running out of memory, said so that the user knows which setting to lower."""

from contextlib import contextmanager

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
