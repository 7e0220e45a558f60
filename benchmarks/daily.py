"""What ``init_from`` gains: a run that starts from yesterday's model against one from scratch, on the same data.

    python benchmarks/daily.py --dataset=ml-100k --first_epochs=20 --epochs=10 --seeds=2020,2021

The interactions are cut by time. The first model is trained on those before T, and the second on those before T + d.
The second is trained twice, from the first and from scratch, with the same number of epochs, of the same steps. Both
are measured on what follows T + d. ``--window`` is the share of the interactions in the d days and in what follows.
"""

import argparse
import statistics
import sys
import tempfile

from common import exit_code_of, ready_run
from tabulate import tabulate

SHOWN = ("ndcg@10", "headndcg@10", "tailndcg@10")


def settings_of(options, seed, folder):
    """Return the settings of the first and of the second run."""
    import numpy as np
    import pandas as pd

    from recbole_pref.config import Config

    w = options.window
    shared = {"seed": seed, "checkpoint_dir": folder, "state": "ERROR", "eval_step": 1}
    shared |= {"data_path": options.data_path} if options.data_path else {}
    config = Config(options.model, options.dataset, config_dict=shared)
    time = config["TIME_FIELD"]
    table = pd.read_csv(f"{config['data_path']}/{options.dataset}.inter", sep="\t")
    until = np.quantile(table[f"{time}:float"], 1 - w)
    split = lambda test: {"split": {"TS": [1 - w - test, w, test]}}
    first = {"eval_args": split(w / (1 - w)), "val_interval": {time: f"(-inf,{until:.0f}]"}}
    return {**shared, **first, "epochs": options.first_epochs}, {**shared, "eval_args": split(w)}


def curve(options, settings, epochs):
    """Train and return the test metrics before the first and after each epoch, and the steps of an epoch."""
    from recbole_pref.config import Config

    run = ready_run(Config(options.model, options.dataset, config_dict=settings))
    rows = []
    for epoch in range(epochs + 1):
        if epoch:
            run.trainer.train_epoch(epoch - 1)
        result = run.trainer.evaluate(run.test_data, load_best_model=False)
        rows.append([float(result[metric]) for metric in SHOWN])
        print(epoch, rows[-1], file=sys.stderr, flush=True)
    run.trainer.tensorboard.close()
    return rows, len(run.trainer._loader)


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="CESASRec")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--window", type=float, default=0.1, help="share of the interactions in d days (default 0.1)")
    parser.add_argument("--first_epochs", type=int, default=20, help="largest number of epochs of the first model")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of both runs on the newer data")
    parser.add_argument("--seeds", default="2020")
    options = parser.parse_args()
    from recbole_pref.quick_start import run_recbole_pref

    curves = {"init_from": [], "scratch": []}
    steps = 0
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            first, second = settings_of(options, seed, folder)
            path = run_recbole_pref(options.model, options.dataset, config_dict=first)["checkpoint"]
            for start, init_from in (("init_from", path), ("scratch", None)):
                rows, steps = curve(options, {**second, "init_from": init_from}, options.epochs)
                curves[start].append(rows)
    shown = [epoch for epoch in (0, 1, 2, 3, 5, 10, 15, 20, 30, 50) if epoch <= options.epochs]
    table = [
        [start, epoch, epoch * steps, *(_mean([rows[epoch][m] for rows in curves[start]]) for m in range(len(SHOWN)))]
        for start in curves
        for epoch in shown
    ]
    print(tabulate(table, ["start", "epochs", "steps", *SHOWN], tablefmt="github", disable_numparse=True))


def _mean(values):
    return f"{statistics.mean(values):.4f}"


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
