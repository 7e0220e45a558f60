"""Running out of memory is reported in one sentence that names the settings to lower."""

import os
import subprocess
import sys

import pytest
import torch

from recbole_pref import memory
from recbole_pref.errors import PrefError


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_the_settings_to_lower_are_named(error):
    with pytest.raises(PrefError) as caught, memory.explained():
        raise error
    for setting in ("logits_memory_mb", "train_batch_size", "eval_batch_size", "num_negatives"):
        assert setting in str(caught.value)
    assert caught.value.__cause__ is error


def test_an_allocation_that_cannot_succeed_is_explained():
    with pytest.raises(PrefError, match="logits_memory_mb"), memory.explained():
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory.explained():
        raise RuntimeError("shapes do not match")


def test_the_peak_is_that_of_the_process_alone():
    torch.ones(500 * 2**20, dtype=torch.uint8)
    code = "from recbole_pref.memory import peak_mb; print(peak_mb())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # the memory at the start of a process does not depend on its parent
    bare = [sys.executable, "-c", code]
    alone = subprocess.run(bare, capture_output=True, text=True, env=environment, check=True).stdout
    through = [sys.executable, "-c", f"import subprocess; subprocess.run({bare!r})"]
    other = subprocess.run(through, capture_output=True, text=True, env=environment, check=True).stdout
    assert abs(float(alone) - float(other)) < 100


def test_the_peak_holds_what_was_allocated_since_it_restarted():
    memory.restart_peak()
    before = memory.peak_mb()
    block = torch.ones(256 * 2**20, dtype=torch.uint8)
    assert memory.peak_mb() > before + 200
    del block
    memory.restart_peak()
    assert memory.peak_mb() < before + 56
