"""Compare models over seeds: train the missing runs, test the differences, write the tables.

An interrupted run continues from its last checkpoint; finished runs are not repeated.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_pref import checkpoint
from recbole_pref.compare import runs as _runs
from recbole_pref.compare.entries import Entry, parse_entries, parse_seeds, split_text
from recbole_pref.compare.notes import note_of, reference_notes
from recbole_pref.compare.plan import Task, check_different, plan_runs
from recbole_pref.compare.tables import columns_of, comparison_csv, comparison_table, latex_table
from recbole_pref.environment import write_result
from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation import evidence
from recbole_pref.records import LISTS, Run, read_run, run_path
from recbole_pref.records.significance import TESTS
from recbole_pref.records.summary import summarize, table_metrics
from recbole_pref.settings import settings_set_by

__all__ = ["Comparison", "Entry", "compare", "load_record", "parse_entries", "parse_seeds", "split_text"]


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns.

    Attributes:
        folder: folder of tables, runs and checkpoints.
        rows: see :func:`recbole_pref.records.summary.summarize`.
        failed: the reason of failure by run.
        text: the Markdown table.
    """

    folder: Path
    rows: list[dict[str, Any]]
    failed: dict[str, str]
    text: str


def compare(
    models: str | list[Entry],
    dataset: str,
    seeds: int | str | list[int] = 5,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    output: str | Path | None = None,
    baseline: str | None = None,
    processes: int = 1,
    test: str = "t-test",
    columns: list[str] | None = None,
) -> Comparison:
    """Train every model with every seed, test the differences over users, write tables.

    Args:
        models: entries, or a text for :func:`parse_entries`.
        dataset: data set name.
        seeds: see :func:`parse_seeds`.
        config_file_list: YAML files for all entries.
        config_dict: settings for all entries; the settings of an entry override them.
        output: folder; by default ``compare/<dataset>``.
        baseline: the label with which the others are compared; by default the first.
        processes: number of parallel runs; they share torch's threads (``OMP_NUM_THREADS``).
        test: ``t-test`` or ``bootstrap``.
        columns: metrics (``NDCG@10``, ``Tail NDCG@10``) and costs (``seconds_per_epoch``) of the tables and tests;
            by default all metrics at the cut-off of ``valid_metric`` and all costs.

    Raises:
        PrefError: an entry is missing, repeated or invalid (before any training), or runs are on different data.
    """
    entries = parse_entries(models) if isinstance(models, str) else list(models)
    labels = [entry.label for entry in entries]
    if not labels:
        raise PrefError("--compare names no model: write --compare=CESASRec,LPOSASRec.")
    check_different(labels)
    baseline = baseline or labels[0]
    if baseline not in labels:
        raise PrefError(f"--baseline={baseline!r} is not compared.{suggest(baseline, labels)}")
    if test not in TESTS:
        raise PrefError(f"--test={test!r} does not exist: choose {' or '.join(TESTS)}.")
    if processes < 1:
        raise PrefError(f"--processes={processes} is not accepted: set it to 1 or more.")
    for key in sorted(settings_set_by("comparison")):
        if any(key in settings for settings in (config_dict or {}, *(entry.settings for entry in entries))):
            raise PrefError(f"--compare: {key} is set by the comparison: remove it.")
    dataset = str(dataset)
    folder = Path(output or Path("compare", dataset)).absolute()
    tasks = plan_runs(entries, dataset, seeds, config_file_list, config_dict or {}, folder, columns)
    for note in reference_notes(tasks):
        print(note, file=sys.stderr, flush=True)
    failed = _runs.run_missing(tasks, folder, processes)
    return _write(tasks, folder, baseline, test, columns, failed)


def _write(
    tasks: list[Task], folder: Path, baseline: str, test: str, columns: list[str] | None, failed: dict[str, str]
) -> Comparison:
    """Write the tables of the finished runs."""
    runs: dict[str, dict[int, Run]] = {}
    for task in tasks:
        if task.record.is_file():
            run = load_record(folder, task.id)
            run.arrays = evidence.by_user(run.arrays)
            runs.setdefault(task.label, {})[task.seed] = run
    for path in sorted((folder / "runs").glob(f"{LISTS}*.json")):  # lists of other systems, see recbole-pref-evaluate
        run = load_record(folder, path.stem)
        run.arrays = evidence.by_user(run.arrays)
        if run.seed is not None:
            runs.setdefault(run.label, {})[run.seed] = run
    if not runs:
        by_reason = {reason: [name for name in failed if failed[name] == reason] for reason in failed.values()}
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        raise PrefError(f"--compare: no run was finished ({reasons}).")
    every = [run for by_seed in runs.values() for run in by_seed.values()]
    done = [run.id for run in every]
    failed = {name: reason for name, reason in failed.items() if name not in done}  # others may finish runs
    check_same_data(every)
    first = next(iter((runs.get(baseline) or next(iter(runs.values()))).values()))
    metrics, costs = columns_of(columns, first, table_metrics(first))
    rows = summarize(runs, baseline, test, metrics)
    note = note_of(tasks, runs, rows, metrics, baseline, test)
    text = f"{comparison_table(rows, metrics, 'github', costs)}\n\n{note}\n"
    for name, reason in failed.items():
        text += f"\n{name} failed: {reason}"
    dataset = tasks[0].dataset
    summary = {
        "baseline": baseline, "metrics": metrics, "rows": rows, "runs": done, "failed": failed,
        "dataset": dataset, "test": note, "command": shlex.join(sys.orig_argv),
    }  # fmt: skip
    write_result(folder / "comparison.json", summary, "output")
    files = {
        "table.md": text,
        "table.tex": latex_table(rows, metrics, costs, note, dataset),
        "table.csv": comparison_csv(rows, metrics),
    }
    for name, content in files.items():
        checkpoint.write_atomically(folder / name, lambda file: file.write(content.encode("utf-8")), "output")
    return Comparison(folder, rows, failed, text)


def load_record(folder: str | Path, name: str) -> Run:
    """Return a finished run of a comparison with its arrays.

    Raises:
        PrefError: names a damaged or missing file.
    """
    path = run_path(folder, name)
    run = read_run(path)
    if not run.arrays:
        raise PrefError(f"'{path.with_suffix('.npz')}' is missing: delete both files of the run, and the same "
                        "comparison repeats it.")  # fmt: skip
    return run


def check_same_data(runs: list[Run]) -> None:
    """Refuse runs on different users or items in one table; training rows may differ between kinds of models.

    Raises:
        PrefError: names the runs and what differs.
    """
    for run in runs:
        saved, first = ({key: r.data.get(key) for key in checkpoint.SHARED_BY_KINDS} for r in (run, runs[0]))
        different = checkpoint.compare_fingerprints(saved, first)
        if different:
            raise PrefError(
                f"the runs {run.id} and {runs[0].id} were trained on different data ({'; '.join(different)}): the "
                "data file or its filters changed; set another --output, or delete the older runs in 'runs'."
            )
