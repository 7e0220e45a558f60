"""Checkpoints that survive a crash, show damage and cannot run code.

A checkpoint is an ordinary ``torch.save`` archive of plain data, which ``torch.load(path, weights_only=True)`` reads
anywhere. The comment of the zip archive holds the SHA-256 of all bytes before it, so that an altered or truncated
file is detected before it is used. The checksum protects against accidents, not against forgery. The protection
against hostile files is that nothing is unpickled except tensors and plain containers, unless the user asks for it.
"""

from recbole_pref.checkpoint.fingerprints import (
    SHARED_BY_KINDS,
    compare_fingerprints,
    data_fingerprint,
    file_digest,
    short_digest,
)
from recbole_pref.checkpoint.format import CorruptCheckpoint, fill, pack_arrays, to_plain, unpack_arrays
from recbole_pref.checkpoint.random_states import rng_state, set_rng_state
from recbole_pref.checkpoint.reading import load, verify
from recbole_pref.checkpoint.runs import CheckpointDir, newest_good, newest_run, run_stem
from recbole_pref.checkpoint.writing import save, write_atomically

__all__ = [
    "SHARED_BY_KINDS",
    "CheckpointDir",
    "CorruptCheckpoint",
    "compare_fingerprints",
    "data_fingerprint",
    "file_digest",
    "fill",
    "load",
    "newest_good",
    "newest_run",
    "pack_arrays",
    "rng_state",
    "run_stem",
    "save",
    "set_rng_state",
    "short_digest",
    "to_plain",
    "unpack_arrays",
    "verify",
    "write_atomically",
]
