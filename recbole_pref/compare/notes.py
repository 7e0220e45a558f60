"""The sentences below a table: what was measured, what was tested, and what is not comparable."""

from recbole_pref.compare.plan import Task
from recbole_pref.evaluation.metrics import group_of
from recbole_pref.popularity import head_in_words
from recbole_pref.records import Run
from recbole_pref.records.significance import LEVEL, TESTS
from recbole_pref.records.summary import same_groups, same_rows
from recbole_pref.training import reference

Runs = dict[str, dict[int, Run]]  # label -> seed -> run


def note_of(tasks: list[Task], runs: Runs, rows: list[dict], metrics: list[str], baseline: str, test: str) -> str:
    """Return the whole note of a table.

    Args:
        tasks: all runs of the comparison, also those that failed.
        runs: the finished ones.
        rows: of :func:`recbole_pref.records.summary.summarize`.
        metrics: columns of the table.
        baseline: label that the others are tested against.
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
        parts.append(f"Nothing is tested: the baseline {baseline} has no finished run.")
    parts += [*group_notes(first, metrics), *row_notes(runs, of_baseline), *split_notes(runs, of_baseline, metrics)]
    if any(task.asks for task in tasks):
        parts.append("Seconds and epochs leave out the training of the references from which methods start.")
    return " ".join([*parts, *reference_notes(tasks), *longer_notes(tasks, runs)])


def _ranking(run):
    mode = run.config["eval_args"]["mode"]["test"]
    return "full ranking" if mode == "full" else f"ranking among {mode} (eval_args)"


def group_notes(run: Run, metrics: list[str]) -> list[str]:
    """Return a sentence on what head and tail are, where a metric is about them."""
    if not any(map(group_of, metrics)):
        return []
    rule, ratio = (run.config[key] for key in ("tail_split", "head_ratio"))
    tail = run.arrays["tail"][run.arrays["target"]]
    return [
        f"Head: {head_in_words(rule, ratio)} (tail_split: {rule}), tail: the rest, "
        f"{tail.sum()} of the {len(tail)} test rows."
    ]


def _pairs(by_seed, of_baseline):
    """Return the runs of a label beside those of the baseline with the same seed."""
    return [(run, of_baseline[seed]) for seed, run in by_seed.items() if seed in of_baseline]


def row_notes(runs: Runs, of_baseline: dict[int, Run]) -> list[str]:
    """Return sentences on labels whose test rows are others than the baseline's."""
    sizes = {}
    for label, by_seed in runs.items():
        for own, other in _pairs(by_seed, of_baseline):
            if not same_rows(own, other):
                sizes[label] = f"({len(own.arrays['target'])}, not {len(other.arrays['target'])})"
    return [
        f"{label} is measured on other test rows {size}, as its kind of model leaves out other users: nothing of it "
        "is tested."
        for label, size in sizes.items()
    ]


def split_notes(runs: Runs, of_baseline: dict[int, Run], metrics: list[str]) -> list[str]:
    """Return sentences on labels whose head and tail are others than the baseline's."""
    if not any(map(group_of, metrics)):
        return []
    return [
        f"{label} has other head and tail items, as its training counts differ: these columns are of other test rows."
        for label, by_seed in runs.items()
        if not all(same_groups(*pair) for pair in _pairs(by_seed, of_baseline) if same_rows(*pair))
    ]


def reference_notes(tasks: list[Task]) -> list[str]:
    """Return sentences on references unlike the cross-entropy that is compared with."""
    notes = {}
    for task in tasks:
        candidates = [
            (_unlike(task.asks, other), other.label)
            for other in tasks
            if task.asks and other.offers and other.offers["backbone"] == task.asks["backbone"]
        ]
        unlike, label = min(candidates, key=lambda pair: len(pair[0]), default=((), None))
        if unlike:
            notes[task.label] = f"{task.label} starts from a reference that is not {label}: {'; '.join(unlike)}."
    return list(notes.values())


def _unlike(asked, other):
    """Return how the reference asked for differs from what a task of cross-entropy trains: list of str."""
    most = asked["training"]["reference_epochs"]
    cut = [f"reference_epochs={most}, there epochs={other.epochs}"] if other.epochs < most else []
    return reference.differences(asked, other.offers) + cut


def longer_notes(tasks: list[Task], runs: Runs) -> list[str]:
    """Return sentences on cross-entropy that trained for longer than the references like it."""
    notes = {}
    for task in tasks:
        if task.offers and any(task.offers == other.asks for other in tasks):
            most = task.offers["training"]["reference_epochs"]
            run = runs.get(task.label, {}).get(task.seed)
            if run and run.epochs > most:
                notes[task.label] = (
                    f"{task.label} trained for more than reference_epochs={most}: the references end there."
                )
    return list(notes.values())
