"""What the benchmarks share."""

import time


def seconds_of(call):
    """Return how long a call takes, in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


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
