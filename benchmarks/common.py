"""Functions that the benchmarks share."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

OVERALL, TAIL = "ndcg@10", "tailndcg@10"  # metrics of the trade-off
METRICS = ("hit@10", OVERALL, "headndcg@10", "tailhit@10", TAIL)


def seconds_of(call):
    """Return how long a call takes, in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def attempt(script, *options):
    """Run a script in its own process.

    Returns:
        Its last line of output, parsed as JSON, or None if it failed; and its error output.
    """
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    return (None if done.returncode else json.loads(done.stdout.splitlines()[-1])), done.stderr


def result_of(case, script, *options):
    """Return the output of :func:`attempt`; if the script fails, exit with the name of the case and the error."""
    result, errors = attempt(script, *options)
    if result is None:
        sys.exit(f"{case} failed:\n{errors[-2000:]}")
    return result


def generated_data(folder, users, items, times):
    """Write interactions as the data set ``generated`` and return the settings that read it.

    Args:
        folder (path-like): exists.
        users, items, times (int array [N]): a row each.
    """
    import pandas as pd

    frame = pd.DataFrame({"user_id:token": users, "item_id:token": items, "timestamp:float": times})
    Path(folder, "generated").mkdir()
    frame.to_csv(Path(folder, "generated", "generated.inter"), sep="\t", index=False)
    return {
        "data_path": str(folder), "checkpoint_dir": str(folder), "state": "ERROR",
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None,
    }  # fmt: skip


def compared_runs(folder):
    """Return the runs that a comparison folder lists.

    Raises:
        PrefError: the folder has no comparison, or a file is damaged.
    """
    from recbole_pref.compare import load_record
    from recbole_pref.errors import PrefError
    from recbole_pref.records import read_comparison

    comparison = read_comparison(folder)
    if comparison is None:
        raise PrefError(
            f"--folder={str(folder)!r} holds no comparison.json: name one that study.py or --compare wrote."
        )
    return [load_record(folder, name) for name in comparison["runs"]]


def trained(checkpoint, **settings):
    """Return the trainer of a finished run, and the loaders of its training, validation and test set.

    Args:
        checkpoint (str): its best checkpoint.
        **settings: replace those in the checkpoint.
    """
    from recbole.utils import get_trainer

    from recbole_pref.quick_start import load_data_and_model

    config, model, _, *loaders = load_data_and_model(checkpoint, state="ERROR", **settings)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector.data_collect(loaders[0])
    return trainer, *loaders


def read_rows(path, same):
    """Return the rows of an existing table as texts; empty if the file does not exist.

    Args:
        path (path-like): of a CSV file.
        same (dict): column to the value that all rows must have, as text.

    Raises:
        PrefError: a row has other values.
    """
    from recbole_pref.errors import PrefError

    path = Path(path)
    rows = list(csv.DictReader(path.open(newline="", encoding="utf-8"))) if path.is_file() else []
    for key, value in same.items():
        others = {row.get(key) for row in rows} - {str(value)}
        if others:
            raise PrefError(
                f"--output: {str(path)!r} holds rows with {key}={others.pop()}, not {value}: name another one."
            )
    return rows


def write_rows(path, rows):
    """Write a table as CSV, atomically."""
    from recbole_pref.checkpoint import write_atomically
    from recbole_pref.compare.tables import rows_as_csv

    write_atomically(path, lambda file: file.write(rows_as_csv(rows).encode()), "output")


def exit_code_of(main):
    """Return the exit code of ``main()``: 0 for None, 2 for a user error (printed in one line), 130 for Ctrl-C."""
    from recbole_pref.errors import PrefError

    script = Path(sys.argv[0]).name
    try:
        return main() or 0
    except PrefError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def ready_run(config, dataset=None):
    """Return a run of one of our models, ready for its first epoch.

    ``dataset`` is one that was prepared before, if any. ``run.trainer.train_epoch(number)`` then trains exactly one
    epoch.
    """
    from recbole_pref.build import build_run

    run = build_run(config, log=False, dataset=dataset)
    run.trainer.start(run.train_data, run.valid_data)
    return run
