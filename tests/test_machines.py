"""Two machines, each a network namespace of its own, train one model."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from recbole_pref import checkpoint
from recbole_pref.quick_start import run

from .test_distributed import EXACT

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PATIENCE = 50  # seconds after which a test fails


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture(scope="module")
def machines():
    """Names of two network namespaces with a cable between them, or a visible skip."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"pref{os.getpid()}{letter}" for letter in "ab"]
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        for name, address in zip(names, ADDRESSES):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=10)


@pytest.fixture
def start(machines, tmp_path):
    """Starts the command on a machine, in a process group that ends with the test."""
    started = []

    def on(number, settings, *options, address=ADDRESSES[0]):
        folder = tmp_path / f"machine{number}"
        folder.mkdir(exist_ok=True)
        (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        words = ["--model=LPOSASRec", "--config_files=run.yaml", "--nproc=1", "--world_size=2"]
        words += [f"--ip={address}", f"--group_offset={number}", *options]
        process = subprocess.Popen(
            ["ip", "netns", "exec", machines[number], sys.executable, "-m", "recbole_pref.cli", *words],
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield on
    for process in started:
        _kill(process)


def _kill(process):
    """Let a machine die: all of its processes are killed at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    process.stdout.close()


def test_two_machines_train_what_one_process_trains(start, tiny_dataset, tmp_path):
    settings = {**tiny_dataset, **EXACT, "checkpoint_dir": str(tmp_path / "two")}
    machines = [start(number, settings) for number in (0, 1)]
    (first, _), (second, _) = [machine.communicate(timeout=PATIENCE) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], first + second
    assert "test set" in first and "the first one prints the results" in second
    run("LPOSASRec", config_dict={**settings, "checkpoint_dir": str(tmp_path / "one")})
    states = []
    for folder in ("one", "two"):
        (last,) = (tmp_path / folder).glob("*-last-2.pth")  # one run, whatever the machines' clocks
        states.append(checkpoint.load(last)["state_dict"])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_an_address_without_a_route_is_named_with_its_option(start, tiny_dataset):
    lost = start(1, tiny_dataset, address="10.78.0.1")
    text, _ = lost.communicate(timeout=PATIENCE)
    assert lost.returncode == 2 and "ip='10.78.0.1' cannot be reached from this machine" in text, text


def test_a_dying_machine_ends_the_other_and_both_can_resume(start, tiny_dataset, tmp_path):
    folder = tmp_path / "saved"
    settings = {**tiny_dataset, "checkpoint_dir": str(folder), "eval_step": 5000, "state": "INFO"}
    done, resume = 0, []
    for dying in (0, 1):
        machines = [start(number, {**settings, "epochs": 5000}, *resume) for number in (0, 1)]
        _wait_for(lambda before=done: max(_epochs(folder), default=0) > before)
        _kill(machines[dying])
        left = machines[1 - dying]
        text, _ = left.communicate(timeout=PATIENCE)
        assert left.returncode == 2, text
        (sentence,) = (line for line in text.splitlines() if line.startswith("recbole-pref: "))
        assert "the connection to another process is lost" in sentence and "--resume=True" in sentence
        done, resume = max(_epochs(folder)), ["--resume=True"]
    machines = [start(number, {**settings, "epochs": done + 1}, *resume) for number in (0, 1)]
    texts = [machine.communicate(timeout=PATIENCE)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert f"{done} epoch" in texts[0] and "resumed from" in texts[0]
    assert list(folder.glob(f"*-last-{done + 1}.pth"))


def _epochs(folder):
    """Return the epochs of the checkpoints of a folder."""
    return [int(file.stem.rpartition("-")[2]) for file in folder.glob("*-last-*.pth")]


def _wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.1)
