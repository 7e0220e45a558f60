"""Data parallel training on several processes (``--nproc``), gloo on the CPU, NCCL on GPUs.

Every process builds the same data, batches and model, and takes its share of the rows of each batch. Weights are
normalised over the whole batch and gradients are summed before each step. So the result equals that of one process
with the same batch, up to rounding and the random numbers of dropout and samplers. Every process validates and
tests on all rows, so metrics are exact. The first process writes the files.
"""

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from recbole_pref import plugins
from recbole_pref.environment import threads_per_process
from recbole_pref.errors import PrefError

_PORT = 5678  # the default port when several machines train together
TIMEOUT = timedelta(minutes=30)  # with processes that do not answer
_LONGEST_FOLDER = 70  # of temporary files: the path of a socket in it has at most 107 characters
_alone = False


def world() -> tuple[int, int]:
    """Return the number of processes that train together, and the rank of this one."""
    if not _alone and dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def is_first() -> bool:
    """Return whether this process writes files and logs."""
    return world()[1] == 0


def from_first_process(value: Any) -> Any:
    """Return the first process's value of an object that can be pickled."""
    if world()[0] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def wait() -> None:
    """Wait for the other processes."""
    if world()[0] > 1:
        dist.barrier()


def share(batch: Any) -> Any:
    """Return this process's rows of a batch.

    If a batch is too small to share, every process takes all of it; the weights account for this.
    """
    size, rank = world()
    return batch if size == 1 or batch.parts() < size else batch.share(size, rank)


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over the processes, without gradient."""
    if world()[0] > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients of all processes in place; parameters without one count as zero."""
    if world()[0] == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


@contextmanager
def alone() -> Iterator[None]:
    """In the block, this process trains without the others, for example a reference model."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def launch(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    nproc: int,
    ip: str = "localhost",
    port: str | int | None = None,
    group_offset: int = 0,
    world_size: int = -1,
) -> Any:
    """Run ``function(**arguments)`` in ``nproc`` processes and return the first one's result.

    With ``nproc`` 1 the function runs in this process.

    Args:
        function: an importable function with a picklable result.
        arguments: its keyword arguments.
        nproc: processes on this machine.
        ip: address of the machine with the first process.
        port: port on that machine at which the processes connect; by default a free one when all processes
            are on this machine, otherwise 5678.
        group_offset: number of the first process of this machine.
        world_size: processes on all machines; -1 for ``nproc``.

    Raises:
        PrefError: the port is in use, or a process ended early; the others are stopped.
    """
    import torch.multiprocessing as mp

    size = nproc if world_size <= 0 else world_size
    if port is None:
        port = 0 if size == nproc else _PORT
    ip = "127.0.0.1" if ip == "localhost" else ip
    if group_offset == 0:  # listens until all processes have ended
        store = open_store(ip, port)
        port = store.port
    group_of_machine = (size, nproc, group_offset, ip, int(port))
    if nproc == 1:  # needs no other process on this machine
        return _take_part(0, function, arguments, *group_of_machine)
    # A file, because a pipe holds 64 KB and would have to be read while the processes run.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result")
        context = (sys.orig_argv, dict(os.environ), file)
        try:
            mp.start_processes(
                _entry, (context, function, arguments, *group_of_machine), nproc, start_method=_start_method()
            )
        except mp.ProcessRaisedException as error:
            lines = str(error).strip().splitlines()
            message = lines[-1].split("PrefError: ", 1)[-1] if lines else "no message"
            raise PrefError(
                f"process {error.error_index} of {nproc} failed, the others were stopped: {message}"
            ) from error
        except mp.ProcessExitedException as error:
            raise PrefError(
                f"process {error.error_index} of {nproc} died (exit code {error.exit_code}), the others were "
                "stopped; continue with --resume=True."
            ) from error
        return pickle.loads(file.read_bytes()) if file.is_file() else None


def _start_method() -> str:
    """Return how processes start: as forks of a server that has imported RecBole and torch, where that is safe.

    The processes share the memory of both.
    """
    if sys.platform != "linux" or len(tempfile.gettempdir()) > _LONGEST_FOLDER:
        return "spawn"
    multiprocessing.set_forkserver_preload(["recbole.trainer"])
    return "forkserver"


def open_store(ip: str, port: Any) -> dist.TCPStore:
    """Return the store to which the processes connect; it listens at a port, or at a free one for port 0."""
    if not str(port).isdecimal() or int(port) >= 2**16:
        raise PrefError(f"port={port!r} is not accepted: set --port to a whole number below {2**16}.")
    try:
        return dist.TCPStore(ip, int(port), is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    except dist.DistError as error:
        raise PrefError(
            f"port={port} cannot be used on this machine ({_reason(error)}): choose another one with --port, or leave "
            "it out when all processes are on one machine."
        ) from error


def _join_store(ip: str, port: int) -> dist.TCPStore:
    """Connect to the store of :func:`open_store` from another process."""
    try:
        return dist.TCPStore(ip, port, is_master=False, timeout=TIMEOUT)
    except dist.DistError as error:
        raise PrefError(
            f"the first process does not answer at {ip}, port {port} ({_reason(error)}): start it first, and name its "
            "machine with --ip and --port."
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _entry(local_rank: int, context: tuple[list[str], dict[str, str], Path], *arguments: Any) -> None:
    command, variables, file = context
    sys.orig_argv = command  # the log of a run begins with it
    os.environ.update(variables)  # a server that forks has those of its start
    plugins.load()
    result = _take_part(local_rank, *arguments)
    if result is not None:
        file.write_bytes(pickle.dumps(result))


def _take_part(
    local_rank: int,
    function: Callable[..., Any],
    arguments: dict[str, Any],
    size: int,
    nproc: int,
    offset: int,
    ip: str,
    port: int,
) -> Any:
    """Run the function as one of the processes; return the result in the first one."""
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= nproc
    if cuda:
        torch.cuda.set_device(local_rank)
    torch.set_num_threads(threads_per_process(nproc))
    with _explained(), group("nccl" if cuda else "gloo", ip, port, offset + local_rank, size):
        result = function(**arguments)
        wait()
        return result if is_first() else None


@contextmanager
def group(backend: str, ip: str, port: int, rank: int, size: int) -> Iterator[None]:
    """Be a member of a process group in the block.

    Args:
        backend: ``gloo`` or ``nccl``.
        ip, port: of the store that the first process opened.
        rank: number of this process, from 0.
        size: number of processes.
    """
    choose_interface(ip)
    dist.init_process_group(backend, store=_join_store(ip, port), rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one sentence that another process is gone, whatever operation noticed it.

    Raises:
        PrefError: the connection to another process was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise PrefError(
            f"the connection to another process is lost ({_reason(error)}): look there for the cause, then continue by "
            "giving all machines their commands again with --resume=True."
        ) from error


def choose_interface(ip: str) -> None:
    """Let gloo use the network interface that leads to an address, unless GLOO_SOCKET_IFNAME is set.

    By default gloo takes the address of the host's name, which is often a loopback address.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_to(ip))


def _interface_to(ip: str) -> str:
    """Return the name of the network interface with which this machine reaches an address, or "" if it has no name.

    Raises:
        PrefError: there is no route to the address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(ip, _PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise PrefError(
            f"ip={ip!r} cannot be reached from this machine ({error}): set --ip to the address of the machine with the "
            "first process."
        ) from error
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if own in {address.address for address in found}), "")
