"""Epoch time and peak memory against stock RecBole, on the same machine in the same run.

    python benchmarks/epoch.py --dataset=ml-100k --models=CESASRec,LPOSASRec
    python benchmarks/epoch.py --dataset=amazon-beauty --data_path=dataset/ --models=CESASRec,SDPOSASRec

Each case runs in its own process. Stock RecBole trains one timed epoch; our models train a warm-up epoch and three
timed ones, of which the fastest counts. Evaluations are the fastest of three for both.
Stock RecBole trains the backbone with cross-entropy through RecBole's own trainer and loader. RecBole
switches autograd's anomaly detection on for every model when it is imported (sequential_recommender/
sine.py); ``stock`` keeps it as published, ``stock-fair`` switches it off. With ``--stock_batches=N``
stock trains N batches and its epoch is extrapolated; the table says so.
"""

import argparse
import json
import os
import sys

from common import ready_run, result_of, seconds_of
from tabulate import tabulate

KEYS = ("dataset", "data_path", "train_batch_size", "threads", "stock_batches", "epochs", "settings")


def measure(case, model_name, options):
    """Return seconds per epoch, peak memory in MiB and training rows of one case, in this process."""
    import torch

    torch.set_num_threads(options["threads"])
    from recbole.trainer import Trainer
    from recbole.utils import get_model

    from recbole_pref.build import prepare_data
    from recbole_pref.config import Config
    from recbole_pref.memory import peak_mb

    # Only RecBole's own metrics: stock RecBole has no others.
    settings = {
        "state": "ERROR",
        "train_batch_size": options["train_batch_size"],
        "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision"],
        "topk": [10],
        "valid_metric": "MRR@10",
    }
    settings.update(options["settings"])
    if options["data_path"]:
        settings["data_path"] = options["data_path"]
    config = Config(model_name, options["dataset"], config_dict=settings)
    if case == "ours":
        run = ready_run(config)
        trainer, train_data = run.trainer, run.train_data
        trainer.train_epoch(0)
        seconds = min(seconds_of(lambda: trainer.train_epoch(1)) for _ in range(options["epochs"]))
        evaluate = lambda: trainer.evaluate(run.test_data, load_best_model=False)
        evaluation = min(seconds_of(evaluate) for _ in range(options["epochs"]))
        rows = len(train_data._dataset)
    else:
        dataset, loaders = prepare_data(config, log=False)
        model = get_model(model_name)(config, loaders[0]._dataset).to(config["device"])
        trainer, train_data = Trainer(config, model), loaders[0]
        torch.autograd.set_detect_anomaly(case == "stock")
        share = 1.0
        if options["stock_batches"]:
            batches = [b for b, _ in zip(train_data, range(options["stock_batches"]))]
            share = sum(len(b) for b in batches) / len(train_data._dataset)
            train_data = _Batches(batches)
        seconds = seconds_of(lambda: trainer._train_epoch(train_data, 0)) / share
        torch.autograd.set_detect_anomaly(False)
        trainer.eval_collector.data_collect(loaders[0])
        evaluate = lambda: trainer.evaluate(loaders[2], load_best_model=False)
        evaluation = min(seconds_of(evaluate) for _ in range(options["epochs"]))
        rows = len(loaders[0]._dataset)
    return {
        "seconds": seconds,
        "evaluation": evaluation,
        "peak_mb": peak_mb(),
        "rows": rows,
    }


class _Batches(list):
    shuffle = False


def main():
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--models", default="CESASRec,LPOSASRec")
    parser.add_argument("--stock", default="SASRec", help="RecBole's model, or empty for none")
    parser.add_argument("--stock_batches", type=int, default=0)
    parser.add_argument("--stock_cases", default="stock,stock-fair")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of our models; the fastest counts")
    parser.add_argument("--train_batch_size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON of additional settings")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        options = json.loads(arguments.options)
        print(json.dumps(measure(arguments.case, arguments.models, options)))
        return
    options = {key: getattr(arguments, key) for key in KEYS}
    cases = [(case, arguments.stock) for case in arguments.stock_cases.split(",") if arguments.stock]
    cases += [("ours", model) for model in arguments.models.split(",") if model]
    rows, base = [], None
    for case, model in cases:
        words = (f"--case={case}", f"--models={model}", f"--options={json.dumps(options)}")
        got = result_of(f"{case} {model}", __file__, *words)
        base = base or got
        rows.append(
            [
                f"{case} {model}",
                f"{got['seconds']:.2f}",
                f"1/{base['seconds'] / got['seconds']:.1f}",
                f"{got['rows'] / got['seconds']:.0f}",
                f"{got['evaluation']:.2f}",
                f"1/{base['evaluation'] / got['evaluation']:.1f}",
                f"{got['peak_mb']:.0f}",
                f"{got['peak_mb'] / base['peak_mb']:.2f}",
            ]
        )
        print(f"done: {rows[-1]}", file=sys.stderr)
    note = f" (stock extrapolated from {options['stock_batches']} batches)" * bool(options["stock_batches"])
    print(f"{options['dataset']}, batch {options['train_batch_size']}, {options['threads']} threads{note}")
    head = ["case", "s / epoch", "ratio", "targets / s", "test eval s", "ratio", "peak MiB", "ratio"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
