"""Facts that a result depends on besides its settings: versions, machine, commit and command."""

import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from recbole_pref.checkpoint import to_plain, write_atomically
from recbole_pref.cores import usable_cores

_PACKAGES = ("torch", "numpy", "pandas", "ray", "recbole", "recbole_pref")


def environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """Return the versions, the machine, the commit and the command of this process.

    Args:
        device: the device in use; the default is the first CUDA
            device when there is one, otherwise the CPU.

    Returns:
        dict: plain values; None for an unknown fact.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": _device_name(torch.device(device)),
        "git_commit": git_commit(),
        "command": shlex.join(sys.orig_argv),
    }


def described(facts: dict) -> str:
    """Return the result of :func:`environment` as lines for the log."""
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value is not None)


def _version(name: str) -> str | None:
    module = sys.modules.get(name)  # its version also covers local builds ("2.13.0+cpu") and uninstalled checkouts
    version = getattr(module, "__version__", None)
    if isinstance(version, str):
        return str(version)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str | None:
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine() or None


def threads_per_process(processes: int) -> int:
    """Return how many of torch's threads (``OMP_NUM_THREADS``) each of several processes may use."""
    return max(1, min(torch.get_num_threads(), usable_cores()) // processes)


def python_path(paths: Iterable[str]) -> str:
    """Return ``PYTHONPATH`` for other processes: this package's folder first, then ``paths``.

    An interactive session has an uninstalled checkout on its path as "", which is wrong in another folder.
    """
    package = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(dict.fromkeys([package, *filter(None, paths)]))


def git_commit(folder: str | Path = ".") -> str | None:
    """Return the commit checked out in ``folder``, with ``-dirty`` when files differ, or None."""
    # `describe` looks at the commit and the working tree in one call; no tag replaces the hash.
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None if process.returncode == 0 else None


def write_result(path: str | os.PathLike, result: dict[str, Any], setting: str = "result_file") -> None:
    """Write ``result`` atomically as JSON that any parser reads.

    Tensors become numbers or lists. Objects without a plain form become text. Numbers that JSON lacks become
    "nan", "inf" and "-inf", which ``float()`` reads.

    Args:
        path: the file to create or replace.
        result: the values.
        setting: the setting that holds the path, for messages.

    Raises:
        PrefError: the file cannot be written; names the setting.
    """
    text = json.dumps(_json_value(to_plain(result, other=str)), indent=2, allow_nan=False)

    def write(file: IO[bytes]) -> None:
        file.write(text.encode("utf-8") + b"\n")

    write_atomically(path, write, setting)


def _json_value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _json_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    return value


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM, which cluster schedulers send to end a job, like Ctrl-C; only in the main thread.

    Raises:
        KeyboardInterrupt: SIGTERM arrived.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():  # Ray Train replaces that of SIGINT
            if handler is not None:  # None: the handler was not set from Python and cannot be restored
                signal.signal(number, handler)
