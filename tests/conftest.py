"""Shared fixtures: a clean command line, one thread, a temporary working folder, a tiny data set."""

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from . import warm

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# By default Ray gives trials a lower priority than other tests on the same cores.
os.environ.setdefault("RAY_worker_niceness", "0")
# A shell that runs the tests in the background lets them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take longest. They run first, so that no process of pytest-xdist is left alone with one at the end.
LONGEST = ("test_tune", "test_compare", "test_cluster", "test_lost_machines", "test_distributed", "test_machines")


def pytest_collection_modifyitems(items):
    """Run the longest files first."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def write_atomic(folder, name, sequences):
    """Write sequences of item numbers as RecBole's ``name/name.inter`` and return the file."""
    path = Path(folder, name, f"{name}.inter")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, sequence in enumerate(sequences):
        lines += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(sequence)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_sequences(n_users=60, n_items=40, seed=0):
    """Return sequences with a long tail of items and some order to learn: list of list of int."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, n_items + 1)
    popularity /= popularity.sum()
    sequences = []
    for _ in range(n_users):
        sequence = [int(rng.choice(n_items, p=popularity))]
        for _ in range(int(rng.integers(4, 18))):
            step = (sequence[-1] + 1) % n_items
            sequence.append(step if rng.random() < 0.4 else int(rng.choice(n_items, p=popularity)))
        sequences.append(sequence)
    return sequences


def wait_for(condition, seconds=300):
    """Return the first true value of ``condition()``."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("what the test waits for did not happen")


def ray_processes(title):
    """Return the processes of Ray below this one that have these words in their title."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture(autouse=True)
def clean_process(monkeypatch, tmp_path):
    """RecBole reads sys.argv and writes log folders into the working folder."""
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    logger = logging.getLogger()
    level = logger.level
    yield
    logger.setLevel(level)
    for handler in list(logger.handlers):
        if type(handler) in (logging.FileHandler, logging.StreamHandler):
            logger.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with the data set ``tiny``: 60 users, 40 items."""
    folder = tmp_path_factory.mktemp("data")
    write_atomic(folder, "tiny", tiny_sequences())
    return folder


@pytest.fixture
def tiny_dataset(tiny_folder, tmp_path):
    """Settings of a run of seconds on ``tiny``; pass them as ``config_dict``."""
    return {
        "dataset": "tiny",
        "data_path": str(tiny_folder),
        "checkpoint_dir": str(tmp_path / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 8,
        "epochs": 2,
        "reference_epochs": 2,
        "train_batch_size": 64,
        "eval_batch_size": 64,
        "topk": [5, 10],
        "n_layers": 1,
        "n_heads": 2,
        "hidden_size": 16,
        "inner_size": 32,
        "embedding_size": 16,
        "nv": 2,
        "nh": 2,
        "state": "ERROR",
        "num_negatives": 3,
        "pool_size": 10,
        "gpu_id": "",
    }


@pytest.fixture
def settings(tiny_dataset):
    """The settings that go with the data set and the folders of a comparison or a sweep."""
    return {key: value for key, value in tiny_dataset.items() if key not in ("checkpoint_dir", "dataset")}


@pytest.fixture(scope="module")
def workers_find_the_package():
    """The folder of this checkout on the path of Ray's processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path]))
        yield


@pytest.fixture(scope="session")
def parent_of_workers():
    parent = warm.Parent()
    yield parent
    parent.close()


@pytest.fixture
def warm_workers(monkeypatch, parent_of_workers):
    """Start the worker server of comparisons without its imports, which take seconds."""
    monkeypatch.setattr("recbole_pref.compare.runs.subprocess", parent_of_workers)


@pytest.fixture
def no_memory_check(monkeypatch):
    """Start sweeps without the estimate of their memory, which takes seconds."""
    monkeypatch.setattr("recbole_pref.tune.memory_check.check", lambda *arguments: None)


@pytest.fixture
def no_pictures(monkeypatch):
    """End sweeps without their pictures, which take seconds."""
    monkeypatch.setattr("recbole_pref.tune.results._draw", lambda *arguments: None)


@pytest.fixture(scope="session")
def real_data():
    """The folder with amazon-beauty and lastfm-artists, or a visible skip."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RECBOLE_PREF_DATA", default))
    if not (folder / "lastfm-artists").is_dir():
        pytest.skip("real data are missing: set RECBOLE_PREF_DATA to a folder with lastfm-artists")
    return folder
