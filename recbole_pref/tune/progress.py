"""Report the progress of a sweep: trials by state, the best trials, and the remaining time."""

import sys
import time
from datetime import timedelta
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from tabulate import tabulate

from recbole_pref.tune.results import short

_INTERVAL = 30.0  # seconds between two tables
_ROWS = 5


class Progress(Callback):
    """Print a table of the best trials every 30 seconds, and one line per finished trial.

    Args:
        trials: number of all trials.
        epochs: largest number of epochs of a trial.
        keys: the searched settings, which are columns of the table.
        quiet: print only one line per finished trial.
    """

    def __init__(self, trials: int, epochs: int, keys: tuple[str, ...], quiet: bool = False) -> None:
        self.trials, self.epochs, self.keys, self.quiet = trials, epochs, keys, quiet
        self.started = self.shown = 0.0
        self.done_before: int | None = None  # epochs of an interrupted sweep

    def get_state(self) -> dict[str, Any]:
        """Return an empty state: times are measured per process."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Ignore the state of an interrupted sweep."""

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        """Store the time of the start."""
        self.started = self.shown = time.monotonic()
        self.done_before = None

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Print the table if 30 seconds have passed since the last one."""
        if self.done_before is None:
            self.done_before = sum(_epochs(trial) for trial in trials)
        now = time.monotonic()
        if not self.quiet and now - self.shown >= _INTERVAL:
            self.shown = now
            self._print(self.table(trials, now - self.started))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Print the score of a trial that ended."""
        self._line(trials, trial, "done")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Print that a trial failed."""
        self._line(trials, trial, "failed")

    def _line(self, trials: list[Trial], trial: Trial, word: str) -> None:
        ended = sum(other is trial or other.is_finished() for other in trials)
        score = (trial.last_result or {}).get("best_score")
        shown = f"best score {score:.4f}" if score is not None else "no score"
        epochs = _epochs(trial)
        self._print(
            f"[{min(ended, self.trials)}/{self.trials}] trial {trial.trial_id} {word} after "
            f"{epochs} epoch{'s' * (epochs != 1)}: {shown} {self._params(trial)}"
        )

    def _params(self, trial: Trial) -> str:
        return " ".join(f"{key}={short(trial.config.get(key))}" for key in self.keys)

    def table(self, trials: list[Trial], elapsed: float) -> str:
        """Return the text of the live table.

        Args:
            trials: the trials that exist so far.
            elapsed: seconds since this process started the sweep.
        """
        states: dict[str, int] = {}
        for trial in trials:
            states[trial.status] = states.get(trial.status, 0) + 1
        counts = ", ".join(f"{number} {state.lower()}" for state, number in sorted(states.items()))
        scored = [trial for trial in trials if "best_score" in (trial.last_result or {})]
        scored.sort(key=lambda trial: -trial.last_result["best_score"])
        rows = [
            [trial.trial_id, trial.status.lower(), _epochs(trial), f"{trial.last_result['best_score']:.4f}",
             *(short(trial.config.get(key)) for key in self.keys)]
            for trial in scored[:_ROWS]
        ]  # fmt: skip
        head = f"{counts} of {self.trials} trials, {timedelta(seconds=int(elapsed))} elapsed"
        left = self.seconds_left(trials, elapsed)
        if left is not None:
            head += f", at most about {timedelta(seconds=int(left))} left"
        header = ["best so far", "state", "epochs", "score", *self.keys]
        return f"{head}\n{tabulate(rows, header, 'github', disable_numparse=True)}"

    def seconds_left(self, trials: list[Trial], elapsed: float) -> float | None:
        """Estimate the remaining time from the finished epochs.

        Returns:
            Seconds, or None before the first epoch is finished.
        """
        done = sum(_epochs(trial) for trial in trials)
        in_this_process = done - (self.done_before or 0)
        if in_this_process <= 0:
            return None
        ended = [trial for trial in trials if trial.is_finished()]
        # Assume that other trials take as many epochs as the ended ones, some of which were stopped early.
        usual = sum(map(_epochs, ended)) / len(ended) if ended else self.epochs
        running = sum(max(0.0, usual - _epochs(t)) for t in trials if not t.is_finished())
        to_come = usual * max(0, self.trials - len(trials))
        return (running + to_come) * elapsed / in_this_process

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _epochs(trial: Trial) -> int:
    return int((trial.last_result or {}).get("epoch", 0))
