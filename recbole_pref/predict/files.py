"""Read sequences from a file and write recommendations to a file, in pieces.

Pieces bound the memory, and an interrupted run continues with its next piece.
"""

from __future__ import annotations  # pyarrow is imported late

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from recbole_pref import checkpoint, cluster
from recbole_pref.environment import write_result
from recbole_pref.errors import PrefError
from recbole_pref.predict.reading import Piece, Source, table_ending
from recbole_pref.predict.recommender import Recommender, usable_device

if TYPE_CHECKING:
    import pyarrow

PIECE_ROWS = 50_000
_PROGRESS_AFTER = 2.0  # seconds; shorter runs show no progress bar


class Predicted(NamedTuple):
    """Size of a file of recommendations.

    Attributes:
        recommendations: number of rows.
        users: number of users or sequences with at least one recommendation.
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
    ray_address: str | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
) -> Predicted:
    """Recommend items for every sequence or user in a file and write user, rank, item and score.

    Each finished piece is a file in the folder ``<target>.parts``, so the same call continues an interrupted run. At
    the end, the pieces are joined to ``target`` and the folder is removed.

    Args:
        model_file: the checkpoint.
        source: see ``read_sequences``.
        target: CSV or Parquet file to write; without users in the source, ``user`` is the number of the row, from 1.
        k, exclude_seen, unknown: see ``Recommender.recommend`` and ``Recommender.recommend_users``.
        data_path, device: see ``Recommender``.
        piece_rows: sequences or users per piece.
        ray_address: ``auto`` or ``HOST:PORT`` of a running Ray cluster that shares the pieces. This process reads and
            writes all files; model and histories reach the machines through Ray.
        cpus_per_worker, gpus_per_worker: CPUs and GPUs for a piece on the cluster.

    Raises:
        PrefError: as in ``Recommender``; or the target is an input file, is neither CSV nor Parquet, or has pieces of
            another command.
    """
    for option, path in (("predict", model_file), ("input", source)):
        if os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target):
            raise PrefError(f"output={str(target)!r} is the file of --{option}: name another one.")
    table_ending(target, "output")
    if piece_rows < 1:
        raise PrefError(f"piece_rows={piece_rows} is not accepted: set it to at least 1.")
    checked_device = usable_device(device)
    table = Source(source, piece_rows)
    recommender = Recommender(model_file, checked_device, data_path)
    command = {
        "predict": _identity(model_file), "input": _identity(source), "k": k, "exclude_seen": exclude_seen,
        "unknown": unknown, "piece_rows": piece_rows,
    }  # fmt: skip
    options = {"k": k, "exclude_seen": exclude_seen, "unknown": unknown}
    if ray_address is not None:
        cluster.connect(ray_address, log_to_driver=True)
    with (
        _parts(target, command) as parts,
        tqdm(total=table.count(), unit=" sequences", file=sys.stderr, delay=_PROGRESS_AFTER) as progress,
    ):
        pieces = table.pieces()
        for piece in islice(pieces, len(parts.pieces)):
            progress.update(len(piece.names))
        if ray_address is None:
            finished: Iterable[Any] = (_recommend(recommender, piece, options) for piece in pieces)
        else:
            function = partial(_recommend_there, options=options, device="cuda" if gpus_per_worker else "cpu")
            shared = recommender.with_histories() if table.users_alone else recommender
            finished = cluster.shared_map(function, shared, pieces, cpus_per_worker, gpus_per_worker)
        for sequences, frame in finished:
            parts.add(frame)
            progress.update(sequences)
        parts.assemble()
    return Predicted(*map(sum, zip(*parts.pieces))) if parts.pieces else Predicted(0, 0)


def _recommend(recommender: Recommender, piece: Piece, options: dict[str, Any]) -> tuple[int, pd.DataFrame]:
    """Return the number of sequences or users of a piece, and user, rank, item and score."""
    if piece.sequences is None:
        return len(piece.names), recommender.recommend_users(piece.names, **options, first=piece.first)
    frame = recommender.recommend(piece.sequences, **options, first=piece.first)
    frame.insert(0, "user", [piece.names[row] for row in frame.pop("row")])
    return len(piece.names), frame


def _recommend_there(
    recommender: Recommender, piece: Piece, options: dict[str, Any], device: str
) -> tuple[int, pd.DataFrame]:
    """Recommend in a task of a cluster."""
    return _recommend(recommender.to(device), piece, options)


def _identity(path: str | os.PathLike[str]) -> list[Any]:
    """Return path, size and modification time of a file."""
    absolute = Path(path).absolute()
    facts = absolute.stat()
    return [str(absolute), facts.st_size, facts.st_mtime_ns]


@contextmanager
def _parts(target: str | os.PathLike[str], command: dict[str, Any]) -> Iterator[_Parts]:
    """Lock the folder of the pieces; at the end, remove it if it is empty or the target is complete."""
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
    """The finished pieces of a target: one file per piece and a manifest.

    Attributes:
        pieces: numbers of rows and users of each finished piece.
        complete: whether the target is written.
    """

    def __init__(self, target: str | os.PathLike[str], command: dict[str, Any]) -> None:
        self.target, self.command = Path(target), command
        self.ending = self.target.suffix.lower()
        self.folder = self.target.with_name(self.target.name + ".parts")
        self.manifest = self.folder / "manifest.json"
        self.pieces: list[list[int]] = []
        self.complete = False

    def read(self) -> None:
        """Read the manifest of an earlier process with the same command."""
        if not self.manifest.exists():
            return
        manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        changed = [key for key, value in self.command.items() if manifest["command"].get(key) != value]
        if changed:
            raise PrefError(
                f"'{self.folder}' holds {len(manifest['pieces'])} finished pieces of another command "
                f"({', '.join(changed)} changed since): run that command again to continue it, or remove the folder."
            )
        self.pieces = manifest["pieces"]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.ending}"

    def add(self, frame: pd.DataFrame) -> None:
        """Store a finished piece."""

        def write(file: IO[bytes]) -> None:
            if self.ending == ".csv":
                file.write(frame.to_csv(index=False, header=not self.pieces).encode())
                return
            from pyarrow import parquet

            parquet.write_table(_arrow(frame), file)

        checkpoint.write_atomically(self._path(len(self.pieces)), write, "output")
        self.pieces.append([len(frame), int((frame["rank"] == 1).sum())])
        write_result(self.manifest, {"command": self.command, "pieces": self.pieces}, "output")

    def assemble(self) -> None:
        """Write the target from its pieces."""
        paths = [self._path(number) for number in range(len(self.pieces))]

        def write(file: IO[bytes]) -> None:
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


def _schema() -> pyarrow.Schema:
    import pyarrow

    kinds = {"user": pyarrow.string(), "rank": pyarrow.int64(), "item": pyarrow.string(), "score": pyarrow.float32()}
    return pyarrow.schema(list(kinds.items()))


def _arrow(frame: pd.DataFrame) -> pyarrow.Table:
    import pyarrow

    return pyarrow.Table.from_pandas(frame, schema=_schema(), preserve_index=False).replace_schema_metadata(None)
