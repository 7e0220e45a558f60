"""The collapse experiment: do metrics fall as the number of negatives grows, and does DynamicPO prevent it?

    python benchmarks/collapse.py --dataset=ml-100k --epochs=10 --output=collapse
    python benchmarks/collapse.py --dataset=amazon-beauty --data_path=dataset/ --output=collapse-beauty

Trains each model for each K from the same reference and draws test NDCG@10 (best epoch and last epoch) and
the final loss against K. Writes OUTPUT.csv and OUTPUT.png, .pdf and .svg; runs in the CSV file are not repeated,
and runs of another --seed are added to it.
"""

import argparse
import sys

from common import exit_code_of, read_rows, write_rows

SAME = ("dataset", "epochs", "reference_epochs", "learning_rate")  # options that all rows of a table share


def train(model, k, arguments):
    """Train one model with K negatives; return a row of the table."""
    from recbole_pref.build import build_run
    from recbole_pref.config import Config

    settings = {
        "num_negatives": k,
        "epochs": arguments.epochs,
        "reference_epochs": arguments.reference_epochs,
        "stopping_step": arguments.epochs,
        "eval_step": 1,
        "seed": arguments.seed,
        "data_path": arguments.data_path,
        "learning_rate": arguments.learning_rate,
        "state": "ERROR",
    }
    run = build_run(Config(model, arguments.dataset, config_dict=settings), log=False)
    reference = {}
    start = run.model.start_from

    def measured(state_dict):
        start(state_dict)
        reference["score"] = float(run.trainer.evaluate(run.test_data, load_best_model=False)["ndcg@10"])

    run.model.start_from = measured
    run.trainer.fit(run.train_data, run.valid_data)
    last = run.trainer.evaluate(run.test_data, load_best_model=False)
    best = run.trainer.evaluate(run.test_data)
    return {
        **{key: getattr(arguments, key) for key in SAME}, "model": model, "K": k, "seed": arguments.seed,
        "reference": reference["score"],
        "best": float(best["ndcg@10"]), "last": float(last["ndcg@10"]),
        "tail_best": float(best["tailndcg@10"]),
        "loss": run.trainer.losses_per_row()[-1],
        "mean_beta": run.trainer.history[-1].get("mean_beta", ""),
    }  # fmt: skip


def main():
    """Train the missing runs, write the table and the picture.

    Raises:
        PrefError: the command line or the data are not valid, or the table has other settings.
    """
    from recbole_pref import plots

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="DMPOSASRec,DynamicPOSASRec")
    parser.add_argument("--negatives", default="1,3,5,10,15,19,50")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--reference_epochs", type=int, default=20)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--output", default="collapse")
    arguments = parser.parse_args()
    path = f"{arguments.output}.csv"
    rows = read_rows(path, {key: getattr(arguments, key) for key in SAME})
    done = {(row["model"], int(row["K"]), int(row["seed"])) for row in rows}
    for model in arguments.models.split(","):
        for k in map(int, arguments.negatives.split(",")):
            if (model, k, arguments.seed) not in done:
                rows.append(train(model, k, arguments))
                print(rows[-1], flush=True)
                write_rows(path, rows)
    plots.save(plots.collapse(plots.read_collapse(path)), arguments.output)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
