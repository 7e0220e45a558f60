"""What is shown while a sweep runs: trials by state, the best so far, the time left."""

import sys
import time

from ray.tune import Callback
from tabulate import tabulate

_INTERVAL = 30.0  # seconds between two tables
_ROWS = 5


class Progress(Callback):
    """Prints a table of the best trials from time to time, or one line per finished trial.

    Args:
        trials (int): how many there will be.
        epochs (int): most epochs of a trial.
        keys (tuple of str): the swept settings, shown beside the score.
        quiet (bool): one line per finished trial only.
    """

    def __init__(self, trials, epochs, keys, quiet=False):
        self.trials, self.epochs, self.keys, self.quiet = trials, epochs, keys, quiet
        self.started = self.shown = None
        self.done_before = 0

    def get_state(self):
        """Return nothing: times start anew with the process."""
        return {}

    def set_state(self, state):
        """Take nothing over from an interrupted sweep."""

    def setup(self, stop=None, num_samples=None, total_num_samples=None, **info):
        """Note the start."""
        self.started = self.shown = time.monotonic()
        self.done_before = None

    def on_step_end(self, iteration, trials, **info):
        """Show the table when it is time."""
        if self.done_before is None:  # of an interrupted sweep
            self.done_before = sum(_epochs(trial) for trial in trials)
        now = time.monotonic()
        if not self.quiet and now - self.shown >= _INTERVAL:
            self.shown = now
            self._tell(self.table(trials, now - self.started))

    def on_trial_complete(self, iteration, trials, trial, **info):
        """Tell the score of a trial that ended."""
        self._line(trials, trial, "done")

    def on_trial_error(self, iteration, trials, trial, **info):
        """Tell that a trial failed."""
        self._line(trials, trial, "failed")

    def _line(self, trials, trial, word):
        ended = sum(other is trial or other.is_finished() for other in trials)
        score = (trial.last_result or {}).get("best_score")
        shown = f"best score {score:.4f}" if score is not None else "no score"
        epochs = _epochs(trial)
        self._tell(
            f"[{min(ended, self.trials)}/{self.trials}] trial {trial.trial_id} {word} after "
            f"{epochs} epoch{'s' * (epochs != 1)}: {shown} {self._params(trial)}"
        )

    def _params(self, trial):
        return " ".join(f"{key}={_short(trial.config.get(key))}" for key in self.keys)

    def table(self, trials, elapsed):
        """Return the text of the live table.

        Args:
            trials (list of Trial): those that exist so far.
            elapsed (float): seconds since this process started the sweep.
        """
        states = {}
        for trial in trials:
            states[trial.status] = states.get(trial.status, 0) + 1
        counts = ", ".join(f"{number} {state.lower()}" for state, number in sorted(states.items()))
        scored = [trial for trial in trials if "best_score" in (trial.last_result or {})]
        scored.sort(key=lambda trial: -trial.last_result["best_score"])
        rows = [
            [trial.trial_id, trial.status.lower(), _epochs(trial), f"{trial.last_result['best_score']:.4f}",
             *(_short(trial.config.get(key)) for key in self.keys)]
            for trial in scored[:_ROWS]
        ]  # fmt: skip
        head = f"{counts} of {self.trials} trials, {_clock(elapsed)} gone"
        left = self.seconds_left(trials, elapsed)
        if left is not None:
            head += f", at most about {_clock(left)} left"
        header = ["best so far", "state", "epochs", "score", *self.keys]
        return f"{head}\n{tabulate(rows, header, 'github', disable_numparse=True)}"

    def seconds_left(self, trials, elapsed):
        """Estimate the time left from the epochs done, each open trial counted to its last epoch.

        Returns:
            float or None: seconds, None before the first epoch is done.
        """
        done = sum(_epochs(trial) for trial in trials)
        in_this_process = done - (self.done_before or 0)
        if in_this_process <= 0:
            return None
        ended = [trial for trial in trials if trial.is_finished()]
        # Trials to come last as long as those that ended, which early stopping has shortened.
        usual = sum(map(_epochs, ended)) / len(ended) if ended else self.epochs
        running = sum(max(0.0, usual - _epochs(t)) for t in trials if not t.is_finished())
        to_come = usual * max(0, self.trials - len(trials))
        return (running + to_come) * elapsed / in_this_process

    def _tell(self, text):
        print(text, file=sys.stderr, flush=True)


def _epochs(trial):
    return int((trial.last_result or {}).get("epoch", 0))


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
