"""Read and write the records of finished runs.

A comparison folder contains ``runs/<id>.json`` and ``runs/<id>.npz`` for each run, and ``comparison.json`` with the
table.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from recbole_pref.checkpoint import write_atomically
from recbole_pref.environment import write_result
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.evidence import DAMAGED

LISTS = "lists-"  # prefix of the ids of ranked lists from other systems (recbole-pref-evaluate)
_REMEDY = "delete both files of the run, and the same comparison repeats it."


def number(value: object) -> float:
    """Return a value of a record as a number, or NaN. JSON files store "nan" and "inf" as texts."""
    if isinstance(value, Real):
        return value  # type: ignore[return-value]  # whole numbers stay whole
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


@dataclass
class Run:
    """A finished run: the fields of its JSON file, and the arrays of its ``.npz`` file.

    Attributes:
        label: name in tables and pictures.
        test_result: metrics on the test set by RecBole's key.
        id: stem of the names of its files.
        history: metrics of each validation, with ``epoch`` from 0.
        epochs_to_best: the best epoch, counted from 1.
        peak_memory_mb: peak memory of its process in MiB, imported libraries included.
        train_loss_per_row: mean training loss of each epoch.
        mask_history: whether seen items were excluded from the ranking.
        data: fingerprint of the data.
        environment: versions, machine and command.
        config: all settings.
        checkpoint: path of the best checkpoint, relative to the comparison folder.
        arrays: see :func:`recbole_pref.evaluation.evidence.evaluate`; empty without an ``.npz`` file.
    """

    label: str
    test_result: dict[str, float]
    id: str = ""
    model: str = ""
    dataset: str = ""
    seed: int | None = None
    best_valid_score: float | None = None
    valid_score_bigger: bool = True
    best_valid_result: dict[str, float] | None = None
    seconds_per_epoch: float | None = None
    epochs: int | None = None
    epochs_to_best: int | None = None
    peak_memory_mb: float | None = None
    train_loss_per_row: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    mask_history: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.test_result = {key: number(value) for key, value in self.test_result.items()}
        self.history = [{key: number(value) for key, value in entry.items()} for entry in self.history or ()]

    def write(self, folder: str | Path) -> None:
        """Write the two files of the run into a comparison folder, the JSON file last.

        Raises:
            PrefError: a file cannot be written.
        """
        path = run_path(folder, self.id)
        arrays: dict[str, Any] = self.arrays
        write_atomically(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays), "output")
        record = {name: value for name, value in asdict(self).items() if name != "arrays"}
        write_result(path, record, "output")


_FIELDS = {item.name for item in fields(Run)} - {"arrays"}


def run_path(folder: str | Path, name: str) -> Path:
    """Return the JSON file of a run in a comparison folder."""
    return Path(folder, "runs", f"{name}.json")


def read_run(path: str | Path) -> Run:
    """Read the files of a finished run. Fields of other versions are ignored.

    Raises:
        PrefError: names a damaged file.
    """
    path = Path(path)
    record = _read_json(path, _REMEDY)
    if not isinstance(record.get("label"), str) or not isinstance(record.get("test_result"), dict):
        raise PrefError(f"'{path}' lacks 'label' or 'test_result', so it is not a finished run: {_REMEDY}")
    run = Run(**{name: value for name, value in record.items() if name in _FIELDS and value is not None})
    arrays = path.with_suffix(".npz")
    if arrays.is_file():
        try:
            with np.load(arrays, allow_pickle=False) as file:
                run.arrays = dict(file)
        except DAMAGED as error:
            raise PrefError(f"'{arrays}' is damaged ({' '.join(str(error).split())}): {_REMEDY}") from error
    return run


def read_runs(folder: str | Path) -> list[Run]:
    """Read the finished runs of a comparison folder; if it has ``comparison.json``, only those that it lists.

    Args:
        folder: the comparison folder.

    Returns:
        The runs, grouped by label; labels are in the order of ``comparison.json`` if it exists.

    Raises:
        PrefError: the folder or runs are missing, a file is damaged, or the runs are on several data sets.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PrefError(f"The comparison folder '{folder}' does not exist: name one that a comparison wrote.")
    table = read_comparison(folder) or {}
    paths = sorted((folder / "runs").glob("*.json"))
    listed = table.get("runs")
    if listed:  # the folder may contain runs of earlier comparisons with other settings
        paths = [path for path in paths if path.stem in listed]
    runs = [read_run(path) for path in paths]
    if not runs:
        raise PrefError(
            f"The comparison folder '{folder}' holds no finished run (runs/*.json): let a comparison finish "
            "at least one run there."
        )
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    if len(datasets) > 1:
        raise PrefError(
            f"The comparison folder '{folder}' holds runs on {len(datasets)} data sets "
            f"({', '.join(datasets)}), which no picture can compare: use one folder per data set."
        )
    labels = list(dict.fromkeys([*(str(row["label"]) for row in table.get("rows", [])), *by_label(runs)]))
    return sorted(runs, key=lambda run: labels.index(run.label))


def read_comparison(folder: str | Path) -> dict[str, Any] | None:
    """Return the content of ``comparison.json`` in a comparison folder, or None if it does not exist.

    Raises:
        PrefError: the file is damaged.
    """
    path = Path(folder, "comparison.json")
    if not path.is_file():
        return None
    table = _read_json(path, "delete it and run the comparison again.")
    rows = table.get("rows")
    if not isinstance(rows, list) or any(not isinstance(row, dict) or "label" not in row for row in rows):
        raise PrefError(f"'{path}' has no rows with labels: delete it and run the comparison again.")
    return table


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrefError(f"'{path}' cannot be read ({' '.join(str(error).split())}): {remedy}") from error
    if not isinstance(value, dict):
        raise PrefError(f"'{path}' holds no record: {remedy}")
    return value


def by_label(runs: list[Run]) -> dict[str, list[Run]]:
    """Return ``{label: its runs}`` in the order of the runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups
