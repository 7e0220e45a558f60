"""Head, tail and overall accuracy for each weight of a prior that was added after training.

    python benchmarks/prior_front.py --folder=study/amazon-beauty-SASRec --data_path=dataset/ --seeds=2020,2021
    python benchmarks/prior_front.py --folder=study/ml-100k-SASRec --settings="prior_tau_train=4"

The script reads the finished runs of a study. It ranks the test set with the network of each run of --entries and with
each weight, and prints the change of the test metrics against the entry --baseline with the same seeds. --settings
fits the prior again with other settings. The weight marked with > is the one that training would choose from these on
the validation set, for most seeds.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from common import OVERALL, TAIL, compared_runs, exit_code_of, trained
from tabulate import tabulate

WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
SHOWN = (OVERALL, "headndcg@10", TAIL)


def measured(checkpoint, settings):
    """Return the test metrics [W, M] of a run's network with each weight of the prior, and the weight chosen."""
    from recbole_pref.training.prior import choose_weight, obtain

    trainer, train_data, valid_data, test_data = trained(checkpoint, **settings)
    if any(key.startswith("prior_") for key in settings):
        trainer.model.prior = obtain(trainer.config, train_data.dataset).to(trainer.device)
    chosen, _ = choose_weight(trainer, valid_data, WEIGHTS)
    results = []
    for weight in WEIGHTS:
        trainer.model.set_prior_weight(weight)
        result = trainer.evaluate(test_data, load_best_model=False)
        results.append([result[metric] for metric in SHOWN])
    return np.array(results), chosen


def main():
    """Measure the runs and print the table.

    Raises:
        PrefError: the folder has no comparison, or an entry has no run with these seeds.
    """
    from recbole_pref.compare import split_text
    from recbole_pref.errors import PrefError
    from recbole_pref.settings.files import parse_value

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--entries", default="CE trained prior SASRec,LPO recommended prior SASRec")
    parser.add_argument("--baseline", default="CE trained SASRec")
    parser.add_argument("--seeds", default="", help="separated by commas; default: all of the study")
    parser.add_argument("--settings", default="", help="of the prior, as key=value separated by spaces")
    parser.add_argument("--data_path", default="dataset/")
    arguments = parser.parse_args()
    words = (word.partition("=") for word in split_text(arguments.settings, " "))
    settings = {"data_path": arguments.data_path, **{key: parse_value(value) for key, _, value in words}}
    seeds = {int(seed) for seed in arguments.seeds.split(",") if seed}
    runs = [run for run in compared_runs(arguments.folder) if not seeds or run.seed in seeds]
    base = {run.seed: [run.test_result[metric] for metric in SHOWN] for run in runs if run.label == arguments.baseline}
    rows = []
    for entry in arguments.entries.split(","):
        own = [run for run in runs if run.label == entry and run.seed in base]
        if not own:
            raise PrefError(f"--entries: {entry!r} and {arguments.baseline!r} share no seed in that comparison.")
        found = [measured(str(arguments.folder / run.checkpoint), settings) for run in own]
        mean = np.mean([results for results, _ in found], axis=0)
        before = np.mean([base[run.seed] for run in own], axis=0)
        usual = Counter(chosen for _, chosen in found).most_common(1)[0][0]
        for weight, values in zip(WEIGHTS, mean):
            mark = ">" if weight == usual else ""
            changes = 100 * (values / before - 1)
            rows.append(
                [entry, len(own), f"{mark}{weight:g}", *(f"{v:.4f} ({c:+.1f}%)" for v, c in zip(values, changes))]
            )
    print(f"Changes against {arguments.baseline}; settings: {arguments.settings or 'as trained'}")
    print(tabulate(rows, ["network", "seeds", "weight", *SHOWN], "github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
