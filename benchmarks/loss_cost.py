"""Epoch time of every method relative to our own cross-entropy, in one process.

    python benchmarks/loss_cost.py --dataset=ml-100k
    python benchmarks/loss_cost.py --dataset=amazon-beauty --data_path=dataset/ --rounds=3
    python benchmarks/loss_cost.py --methods="CE,CE prior=TALE prior_in_training=True prior_weight=learned"

key=value after a method changes a setting.

The script trains one epoch of each model in turn, in several rounds, so that a noisy machine affects all models; the
fastest round of each model counts. Reference models are trained for one epoch, because their quality does not change
the time. Peak memory per method is measured by benchmarks/epoch.py.
"""

import argparse
import os
import tempfile

import torch
from common import ready_run, seconds_of
from tabulate import tabulate


def main():
    """Time the epochs and print the table."""
    from recbole_pref.config import Config
    from recbole_pref.settings.files import parse_value

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--backbone", default="SASRec")
    parser.add_argument("--methods", default="CE,LPO,SDPO,DynamicPO,RoDPO,TAWin")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data_path": os.path.abspath(arguments.data_path), "state": "ERROR", "reference_epochs": 1,
                    "checkpoint_dir": folder}  # fmt: skip
        trainers = {}
        for text in arguments.methods.split(","):
            method, *words = text.split()
            own = {key: parse_value(value) for key, _, value in (word.partition("=") for word in words)}
            config = Config(method + arguments.backbone, arguments.dataset, None, settings | own)
            trainers[" ".join([method + arguments.backbone, *words])] = ready_run(config).trainer
        names = list(trainers)
        seconds = {name: [] for name in names}
        for number in range(arguments.rounds):
            for name, trainer in trainers.items():
                seconds[name].append(seconds_of(lambda: trainer.train_epoch(number)))
    base = min(seconds[names[0]])
    rows = [
        [name, f"{min(own):.2f}", f"{sorted(own)[len(own) // 2]:.2f}", f"{min(own) / base:.2f}"]
        for name, own in seconds.items()
    ]
    print(f"{arguments.dataset}, {arguments.threads} threads, {arguments.rounds} rounds")
    print(tabulate(rows, ["model", "s / epoch", "median", f"ratio to {names[0]}"], "github", disable_numparse=True))


if __name__ == "__main__":
    main()
