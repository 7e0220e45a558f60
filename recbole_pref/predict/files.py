"""Recommendations from file to file, in pieces: bounded memory, and a killed run continues with its next piece."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from recbole_pref import checkpoint
from recbole_pref.environment import write_result
from recbole_pref.errors import PrefError
from recbole_pref.predict.reading import Source, table_ending
from recbole_pref.predict.recommender import Recommender, usable_device

PIECE_ROWS = 50_000
_PROGRESS_AFTER = 2.0  # seconds; shorter runs show no progress bar


class Predicted(NamedTuple):
    """What a file of recommendations holds.

    Attributes:
        recommendations: its rows.
        users: users or sequences with at least one.
    """

    recommendations: int
    users: int


def predict_file(
    model_file: str | Path,
    source: str | Path,
    target: str | Path,
    k: int = 10,
    exclude_seen: bool = True,
    unknown: str = "error",
    data_path: str | None = None,
    device: str = "cpu",
    piece_rows: int = PIECE_ROWS,
) -> Predicted:
    """Recommend for every sequence or user of a file and write user, rank, item and score.

    Each finished piece is a file in the folder ``<target>.parts``, so a run that was stopped continues when it is
    called again. ``target`` appears whole at the end, and the folder is removed.

    Args:
        model_file: checkpoint.
        source: see ``read_sequences``.
        target: CSV or Parquet file to write; ``user`` is the number of the row, from 1, where the source names none.
        k, exclude_seen, unknown: see ``Recommender.recommend`` and ``Recommender.recommend_users``.
        data_path, device: see ``Recommender``.
        piece_rows: sequences or users of a piece.

    Raises:
        PrefError: what those refuse; a target that is one of the files to read or neither CSV nor Parquet, or whose
            folder of pieces belongs to another command.
    """
    for option, path in (("predict", model_file), ("input", source)):
        if os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target):
            raise PrefError(f"output={str(target)!r} is the file of --{option}: name another one.")
    table_ending(target, "output")
    if piece_rows < 1:
        raise PrefError(f"piece_rows={piece_rows} is not accepted: set it to at least 1.")
    device = usable_device(device)
    table = Source(source, piece_rows)
    recommender = Recommender(model_file, device, data_path)
    command = {
        "predict": _identity(model_file), "input": _identity(source), "k": k, "exclude_seen": exclude_seen,
        "unknown": unknown, "piece_rows": piece_rows,
    }  # fmt: skip
    with _parts(target, command) as parts, tqdm(
        total=table.count(), unit=" sequences", file=sys.stderr, delay=_PROGRESS_AFTER
    ) as progress:
        for number, piece in enumerate(table.pieces()):
            if number >= len(parts.pieces):
                parts.add(_recommend(recommender, piece, k, exclude_seen, unknown))
            progress.update(len(piece.names))
        parts.assemble()
    return Predicted(*map(sum, zip(*parts.pieces))) if parts.pieces else Predicted(0, 0)


def _recommend(recommender, piece, k, exclude_seen, unknown):
    """Return user, rank, item and score for a piece: DataFrame."""
    options = {"k": k, "exclude_seen": exclude_seen, "unknown": unknown, "first": piece.first}
    if piece.sequences is None:
        return recommender.recommend_users(piece.names, **options)
    frame = recommender.recommend(piece.sequences, **options)
    frame.insert(0, "user", [piece.names[row] for row in frame.pop("row")])
    return frame


def _identity(path):
    """Return what changes when a file is another one: its path, size and time of change."""
    path = Path(path).absolute()
    facts = path.stat()
    return [str(path), facts.st_size, facts.st_mtime_ns]


@contextmanager
def _parts(target, command):
    """Hold the folder of a target's pieces; it goes when it holds none, or the target is complete."""
    parts = _Parts(target, command)
    try:
        parts.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parts.folder / "lock").acquire(timeout=0)
    except Timeout:
        raise PrefError(
            f"output={str(target)!r} is being written by another process: wait for it or name another file."
        ) from None
    except OSError as error:
        raise PrefError(f"output={str(target)!r} cannot be written ({error.strerror}): name another file.") from None
    with lock:
        try:
            parts.read()
            yield parts
        finally:
            if parts.complete or not parts.manifest.exists():
                shutil.rmtree(parts.folder, ignore_errors=True)


class _Parts:
    """The finished pieces of a target: a file each, and a manifest that lists them.

    Attributes:
        pieces (list of list of int): rows and users of each finished piece.
        complete (bool): whether the target is written.
    """

    def __init__(self, target, command):
        self.target, self.command = Path(target), command
        self.ending = self.target.suffix.lower()
        self.folder = self.target.with_name(self.target.name + ".parts")
        self.manifest = self.folder / "manifest.json"
        self.pieces, self.complete = [], False

    def read(self):
        """Read the manifest of an earlier process that was given the same command."""
        if not self.manifest.exists():
            return
        found = json.loads(self.manifest.read_text(encoding="utf-8"))
        changed = [key for key, value in self.command.items() if found["command"].get(key) != value]
        if changed:
            raise PrefError(
                f"'{self.folder}' holds {len(found['pieces'])} finished pieces of another command "
                f"({', '.join(changed)} changed since): give that command again to continue it, or remove the folder."
            )
        self.pieces = found["pieces"]

    def _path(self, number):
        return self.folder / f"{number:06d}{self.ending}"

    def add(self, frame):
        """Store a finished piece: DataFrame."""

        def write(file):
            if self.ending == ".csv":
                file.write(frame.to_csv(index=False, header=not self.pieces).encode())
                return
            from pyarrow import parquet

            parquet.write_table(_arrow(frame), file)

        checkpoint.write_atomically(self._path(len(self.pieces)), write, "output")
        self.pieces.append([len(frame), int((frame["rank"] == 1).sum())])
        write_result(self.manifest, {"command": self.command, "pieces": self.pieces}, "output")

    def assemble(self):
        """Write the target from its pieces."""
        paths = [self._path(number) for number in range(len(self.pieces))]

        def write(file):
            if self.ending == ".csv":
                if not paths:
                    file.write(b"user,rank,item,score\n")
                for path in paths:
                    with open(path, "rb") as part:
                        shutil.copyfileobj(part, file, 1 << 20)
                return
            from pyarrow import parquet

            with parquet.ParquetWriter(file, _schema()) as writer:
                for path in paths:
                    writer.write_table(parquet.read_table(path))

        checkpoint.write_atomically(self.target, write, "output")
        self.complete = True


def _schema():
    import pyarrow

    kinds = {"user": pyarrow.string(), "rank": pyarrow.int64(), "item": pyarrow.string(), "score": pyarrow.float32()}
    return pyarrow.schema(list(kinds.items()))


def _arrow(frame):
    import pyarrow

    return pyarrow.Table.from_pandas(frame, schema=_schema(), preserve_index=False).replace_schema_metadata(None)
