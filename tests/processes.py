"""Functions that ``test_distributed`` runs in other processes, which import only this module."""

import os
import signal

import torch

from recbole_pref import distributed


def long_list(n):
    """Return the numbers below n."""
    return list(range(n))


def sum_over_processes(n):
    """Return n times the number of processes."""
    return distributed.total(torch.ones(1) * n).item()


def second_dies(**settings):
    """Kill the second process; the first waits for it."""
    if distributed.world()[1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.wait()
