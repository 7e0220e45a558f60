"""Time and peak memory of evaluation against the size of the catalogue, ours and RecBole's.

    python benchmarks/evaluation.py --items=10000,100000,1000000
    python benchmarks/evaluation.py --items=10000 --mode=uni100

The data are generated sequences in which every item occurs once. The test targets of all users are ranked with random
weights of SASRec. Each case runs in its own process. The peak is that of the process after the data were generated;
the time is the faster of two evaluations. RecBole stores the scores of a whole batch of users (its
``eval_batch_size``), so it is measured only for catalogues of up to --stock_max_items. Both print the metrics of the
same weights, which must be equal.
"""

import argparse
import json
import sys
import tempfile

import numpy as np
import torch
from common import generated_data, result_of, seconds_of
from tabulate import tabulate

LENGTH = 10


def measure(kind, users, items, threads, mode):
    """Return seconds, peak MiB, MiB above the start and metrics of one case, in this process."""
    torch.set_num_threads(threads)
    from recbole.trainer import Trainer
    from recbole.utils import get_model, get_trainer, init_seed

    from recbole_pref.build import prepare_data
    from recbole_pref.config import Config
    from recbole_pref.memory import peak_mb
    from recbole_pref.model.names import model_class

    with tempfile.TemporaryDirectory() as folder:
        order = np.arange(items)  # a random order of the items, cut into one sequence per user
        settings = generated_data(folder, order * users // items, np.random.default_rng(0).permutation(items), order)
        settings |= {
            "MAX_ITEM_LIST_LENGTH": LENGTH,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": mode},
            "metrics": ["NDCG", "MRR"], "topk": [100], "valid_metric": "NDCG@100", "metric_decimal_place": 8,
        }  # fmt: skip
        name = "CESASRec" if kind == "ours" else "SASRec"
        config = Config(name, "generated", config_dict=settings)
        _, loaders = prepare_data(config, log=False)
        init_seed(config["seed"], True)
        make = model_class if kind == "ours" else get_model
        model = make(name)(config, loaders[0]._dataset)
        kind_of_trainer = get_trainer(config["MODEL_TYPE"], name) if kind == "ours" else Trainer
        trainer = kind_of_trainer(config, model)
        trainer.eval_collector.data_collect(loaders[0])
        before, found = peak_mb(), []
        evaluate = lambda: found.append(trainer.evaluate(loaders[2], load_best_model=False))  # noqa: E731
        seconds = min(seconds_of(evaluate) for _ in range(2))
        return {"seconds": seconds, "peak": peak_mb(), "more": peak_mb() - before, "metrics": dict(found[0])}


def main():
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", default="10000,100000,1000000")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--stock_max_items", type=int, default=100_000)
    parser.add_argument("--mode", default="full", help="as in eval_args: full, or uni100 for sampled candidates")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**json.loads(arguments.case))))
        return
    rows = []
    for items in map(int, arguments.items.split(",")):
        for kind in ("RecBole", "ours"):
            if kind == "RecBole" and items > arguments.stock_max_items:
                continue
            case = {key: getattr(arguments, key) for key in ("users", "threads", "mode")} | {
                "kind": kind,
                "items": items,
            }
            got = result_of(case, __file__, f"--case={json.dumps(case)}")
            metrics = ", ".join(f"{name} {value}" for name, value in got["metrics"].items())
            numbers = [f"{got['seconds']:.2f}", f"{got['more']:.0f}", f"{got['peak']:.0f}"]
            rows.append([f"{items:,}", kind, *numbers, metrics])
            print(rows[-1], file=sys.stderr)
    print(f"{arguments.users} users, {arguments.threads} threads")
    head = ["items", "evaluation", "s", "MiB of the evaluation", "peak MiB", "metrics"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
