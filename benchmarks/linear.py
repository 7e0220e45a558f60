"""Linear models: time, memory and accuracy of the fit, dense and sparse, and the fit of a large catalogue.

    python benchmarks/linear.py --dataset=amazon-beauty --data_path=DIR --models=TALE,SLIST,SeqEASE
    python benchmarks/linear.py --items=200000 --users=200000

The first form runs each model through ``run_recbole_pref`` with its defaults, dense and sparse, each in its own
process; seconds are those of the fit and of the whole run, MiB the peak of the process. The second form fits
random sequences whose items follow Zipf's law, without RecBole.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from common import result_of
from tabulate import tabulate

_GROUPS = ("ndcg@10", "headndcg@10", "tailndcg@10")


def run_case(case):
    """Return seconds, MiB and test metrics of one model."""
    from recbole_pref.memory import peak_mb
    from recbole_pref.quick_start import run_recbole_pref

    torch.set_num_threads(case["threads"])
    started = time.perf_counter()
    result = run_recbole_pref(case["model"], case["dataset"], config_dict=case["settings"], saved=case["saved"])
    return {
        "fit": result["seconds_per_epoch"],
        "whole": time.perf_counter() - started,
        "mb": peak_mb(),
        "test": [result["test_result"][name] for name in _GROUPS],
    }


def zipf_sequences(n_users, n_items, mean_length, seed=0):
    """Return random sequences whose items follow Zipf's law and often follow the one before: ``Sequences``."""
    from recbole_pref.model.linear import Sequences

    rng = np.random.default_rng(seed)
    lengths = 2 + rng.geometric(1 / (mean_length - 2), size=n_users)
    law = np.cumsum(1 / np.arange(1, n_items))
    items = 1 + np.searchsorted(law, rng.random(lengths.sum()) * law[-1])
    follows = rng.random(len(items)) < 0.3
    items[1:][follows[1:]] = 1 + (items[:-1][follows[1:]] * 7 + rng.integers(0, 5, follows[1:].sum())) % (n_items - 1)
    return Sequences(items, np.concatenate(([0], lengths.cumsum())))


def fit_case(case):
    """Return seconds and MiB of a fit on random sequences, and the size of the result."""
    from recbole_pref.memory import peak_mb
    from recbole_pref.model.linear import LinearModel, LinearSettings

    torch.set_num_threads(case["threads"])
    sequences = zipf_sequences(case["users"], case["items"], case["length"])
    before, started = peak_mb(), time.perf_counter()
    model = LinearModel(case["items"], 4.0)
    model.fit(sequences, LinearSettings(tau_train=8.0, c=0.1, beta=-0.25, memory_mb=case["memory"]))
    seconds = time.perf_counter() - started
    lists = torch.from_numpy(sequences.items[: 256 * 10].reshape(256, 10))
    started = time.perf_counter()
    model.scores(lists, torch.full((256,), 10))
    scoring = time.perf_counter() - started
    return {
        "interactions": len(sequences.items), "fit": seconds, "before": before, "mb": peak_mb(),
        "weights": len(model.values) if model.is_sparse else case["items"] ** 2, "scoring": 1000 * scoring / 256,
    }  # fmt: skip


def main():
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--models", default="TALE,SLIST,SeqEASE")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--items", type=int, help="fit a random catalogue of this size instead")
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--length", type=float, default=10.0, help="mean length of a random sequence")
    parser.add_argument("--memory", type=float, default=4096.0, help="linear_memory_mb of the random catalogue")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        print(json.dumps(fit_case(case) if "items" in case else run_case(case)))
        return
    if arguments.items:
        case = {key: getattr(arguments, key) for key in ("items", "users", "length", "memory", "threads")}
        found = result_of("the random catalogue", __file__, f"--case={json.dumps(case)}")
        head = ["items", "interactions", "fit, s", "peak MiB", "MiB before", "weights", "ms per scored row"]
        row = [arguments.items, *(found[key] for key in ("interactions", "fit", "mb", "before", "weights", "scoring"))]
        print(tabulate([row], head, tablefmt="github", floatfmt=".1f", intfmt=","))
        return
    rows = []
    for model in arguments.models.split(","):
        for form, memory in (("dense", 1e6), ("sparse", 0)):
            for masked in (False, True):
                settings = {"state": "ERROR", "gpu_id": "", "linear_memory_mb": memory, "mask_history": masked}
                if arguments.data_path:
                    settings["data_path"] = arguments.data_path
                case = {
                    "model": model, "dataset": arguments.dataset, "settings": {**settings, **arguments.settings},
                    "threads": arguments.threads, "saved": False,
                }  # fmt: skip
                found = result_of(f"{model}, {form}", __file__, f"--case={json.dumps(case)}")
                shown = " / ".join(f"{value:.4f}".lstrip("0") for value in found["test"])
                costs = [f"{found['fit']:.1f}", f"{found['whole']:.0f}", f"{found['mb']:.0f}"]
                rows.append([model, form, "masked" if masked else "not masked", shown, *costs])
                print(rows[-1], file=sys.stderr)
    head = ["model", "weights", "history", "NDCG@10 all / head / tail", "fit, s", "run, s", "peak MiB"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
