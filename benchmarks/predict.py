"""Recommendations per second from a checkpoint, against RecBole's own full_sort_topk.

    python benchmarks/predict.py --dataset=ml-100k
    python benchmarks/predict.py --dataset=amazon-beauty --data_path=dataset/ --users=20000

Trains SASRec for one epoch, then recommends 10 items for the test sequences of the same users in both ways.
RecBole takes internal user ids and needs the data set; ours takes item tokens and the checkpoint alone.
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from tabulate import tabulate


def main():
    """Measure both ways and print the table."""
    from recbole.utils.case_study import full_sort_topk

    from recbole_pref.predict import Recommender
    from recbole_pref.quick_start import load_data_and_model, run_recbole_pref

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--users", type=int, default=943)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"epochs": 1, "checkpoint_dir": folder, "state": "ERROR", "data_path": arguments.data_path}
        path = run_recbole_pref("CESASRec", arguments.dataset, config_dict=settings)["checkpoint"]
        _, model, dataset, _, _, test_data = load_data_and_model(path)
        recommender = Recommender(path)
    rows = test_data._dataset.inter_feat
    users = rows[dataset.uid_field].numpy()[: arguments.users]
    lists = rows[dataset.iid_field + "_list"][: arguments.users]
    lengths = rows["item_length"][: arguments.users]
    sequences = [
        [str(token) for token in dataset.id2token(dataset.iid_field, items[:length].numpy())]
        for items, length in zip(lists, lengths)
    ]
    model.eval()
    ways = {
        "RecBole full_sort_topk": lambda: full_sort_topk(users, model, test_data, 10, torch.device("cpu")),
        "Recommender": lambda: recommender.recommend(sequences, 10, exclude_seen=False),
        "Recommender, seen items left out": lambda: recommender.recommend(sequences, 10),
    }
    seconds = {}
    for name, way in ways.items():
        times = []
        for _ in range(arguments.repeats):
            started = time.perf_counter()
            result = way()
            times.append(time.perf_counter() - started)
        seconds[name] = min(times)
        if name == "RecBole full_sort_topk":
            expected = np.asarray(dataset.id2token(dataset.iid_field, result[1].numpy()))
        elif name == "Recommender":
            same = (result["item"].to_numpy().reshape(expected.shape) == expected).mean()
    base = seconds["RecBole full_sort_topk"]
    n = len(users)
    table = [[name, n, f"{s:.3f}", f"{n / s:.0f}", f"{base / s:.2f}"] for name, s in seconds.items()]
    header = ["way", "sequences", "seconds", "sequences / s", "speed-up"]
    print(tabulate(table, header, "github", disable_numparse=True))
    print(f"{same:.2%} of the recommended items are the same in the first two ways")


if __name__ == "__main__":
    main()
