"""What the benchmarks share."""

import sys
import time
from pathlib import Path


def seconds_of(call):
    """Return how long a call takes, in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def exit_code_of(main):
    """Return the exit code of ``main()``, None of which is 0; a mistake of the user is 2 and told in one sentence."""
    from recbole_pref.errors import PrefError

    script = Path(sys.argv[0]).name
    try:
        return main() or 0
    except PrefError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2


def ready_run(config):
    """Return a run of one of our models whose trainer stands before its first epoch.

    ``run.trainer._preference_epoch(number, False)`` then trains one epoch and nothing else.
    """
    from recbole_pref import quick_start, reference

    run = quick_start.build_run(config, log=False)
    trainer = run.trainer
    trainer._train_data, trainer._saving = run.train_data, False
    trainer._data_fingerprint = reference.fingerprint_of(run.train_data._dataset)
    trainer._prepare(run.train_data, run.valid_data)
    trainer._cache_reference(run.train_data)
    return run
