"""Where the time of a training epoch goes, and what share of the machine's arithmetic peak it reaches.

    python benchmarks/profile_epoch.py --dataset=ml-100k
    python benchmarks/profile_epoch.py --dataset=amazon-beauty --data_path=dataset/ --top=25

Three epochs after a warm-up: one is timed, one counts the arithmetic of matrix products (forward and backward), and
one is profiled. The peak is that of a large float32 matrix product with the same threads. The table gives the time
spent in each kind of operation, without the operations that it calls; ``outside`` is Python and the loader.
``--top=N`` lists the N most expensive operations as well.
"""

import argparse
import os

import torch
from common import ready_run, seconds_of
from scaling import machine
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# The first kind with a matching part of the operation's name wins.
KINDS = {
    "matrix products": ("mm", "linear", "mv", "aten::dot"),
    "attention": ("attention", "flash"),
    "random numbers": ("random_", "bernoulli", "dropout"),
    "embeddings: gather and scatter": ("index", "embedding", "gather", "scatter"),
    "optimizer": ("Optimizer", "_fused_adam"),
    "softmax and sums": ("softmax", "exp", "sum", "amax", "norm", "max", "cumsum"),
    "copies and memory": ("copy_", "empty", "zero", "fill", "clone", "cat", "resize", "to_copy"),
}


def kind_of(name):
    """Return the kind of operation that a profiled name belongs to."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other operations")


def main():
    """Profile and print the tables."""
    from recbole_pref.config import Config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--model", default="CESASRec")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--top", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"state": "ERROR", "gpu_id": "", "reference_epochs": 1}
    if arguments.data_path:
        settings["data_path"] = os.path.abspath(arguments.data_path)
    trainer = ready_run(Config(arguments.model, arguments.dataset, config_dict=settings)).trainer
    trainer.train_epoch(0)
    seconds = seconds_of(lambda: trainer.train_epoch(1))
    with FlopCounterMode(display=False) as counter:
        trainer.train_epoch(2)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        profiled = seconds_of(lambda: trainer.train_epoch(3))
    peak, _ = machine()
    rate = counter.get_total_flops() / seconds / 1e9
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    spent: dict[str, float] = {}
    for event in events:
        spent[kind_of(event.key)] = spent.get(kind_of(event.key), 0.0) + event.self_cpu_time_total / 1e6
    spent["outside"] = max(0.0, profiled - sum(spent.values()))
    print(
        f"{arguments.model}, {arguments.dataset}, {arguments.threads} threads: {seconds:.2f} s per epoch "
        f"({profiled:.2f} profiled), {rate:.0f} of {peak:.0f} GFLOP/s: {rate / peak:.0%} of the peak"
    )
    sorted_kinds = sorted(spent.items(), key=lambda pair: -pair[1])
    rows = [[kind, f"{own:.2f}", f"{own / profiled:.0%}"] for kind, own in sorted_kinds]
    print(tabulate(rows, ["operations", "s", "share"], "github", disable_numparse=True))
    if arguments.top:
        rows = [[event.key, event.count, f"{event.self_cpu_time_total / 1e6:.2f}"] for event in events[: arguments.top]]
        print(tabulate(rows, ["operation", "calls", "s"], "github", disable_numparse=True))


if __name__ == "__main__":
    main()
