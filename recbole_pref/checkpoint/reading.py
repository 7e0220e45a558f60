"""Safe reading: the checksum is verified first, and pickled objects are refused unless the user trusts them."""

import hashlib
import logging
import os
import pickle
from typing import IO, Any

import torch

from recbole_pref.checkpoint.format import (
    END,
    END_MARK,
    HEX,
    LABEL,
    PICKLE_MARK,
    ZIP_MARK,
    CorruptCheckpoint,
)
from recbole_pref.errors import PrefError, suggest

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes read at a time


_TRUST = "set trust_checkpoint: True if you made the file yourself or trust who did"


def load(
    path: str | os.PathLike,
    map_location: Any = "cpu",
    trust_pickle: bool = False,
    setting: str = "checkpoint",
    remedy: str = _TRUST,
) -> Any:
    """Verify the checksum of the file ``path`` and return its state.

    A file that ``torch.save`` wrote without a checksum is also read if it holds plain data. RecBole's own
    checkpoints hold a pickled ``Config``, and unpickling can run any code. They are refused unless
    ``trust_pickle`` is True.

    Args:
        path: the checkpoint.
        map_location: as in ``torch.load``.
        trust_pickle: the value of the setting ``trust_checkpoint``.
        setting: the setting that holds the path, for messages (``resume``, ``reference``).
        remedy: what to do about a file that needs pickle, for its message.

    Raises:
        CorruptCheckpoint: the file is truncated, altered or not a checkpoint.
        PrefError: the file is missing, cannot be opened or needs pickle.
    """
    with _open(path, setting) as file:
        # One open file for both steps, so that the checked bytes are loaded even if another process
        # replaces the file in between.
        try:
            _check_file(file, path, setting)
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
        except CorruptCheckpoint:
            raise
        except OSError as error:
            raise _corrupt(path, setting, f"cannot be read ({error.strerror})") from error
        except pickle.UnpicklingError as error:
            if not trust_pickle:
                raise PrefError(
                    f"{setting}='{path}' is refused because it holds pickled Python objects, as "
                    f"RecBole's own checkpoints do, and unpickling can run any code: {remedy}."
                ) from error
        except (RuntimeError, ValueError, KeyError, IndexError, EOFError, AttributeError) as error:
            if _out_of_memory(error):
                raise
            raise _corrupt(path, setting, "cannot be read as a checkpoint") from error
        logger.warning("Unpickling %s, as trust_checkpoint asks.", path)
        try:
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=False)
        except Exception as error:  # unpickling can raise any exception
            raise PrefError(
                f"{setting}='{path}' cannot be unpickled ({type(error).__name__}): use the versions "
                f"of torch and RecBole it was written with."
            ) from error


def verify(path: str | os.PathLike, setting: str = "checkpoint") -> bool:
    """Return True when the checksum of ``path`` is correct, False when the file has none.

    Raises:
        CorruptCheckpoint: the file is truncated, altered or not a checkpoint.
        PrefError: the file is missing or cannot be opened.
    """
    with _open(path, setting) as file:
        try:
            return _check_file(file, path, setting)
        except OSError as error:
            raise _corrupt(path, setting, f"cannot be read ({error.strerror})") from error


def _open(path: str | os.PathLike, setting: str) -> IO[bytes]:
    try:
        if os.path.isdir(path):
            raise PrefError(f"{setting}='{path}' is a folder: name a checkpoint file in it.")
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block
            raise PrefError(f"{setting}='{path}' is not a regular file: name a checkpoint file.")
        return open(path, "rb")
    except FileNotFoundError:
        folder, name = os.path.split(os.path.abspath(path))
        if not os.path.isdir(folder):
            hint = f" There is no folder '{folder}'."
        else:
            hint = suggest(name, (n for n in os.listdir(folder) if not n.startswith(".")))
        raise PrefError(f"{setting}='{path}' does not exist: give the path of a checkpoint.{hint}") from None
    except PrefError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PrefError(f"{setting}='{path}' cannot be opened ({reason}): give a file you may read.") from error


def _check_file(file: IO[bytes], path: str | os.PathLike, setting: str) -> bool:
    """Compare the checksum of an open file; return whether it has one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(ZIP_MARK))
    tail_size = min(size, END + len(LABEL) + HEX)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    if tail[-HEX - len(LABEL) : -HEX] == LABEL:
        file.seek(0)
        digest, left = hashlib.sha256(), size - HEX
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise _corrupt(path, setting, "shrank while it was read")
            digest.update(chunk)
            left -= len(chunk)
        if digest.hexdigest().encode() != tail[-HEX:]:
            raise _corrupt(path, setting, "is damaged (its checksum is wrong)")
        return True
    if start == ZIP_MARK:
        # The last record of torch.save's archives states that there is no comment. A damaged archive of
        # ours states that there is one, or does not end with this record.
        end = tail[-END:]
        if end.startswith(END_MARK) and end.endswith(b"\0\0"):
            return False
        raise _corrupt(path, setting, "is damaged (truncated or altered)")
    if start.startswith(PICKLE_MARK):
        return False
    raise _corrupt(path, setting, "is damaged or not a checkpoint")


def _corrupt(path: str | os.PathLike, setting: str, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{setting}='{path}' {what}: use an earlier checkpoint or a copy.")


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)
