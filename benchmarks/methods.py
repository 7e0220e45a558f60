"""Every method on every backbone, one seed each, as a Markdown table.

    python benchmarks/methods.py --dataset=ml-100k --epochs=10 --reference_epochs=20 --output=methods.csv

Rows that are in the output file already are not run again; it is of one data set, seed and number of epochs. For
seeds, spreads and significance use ``run_recbole_pref.py --compare``.
"""

import argparse
import sys

from common import exit_code_of, read_rows, write_rows
from tabulate import tabulate

COLUMNS = ("ndcg@10", "hit@10", "headndcg@10", "tailndcg@10", "tailhit@10")


def main():
    """Run what is missing and print the table.

    Raises:
        PrefError: a mistake in the command line or the data, or a table of other settings.
    """
    from recbole_pref.quick_start import run_recbole_pref
    from recbole_pref.registry import BACKBONES, METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--reference_epochs", type=int, default=20)
    parser.add_argument("--eval_step", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--output", default="methods.csv")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    same = {key: getattr(arguments, key) for key in ("dataset", "seed", "reference_epochs", "eval_step")}
    same["most_epochs"] = arguments.epochs
    rows = {row["model"]: row for row in read_rows(arguments.output, same)}
    for backbone in arguments.backbones.split(","):
        for method in arguments.methods.split(","):
            name = method + backbone
            if name in rows:
                continue
            settings = {
                "epochs": arguments.reference_epochs if method in ("CE", "LPO", "ORPO") else arguments.epochs,
                "reference_epochs": arguments.reference_epochs,
                "eval_step": arguments.eval_step,
                "seed": arguments.seed,
                "data_path": arguments.data_path,
                "state": "ERROR",
            }
            result = run_recbole_pref(name, arguments.dataset, config_dict=settings)
            row = {**same, "model": name, "epochs": result["epochs"], "s/epoch": result["seconds_per_epoch"]}
            row.update({key: result["test_result"][key] for key in COLUMNS})
            rows[name] = row
            write_rows(arguments.output, list(rows.values()))
            print(row, file=sys.stderr)
    cells = [
        [row["model"], row["epochs"], f"{float(row['s/epoch']):.1f}"]
        + [f"{float(row[key]):.4f}" for key in COLUMNS]
        for row in rows.values()
    ]
    print(tabulate(cells, ["model", "epochs", "s / epoch", *COLUMNS], "github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
