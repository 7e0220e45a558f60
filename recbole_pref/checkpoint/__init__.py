"""Checkpoints that survive a crash, show damage and cannot run code.

A checkpoint is an ordinary ``torch.save`` archive of plain data, readable anywhere with
``torch.load(path, weights_only=True)``. The comment of the zip archive holds the SHA-256 of all
bytes before it, so an altered or truncated file is found before it is used. The checksum protects
against accidents, not against a forger; what protects against hostile files is that nothing is ever
unpickled beyond tensors and plain containers unless the user asks for it.
"""

import datetime
import errno
import hashlib
import json
import logging
import os
import pickle
import random
import re
import socket
import struct
import time
import uuid
from collections import deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from recbole_pref.errors import PrefError, suggest

logger = logging.getLogger(__name__)

_KIND = "kind of array"
_LABEL = b"sha256:"
_HEX = 64  # characters of a SHA-256 in hexadecimal
_END = 22  # bytes of the zip archive's last record, whose last two are the comment's length
_END_MARK = b"PK\x05\x06"
_ZIP_MARK = b"PK\x03\x04"
_PICKLE_MARK = b"\x80"  # the first byte of every pickle of protocol 2 and above
_CHUNK = 1 << 20
_ABANDONED = 3600.0  # seconds after which the temporary file of an unknown writer is stale
_HOST = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())
_STAMP = r"\d{8}-\d{6}-[0-9a-f]{8}"  # how the stem of a run ends
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class CorruptCheckpoint(PrefError):
    """A checkpoint that is truncated, altered, or no checkpoint at all."""


# Plain data


def to_plain(value, other=None, where="state"):
    """Return ``value`` as tensors, numbers, strings, None, lists and dicts alone.

    Tuples, sets, ranges and deques become lists (sets are sorted), mappings become dicts, numpy
    scalars become numbers, numeric arrays become tensors, enumerations become the member's name, and
    paths, dates, devices and dtypes become text. Tensors are detached and moved to the CPU; a view
    is cut loose from the larger storage it looks into, which would otherwise be stored whole.

    Args:
        value: anything made of the types above, nested at will.
        other (callable, optional): converts what has no plain form, e.g. ``str`` for configurations.
        where (str): how to name ``value`` in the message of an error.

    Raises:
        TypeError: something has no plain form and ``other`` is not given; names the place.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        if tensor.layout == torch.strided:
            used = tensor.numel() * tensor.element_size()
            if tensor.untyped_storage().nbytes() != used:
                tensor = tensor.clone(memory_format=torch.contiguous_format)
        return tensor
    if isinstance(value, Enum):
        return value.name
    for kind in (str, int, float):  # subclasses, np.float64 and np.str_ among them
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, np.generic):
        number = value.item()
        # A long double has no Python twin: its item() is itself.
        return float(value) if isinstance(number, np.generic) else to_plain(number, other, where)
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return torch.tensor(value.astype(value.dtype.newbyteorder("=")))
        return to_plain(value.tolist(), other, where)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, (torch.device, torch.dtype)):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {
            _plain_key(key, other, where): to_plain(item, other, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, (set, frozenset)):
        return to_plain(sorted(value, key=repr), other, where)
    if isinstance(value, (list, tuple, deque, range)):
        return [to_plain(item, other, f"{where}[{i}]") for i, item in enumerate(value)]
    if other is not None:
        return other(value)
    raise TypeError(f"{where} is a {type(value).__name__}, which has no plain form to be stored")


def pack_arrays(values):
    """Return ``values`` (dict) with numpy arrays and scipy's sparse matrices in a form that ``unpack_arrays`` undoes.

    What a RecBole model computes with such objects (EASE, ItemKNN) works with nothing else.
    """
    packed = {}
    for name, value in values.items():
        if sparse.issparse(value):
            rows = value.tocsr()
            parts = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr, "shape": list(rows.shape)}
            value = {_KIND: value.format, **parts}
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = {_KIND: "numpy", "data": value}
        packed[name] = value
    return packed


def unpack_arrays(values):
    """Return what ``pack_arrays`` was given, from a checkpoint: dict."""
    found = {}
    for name, value in values.items():
        kind = value.get(_KIND) if isinstance(value, Mapping) else None
        if kind == "numpy":
            value = value["data"].cpu().numpy()
        elif kind is not None:
            parts = tuple(value[part].cpu().numpy() for part in ("data", "indices", "indptr"))
            value = sparse.csr_matrix(parts, shape=value["shape"]).asformat(kind)
        found[name] = value
    return found


def fill(model, state):
    """Give a model the weights of a checkpoint, and what some of RecBole's models compute beside them.

    Raises:
        RuntimeError: of torch, where the weights do not fit.
    """
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(unpack_arrays(state.get("other_parameter") or {}))


def _plain_key(key, other, where):
    plain = to_plain(key, other, f"a key of {where}")
    if isinstance(plain, (list, dict, torch.Tensor)):
        if other is None:
            raise TypeError(f"a key of {where} is a {type(key).__name__}; keys are text or numbers")
        return other(key)
    return plain


# Writing


def write_atomically(path, write, setting):
    """Let ``write(file)`` fill a file that appears under ``path`` whole or not at all.

    The bytes go to a temporary file in the same folder, are flushed to the disk and renamed; whatever
    ends the writing (an exception, a full disk, SIGKILL, a power cut), a file that stood at ``path``
    stays as it was. Temporary files of processes that died are removed on the way.

    Args:
        path (path-like): the file; its folder is created if necessary.
        write (callable): receives the binary file.
        setting (str): the setting that chose the path, for messages.

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
            # After the rename this finds nothing; the file at `path` is complete then.
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PrefError(_cannot_write(path, setting, error)) from error


def _cannot_write(path, setting, error):
    """Return the sentence for an OSError met while writing ``path``."""
    reason = error.strerror or str(error)
    remedy = f"set {setting} to a place that can be written"
    if error.errno in _FULL:
        remedy = f"free some space or set {setting} to another disk"
    elif error.errno in _REFUSED:
        remedy = f"allow writing there or set {setting} to another place"
    value = path.parent if setting.endswith("_dir") else path
    return f"{setting}='{value}' cannot be written ({path.name}: {reason}): {remedy}."


def _sync_folder(folder):
    """Make a rename in ``folder`` survive a power cut."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _remove_stale(folder):
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
        except OSError:  # gone meanwhile, or another user's: no reason not to write our own
            pass


def _is_alive(pid):
    if os.name == "nt":  # signal 0 is Ctrl-C there, not a question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class _ChecksumWriter:
    """A file for ``torch.save`` that hashes what passes and ends it with the checksum.

    The last record of the archive is held back, because its comment's length must change before it
    is hashed and written.
    """

    def __init__(self, file):
        self.file = file
        self.hash = hashlib.sha256()
        self.held = b""

    def _push(self, data):
        self.hash.update(data)
        self.file.write(data)

    def write(self, data):
        data = memoryview(data).cast("B")
        if len(data) >= _END:
            self._push(self.held)
            self._push(data[:-_END])
            self.held = bytes(data[-_END:])
        else:
            joined = self.held + bytes(data)
            self._push(joined[:-_END])
            self.held = joined[-_END:]
        return len(data)

    def flush(self):
        """Nothing: ``write_atomically`` flushes."""

    def finish(self):
        if not (self.held.startswith(_END_MARK) and self.held.endswith(b"\0\0")):
            raise RuntimeError(f"torch {torch.__version__} ended its archive in an unknown way")
        self._push(self.held[:-2] + struct.pack("<H", len(_LABEL) + _HEX) + _LABEL)
        self.file.write(self.hash.hexdigest().encode())


def save(state, path):
    """Write ``state`` to ``path`` as plain data with a checksum, whole or not at all.

    Args:
        state (dict): the checkpoint; see :func:`to_plain` for what it may hold.
        path (path-like): the file to create or replace.

    Returns:
        Path: the file.

    Raises:
        PrefError: the folder cannot be written or the disk is full; an earlier file is intact.
        TypeError: ``state`` holds something that has no plain form.
    """
    plain = to_plain(state)

    def write(file):
        writer = _ChecksumWriter(file)
        try:
            torch.save(plain, writer)
        except RuntimeError as error:
            # torch closes its archive after an error or Ctrl-C too; when that fails in turn, the
            # cause (no space left, say) is only the context of what comes out.
            raise error.__context__ or error from None
        writer.finish()

    write_atomically(path, write, "checkpoint_dir")
    return Path(path)


# Reading


_TRUST = "set trust_checkpoint: True if you made the file yourself or trust who did"


def load(path, map_location="cpu", trust_pickle=False, setting="checkpoint", remedy=_TRUST):
    """Return the state stored at ``path`` after its checksum was found right.

    A file without checksum that plain ``torch.save`` wrote is read too, as long as it holds plain
    data. RecBole's own checkpoints hold a pickled ``Config``, and unpickling can run any code: they
    are refused unless ``trust_pickle`` is True.

    Args:
        path (path-like): the checkpoint.
        map_location: as in ``torch.load``.
        trust_pickle (bool): the value of the setting ``trust_checkpoint``.
        setting (str): the setting that chose the path, for messages (``resume``, ``reference``).
        remedy (str): what to do about a file that needs pickle, for its message.

    Raises:
        CorruptCheckpoint: the file is truncated, altered or no checkpoint.
        PrefError: the file is missing, cannot be opened or needs pickle.
    """
    with _open(path, setting) as file:
        # One open file for both steps: what is loaded is what was checked, even if another process
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
        except Exception as error:  # anything may come out of somebody's pickle
            raise PrefError(
                f"{setting}='{path}' cannot be unpickled ({type(error).__name__}): use the versions "
                f"of torch and RecBole it was written with."
            ) from error


def verify(path, setting="checkpoint"):
    """Return True when ``path`` carries a right checksum, False when it carries none.

    Raises:
        CorruptCheckpoint: the file is truncated, altered or no checkpoint.
        PrefError: the file is missing or cannot be opened.
    """
    with _open(path, setting) as file:
        try:
            return _check_file(file, path, setting)
        except OSError as error:
            raise _corrupt(path, setting, f"cannot be read ({error.strerror})") from error


def _open(path, setting):
    try:
        if os.path.isdir(path):
            raise PrefError(f"{setting}='{path}' is a folder: name a checkpoint file in it.")
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for ever
            raise PrefError(f"{setting}='{path}' is not a regular file: name a checkpoint file.")
        return open(path, "rb")
    except FileNotFoundError:
        folder, name = os.path.split(os.path.abspath(path))
        if not os.path.isdir(folder):
            hint = f" There is no folder '{folder}'."
        else:
            hint = suggest(name, (n for n in os.listdir(folder) if not n.startswith(".")))
        raise PrefError(
            f"{setting}='{path}' does not exist: give the path of a checkpoint.{hint}"
        ) from None
    except PrefError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PrefError(
            f"{setting}='{path}' cannot be opened ({reason}): give a file you may read."
        ) from error


def _check_file(file, path, setting):
    """Compare the checksum of an open file; return whether it has one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_ZIP_MARK))
    tail_size = min(size, _END + len(_LABEL) + _HEX)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    if tail[-_HEX - len(_LABEL) : -_HEX] == _LABEL:
        file.seek(0)
        digest, left = hashlib.sha256(), size - _HEX
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise _corrupt(path, setting, "shrank while it was read")
            digest.update(chunk)
            left -= len(chunk)
        if digest.hexdigest().encode() != tail[-_HEX:]:
            raise _corrupt(path, setting, "is damaged (its checksum is wrong)")
        return True
    if start == _ZIP_MARK:
        # Plain torch.save ends its archives with a record that announces no comment. One of ours
        # that lost its end or its label announces one, or does not end with the record at all.
        end = tail[-_END:]
        if end.startswith(_END_MARK) and end.endswith(b"\0\0"):
            return False
        raise _corrupt(path, setting, "is damaged (truncated or altered)")
    if start.startswith(_PICKLE_MARK):
        return False
    raise _corrupt(path, setting, "is damaged or no checkpoint")


def _corrupt(path, setting, what):
    return CorruptCheckpoint(f"{setting}='{path}' {what}: use an earlier checkpoint or a copy.")


def _out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)


# The checkpoints of a run


class CheckpointDir:
    """The checkpoints of one run: ``<stem>-last-<epoch>.pth`` and ``<stem>-best.pth``.

    Args:
        folder (path-like): the setting ``checkpoint_dir``.
        stem (str): the run's name, unique to the run (see :func:`run_stem`).
        keep_last (int): how many of the last checkpoints are kept.
    """

    def __init__(self, folder, stem, keep_last=2):
        self.folder = Path(folder)
        self.stem = stem
        self.keep_last = keep_last

    def save_last(self, state):
        """Write the checkpoint of ``state["epoch"]``, drop those that are too many, return its path.

        Checkpoints of later epochs, which remain when a run went on from an earlier epoch, are
        dropped too: the one just written is the newest.
        """
        epoch = int(state["epoch"])
        path = save(state, self.folder / f"{self.stem}-last-{epoch}.pth")
        older = {e: p for e, p in _last_files(self.folder, self.stem).items() if e <= epoch}
        kept = sorted(older)[-self.keep_last :]
        for other, file in _last_files(self.folder, self.stem).items():
            if other not in kept:
                file.unlink(missing_ok=True)
        return path

    def keep_latest(self):
        """Drop the last checkpoints but the newest, as those of a finished run are not needed."""
        newest = self.last()
        for file in _last_files(self.folder, self.stem).values():
            if file != newest:
                file.unlink(missing_ok=True)

    def save_best(self, state):
        """Write the best checkpoint so far and return its path."""
        return save(state, self.folder / f"{self.stem}-best.pth")

    def last(self):
        """Return the path of the newest last checkpoint, or None."""
        files = _last_files(self.folder, self.stem)
        return files[max(files)] if files else None

    def best(self):
        """Return the path of the best checkpoint, or None."""
        path = self.folder / f"{self.stem}-best.pth"
        return path if path.is_file() else None

    def files(self):
        """Return all checkpoints of the run, the newest first and the best at the end."""
        files = _last_files(self.folder, self.stem)
        best = self.best()
        return [files[epoch] for epoch in sorted(files, reverse=True)] + ([best] if best else [])


def _last_files(folder, stem):
    """Return ``{epoch: path}`` of the last checkpoints of a run."""
    pattern = re.compile(re.escape(stem) + r"-last-(\d+)\.pth")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matches = (pattern.fullmatch(name) for name in names)
    return {int(match[1]): Path(folder) / match[0] for match in matches if match}


def newest_good(folder, stem, map_location="cpu"):
    """Return ``(path, state)`` of a run's newest readable last checkpoint, or None if it has none.

    They are tried from the newest to the oldest; a damaged one is skipped with a warning. The best
    checkpoint is not tried: it holds what evaluation needs, not all that going on needs.

    Raises:
        CorruptCheckpoint: there are last checkpoints, and all are damaged.
        PrefError: a checkpoint needs pickle; it is not one of ours.
    """
    files = _last_files(folder, stem)
    for epoch in sorted(files, reverse=True):
        try:
            return files[epoch], load(files[epoch], map_location=map_location, setting="resume")
        except CorruptCheckpoint as error:
            logger.warning("%s Trying the one before.", error)
    if files:
        raise CorruptCheckpoint(
            f"resume: all {len(files)} last checkpoints of '{stem}' in checkpoint_dir='{folder}' "
            f"are damaged: restore one from a copy, or set resume: False to start anew."
        )
    return None


def newest_run(folder, *names):
    """Return the stem of the run with these names that wrote last in ``folder``, or None.

    Args:
        folder (path-like): the setting ``checkpoint_dir``.
        names (str): as given to :func:`run_stem`. The whole of them must fit: a run on the data
            ``ml-100k`` is not one on ``ml-100k-small``.
    """
    pattern = re.compile(rf"({re.escape(_words(names))}{_STAMP})-(?:last-\d+|best)\.pth")
    newest = None
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        match = pattern.fullmatch(name)
        if match:
            try:
                age = os.stat(os.path.join(folder, name)).st_mtime_ns
            except FileNotFoundError:  # rotated away meanwhile
                continue
            newest = max(newest or (age, match[1]), (age, match[1]))
    return newest[1] if newest else None


def run_stem(*names):
    """Return a stem no other run has: the names, the local time and eight random characters.

    RecBole's names end with the time to the second, which parallel runs share. The random part does
    not touch the generators that training uses.
    """
    return f"{_words(names)}{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"


def _words(names):
    """Return the names joined and ended by ``-``, without what a file's name cannot hold."""
    joined = "-".join(re.sub(r"[^\w.+-]+", "_", str(name)) for name in names)
    return joined.rstrip("-") + "-"


# Random states


def rng_state():
    """Return the states of Python's, numpy's and torch's global generators as plain data.

    Returns:
        dict: ``python`` {version, state [625] int64, gauss}, ``numpy`` {bit_generator, key [624]
        int64, pos, has_gauss, gauss}, ``torch`` uint8 tensor, ``cuda`` one uint8 tensor per device.

    Raises:
        PrefError: numpy's global generator was exchanged for one that is not MT19937.
    """
    version, state, gauss = random.getstate()
    name, key, pos, has_gauss, cached = _numpy_state()
    return {
        "python": {"version": version, "state": torch.tensor(state), "gauss": gauss},
        "numpy": {
            "bit_generator": name,
            "key": torch.from_numpy(key.astype(np.int64)),
            "pos": int(pos),
            "has_gauss": int(has_gauss),
            "gauss": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _numpy_state():
    state = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise PrefError(
            f"numpy's global generator is {state['bit_generator']}, whose state is not stored: "
            f"do not call np.random.set_bit_generator with anything but MT19937."
        )
    inner = state["state"]
    return "MT19937", inner["key"], inner["pos"], state["has_gauss"], state["gauss"]


def set_rng_state(state):
    """Continue all generators from ``state``, which :func:`rng_state` returned.

    States of CUDA devices are restored when the machine has as many; otherwise a warning says that
    the run does not go on exactly.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
    key = numpy["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state(
        (numpy["bit_generator"], key, numpy["pos"], numpy["has_gauss"], numpy["gauss"])
    )
    # map_location may have moved the states with the rest of the checkpoint.
    torch.set_rng_state(state["torch"].cpu())
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(state["cuda"]):
        logger.warning(
            "The checkpoint holds the random states of %d CUDA devices and this machine has %d: "
            "the run goes on with other random numbers on them.",
            len(state["cuda"]),
            devices,
        )
    elif devices:
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])


# Data fingerprints

SHARED_BY_KINDS = ("n_users", "n_items", "item_tokens_sha256")  # whatever rows a kind of model trains on


def data_fingerprint(item_tokens, n_users, n_interactions, targets):
    """Return what identifies the data a model was trained on.

    Args:
        item_tokens (sequence of str): the items' names in the order of their ids.
        n_users (int): number of users.
        n_interactions (int): number of interactions.
        targets (Tensor): [N] integer ids of the target items in the order of the training rows.

    Returns:
        dict: n_items, n_users, n_interactions, item_tokens_sha256, targets_sha256.
    """
    tokens = [str(token) for token in item_tokens]
    ids = torch.as_tensor(targets).detach().cpu().to(torch.int64).contiguous()
    return {
        "n_items": len(tokens),
        "n_users": int(n_users),
        "n_interactions": int(n_interactions),
        # JSON quotes the names: ["a,b"] and ["a", "b"] differ.
        "item_tokens_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "targets_sha256": hashlib.sha256(ids.numpy()).hexdigest(),
    }


def compare_fingerprints(saved, current):
    """Return the differences as ``"field: saved != current"``, an empty list when there are none."""

    def show(fingerprint, field):
        value = fingerprint.get(field, "missing")
        return str(value)[:12] if field.endswith("_sha256") else str(value)

    return [
        f"{field}: {show(saved, field)} != {show(current, field)}"
        for field in dict.fromkeys([*saved, *current])
        if saved.get(field) != current.get(field)
    ]
