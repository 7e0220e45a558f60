"""What is shown while a comparison runs: each run with its score and log, and the time left."""

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
    epochs: int = 0  # all that the run has done
    resumed: int = 0  # those of an earlier process
    score: float | None = None
    validated: float = 0.0
    end: float | None = None


class Progress:
    """Prints a line when a run starts or ends, and from time to time a table of the runs in progress.

    Args:
        tasks: the runs that are missing.
        processes: runs at a time.
    """

    def __init__(self, tasks: list[Task], processes: int):
        self.tasks, self.processes = tasks, processes
        self.states = {}  # id -> _State of each run that has started
        self.shown_at = time.monotonic()

    def started(self, task: Task) -> None:
        """Show that a run has started."""
        self.states[task.id] = _State(task, time.monotonic())
        self._print(f"{task.label} seed {task.seed} started, log: {task.log}")

    def validated(self, name: str, epochs: int, resumed: int, score: float) -> None:
        """Note the best validation score of a run, its epochs, and how many of these an earlier process did."""
        state = self.states[name]
        state.epochs, state.resumed, state.score, state.validated = epochs, resumed, score, time.monotonic()

    def ended(self, task: Task, reason: str | None = None) -> None:
        """Show that a run has ended, with its score or the reason of its failure."""
        state = self.states[task.id]
        state.end = time.monotonic()
        head = f"{task.label} seed {task.seed}"
        if reason is not None:
            self._print(f"{head} failed: {reason}")
            return
        after = f"{state.epochs} epoch{'s' * (state.epochs != 1)}, {_clock(state.end - state.start)}"
        self._print(
            f"[{self._count()}/{len(self.tasks)}] {head} done after {after}: best validation score "
            f"{_shown(state.score)}{self._left()}"
        )

    def tick(self) -> None:
        """Show the table when it is time."""
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
        """Estimate the time left, or return None before any run has done an epoch.

        A run is expected to take as many epochs as the ended ones of its label did, otherwise all its epochs, at the
        pace of its label, otherwise the mean pace.
        """
        paces, lengths = {}, {}
        for state in self.states.values():
            if state.epochs > state.resumed:
                pace = (state.validated - state.start) / (state.epochs - state.resumed)
                paces.setdefault(state.task.label, []).append(pace)
            if state.end:
                lengths.setdefault(state.task.label, []).append(state.epochs)
        if not paces:
            return None
        usual = [pace for own in paces.values() for pace in own]
        left = []
        for task in self.tasks:
            state = self.states.get(task.id) or _State(task, 0.0)
            if state.end is None:
                epochs = max(0.0, _mean(lengths.get(task.label, [task.epochs])) - state.epochs)
                left.append(epochs * _mean(paces.get(task.label, usual)))
        return sum(left) / min(self.processes, len(left)) if left else 0.0

    def _count(self):
        return sum(state.end is not None for state in self.states.values())

    def _left(self):
        left = self.seconds_left()
        return "" if not left else f", at most about {_clock(left)} left"

    def _print(self, text):
        print(text, file=sys.stderr, flush=True)


def _mean(values):
    return sum(values) / len(values)


def _shown(score):
    return "–" if score is None else f"{score:.4f}"


def _clock(seconds):
    return str(timedelta(seconds=int(seconds)))
