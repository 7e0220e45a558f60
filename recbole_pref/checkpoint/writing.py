"""Atomic writing: a file appears complete or not at all."""

import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from recbole_pref.checkpoint.format import ChecksumWriter, to_plain
from recbole_pref.errors import PrefError

_ABANDONED = 3600.0  # seconds after which the temporary file of an unknown writer is stale
_HOST = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], object], setting: str) -> None:
    """Write the file ``path`` with ``write(file)``, complete or not at all.

    The bytes go to a temporary file in the same folder, are flushed to the disk and renamed. If
    writing fails (an exception, a full disk, SIGKILL, a power cut), an earlier file at ``path`` is
    unchanged. Temporary files of dead processes in the folder are removed.

    Args:
        path: the file; its folder is created if necessary.
        write: writes to the open binary file.
        setting: the setting that holds the path, for messages.

    Raises:
        PrefError: the file cannot be written; names the setting and the remedy.
    """
    path = Path(path)
    temporary = path.parent / f".{_HOST}.{os.getpid()}.{uuid.uuid4().hex}.tmp"
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path.parent)
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            # After the rename the temporary file does not exist, and the file at `path` is complete.
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PrefError(_cannot_write(path, setting, error)) from error


def _cannot_write(path: Path, setting: str, error: OSError) -> str:
    """Return the message of an OSError that occurred while ``path`` was written."""
    reason = error.strerror or str(error)
    remedy = f"set {setting} to a place that can be written"
    if error.errno in _FULL:
        remedy = f"free some space or set {setting} to another disk"
    elif error.errno in _REFUSED:
        remedy = f"allow writing there or set {setting} to another place"
    value = path.parent if setting.endswith("_dir") else path
    return f"{setting}='{value}' cannot be written ({path.name}: {reason}): {remedy}."


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files that dead writers left in ``folder``."""
    for name in os.listdir(folder):
        match = re.fullmatch(r"\.([A-Za-z0-9-]+)\.(\d+)\.[0-9a-f]{32}\.tmp", name)
        if not match:
            continue
        file = folder / name
        try:
            dead = match[1] == _HOST and not _is_alive(int(match[2]))
            if dead or time.time() - file.stat().st_mtime > _ABANDONED:
                file.unlink()
        except OSError:  # already removed, or another user's: ignore it
            pass


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def save(state: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write ``state`` to ``path`` as plain data with a checksum, atomically.

    Args:
        state: the checkpoint; see :func:`to_plain` for its possible contents.
        path: the file to create or replace.

    Returns:
        Path: the file.

    Raises:
        PrefError: the folder cannot be written or the disk is full; an earlier file is intact.
        TypeError: ``state`` holds an object without a plain form.
    """
    plain = to_plain(state)

    def write(file: IO[bytes]) -> None:
        writer = ChecksumWriter(file)
        try:
            torch.save(plain, writer)  # type: ignore[arg-type]  # torch calls only write and flush
        except RuntimeError as error:
            # torch also closes its archive after an error or Ctrl-C. When closing fails too, the
            # cause (for example a full disk) is only the context of this error.
            raise error.__context__ or error from None
        writer.finish()

    write_atomically(path, write, "checkpoint_dir")
    return Path(path)
