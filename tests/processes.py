"""Functions that tests run in other processes, which import only this module."""

import os
import signal

import torch

from recbole_pref import distributed
from recbole_pref.methods import METHODS


def long_list(n):
    """Return the numbers below n."""
    return list(range(n))


def has_method(name):
    """Return whether the method exists."""
    return name in METHODS


def sum_over_processes(n):
    """Return n times the number of processes."""
    return distributed.total(torch.ones(1) * n).item()


def one_of_two_machines(offset, default_port):
    """Return the sum over the processes of two machines, in that of the first machine."""
    distributed._PORT = default_port
    return distributed.launch(sum_over_processes, {"n": 1}, 1, group_offset=offset, world_size=2)


def second_dies(**settings):
    """Kill the second process; the first waits for it."""
    if distributed.world()[1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.wait()


def train_and_count_references(settings):
    """Train S-DPO; write a letter into the file ``trained`` for each reference that this process trains."""
    from recbole_pref.quick_start import run_recbole_pref
    from recbole_pref.training import trainer

    train_reference = trainer.train_reference

    def counted(*arguments):
        with open(f"{settings['checkpoint_dir']}/trained", "a") as file:
            file.write("x")
        return train_reference(*arguments)

    trainer.train_reference = counted
    torch.set_num_threads(1)
    run_recbole_pref("SDPOSASRec", config_dict=settings)
