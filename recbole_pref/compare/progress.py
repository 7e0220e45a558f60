"""Report the progress of a comparison: each run with its score and log, and the remaining time."""

import sys
import time
from dataclasses import dataclass
from datetime import timedelta

from tabulate import tabulate

from recbole_pref.compare.plan import Task

_INTERVAL = 30.0  # seconds between two tables


@dataclass
class _State:
    task: Task
    start: float
    epochs: int = 0  # finished epochs
    resumed: int = 0  # epochs of an earlier process
    score: float | None = None
    validated: float = 0.0
    end: float | None = None


class Progress:
    """Print a line when a run starts or ends, and every 30 seconds a table of the runs in progress.

    Args:
        tasks: the missing runs.
        processes: number of parallel runs.
    """

    def __init__(self, tasks: list[Task], processes: int) -> None:
        self.tasks, self.processes = tasks, processes
        self.states: dict[str, _State] = {}  # by ID, for runs that have started
        self.shown_at = time.monotonic()

    def started(self, task: Task) -> None:
        """Report that a run has started."""
        self.states[task.id] = _State(task, time.monotonic())
        self._print(f"{task.label} seed {task.seed} started, log: {task.log}")

    def validated(self, name: str, epochs: int, resumed: int, score: float) -> None:
        """Store the best validation score of a run, its finished epochs, and those of an earlier process."""
        state = self.states[name]
        state.epochs, state.resumed, state.score, state.validated = epochs, resumed, score, time.monotonic()

    def ended(self, task: Task, reason: str | None = None) -> None:
        """Report that a run has ended, with its score or the reason of its failure."""
        state = self.states[task.id]
        state.end = time.monotonic()
        head = f"{task.label} seed {task.seed}"
        if reason is not None:
            self._print(f"{head} failed: {reason}")
            return
        after = f"{state.epochs} epoch{'s' * (state.epochs != 1)}, {timedelta(seconds=int(state.end - state.start))}"
        self._print(
            f"[{self._count()}/{len(self.tasks)}] {head} done after {after}: best validation score "
            f"{_shown(state.score)}{self._left()}"
        )

    def tick(self) -> None:
        """Print the table if 30 seconds have passed since the last one."""
        if time.monotonic() - self.shown_at >= _INTERVAL:
            self.shown_at = time.monotonic()
            self._print(self.table())

    def table(self) -> str:
        """Return the table of the runs in progress."""
        running = [state for state in self.states.values() if state.end is None]
        waiting = len(self.tasks) - len(self.states)
        head = f"{self._count()} of {len(self.tasks)} runs ended, {len(running)} running, {waiting} waiting"
        rows = [
            [s.task.label, s.task.seed, f"{s.epochs}/{s.task.epochs}", _shown(s.score), s.task.log] for s in running
        ]
        table = tabulate(rows, ["run", "seed", "epoch", "best score", "log"], "github", disable_numparse=True)
        return f"{head}{self._left()}\n{table}"

    def seconds_left(self) -> float | None:
        """Estimate the remaining time, or return None before any run has finished an epoch.

        The expected number of epochs of a run is the mean of the ended runs of its label, or else its largest number.
        The expected time per epoch is the mean of its label, or else of all runs.
        """
        paces: dict[str, list[float]] = {}
        lengths: dict[str, list[float]] = {}
        for state in self.states.values():
            if state.epochs > state.resumed:
                pace = (state.validated - state.start) / (state.epochs - state.resumed)
                paces.setdefault(state.task.label, []).append(pace)
            if state.end:
                lengths.setdefault(state.task.label, []).append(state.epochs)
        if not paces:
            return None
        usual = [pace for group in paces.values() for pace in group]
        left = []
        for task in self.tasks:
            state = self.states.get(task.id) or _State(task, 0.0)
            if state.end is None:
                epochs = max(0.0, _mean(lengths.get(task.label, [task.epochs])) - state.epochs)
                left.append(epochs * _mean(paces.get(task.label, usual)))
        return sum(left) / min(self.processes, len(left)) if left else 0.0

    def _count(self) -> int:
        return sum(state.end is not None for state in self.states.values())

    def _left(self) -> str:
        left = self.seconds_left()
        return "" if not left else f", at most about {timedelta(seconds=int(left))} left"

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _shown(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"
