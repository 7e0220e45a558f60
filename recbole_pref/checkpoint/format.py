"""The file format: plain data in a ``torch.save`` archive, and a checksum in the archive's comment."""

import datetime
import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import IO, Any

import numpy as np
import torch
from scipy import sparse

from recbole_pref.errors import PrefError

LABEL = b"sha256:"
HEX = 64  # characters of a SHA-256 in hexadecimal
END = 22  # bytes of the zip archive's last record; its last two are the length of the comment
END_MARK = b"PK\x05\x06"
ZIP_MARK = b"PK\x03\x04"
PICKLE_MARK = b"\x80"  # the first byte of every pickle of protocol 2 and above
_KIND = "kind of array"


class CorruptCheckpoint(PrefError):
    """A checkpoint that is truncated or altered, or a file that is not a checkpoint."""


def to_plain(value: Any, other: Callable[[Any], Any] | None = None, where: str = "state") -> Any:
    """Return ``value`` as plain data: tensors, numbers, strings, None, lists and dicts.

    Tuples, sets, ranges and deques become lists (sets are sorted), mappings become dicts, numpy
    scalars become numbers, numeric arrays become tensors, enumerations become the member's name, and
    paths, dates, devices and dtypes become text. Tensors are detached and moved to the CPU. A view is
    copied, because torch would otherwise store the whole storage behind it.

    Args:
        value: any nesting of the types above.
        other: converts an object without a plain form, e.g. ``str`` for configurations.
        where: name of ``value`` in error messages.

    Raises:
        TypeError: an object has no plain form and ``other`` is not given; names its position.
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
        # A long double has no Python equivalent: its item() is itself.
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
            _plain_key(key, other, where): to_plain(item, other, f"{where}[{key!r}]") for key, item in value.items()
        }
    if isinstance(value, (set, frozenset)):
        return to_plain(sorted(value, key=repr), other, where)
    if isinstance(value, (list, tuple, deque, range)):
        return [to_plain(item, other, f"{where}[{i}]") for i, item in enumerate(value)]
    if other is not None:
        return other(value)
    raise TypeError(f"{where} is a {type(value).__name__}, which has no plain form that can be stored")


def pack_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with numpy arrays and scipy's sparse matrices as plain data, the inverse of ``unpack_arrays``.

    Some RecBole models (EASE, ItemKNN) compute such objects and need them in this form.
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


def unpack_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``pack_arrays`` from its result in a checkpoint."""
    unpacked = {}
    for name, value in values.items():
        kind = value.get(_KIND) if isinstance(value, Mapping) else None
        if kind == "numpy":
            value = value["data"].cpu().numpy()
        elif kind is not None:
            parts = tuple(value[part].cpu().numpy() for part in ("data", "indices", "indptr"))
            value = sparse.csr_matrix(parts, shape=value["shape"]).asformat(kind)
        unpacked[name] = value
    return unpacked


def fill(model: Any, state: Mapping[str, Any]) -> None:
    """Load the weights of a checkpoint into a model, and the other values that some of RecBole's models compute.

    Raises:
        RuntimeError: the weights do not fit the model.
    """
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(unpack_arrays(state.get("other_parameter") or {}))


def _plain_key(key: Any, other: Callable[[Any], Any] | None, where: str) -> Any:
    plain = to_plain(key, other, f"a key of {where}")
    if isinstance(plain, (list, dict, torch.Tensor)):
        if other is None:
            raise TypeError(f"a key of {where} is a {type(key).__name__}; keys are text or numbers")
        return other(key)
    return plain


class ChecksumWriter:
    """A file for ``torch.save`` that hashes the bytes and appends the checksum.

    The last record of the archive is held back, because the length of its comment must change before it
    is hashed and written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.held = b""  # the last bytes so far

    def _push(self, data: Any) -> None:
        self.hash.update(data)
        self.file.write(data)

    def write(self, data: Any) -> int:
        """Write bytes and return their number."""
        data = memoryview(data).cast("B")
        if len(data) >= END:
            self._push(self.held)
            self._push(data[:-END])
            self.held = bytes(data[-END:])
        else:
            joined = self.held + bytes(data)
            self._push(joined[:-END])
            self.held = joined[-END:]
        return len(data)

    def flush(self) -> None:
        """``write_atomically`` flushes the file."""

    def finish(self) -> None:
        """Write the last record of the archive with the checksum in its comment."""
        if not (self.held.startswith(END_MARK) and self.held.endswith(b"\0\0")):
            raise RuntimeError(f"torch {torch.__version__} ended its archive in an unknown way")
        self._push(self.held[:-2] + struct.pack("<H", len(LABEL) + HEX) + LABEL)
        self.file.write(self.hash.hexdigest().encode())
