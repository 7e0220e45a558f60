"""Seconds per training epoch on an idle machine and next to busy cores, for several ways in which threads wait.

    python benchmarks/busy.py --busy=0,1
    python benchmarks/busy.py --busy=0,1 --waiting=,GOMP_SPINCOUNT=0,GOMP_SPINCOUNT=300000

torch's OpenMP threads spin while they wait for each other. ``--waiting`` lists environment variables, each
as NAME=VALUE; an empty one is the default of the package. Each case runs in its own process and is stopped
after ``--limit`` seconds. The result is the fastest of ``--epochs`` epochs after a warm-up epoch.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys

from tabulate import tabulate

SPIN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def measure(arguments):
    """Print the seconds of each epoch as they end, in this process."""
    from common import ready_run, seconds_of

    from recbole_pref.config import Config

    run = ready_run(Config(arguments.model, "ml-100k", config_dict={"state": "ERROR", "gpu_id": ""}))
    for epoch in range(arguments.epochs + 1):
        print(seconds_of(lambda: run.trainer._preference_epoch(epoch, False)), flush=True)


def seconds_per_epoch(waiting, arguments):
    """Return the seconds of the fastest epoch with an environment variable, or None if no epoch ended in time."""
    environment = {name: value for name, value in os.environ.items() if name not in SPIN}
    environment |= {"OMP_NUM_THREADS": str(arguments.threads)}
    if waiting:
        environment |= dict([waiting.split("=", 1)])
    command = [sys.executable, __file__, "--case", f"--model={arguments.model}", f"--epochs={arguments.epochs}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = process.communicate(timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    if process.returncode not in (0, -9):
        sys.exit(f"{waiting or 'package'} failed")
    epochs = [float(line) for line in printed.split()][1:]
    return min(epochs, default=None)


def _spin():
    while True:
        pass


def main():
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="CESASRec")
    parser.add_argument("--busy", default="0,1", help="numbers of busy cores, separated by commas")
    parser.add_argument("--waiting", default=",GOMP_SPINCOUNT=300000,OMP_WAIT_POLICY=PASSIVE")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=120, help="seconds for each case, its start included")
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        measure(arguments)
        return
    rows = []
    for busy in map(int, arguments.busy.split(",")):
        workers = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(busy)]
        for worker in workers:
            worker.start()
        for waiting in arguments.waiting.split(","):
            seconds = seconds_per_epoch(waiting, arguments)
            shown = f"> {arguments.limit:.0f}" if seconds is None else f"{seconds:.2f}"
            rows.append([waiting or "the package's choice", busy, shown])
            print(f"done: {rows[-1]}", file=sys.stderr)
        for worker in workers:
            worker.kill()
    print(tabulate(rows, ["waiting", "busy cores", "s / epoch"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
