"""The checkpoints of a run: their names, and which of them are kept."""

import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from recbole_pref.checkpoint.format import CorruptCheckpoint
from recbole_pref.checkpoint.reading import load
from recbole_pref.checkpoint.writing import save

logger = logging.getLogger(__name__)

_STAMP = r"\d{8}-\d{6}-[0-9a-f]{8}"  # the end of a run's stem


class CheckpointDir:
    """The checkpoints of one run: ``<stem>-last-<epoch>.pth`` and ``<stem>-best.pth``.

    Args:
        folder: the setting ``checkpoint_dir``.
        stem: the unique name of the run (see :func:`run_stem`).
        keep_last: how many of the last checkpoints are kept.
    """

    def __init__(self, folder: str | os.PathLike, stem: str, keep_last: int = 2) -> None:
        self.folder = Path(folder)
        self.stem = stem
        self.keep_last = keep_last
        self.best_path = self.folder / f"{stem}-best.pth"

    def save_last(self, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of ``state["epoch"]``, remove surplus ones and return its path.

        When a run continues from an earlier epoch, checkpoints of later epochs are removed too.
        """
        epoch = int(state["epoch"])
        path = save(state, self.folder / f"{self.stem}-last-{epoch}.pth")
        files = _last_files(self.folder, self.stem)
        remaining = sorted(other for other in files if other <= epoch)[-self.keep_last :]
        for other, file in files.items():
            if other not in remaining:
                file.unlink(missing_ok=True)
        return path

    def keep_latest(self) -> None:
        """Remove all last checkpoints except the newest; a finished run does not need the others."""
        newest = self.last()
        for file in _last_files(self.folder, self.stem).values():
            if file != newest:
                file.unlink(missing_ok=True)

    def save_best(self, state: Mapping[str, Any]) -> Path:
        """Write the best checkpoint so far and return its path."""
        return save(state, self.best_path)

    def last(self) -> Path | None:
        """Return the path of the newest last checkpoint, or None."""
        files = _last_files(self.folder, self.stem)
        return files[max(files)] if files else None

    def best(self) -> Path | None:
        """Return the path of the best checkpoint, or None."""
        return self.best_path if self.best_path.is_file() else None

    def files(self) -> list[Path]:
        """Return all checkpoints of the run, the newest first and the best at the end."""
        files = _last_files(self.folder, self.stem)
        best = self.best()
        return [files[epoch] for epoch in sorted(files, reverse=True)] + ([best] if best else [])


def _last_files(folder: str | os.PathLike, stem: str) -> dict[int, Path]:
    """Return ``{epoch: path}`` of the last checkpoints of a run."""
    pattern = re.compile(re.escape(stem) + r"-last-(\d+)\.pth")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matches = (pattern.fullmatch(name) for name in names)
    return {int(match[1]): Path(folder) / match[0] for match in matches if match}


def newest_good(folder: str | os.PathLike, stem: str, map_location: Any = "cpu") -> tuple[Path, dict[str, Any]] | None:
    """Return ``(path, state)`` of a run's newest readable last checkpoint, or None if it has none.

    They are tried from the newest to the oldest; a damaged one is skipped with a warning. The best
    checkpoint is not tried, because it does not hold the full state that resuming needs.

    Raises:
        CorruptCheckpoint: the run has ``-last-`` checkpoints, and all are damaged.
        PrefError: a checkpoint can only be loaded with pickle, so RecBole-Pref did not write it.
    """
    files = _last_files(folder, stem)
    for epoch in sorted(files, reverse=True):
        try:
            return files[epoch], load(files[epoch], map_location=map_location, setting="resume")
        except CorruptCheckpoint as error:
            logger.warning("%s Trying the previous one.", error)
    if files:
        raise CorruptCheckpoint(
            f"resume: all {len(files)} last checkpoints of '{stem}' in checkpoint_dir='{folder}' "
            f"are damaged: restore one from a copy, or set resume: False to start again."
        )
    return None


def newest_run(folder: str | os.PathLike, *names: object) -> str | None:
    """Return the stem of the run with these names that wrote last in ``folder``, or None.

    Args:
        folder: the setting ``checkpoint_dir``.
        names: as given to :func:`run_stem`. All of them must match completely: ``ml-100k`` does not match
            ``ml-100k-small``.
    """
    pattern = re.compile(rf"({re.escape(_words(names))}{_STAMP})-(?:last-\d+|best)\.pth")
    found: list[tuple[int, str]] = []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        match = pattern.fullmatch(name)
        if match:
            with suppress(FileNotFoundError):  # already removed
                found.append((os.stat(os.path.join(folder, name)).st_mtime_ns, match[1]))
    return max(found)[1] if found else None


def run_stem(*names: object) -> str:
    """Return a unique stem: the names, the local time and eight random characters.

    RecBole's names end with the time in seconds, which parallel runs can share. The random characters do
    not come from the generators that training uses.
    """
    return f"{_words(names)}{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"


def _words(names: Iterable[object]) -> str:
    """Return the names, each followed by ``-``, without characters that a file name cannot hold."""
    joined = "-".join(re.sub(r"[^\w.+-]+", "_", str(name)) for name in names)
    return joined.rstrip("-") + "-"
