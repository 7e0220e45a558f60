"""The collapse experiment: does a method fall as the number of negatives grows, and does DynamicPO not?

    python benchmarks/collapse.py --dataset=ml-100k --epochs=10 --output=collapse
    python benchmarks/collapse.py --dataset=amazon-beauty --data_path=dataset/ --output=collapse-beauty

Trains each model for each K from the same reference and draws test NDCG@10 (best epoch and last epoch) and
the final loss against K. Writes OUTPUT.csv and OUTPUT.png; runs that are in the CSV are not repeated.
"""

import argparse
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

FIELDS = ("model", "K", "seed", "reference", "best", "last", "tail_best", "loss", "mean_beta")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe-Ito


def train(model, k, arguments):
    """Train one model with K negatives; return a row of the table."""
    from recbole_pref.config import Config
    from recbole_pref.quick_start import build_run

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
    rows = len(run.train_data._dataset) / run.train_data.step
    return {
        "model": model, "K": k, "seed": arguments.seed, "reference": reference["score"],
        "best": float(best["ndcg@10"]), "last": float(last["ndcg@10"]),
        "tail_best": float(best["tailndcg@10"]),
        "loss": run.trainer.train_loss_dict[arguments.epochs - 1] / rows,
        "mean_beta": run.trainer.history[-1].get("mean_beta", ""),
    }  # fmt: skip


def draw(rows, path, title):
    """Draw metric and loss against K, a colour per model."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6, 6), sharex=True)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, colour in zip(models, COLOURS):
        own = sorted((row for row in rows if row["model"] == model), key=lambda row: int(row["K"]))
        ks = [int(row["K"]) for row in own]
        last, best = ([float(row[key]) for row in own] for key in ("last", "best"))
        upper.plot(ks, last, "o-", color=colour, label=f"{model}, last epoch")
        upper.plot(ks, best, "s--", color=colour, alpha=0.6, label=f"{model}, best epoch")
        lower.plot(ks, [float(r["loss"]) for r in own], "o-", color=colour, label=model)
    upper.axhline(float(rows[0]["reference"]), color="#555555", lw=1, label="reference (cross-entropy)")
    upper.set_ylabel("test NDCG@10")
    lower.set_ylabel("training loss per row (nats)")
    lower.set_xlabel("negatives per positive, K")
    lower.set_xscale("log")
    lower.set_xticks(ks, [str(k) for k in ks])
    lower.minorticks_off()
    upper.set_title(title)
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    """Run what is missing, write the table and the picture."""
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
    sys.argv = sys.argv[:1]
    path = Path(f"{arguments.output}.csv")
    rows = list(csv.DictReader(path.open(newline=""))) if path.is_file() else []
    done = {(row["model"], int(row["K"])) for row in rows}
    for model in arguments.models.split(","):
        for k in map(int, arguments.negatives.split(",")):
            if (model, k) not in done:
                rows.append(train(model, k, arguments))
                print(rows[-1], flush=True)
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
    draw(rows, f"{arguments.output}.png", f"{arguments.dataset}, seed {arguments.seed}")


if __name__ == "__main__":
    main()
