"""Tail gains against overall losses during fine-tuning of a cross-entropy model.

    python benchmarks/front.py --dataset=amazon-beauty --data_path=dataset/ --seeds=3 --output=front-beauty \\
        --reference_dir=study/amazon-beauty-SASRec/reference
    python benchmarks/front.py --settings="alpha_tail=0.7" ...      # a second line of the same table and picture

The script trains LPO with the settings of recommended/LPO.yaml and measures every epoch on the validation and the test
set. For each bound it selects the epoch that recommended/LPO.yaml would select: the best TailNDCG@10 among epochs that
keep this share of the reference's NDCG@10 on the validation set, or the nearest epoch. It prints the test metrics of
these epochs (mean over the seeds), their differences from the reference, and the p-values of the paired t-test over
users (Holm correction over the rows of these settings). OUTPUT.csv keeps the rows of other --settings; OUTPUT.png, .pdf
and .svg show all rows. With the --reference_dir of a study on the same data, the reference models are those of its
entry "CE trained".
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import METRICS, OVERALL, TAIL, exit_code_of, read_rows, write_rows
from study import RECOMMENDED, SHARED, entries_for
from tabulate import tabulate

BOUNDS = (0.995, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95)  # shares of the reference's overall metric
OBJECTIVE = '{"weights": {"TailNDCG@10": 1.0}}'  # for early stopping; the bounds select the epochs
TRADE = (OVERALL, TAIL)


def measured_epochs(seed, arguments, folder):
    """Train with one seed; return validation metrics and test ranks of the reference and after each epoch.

    Args:
        seed (int): of the run and its reference.
        arguments (Namespace): of the command line.
        folder (path-like): for checkpoints, and for references unless --reference_dir is set.

    Returns:
        list of tuple: dict of float, and arrays as ``evidence.user_values`` reads them; the reference first.
    """
    from recbole_pref.build import build_run
    from recbole_pref.config import Config
    from recbole_pref.evaluation import evidence

    (entry,) = entries_for(arguments.backbone, f"{RECOMMENDED} objective={OBJECTIVE} {arguments.settings}")
    settings = {
        **SHARED, **entry.settings, "seed": seed, "epochs": arguments.epochs, "data_path": arguments.data_path,
        "state": "ERROR", "checkpoint_dir": str(folder),
        "reference_dir": str(Path(arguments.reference_dir or folder).absolute()),
    }  # fmt: skip
    run = build_run(Config(entry.model, arguments.dataset, config_dict=settings), log=False)
    trainer, start, found = run.trainer, run.model.start_from, []

    def measure(valid):
        _, arrays = evidence.evaluate(trainer, run.train_data, run.test_data)
        found.append((valid, {name: arrays[name] for name in ("target", "rank", "tail")}))
        print(f"seed {seed}, epoch {len(found) - 1}: {valid[OVERALL]:.4f} / {valid[TAIL]:.4f}", flush=True)

    def start_and_measure(state_dict):
        start(state_dict)
        measure(trainer.evaluate(run.valid_data, load_best_model=False))

    run.model.start_from = start_and_measure
    trainer.fit(run.train_data, run.valid_data, saved=False, callback_fn=lambda *_: measure(trainer.history[-1]))
    return found


def taken(valid, bound):
    """Return the number of the epoch that a bound selects.

    Args:
        valid (list of dict of float): validation metrics, the reference's first.
        bound (float): share of the reference's overall metric.
    """
    from recbole_pref.evaluation.objective import Objective

    objective = Objective({TAIL: 1.0}, of_reference={OVERALL: bound})
    objective.take_reference(valid[0])
    # the latest of equal epochs, as in training
    return max(reversed(range(1, len(valid))), key=lambda epoch: objective.score(valid[epoch]))


def compared(by_seed, bound):
    """Return a row of the table: the selected epochs of a bound against the reference.

    Args:
        by_seed (list of list of tuple): of :func:`measured_epochs`, a list per seed.
        bound (float or None): see :func:`taken`; None for the reference itself.

    Returns:
        dict: ``bound``, ``epochs`` taken, per metric its mean over the seeds, the difference from the reference as a
        share of it, and p.
    """
    from recbole_pref.evaluation.evidence import user_values
    from recbole_pref.records.significance import paired_t

    epochs = [0 if bound is None else taken([valid for valid, _ in found], bound) for found in by_seed]
    row = {"bound": bound, "epochs": epochs}
    for metric in METRICS:
        own = [user_values(found[epoch][1], metric)[0] for found, epoch in zip(by_seed, epochs)]
        start = [user_values(found[0][1], metric)[0] for found in by_seed]
        row[metric] = float(np.mean(own))
        row[f"{metric} change"] = float(np.mean(own) / np.mean(start) - 1)
        row[f"{metric} p"] = paired_t(np.mean(own, axis=0) - np.mean(start, axis=0))
    return row


def corrected(rows):
    """Return the rows with the Holm correction of their p-values."""
    from recbole_pref.records.significance import holm

    keys = [(row, f"{metric} p") for row in rows for metric in METRICS]
    for (row, key), p in zip(keys, holm([row[key] for row, key in keys])):
        row[key] = float(p)
    return rows


def printed(row):
    """Return a row of :func:`compared` for the printed table: list."""
    return [
        "reference" if row["bound"] is None else f"{100 * row['bound']:g}%",
        *(f"{row[metric]:.4f}" for metric in METRICS),
        *(f"{row[f'{metric} change']:+.1%} ({row[f'{metric} p']:.1g})" for metric in TRADE),
        row["epochs"],
    ]


def draw(rows):
    """Draw tail gains against overall losses: a line per settings, a point per bound."""
    from recbole_pref.plots import drawing

    @drawing.styled
    def picture():
        figure, (axis,) = drawing.panels(6.0, 4.4)
        drawing.add_scope(
            figure,
            f"{rows[0]['dataset']}, {rows[0]['backbone']}; 0 is the reference, from which training starts; "
            "numbers at points: share of its NDCG@10 to keep on the validation set",
        )
        looks, points, names, colours = drawing.styles(row["settings"] for row in rows), [], [], []
        for settings, look in looks.items():
            own = [row for row in rows if row["settings"] == settings]
            line = [[100 * float(row[f"{metric} change"]) for metric in TRADE] for row in own]
            axis.plot(*zip(*line), label=settings, **look)
            # Several bounds may select the same epochs: name the loosest.
            distinct = {tuple(point): row["bound"] for point, row in zip(line, own) if row["bound"]}
            points += distinct
            names += [f"{100 * float(bound):g}%" for bound in distinct.values()]
            colours += [look["color"]] * len(distinct)
        axis.set_xlabel("NDCG@10 on the test set, change in %")
        axis.set_ylabel("tail NDCG@10, change in %")
        texts = [(f"recommended/LPO.yaml {name}", drawing.line_handle(look)) for name, look in looks.items()]
        drawing.add_legend(figure, texts)
        drawing.name_points(figure, axis, np.array(points), names, colours, np.hstack([points, points]))
        return figure

    return picture()


def main():
    """Train, print the table, write it and its picture.

    Raises:
        PrefError: the command line or the data are not valid.
    """
    from recbole_pref import plots
    from recbole_pref.compare import parse_seeds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--backbone", default="SASRec")
    parser.add_argument("--settings", default="", help="key=value between spaces, in addition to recommended/LPO.yaml")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--reference_dir", help="folder of reference models; by default they are trained and removed")
    parser.add_argument("--output", default="front")
    arguments = parser.parse_args()
    seeds = parse_seeds(arguments.seeds)
    same = {"dataset": arguments.dataset, "backbone": arguments.backbone, "seeds": str(seeds)}
    path = Path(f"{arguments.output}.csv")

    def kept():
        return [row for row in read_rows(path, same) if row["settings"] != arguments.settings]

    kept()  # before hours of training
    with tempfile.TemporaryDirectory() as folder:
        by_seed = [measured_epochs(seed, arguments, folder) for seed in seeds]
    found = [compared(by_seed, None), *corrected([compared(by_seed, bound) for bound in BOUNDS])]
    own = [{**same, "settings": arguments.settings, "trained": arguments.epochs, **row} for row in found]
    header = ["keeps on validation", *METRICS, *(f"{metric}, change (p)" for metric in TRADE), "epochs"]
    print(tabulate(map(printed, own), header, "github", disable_numparse=True), flush=True)
    rows = kept() + own  # kept() again: another run may have written meanwhile
    write_rows(path, rows)
    plots.save(draw(rows), arguments.output)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
