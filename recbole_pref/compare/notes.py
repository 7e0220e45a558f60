"""The note below a table: what was measured and tested, and which columns are not comparable."""

from typing import Any

from recbole_pref.compare.plan import Task
from recbole_pref.evaluation.metrics import group_of
from recbole_pref.popularity import head_in_words
from recbole_pref.records import Run
from recbole_pref.records.significance import LEVEL, TESTS
from recbole_pref.records.summary import same_groups, same_rows
from recbole_pref.training import reference

Runs = dict[str, dict[int, Run]]  # label -> seed -> run


def note_of(
    tasks: list[Task], runs: Runs, rows: list[dict[str, Any]], metrics: list[str], baseline: str, test: str
) -> str:
    """Return the whole note of a table.

    Args:
        tasks: all runs of the comparison, failed ones included.
        runs: the finished runs.
        rows: the result of :func:`recbole_pref.records.summary.summarize`.
        metrics: columns of the table.
        baseline: the label with which the others are compared.
        test: key of ``significance.TESTS``.
    """
    of_baseline = runs.get(baseline) or next(iter(runs.values()))
    first = next(iter(of_baseline.values()))
    parts = [
        f"{tasks[0].dataset}, test set, {_ranking(first)}, history {'masked' if first.mask_history else 'not masked'}; "
        "mean and standard deviation over seeds."
    ]
    if baseline in runs:
        tested = sum(row[metric]["p"] is not None for row in rows for metric in metrics)
        parts.append(
            f"* differs from {baseline} (p < {LEVEL}, {TESTS[test][1]}, values averaged over the common seeds, "
            f"corrected after Holm for {tested} comparisons), ↑: better, ↓: worse."
        )
    else:
        parts.append(f"There are no tests: the baseline {baseline} has no finished run.")
    parts += [*group_notes(first, metrics), *row_notes(runs, of_baseline), *split_notes(runs, of_baseline, metrics)]
    if any(task.needs for task in tasks):
        parts.append("Seconds and epochs exclude the training of the reference models from which methods start.")
    return " ".join([*parts, *reference_notes(tasks), *longer_notes(tasks, runs)])


def _ranking(run: Run) -> str:
    mode = run.config["eval_args"]["mode"]["test"]
    return "full ranking" if mode == "full" else f"ranking among {mode} (eval_args)"


def group_notes(run: Run, metrics: list[str]) -> list[str]:
    """Return a sentence that defines head and tail, if a metric is of one of them."""
    if not any(map(group_of, metrics)):
        return []
    rule, ratio = (run.config[key] for key in ("tail_split", "head_ratio"))
    tail = run.arrays["tail"][run.arrays["target"]]
    return [
        f"Head: {head_in_words(rule, ratio)} (tail_split: {rule}), tail: the rest, "
        f"{tail.sum()} of the {len(tail)} test rows."
    ]


def _pairs(by_seed: dict[int, Run], of_baseline: dict[int, Run]) -> list[tuple[Run, Run]]:
    """Return each run of a label with the run of the baseline that has the same seed."""
    return [(run, of_baseline[seed]) for seed, run in by_seed.items() if seed in of_baseline]


def row_notes(runs: Runs, of_baseline: dict[int, Run]) -> list[str]:
    """Return sentences about labels with other test rows than the baseline."""
    sizes = {}
    for label, by_seed in runs.items():
        for run, other in _pairs(by_seed, of_baseline):
            if not same_rows(run, other):
                sizes[label] = f"({len(run.arrays['target'])}, not {len(other.arrays['target'])})"
    return [
        f"{label} is measured on other test rows {size}, because its kind of model excludes other users: it "
        "is not tested."
        for label, size in sizes.items()
    ]


def split_notes(runs: Runs, of_baseline: dict[int, Run], metrics: list[str]) -> list[str]:
    """Return sentences about labels with another head and tail than the baseline."""
    if not any(map(group_of, metrics)):
        return []
    return [
        f"{label} has other head and tail items, because its training counts differ: its rows for head and tail differ."
        for label, by_seed in runs.items()
        if not all(same_groups(*pair) for pair in _pairs(by_seed, of_baseline) if same_rows(*pair))
    ]


def reference_notes(tasks: list[Task]) -> list[str]:
    """Return sentences about reference models that differ from the cross-entropy entry of the comparison."""
    notes = {}
    for task in tasks:
        candidates = [
            (_unlike(task.needs, other), other.label)
            for other in tasks
            if task.needs and other.provides and other.provides["backbone"] == task.needs["backbone"]
        ]
        unlike, label = min(candidates, key=lambda pair: len(pair[0]), default=((), None))
        if unlike:
            notes[task.label] = f"{task.label} starts from a reference that is not {label}: {'; '.join(unlike)}."
    return list(notes.values())


def _unlike(reference_key: dict[str, Any], other: Task) -> list[str]:
    """Return the differences between a reference model and the model that a cross-entropy task trains."""
    most = reference_key["training"]["reference_epochs"]
    cut = [f"reference_epochs={most}, there epochs={other.epochs}"] if other.epochs < most else []
    return reference.differences(reference_key, other.provides or {}) + cut


def longer_notes(tasks: list[Task], runs: Runs) -> list[str]:
    """Return sentences about cross-entropy that trained for more epochs than the reference models."""
    notes = {}
    for task in tasks:
        if task.provides and any(task.provides == other.needs for other in tasks):
            most = task.provides["training"]["reference_epochs"]
            run = runs.get(task.label, {}).get(task.seed)
            if run and run.epochs > most:
                notes[task.label] = (
                    f"{task.label} trained for more than reference_epochs={most}: the reference models stop there."
                )
    return list(notes.values())
