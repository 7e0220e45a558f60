"""Recommendations per second from a checkpoint, against RecBole's own full_sort_topk.

    python benchmarks/predict.py --dataset=ml-100k
    python benchmarks/predict.py --dataset=amazon-beauty --data_path=dataset/ --users=20000

Trains SASRec for one epoch, then recommends 10 items for the test sequences of the same users in both ways.
RecBole takes internal user ids and needs the data set; ours takes item tokens and the checkpoint alone.

    python benchmarks/predict.py --file_rows=100000,1000000 --format=parquet

recommends from file to file instead: seconds and peak memory for files with this many of the sequences, each cut to
its last --length items.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate


def test_sequences(dataset, test_data, number):
    """Yield the item tokens of the first test sequences."""
    rows = test_data._dataset.inter_feat
    for items, length in zip(rows[dataset.iid_field + "_list"][:number], rows["item_length"][:number]):
        yield [str(token) for token in dataset.id2token(dataset.iid_field, items[:length].numpy())]


def from_file_to_file(path, source, target, queue):
    """Recommend for a file of sequences; put the seconds and the peak memory in MiB into a queue."""
    from recbole_pref.memory import peak_mb
    from recbole_pref.predict import predict_file

    started = time.perf_counter()
    predict_file(path, source, target)
    queue.put((time.perf_counter() - started, peak_mb()))


def print_files(path, sequences, sizes, ending):
    """Measure ``from_file_to_file`` in a process for each size and print the table."""
    texts, table = np.array([" ".join(sequence) for sequence in sequences], dtype=object), []
    context = multiprocessing.get_context("spawn")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, f"in.{ending}"), Path(folder, f"out.{ending}")
            frame = pd.DataFrame({"items": np.random.default_rng(0).choice(texts, rows)})
            frame.to_csv(source, index=False) if ending == "csv" else frame.to_parquet(source)
            queue = context.SimpleQueue()
            process = context.Process(target=from_file_to_file, args=(path, source, target, queue))
            process.start()
            process.join()
            seconds, peak = queue.get()
            written = target.stat().st_size / 2**20
        table.append([f"{rows:,}", *(f"{number:,.0f}" for number in (seconds, rows / seconds, peak, written))])
    header = ["rows", "seconds", "rows / s", "peak MiB", "output MiB"]
    print(tabulate(table, header, "github", disable_numparse=True))


def main():
    """Measure both ways, or from file to file, and print the table."""
    from recbole.utils.case_study import full_sort_topk

    from recbole_pref.predict import Recommender
    from recbole_pref.quick_start import load_data_and_model, run_recbole_pref

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--users", type=int, default=943)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--file_rows", default="")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"epochs": 1, "checkpoint_dir": folder, "state": "ERROR", "data_path": arguments.data_path}
        path = run_recbole_pref("CESASRec", arguments.dataset, config_dict=settings)["checkpoint"]
        _, model, dataset, _, _, test_data = load_data_and_model(path)
        recommender = Recommender(path)
        if arguments.file_rows:
            sizes = [int(size) for size in arguments.file_rows.split(",")]
            sequences = [items[-arguments.length :] for items in test_sequences(dataset, test_data, arguments.users)]
            print_files(path, sequences, sizes, arguments.format)
            return
    users = test_data._dataset.inter_feat[dataset.uid_field].numpy()[: arguments.users]
    sequences = list(test_sequences(dataset, test_data, arguments.users))
    model.eval()
    ways = {
        "RecBole full_sort_topk": lambda: full_sort_topk(users, model, test_data, 10, torch.device("cpu")),
        "Recommender": lambda: recommender.recommend(sequences, 10, exclude_seen=False),
        "Recommender, seen items excluded": lambda: recommender.recommend(sequences, 10),
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
