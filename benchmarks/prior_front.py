"""Head, tail and overall accuracy for each weight of a prior that was added after training.

    python benchmarks/prior_front.py --folder=study/amazon-beauty-SASRec --data_path=dataset/ --seeds=2020,2021
    python benchmarks/prior_front.py --folder=study/ml-100k-SASRec --settings="prior_tau_train=4"
    python benchmarks/prior_front.py --folder=study/ml-100k-SASRec --settings="prior_beta=-0.5" --masked

The script reads the finished runs of a study. It ranks the test set with the network of each run of --entries and with
each weight that training compares. It prints the change of the metrics against the entry --baseline with the same
seeds. --settings fits the prior again with other settings, --split=validation ranks the validation set instead, and
--masked leaves out the items of the user's history. A network that was trained without a prior needs
--settings="prior=TALE". The weight marked with > is the one that training would choose on the validation set, for most
seeds.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from common import OVERALL, TAIL, compared_runs, exit_code_of, trained
from tabulate import tabulate

SHOWN = (OVERALL, "headndcg@10", TAIL)


def loaded(checkpoint, split, settings):
    """Return the trainer of a finished run, and the loaders of its training, validation and ranked rows."""
    trainer, train_data, valid_data, test_data = trained(checkpoint, **settings)
    return trainer, train_data, valid_data, {"validation": valid_data, "test": test_data}[split]


def metrics(trainer, rows):
    """Return the metrics [M] of a trainer's model on the rows of a loader."""
    result = trainer.evaluate(rows, load_best_model=False)
    return [result[metric] for metric in SHOWN]


def measured(checkpoint, split, settings):
    """Return the metrics [W, M] of a run's network with each weight of the prior, and the weight chosen."""
    from recbole_pref.training.prior import WEIGHTS, choose_weight, obtain

    trainer, train_data, valid_data, rows = loaded(checkpoint, split, settings)
    if any(key.startswith("prior") for key in settings):
        trainer.model.attach_prior(obtain(trainer.config, train_data.dataset))
    chosen, of_weight = choose_weight(trainer, valid_data)
    if split == "validation":
        return np.array([[of_weight[weight][metric] for metric in SHOWN] for weight in WEIGHTS]), chosen
    results = []
    for weight in WEIGHTS:
        trainer.model.set_prior_weight(weight)
        results.append(metrics(trainer, rows))
    return np.array(results), chosen


def main():
    """Measure the runs and print the table.

    Raises:
        PrefError: the folder has no comparison, or an entry has no run with these seeds.
    """
    from recbole_pref.compare import split_text
    from recbole_pref.errors import PrefError
    from recbole_pref.settings.files import parse_value
    from recbole_pref.training.prior import WEIGHTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--entries", default="CE trained prior SASRec,LPO recommended prior SASRec")
    parser.add_argument("--baseline", default="CE trained SASRec")
    parser.add_argument("--seeds", default="", help="separated by commas; default: all of the study")
    parser.add_argument("--settings", default="", help="of the prior, as key=value separated by spaces")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--masked", action="store_true", help="rank without the items of the user's history")
    parser.add_argument("--data_path", default="dataset/")
    arguments = parser.parse_args()
    words = (word.partition("=") for word in split_text(arguments.settings, " "))
    shared = {"data_path": arguments.data_path, "mask_history": arguments.masked}
    settings = {**shared, **{key: parse_value(value) for key, _, value in words}}
    seeds = {int(seed) for seed in arguments.seeds.split(",") if seed}
    runs = [run for run in compared_runs(arguments.folder) if not seeds or run.seed in seeds]
    base = {}
    for run in runs:
        if run.label == arguments.baseline:
            trainer, _, _, rows = loaded(str(arguments.folder / run.checkpoint), arguments.split, shared)
            base[run.seed] = metrics(trainer, rows)
    lines = []
    for entry in arguments.entries.split(","):
        own = [run for run in runs if run.label == entry and run.seed in base]
        if not own:
            raise PrefError(f"--entries: {entry!r} and {arguments.baseline!r} share no seed in that comparison.")
        found = [measured(str(arguments.folder / run.checkpoint), arguments.split, settings) for run in own]
        mean = np.mean([results for results, _ in found], axis=0)
        before = np.mean([base[run.seed] for run in own], axis=0)
        usual = Counter(chosen for _, chosen in found).most_common(1)[0][0]
        for weight, values in zip(WEIGHTS, mean):
            mark = ">" if weight == usual else ""
            changes = 100 * (values / before - 1)
            lines.append(
                [entry, len(own), f"{mark}{weight:g}", *(f"{v:.4f} ({c:+.1f}%)" for v, c in zip(values, changes))]
            )
    masked, changed = ", history masked" if arguments.masked else "", arguments.settings or "as trained"
    print(f"{arguments.split} set{masked}; changes against {arguments.baseline}; settings: {changed}")
    print(tabulate(lines, ["network", "seeds", "weight", *SHOWN], "github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
